"""compose.yaml: its rules, planted faults that they find, and all of it started for real by Docker Compose.

Where no registry is reached, Debian's HAProxy and Redis stand in for the published images of them.
"""

import copy
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import yaml

from bootstrap import environment, free_port
from containers import PATIENCE, Docker, docker, find_compose, find_engine
from installed import PACKAGE, SLUG
from raw import MODERN, Connection, Json, Response, headers_of, message, post
from rendering import render, run
from stops import outcome

pytestmark = [
    pytest.mark.timeout(900),  # the first of the last ones waits for two builds
    pytest.mark.skipif(sys.platform == "win32", reason="it is not run on Windows"),
]

LIMIT = 20  # what one key may spend at once (MCP_RATE_LIMIT_BURST)
LONGEST_TOOL = 600  # seconds that the doctor accepts
STAND_INS = """FROM {base}
RUN apt-get update && apt-get install --yes --no-install-recommends busybox haproxy redis-server \\
  && ln -s busybox /bin/wget
"""
ASKS = '''"""A tool that asks its caller something, and keeps what it knows in sealed state."""

from mcp_types import ElicitRequest, ElicitRequestFormParams, InputRequiredResult

from ..tooling import Context, tool


@tool(read_only=True)
async def ask_back(ctx: Context) -> str | InputRequiredResult:
    """Ask once."""
    if ctx.request_state is None:
        form = ElicitRequestFormParams(message="What?", requested_schema={"type": "object", "properties": {}})
        return InputRequiredResult(input_requests={"what": ElicitRequest(params=form)}, request_state="known")
    return ctx.request_state
'''


# What Compose says


def accepts(compose: Json, folder: Path) -> bool:
    """Whether Docker Compose can read it, by the schema of the Compose Specification and by what it refers to."""
    (folder / "compose.yaml").write_text(json.dumps(compose), encoding="utf-8")
    line = [*find_compose(), "--file", str(folder / "compose.yaml"), "config", "--quiet"]
    done = subprocess.run(line, env=environment(), capture_output=True, text=True, timeout=60, check=False)
    return done.returncode == 0 and "obsolete" not in done.stderr


@pytest.fixture(scope="module")
def compose(rendered: Path) -> Json:
    """The file, its anchors resolved."""
    found: Json = yaml.safe_load((rendered / "compose.yaml").read_text(encoding="utf-8"))
    return found


def test_compose_accepts_it(compose: Json, tmp_path: Path) -> None:
    """Nothing is misspelt, of a wrong type, or obsolete."""
    assert accepts(compose, tmp_path)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("version", "3"),
        ("services.server.read_onyl", True),
        ("services.server.scale", "many"),
        ("services.server.stop_grace_period", "soon"),
        ("services.balancer.depends_on.server.condition", "healthy"),
        ("services.balancer.networks", ["caller"]),
        ("services.server.secrets", ["request-state-key"]),
    ],
)
def test_compose_refuses_what_is_wrong(compose: Json, tmp_path: Path, path: str, value: object) -> None:
    """So that the test above means something."""
    assert not accepts(put(compose, path, value), tmp_path)


def test_balancer_accepts_its_configuration(compose: Json, tmp_path: Path) -> None:
    """HAProxy finds no fault in it, and nothing to warn of."""
    program = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
    if program is None:
        pytest.skip("haproxy is not on PATH; `apt-get install haproxy` installs it")
    (tmp_path / "haproxy.cfg").write_text(configuration(compose), encoding="ascii")
    done = subprocess.run(
        [program, "-c", "-f", tmp_path / "haproxy.cfg"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def put(document: Json, path: str, value: object) -> Json:
    """A copy with this value at a path as in `services.server.scale`; None takes out what is there."""
    changed = copy.deepcopy(document)
    *parents, last = path.split(".")
    at: Json = changed
    for name in parents:
        at = at[name]
    if value is None:
        del at[last]
    else:
        at[last] = value
    return changed


# Rules


def every(key: str, holds: Callable[[Any], bool]) -> Callable[[Json], bool]:
    """Whether each service has this key, with a value of which it holds."""
    return lambda compose: all(key in each and holds(each[key]) for each in compose["services"].values())


def settings(compose: Json) -> dict[str, str]:
    """What the server is set to."""
    return dict(compose["services"]["server"]["environment"])


def configuration(compose: Json) -> str:
    """The balancer's."""
    return str(compose["services"]["balancer"]["environment"]["CONFIGURATION"])


def directive(compose: Json, name: str) -> float:
    """What a directive of the balancer's configuration says, in seconds, or as a bare number."""
    (found,) = re.findall(rf"^.*\b{name} (\d+)(ms|s|m|)\b.*$", configuration(compose), re.MULTILINE)
    return int(found[0]) * {"ms": 0.001, "s": 1, "m": 60, "": 1}[found[1]]


def seconds(duration: str) -> float:
    """A duration as in 50s."""
    found = re.fullmatch(r"(\d+)s", duration)
    assert found
    return int(found[1])


def grace(compose: Json, service: str) -> float:
    """Seconds between the signal to stop and the kill."""
    return seconds(compose["services"][service].get("stop_grace_period", "10s"))


def stop_fits(compose: Json) -> bool:
    """Whether servers have the time to stop, the doctor knows of it, and the balancer waits as long as they do."""
    said = {name: float(value) for name, value in settings(compose).items() if name.endswith("_SECONDS")}
    drained = said["MCP_DRAIN_TIMEOUT_SECONDS"]
    needed = said["MCP_DRAIN_DELAY_SECONDS"] + drained + 10
    fits = needed <= said["MCP_GRACE_PERIOD_SECONDS"] == grace(compose, "server")
    return fits and drained <= directive(compose, "hard-stop-after") < grace(compose, "balancer")


def notices(compose: Json) -> bool:
    """Whether the balancer sees that a replica is to stop while that one still serves."""
    within = directive(compose, "inter") * directive(compose, "fall")
    return within < float(settings(compose)["MCP_DRAIN_DELAY_SECONDS"])


def networks(compose: Json, *services: str) -> set[str]:
    """The networks that all of these are in."""
    return set.intersection(*(set(compose["services"][each].get("networks", ["default"])) for each in services))


def trusts_the_balancer_alone(compose: Json) -> bool:
    """Whether `X-Forwarded-For` is believed of the network of balancer and server, and of no other."""
    (shared,) = networks(compose, "balancer", "server")
    (pool,) = compose["networks"][shared]["ipam"]["config"]
    return bool(settings(compose).get("MCP_TRUSTED_PROXIES") == pool["subnet"])


def redis_is_the_servers_own(compose: Json) -> bool:
    """Whether Redis is in one network with the servers, which has no way out, and in none with the balancer."""
    own = networks(compose, "redis")
    is_internal = all((compose["networks"].get(each) or {}).get("internal") is True for each in own)
    return is_internal and own <= networks(compose, "server") and not networks(compose, "balancer", "redis")


def is_gated(compose: Json) -> bool:
    """Whether each starts when what it needs is healthy."""
    needs = {
        name: {on: how["condition"] for on, how in each.get("depends_on", {}).items()}
        for name, each in compose["services"].items()
    }
    healthy = "service_healthy"
    return needs == {"redis": {}, "server": {"redis": healthy}, "balancer": {"server": healthy}}


def is_checked(check: Json) -> bool:
    """Whether a health check runs a program without a shell, and soon enough to wait for."""
    has_program = check.get("test", [""])[0] == "CMD"
    return has_program and seconds(check["interval"]) <= 10 and seconds(check["timeout"]) <= 5


def holds_no_secret(compose: Json) -> bool:
    """Whether secrets are files, below the folder that git does not keep, and no variable holds one."""
    named = [name for each in compose["services"].values() for name in each.get("environment", {})]
    variables = [name for name in named if re.search("KEY|TOKEN|SECRET|PASSW", name) and not name.endswith("_FILE")]
    files = [each.get("file", "") for each in compose["secrets"].values()]
    mounts = [mount for each in compose["services"].values() for mount in each.get("volumes", [])]
    sources = files + [mount.get("source", "") for mount in mounts]
    return (
        not variables
        and "@" not in settings(compose)["MCP_RATE_LIMIT_STORE"]
        and all(source.startswith("./secrets/") for source in sources)
        and all(mount["read_only"] is True and mount["bind"]["create_host_path"] is False for mount in mounts)
    )


def files_are_mounted(compose: Json) -> bool:
    """Whether each file that a setting names is in the container: a secret, or in a folder that is mounted."""
    server = compose["services"]["server"]
    named = {value for name, value in settings(compose).items() if name.endswith("_FILE")}
    there = {f"/run/secrets/{name}" for name in server.get("secrets", [])}
    folders = {mount["target"] for mount in server.get("volumes", [])}
    return len(named) == 2 and all(each in there or each.rpartition("/")[0] in folders for each in named)


NAMED = r"[\w/.-]+:\d+\.\d+[\w.-]*"  # a version of two numbers at least
KNOWN = {
    "build", "cap_drop", "command", "depends_on", "environment", "healthcheck", "image", "logging", "mem_limit",
    "networks", "ports", "read_only", "restart", "scale", "secrets", "security_opt", "stop_grace_period", "stop_signal",
    "tmpfs", "user", "volumes",
}  # fmt: skip
"""Keys of a service. Others give rights, or are to be looked at first."""

SERVER, REDIS, BALANCER = "services.server.", "services.redis.", "services.balancer."
PUBLISHED = "127.0.0.1:${PORT:-8000}:8000"

# A rule: whether the file keeps it, and changes that break it.
RULES: dict[str, tuple[Callable[[Json], bool], list[tuple[str, object]]]] = {
    "a root file system that is read-only": (
        every("read_only", lambda value: value is True),
        [(f"{SERVER}read_only", None), (f"{REDIS}read_only", False)],
    ),
    "/tmp in memory": (every("tmpfs", lambda value: "/tmp" in value), [(f"{BALANCER}tmpfs", [])]),
    "no capabilities": (every("cap_drop", lambda value: value == ["ALL"]), [(f"{REDIS}cap_drop", None)]),
    "no new privileges": (
        every("security_opt", lambda value: value == ["no-new-privileges"]),
        [(f"{BALANCER}security_opt", None), (f"{SERVER}security_opt", ["no-new-privileges", "seccomp:unconfined"])],
    ),
    "a user by number, not root": (
        every("user", lambda value: re.fullmatch(r"[1-9]\d*:[1-9]\d*", value) is not None),
        [(f"{REDIS}user", None), (f"{BALANCER}user", "0:0")],
    ),
    "no other rights": (
        lambda compose: all(each.keys() <= KNOWN for each in compose["services"].values()),
        [(f"{SERVER}privileged", True), (f"{SERVER}cap_add", ["NET_ADMIN"]), (f"{BALANCER}network_mode", "host")],
    ),
    "bounded memory": (
        every("mem_limit", lambda value: re.fullmatch(r"\d+m", value) is not None),
        [(f"{REDIS}mem_limit", None)],
    ),
    "bounded logs": (
        every("logging", lambda value: {"max-size", "max-file"} <= value["options"].keys()),
        [(f"{BALANCER}logging", None), (f"{SERVER}logging", {"driver": "json-file", "options": {}})],
    ),
    "started again": (every("restart", lambda value: value == "unless-stopped"), [(f"{REDIS}restart", None)]),
    "an image of a version, or the one built here": (
        lambda compose: all(
            "build" in each or re.fullmatch(NAMED, each["image"]) for each in compose["services"].values()
        ),
        [(f"{REDIS}image", "redis:latest"), (f"{REDIS}image", "redis"), (f"{BALANCER}image", "haproxy:alpine")],
    ),
    "the balancer's port alone, on loopback": (
        lambda compose: (
            {name: each["ports"] for name, each in compose["services"].items() if "ports" in each}
            == {"balancer": [PUBLISHED]}
        ),
        [
            (f"{REDIS}ports", ["127.0.0.1:6379:6379"]),
            (f"{SERVER}ports", ["8000"]),
            (f"{BALANCER}ports", ["8000:8000"]),
            (f"{BALANCER}ports", None),
        ],
    ),
    "health checks": (
        every("healthcheck", is_checked),
        [(f"{REDIS}healthcheck", None), (f"{SERVER}healthcheck", {"disable": True})],
    ),
    "gated by health": (
        is_gated,
        [
            (f"{BALANCER}depends_on.server.condition", "service_started"),
            (f"{SERVER}depends_on", None),
            (f"{BALANCER}depends_on", None),
        ],
    ),
    "two replicas, and the doctor knows": (
        lambda compose: (
            compose["services"]["server"].get("scale", 1) == int(settings(compose).get("MCP_REPLICAS", "1")) == 2
        ),
        [(f"{SERVER}scale", None), (f"{SERVER}environment.MCP_REPLICAS", "1")],
    ),
    "time to stop": (
        stop_fits,
        [
            (f"{SERVER}stop_grace_period", "40s"),
            (f"{SERVER}stop_grace_period", None),
            (f"{SERVER}environment.MCP_GRACE_PERIOD_SECONDS", "60"),
            (f"{SERVER}environment.MCP_DRAIN_TIMEOUT_SECONDS", "120"),
            (f"{BALANCER}stop_grace_period", "30s"),
        ],
    ),
    "the balancer notices in time": (notices, [(f"{SERVER}environment.MCP_DRAIN_DELAY_SECONDS", "1")]),
    "no stream or call is cut": (
        lambda compose: min(directive(compose, f"timeout {side}") for side in ("client", "server")) > LONGEST_TOOL,
        [],
    ),
    "its proxy is believed, and no other": (
        trusts_the_balancer_alone,
        [
            (f"{SERVER}environment.MCP_TRUSTED_PROXIES", None),
            (f"{SERVER}environment.MCP_TRUSTED_PROXIES", "10.0.0.0/8"),
            (f"{SERVER}environment.MCP_TRUSTED_PROXIES", "172.17.0.0/16"),
        ],
    ),
    "Redis is the servers' own": (
        redis_is_the_servers_own,
        [
            (f"{REDIS}networks", ["callers", "limits"]),
            ("networks.limits", None),
            ("networks.limits.internal", False),
            (f"{BALANCER}networks", ["callers", "limits"]),
        ],
    ),
    "another replica is tried, and one that cannot be reached is left out": (
        lambda compose: all(
            each in configuration(compose)
            for each in ("option redispatch 1", "retries 10", "hold valid 1s", "on-error mark-down", "error-limit 1")
        ),
        [(f"{BALANCER}environment.CONFIGURATION", "defaults\n  retries 3\n")],
    ),
    "Redis writes nothing": (
        lambda compose: '--save "" --appendonly no' in compose["services"]["redis"]["command"],
        [(f"{REDIS}command", "redis-server")],
    ),
    "a shared limit": (
        lambda compose: settings(compose).get("MCP_RATE_LIMIT_STORE") == "redis://redis:6379/0",
        [(f"{SERVER}environment.MCP_RATE_LIMIT_STORE", "memory://")],
    ),
    "callers prove who they are": (
        lambda compose: settings(compose).get("MCP_AUTH_MODE") == "api_key",
        [(f"{SERVER}environment.MCP_AUTH_MODE", "none"), (f"{SERVER}environment.MCP_AUTH_MODE", None)],
    ),
    "secrets are files that are not kept": (
        holds_no_secret,
        [
            (f"{SERVER}environment.MCP_REQUEST_STATE_KEYS", "0" * 64),
            (f"{SERVER}environment.MCP_RATE_LIMIT_STORE", "redis://:password@redis:6379/0"),
            ("secrets.request-state-keys.file", "./request-state-keys"),
            ("secrets.request-state-keys", {"environment": "KEYS"}),
            (f"{SERVER}volumes", [{"type": "bind", "source": "/", "target": "/run/keys", "read_only": True}]),
        ],
    ),
    "files that settings name are there": (
        files_are_mounted,
        [
            (f"{SERVER}secrets", None),
            (f"{SERVER}volumes", None),
            (f"{SERVER}environment.MCP_REQUEST_STATE_KEYS_FILE", None),
        ],
    ),
}
FAULTS = [(rule, path, value) for rule, (_, faults) in RULES.items() for path, value in faults]


@pytest.mark.parametrize("rule", RULES)
def test_rule_is_kept(compose: Json, rule: str) -> None:
    """The file as it is keeps each rule."""
    assert RULES[rule][0](compose)


@pytest.mark.parametrize(("rule", "path", "value"), FAULTS)
def test_planted_fault_is_found(compose: Json, rule: str, path: str, value: object) -> None:
    """A file that does not keep a rule is found by it."""
    assert not RULES[rule][0](put(compose, path, value))


@pytest.mark.parametrize(
    ("rule", "right", "wrong"),
    [
        *(
            ("another replica is tried, and one that cannot be reached is left out", line, "")
            for line in ("option redispatch 1", "retries 10", "hold valid 1s", "on-error mark-down", "error-limit 1")
        ),
        ("no stream or call is cut", "timeout server 11m", "timeout server 60s"),
        ("no stream or call is cut", "timeout client 11m", "timeout client 600s"),
        ("the balancer notices in time", "inter 500ms", "inter 2s"),
        ("time to stop", "hard-stop-after 35s", "hard-stop-after 5s"),
        ("time to stop", "hard-stop-after 35s", "hard-stop-after 40s"),
    ],
)
def test_planted_fault_of_the_balancer_is_found(compose: Json, rule: str, right: str, wrong: str) -> None:
    """One in the balancer's configuration too."""
    assert right in configuration(compose)
    changed = put(compose, f"{BALANCER}environment.CONFIGURATION", configuration(compose).replace(right, wrong))
    assert not RULES[rule][0](changed)


def test_every_variable_is_a_setting(compose: Json, rendered: Path) -> None:
    """None is misspelt, which the server would not notice."""
    known = set(re.findall(r"^# (MCP_\w+)=", (rendered / ".env.example").read_text(encoding="utf-8"), re.MULTILINE))
    assert len(known) > 30
    assert {name for name in settings(compose) if not {name, name.removesuffix("_FILE")} & known} == set()


def test_secrets_are_neither_kept_nor_sent(compose: Json, rendered: Path, tmp_path: Path) -> None:
    """git leaves the folder of the secrets out, and so does the build."""
    project = shutil.copytree(rendered, tmp_path / "project")
    (project / "secrets" / "keys").mkdir(parents=True)
    for name in ("request-state-keys", "keys/keys.json"):
        (project / "secrets" / name).write_text("secret", encoding="ascii")
    subprocess.run(["git", "init", "--quiet", project], check=True)
    line = ["git", "-C", str(project), "status", "--porcelain", "--untracked-files=all"]
    seen = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    assert "compose.yaml" in seen
    assert "secrets" not in seen
    assert (project / ".dockerignore").read_text(encoding="utf-8").splitlines().count("*") == 1


# The whole of it, for real


@dataclass
class Stack:
    """The project's services, started. `key`: the API key that was made for them."""

    docker: Docker
    project: Path
    key: str = ""

    def compose(self, *arguments: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Run a command of `docker compose` in the project."""
        return self.docker("compose", "--file", self.project / "compose.yaml", *arguments, code=code)

    def type(self, line: str) -> str:
        """Run a line of the README in the project; returns its output."""
        done = subprocess.run(
            line, shell=True, cwd=self.project, env=self.docker.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:] + self.compose("logs", "--tail", "3", code=None).stdout
        return done.stdout.strip()

    def containers(self, *services: str) -> list[Json]:
        """What the engine says of each container, those that have ended too."""
        ids = self.compose("ps", "--all", "--quiet", *services).stdout.split()
        found: list[Json] = json.loads(self.docker("inspect", *ids).stdout) if ids else []
        return found

    @contextmanager
    def connected(self) -> Iterator[Connection]:
        """A connection to the balancer."""
        with self.docker.network(), Connection(int(self.docker.environment["PORT"])) as connection:
            yield connection

    def handled(self, ids: Sequence[str]) -> dict[str, Json]:
        """The log line of each of these requests, with `replica`, the container that wrote it."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            found = {}
            for replica in self.compose("ps", "--quiet", "server").stdout.split():
                for line in self.docker("logs", replica).stderr.splitlines():
                    event = json.loads(line)
                    if event["event"] == "request":
                        found[event["rpc_id"]] = event | {"replica": replica}
            if found.keys() >= set(ids):
                return {each: found[each] for each in ids}
            time.sleep(0.1)  # an engine writes logs in its own time, and tells nobody
        raise AssertionError("requests are not in the log")


def request(key: str, method: str, params: Json, rpc_id: str = "", **headers: str) -> bytes:
    """The bytes of one request."""
    sent = message(MODERN, rpc_id or secrets.token_hex(8), method, params)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return post(headers_of(sent, MODERN) | {"Authorization": f"Bearer {key}"} | named, sent)


def call(key: str, tool: str = "get_part", rpc_id: str = "", **headers: str) -> bytes:
    """The bytes of a call."""
    arguments: dict[str, Json] = {"get_part": {"sku": "BRG-6204"}, "stocktake": {"pause_ms": 20}}
    return request(key, "tools/call", {"name": tool, "arguments": arguments.get(tool, {})}, rpc_id, **headers)


def result(response: Response) -> str:
    """How a call ended."""
    return outcome(response.messages[-1]) if response.status == 200 else f"status {response.status}"


def lines_of_the_readme(project: Path) -> list[list[str]]:
    """The commands of its section, block by block."""
    section = (project / "README.md").read_text(encoding="utf-8").partition("\n## On one machine\n")[2]
    blocks = re.findall(r"```console\n(.*?)```", section.partition("\n## ")[0], re.DOTALL)
    return [re.findall(r"^\$ (.*)$", block, re.MULTILINE) for block in blocks]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    """A Docker daemon that has the images, or reaches a registry."""
    with docker(environment() | {"PORT": str(free_port()), "COMPOSE_ANSI": "never"}) as found:
        if found.process is not None:
            provide_images(found, tmp_path_factory.mktemp("images"))
        yield found


def provide_images(host: Docker, folder: Path) -> None:
    """Give a daemon that reaches no registry the base image, from the engine at hand, and stand-ins for the others."""
    project = render(folder, project_name="Spare Parts")
    (base,) = re.findall(r"^FROM (python:\S+) AS base$", (project / "Dockerfile").read_text("utf-8"), re.MULTILINE)
    services = yaml.safe_load((project / "compose.yaml").read_text(encoding="utf-8"))["services"]
    engine = find_engine()
    # By its full name: what is saved by a short one is not found by it elsewhere.
    name = json.loads(engine("image", "inspect", base).stdout)[0]["RepoTags"][0]
    engine("save", "--output", folder / "base.tar", name)
    host("load", "--input", folder / "base.tar")
    (folder / "stand-ins").mkdir()
    (folder / "stand-ins" / "Dockerfile").write_text(STAND_INS.format(base=base), encoding="ascii")
    tags = [word for name in ("redis", "balancer") for word in ("--tag", services[name]["image"])]
    host("build", *tags, folder / "stand-ins")


@pytest.fixture(scope="module")
def stack(host: Docker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The default project, started by the lines of its README."""
    project = render(tmp_path_factory.mktemp("compose"), project_name="Spare Parts")
    (project / "src" / PACKAGE / "tools" / "ask_back.py").write_text(ASKS, encoding="utf-8")
    assert run(project, "uv sync").returncode == 0
    found = Stack(host, project)
    try:
        said = [found.type(line) for line in lines_of_the_readme(project)[0]]
        (found.key,) = [each for each in said if each.startswith("mcp_")]
        yield found
    finally:
        found.compose("down", "--timeout", "1", "--volumes", code=None)
        host("rmi", "--force", SLUG, code=None)


@pytest.fixture(scope="module")
def keys(stack: Stack) -> list[str]:
    """Keys of a hundred clients, as one could not call as often as the tests do; both replicas know them."""
    ids = [secrets.token_hex(6) for _ in range(100)]
    made = {each: f"mcp_{each}_{secrets.token_urlsafe(32)}" for each in ids}
    created = datetime.now(UTC).isoformat()
    file = stack.project / "secrets" / "keys" / "keys.json"
    known = json.loads(file.read_text(encoding="utf-8"))["keys"]
    known += [
        {"id": each, "name": each, "sha256": sha256(key.encode()).hexdigest(), "created": created}
        for each, key in made.items()
    ]
    new = file.with_name("keys.json.new")
    new.write_text(json.dumps({"keys": known}), encoding="utf-8")
    new.chmod(0o644)
    new.replace(file)
    until_known(stack, made[ids[-1]])
    return list(made.values())


def until_known(stack: Stack, key: str) -> None:
    """Wait until both replicas take a key."""
    deadline = time.monotonic() + 5
    in_a_row = 0
    with stack.connected() as connection:
        while in_a_row < 6:
            assert time.monotonic() < deadline, "a new key is not taken"
            in_a_row = in_a_row + 1 if connection.ask(call(key)).status == 200 else 0
            time.sleep(0.2)  # more wrong keys than 30 a minute, and the right one would be refused too


@contextmanager
def load(stack: Stack, keys: Sequence[str], clients: int = 6) -> Iterator[list[str]]:
    """Clients that make one call after the other; yields how each call ended."""
    ends: list[str] = []
    over = threading.Event()

    def client(number: int) -> None:
        tool = "stocktake" if number % 2 else "get_part"
        mine = cycle(keys[number::clients])
        while not over.is_set():
            try:
                with stack.connected() as connection:
                    while not over.wait(0.03):  # as often as the limits of all keys let
                        response = connection.ask(call(next(mine), tool))
                        ends.append(result(response))
                        if response.headers.get("connection") == "close":
                            break
            except (OSError, EOFError, ValueError) as error:
                ends.append(f"no answer: {type(error).__name__}")

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield ends
    finally:
        over.set()
        for thread in threads:
            thread.join()


@pytest.mark.install
def test_it_is_up(stack: Stack) -> None:
    """The lines of the README start it in production: all are healthy, and no row of the doctor fails."""
    found = {each["Config"]["Labels"]["com.docker.compose.service"]: each for each in stack.containers()}
    assert found.keys() == {"server", "redis", "balancer"}
    assert len(stack.containers("server")) == 2
    for each in stack.containers():
        assert (each["State"]["Health"]["Status"], each["RestartCount"]) == ("healthy", 0)
    for each in stack.containers("server"):
        stack.docker("exec", each["Id"], SLUG, "doctor", "--production")


@pytest.mark.install
def test_each_is_locked_down(stack: Stack) -> None:
    """No root, no capability, nothing to write but memory, bounded memory; one port, on loopback."""
    ports = []
    for each in stack.containers():
        limits = each["HostConfig"]
        assert (limits["ReadonlyRootfs"], limits["Privileged"], limits["Memory"] > 0) == (True, False, True)
        assert not [mount for mount in each["Mounts"] if mount["RW"]]
        ports += [bound for bindings in limits["PortBindings"].values() for bound in bindings]
        text = stack.docker("exec", each["Id"], "cat", "/proc/1/status").stdout
        status = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
        assert status["Uid"].split() == ["65532"] * 4
        assert (int(status["CapEff"], 16), int(status["CapBnd"], 16), status["NoNewPrivs"]) == (0, 0, "1")
    assert ports == [{"HostIp": "127.0.0.1", "HostPort": stack.docker.environment["PORT"]}]


@pytest.mark.install
def test_balancer_does_not_know_redis(stack: Stack) -> None:
    """Only the servers share a network with it."""
    (balancer,) = stack.containers("balancer")
    assert stack.docker("exec", balancer["Id"], "getent", "hosts", "redis", code=None).returncode != 0
    stack.docker("exec", balancer["Id"], "getent", "hosts", "server")
    stack.docker("exec", stack.containers("server")[0]["Id"], "getent", "hosts", "redis")


@pytest.mark.install
def test_new_key_needs_no_restart(stack: Stack, keys: list[str]) -> None:
    """Both replicas take a key within a second of its being made, though the file is another one then."""
    line = next(line for line in lines_of_the_readme(stack.project)[0] if "keys new" in line)
    until_known(stack, stack.type(line.replace("billing", "other")))


@pytest.mark.install
def test_both_replicas_answer(stack: Stack, keys: list[str]) -> None:
    """Calls through the balancer go to either; without a key to none."""
    ids = [secrets.token_hex(8) for _ in range(12)]
    with stack.connected() as connection:
        assert [result(connection.ask(call(keys[0], rpc_id=each))) for each in ids] == ["ok"] * 12
        assert connection.ask(call("wrong")).status == 401
    assert len({line["replica"] for line in stack.handled(ids).values()}) == 2


@pytest.mark.install
def test_limit_is_one_for_both(stack: Stack, keys: list[str]) -> None:
    """A key has its limit once, not once with each replica; 120 a minute come back meanwhile."""
    since = time.monotonic()
    with stack.connected() as connection:
        ends = [result(connection.ask(call(keys[1]))) for _ in range(3 * LIMIT)]
    assert set(ends) == {"ok", "rate_limited"}
    assert LIMIT <= ends.count("ok") <= LIMIT + 2 * (time.monotonic() - since) + 1


@pytest.mark.install
def test_state_that_one_has_sealed_opens_on_the_other(stack: Stack, keys: list[str]) -> None:
    """A call of several rounds is answered whichever replica each round comes to."""
    rounds = [(secrets.token_hex(8), secrets.token_hex(8)) for _ in range(9)]
    params = {"name": "ask_back", "arguments": {}}
    with stack.connected() as connection:
        for first, second in rounds:
            asked = connection.ask(request(keys[2], "tools/call", params, first)).messages[0]["result"]
            state = {"requestState": asked["requestState"]}
            answer = connection.ask(request(keys[2], "tools/call", params | state, second)).messages[0]["result"]
            assert answer["structuredContent"] == {"result": "known"}
            # One call between, or each would take its turn at the same replica.
            connection.ask(call(keys[3]))
    lines = stack.handled([each for pair in rounds for each in pair])
    assert [pair for pair in rounds if lines[pair[0]]["replica"] != lines[pair[1]]["replica"]]


@pytest.mark.install
def test_callers_are_told_apart(stack: Stack, keys: list[str]) -> None:
    """By the address that a proxy on this machine reports: who guesses keys shuts out nobody else."""
    one, other = "198.51.100.7", "198.51.100.8"
    named = secrets.token_hex(8)
    with stack.connected() as connection:
        for _ in range(100):  # 30 a minute at each replica
            guessed = connection.ask(call("guess", X_Forwarded_For=one)).status
        assert guessed == 429
        assert [connection.ask(call(keys[4], X_Forwarded_For=one)).status for _ in range(4)] == [429] * 4
        assert result(connection.ask(call(keys[4], rpc_id=named, X_Forwarded_For=other))) == "ok"
    assert stack.handled([named])[named]["client"] == other


@pytest.mark.install
def test_replica_that_is_stopped_loses_no_call(stack: Stack, keys: list[str]) -> None:
    """It is drained, and ends with 0; and is used again when it is back."""
    replica = stack.containers("server")[0]["Id"]
    with load(stack, keys) as ends:
        time.sleep(0.5)
        stack.docker("stop", replica)
        stack.compose("up", "--detach", "--wait")
    assert set(ends) == {"ok"}
    assert len(ends) > 200
    (state,) = [each["State"] for each in stack.containers("server") if each["Id"] == replica]
    ids = [secrets.token_hex(8) for _ in range(8)]
    with stack.connected() as connection:
        for each in ids:
            connection.ask(call(keys[5], rpc_id=each))
    assert state["Running"]
    assert replica in {line["replica"] for line in stack.handled(ids).values()}


@pytest.mark.install
def test_new_version_loses_no_call(stack: Stack, keys: list[str]) -> None:
    """The README's lines put two replicas of a new image in the place of the old ones."""
    before = {each["Id"]: each["Image"] for each in stack.containers("server")}
    tool = stack.project / "src" / PACKAGE / "tools" / "ask_back.py"
    tool.write_text(ASKS.replace("Ask once.", "Ask once more."), encoding="utf-8")
    with load(stack, keys) as ends:
        for line in lines_of_the_readme(stack.project)[1]:
            stack.type(line)
    assert set(ends) == {"ok"}
    assert len(ends) > 200
    after = {each["Id"]: each["Image"] for each in stack.containers("server")}
    assert len(after) == 2
    assert not before.keys() & after.keys()
    assert not set(before.values()) & set(after.values())
    with stack.connected() as connection:
        listed = connection.ask(request(keys[6], "tools/list", {})).messages[0]["result"]["tools"]
    assert "Ask once more." in {each["description"] for each in listed}


# What is wrong is said


def other(stack: Stack, folder: Path, network: str = "10.203.118.0/26") -> Stack:
    """The same project under another name, not started; its port is the same."""
    project = shutil.copytree(stack.project, folder / "other", ignore=shutil.ignore_patterns(".venv"))
    file = project / "compose.yaml"
    text = file.read_text(encoding="utf-8")
    text = re.sub(r"(?m)^name: .*$", f"name: {SLUG}-other", text)
    file.write_text(re.sub(r"(?m)^(x-network: &network) .*$", rf"\1 {network}", text), encoding="utf-8")
    return Stack(stack.docker, project)


@contextmanager
def refused(stack: Stack) -> Iterator[str]:
    """What `docker compose up` says that fails."""
    try:
        done = stack.compose("up", "--wait", code=None)
        assert done.returncode != 0
        yield done.stderr
    finally:
        stack.compose("down", "--timeout", "1", code=None)


@pytest.mark.install
@pytest.mark.parametrize("missing", ["request-state-keys", "keys"])
def test_missing_secret(stack: Stack, tmp_path: Path, missing: str) -> None:
    """It is named before anything starts."""
    copied = other(stack, tmp_path)
    path = copied.project / "secrets" / missing
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    with refused(copied) as said:
        assert f"bind source path does not exist: {os.path.realpath(path)}" in said
        assert {each["State"]["Status"] for each in copied.containers()} <= {"created"}


@pytest.mark.install
def test_missing_file_of_keys(stack: Stack, tmp_path: Path) -> None:
    """The servers' log names the setting, and the balancer is not started."""
    copied = other(stack, tmp_path)
    (copied.project / "secrets" / "keys" / "keys.json").unlink()
    with refused(copied) as said:
        assert "dependency failed to start" in said
        log = copied.compose("logs", "--no-log-prefix", "server").stdout
        assert "MCP_API_KEYS_FILE: the file cannot be read (No such file or directory)" in log
        assert [each["State"]["Status"] for each in copied.containers("balancer")] == ["created"]


@pytest.mark.install
def test_network_that_is_taken(stack: Stack, tmp_path: Path) -> None:
    """It is said that the addresses are in use."""
    (network,) = re.findall(r"&network (\S+)", (stack.project / "compose.yaml").read_text(encoding="utf-8"))
    with refused(other(stack, tmp_path, network)) as said:
        assert "overlaps" in said


@pytest.mark.install
def test_port_in_use(stack: Stack, tmp_path: Path) -> None:
    """It is named."""
    with refused(other(stack, tmp_path)) as said:
        assert f"127.0.0.1:{stack.docker.environment['PORT']}" in said
        assert "already" in said


@pytest.mark.install
def test_it_goes_down(stack: Stack) -> None:
    """Each ends with 0 within its time, and nothing is left."""
    stack.compose("stop")
    assert {each["Name"]: each["State"]["ExitCode"] for each in stack.containers()} == {
        each["Name"]: 0 for each in stack.containers()
    }
    stack.compose("down")
    mine = f"label=com.docker.compose.project={SLUG}"
    assert stack.docker("ps", "--all", "--quiet", "--filter", mine).stdout == ""
    assert stack.docker("network", "ls", "--quiet", "--filter", mine).stdout == ""
    assert stack.docker("volume", "ls", "--quiet", "--filter", mine).stdout == ""
