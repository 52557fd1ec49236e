"""The bundle for desktop clients and the entry for the registry: made of what is declared, and they start this server."""

import hashlib
import json
import re
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters, get_default_environment

from {{ cookiecutter.package_name }}.auth.api_keys import new_key
from {{ cookiecutter.package_name }}.clients import NOT_ASKED, NOT_LOCAL, questions
from {{ cookiecutter.package_name }}.distribution import PRIVATE, is_private
from {{ cookiecutter.package_name }}.registry import Registry
from {{ cookiecutter.package_name }}.server import build_server
from {{ cookiecutter.package_name }}.settings import Settings

from .conftest import PACKAGE_FOLDER, ROOT
from .harness import PACKAGE, Json, run_command

HIDDEN = (".env", ".git/config", ".ssh/id_ed25519", "__pycache__/secret.txt")
# As people name them, and copies of them; each in the package or in a folder of it.
NAMED = (
    *(
        "keys.json",
        "keys.json.bak",
        "keys.json~",
        "keys.json.new",
        "api_keys.json",
        "Server.PEM",
        "server.pem.1",
        "id.key",
    ),
    *(
        "store.jks",
        "a.p12",
        "A.PFX",
        "putty.ppk",
        "vault.kdbx",
        "signing.asc",
        "signing.gpg",
        "ID_RSA",
        "id_ed25519.old",
    ),
    *(
        "prod.env",
        "prod.env.local",
        "secrets.json",
        "Secrets.yaml",
        "client_secret_1.json",
        "credentials",
        "credentials.toml",
    ),
    *(
        "service-account.json",
        "service_account-prod.json",
        "token.json",
        "kubeconfig",
        "prod.kubeconfig",
        "terraform.tfstate",
    ),
    *("_netrc", "data/secrets/redis", "data/Secrets/hidden.py", "data/parts.json.orig"),
)
# Named nearly so, and needed.
NEEDED = ("secrets.py", "auth/credentials_of.py", "passwords.py", "data/monkeys.json", "data/keyboard.txt", "id_rsa.py")
SECRETS = (
    *(".env", "keys.json", "secrets/redis", ".git/config", ".venv/pyvenv.cfg", "tests/token.txt"),
    *(f"src/{PACKAGE}/{name}" for name in (*HIDDEN, *NAMED)),
)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project, whose repository is not known, with secrets in all kinds of places."""
    copy = tmp_path / "project"
    shutil.copytree(PACKAGE_FOLDER, copy / "src" / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    kept = re.sub(
        r"^\[project\.urls\]$.*?(?=^\[)",
        "",
        (ROOT / "pyproject.toml").read_text("utf-8"),
        flags=re.MULTILINE | re.DOTALL,
    )
    (copy / "pyproject.toml").write_text(kept, encoding="utf-8")
    (copy / "uv.lock").write_text("version = 1\n", encoding="utf-8")
    for name in SECRETS:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text("# hunter22\n", encoding="utf-8")
    (copy / "src" / PACKAGE / "linked.txt").symlink_to(copy / "secrets" / "redis")
    return copy


def said_by_bundle(project: Path, *options: str, **settings: str) -> list[str]:
    """The lines that `bundle` prints."""
    done = run_command("bundle", *options, source=project / "src", settings=settings)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def bundled(project: Path, *options: str, **settings: str) -> list[Path]:
    """What `bundle` says that it wrote."""
    lines = said_by_bundle(project, *options, **settings)
    return [project / line.removeprefix("wrote ") for line in lines if line.startswith("wrote ")]


def problem(project: Path, *options: str) -> str:
    """The one problem that `bundle` ends with."""
    done = run_command("bundle", *options, source=project / "src")
    assert (done.returncode, done.stdout) == (2, "")
    return str(json.loads(done.stderr)["event"])


def registry() -> Registry:
    """What this project serves."""
    return build_server(Settings.model_construct()).registry


def said(described: Json, folder: Path, answers: Json) -> tuple[str, list[str], dict[str, str]]:
    """The command line and the variables of a manifest, as a client puts them together (MANIFEST.md, mcp_config)."""
    asked = described["user_config"]
    values = {f"user_config.{name}": entry["default"] for name, entry in asked.items() if "default" in entry}
    values |= {f"user_config.{name}": value for name, value in answers.items()} | {"__dirname": str(folder)}

    def filled(text: str) -> str:
        return re.sub(r"\$\{([^}]+)\}", lambda found: str(values.get(found[1], found[0])), text)

    run = described["server"]["mcp_config"]
    variables = {name: filled(value) for name, value in run["env"].items()}
    return run["command"], [filled(each) for each in run["args"]], variables


async def test_bundle_starts_this_server(project: Path, tmp_path: Path) -> None:
    """Unpacked in another folder, and started as its manifest says with the answers of a person, it serves all there is.

    The interpreter stands for `uv run`, which would install what is installed here already.
    """
    (made,) = bundled(project)
    folder = tmp_path / "unpacked"
    with zipfile.ZipFile(made) as archive:
        archive.extractall(folder)
    described = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    served = registry()
    scopes = sorted(frozenset().union(*(each.scopes for each in served.served)))
    command, arguments, variables = said(described, folder, {"local_scopes": ",".join(scopes), "log_level": "ERROR"})
    assert (command, arguments[:-1]) == ("uv", ["run", "--frozen", "--no-dev", "--directory", str(folder)])
    assert described["server"]["entry_point"] == arguments[-1]
    assert not [value for value in variables.values() if "${" in value]

    around = get_default_environment() | {"PYTHONPATH": str(folder / "src"), "MCP_TRANSPORT": "http"}
    server = str(folder / arguments[-1])
    started = StdioServerParameters(command=sys.executable, args=[server], env=around | variables, cwd=tmp_path)
    async with Client(started) as client:
        tools = {tool.name for tool in (await client.list_tools()).tools}
        assert tools == set(served.tools) == {tool["name"] for tool in described["tools"]}
        refused = await client.call_tool(min(tools), {"no_such_argument": 1})
    assert (refused.meta or {})["plinth/error"]["code"] == "invalid_arguments"


def test_bundle_holds_no_secret(project: Path) -> None:
    """Only the package and what installs it: nothing hidden, linked, named as secrets are, or named by a setting."""
    hashes = project / "src" / PACKAGE / "hashes.txt"
    new_key(hashes, "tests", [], None)
    (made,) = bundled(project, MCP_API_KEYS_FILE=str(hashes))
    with zipfile.ZipFile(made) as archive:
        names = set(archive.namelist())
        assert not [name for name in names if b"hunter22" in archive.read(name)]
    beside = {"manifest.json", "server.py", "pyproject.toml", "uv.lock", "README.md", "LICENSE"}
    assert {name for name in names if "/" not in name} == beside
    package = (path for path in PACKAGE_FOLDER.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert names - beside == {f"src/{PACKAGE}/{path.relative_to(PACKAGE_FOLDER).as_posix()}" for path in package}


def test_bundle_names_what_it_leaves_out(project: Path) -> None:
    """Whoever needs such a file learns of it here; what is only named nearly so is packed."""
    for name in NEEDED:
        (project / "src" / PACKAGE / name).parent.mkdir(exist_ok=True)
        (project / "src" / PACKAGE / name).write_text("# needed\n", encoding="utf-8")
    wrote, *left_out = said_by_bundle(project)
    names = {line.removeprefix("left out ").partition(": named as secrets are")[0] for line in left_out}
    assert names == {f"src/{PACKAGE}/{name}" for name in (*NAMED, "linked.txt")}
    with zipfile.ZipFile(project / wrote.removeprefix("wrote ")) as archive:
        assert {f"src/{PACKAGE}/{name}" for name in NEEDED} <= set(archive.namelist())


def test_key_under_any_name_stops_the_bundle(project: Path) -> None:
    """Each file that holds one is named, and no bundle is made."""
    dashes, key, package = "-" * 5, "MIIEvQIBADANBgkqhkiG9w0BAQEFAASC", project / "src" / PACKAGE
    (package / "data").mkdir(exist_ok=True)
    keyed = {
        "data/account.json": f'["{dashes}BEGIN PRIVATE KEY{dashes}\\n{key}"]',
        "data/notes.txt": f"{dashes}BEGIN RSA PRIVATE KEY{dashes}\n{key}",
        "data/ring": f"{dashes}BEGIN PGP PRIVATE KEY BLOCK{dashes}\r\n\r\n{key}",
        "tools/_signing.py": f'KEY = """{dashes}BEGIN OPENSSH PRIVATE KEY{dashes}\n{key}"""',
    }
    for name, text in (keyed | {"data/none.txt": f"{dashes}BEGIN PRIVATE KEY{dashes} is how one begins"}).items():
        (package / name).write_text(text, encoding="utf-8")
    done = run_command("bundle", source=project / "src")
    assert (done.returncode, done.stdout) == (2, "")
    assert [json.loads(line)["event"] for line in done.stderr.splitlines()] == [
        f"src/{PACKAGE}/{name}: holds a private key; keep it outside the project" for name in keyed
    ]
    assert not (project / "dist").exists()


def ignored(pattern: str, *, inside: str = "**/") -> str:
    """The line that stands for a pattern in files that know no flag for either case."""
    letters = re.sub(r"(\[[^]]*\])|([a-z])", lambda found: found[1] or f"[{found[2]}{found[2].upper()}]", pattern)
    return f"!{inside}{letters[1:]}" if letters.startswith("!") else f"**/{letters}"


def lines_of(name: str) -> list[str]:
    """Of a file of the project; where there is none, there is nothing to hold it to."""
    if not (ROOT / name).is_file():
        pytest.skip(f"there is no {name}")
    return (ROOT / name).read_text(encoding="utf-8").splitlines()


def test_git_wheel_and_image_leave_out_the_same() -> None:
    """One list, in the order that tells (the last that fits counts); what has to be hidden comes after it."""
    lines = "\n".join(lines_of(".gitignore"))
    assert "\n".join(ignored(each) for each in PRIVATE) in lines, ".gitignore: differs from PRIVATE of distribution.py"
    lines = "\n".join(lines_of(".dockerignore"))
    wanted = [*(ignored(each, inside="src/**/") for each in PRIVATE), "**/.*", "**/__pycache__"]
    assert lines.endswith("\n".join(wanted)), ".dockerignore: differs from PRIVATE of distribution.py"
    assert "[-" not in lines, ".dockerignore: Docker reads no class that begins with a hyphen"


def test_package_needs_nothing_that_is_left_out() -> None:
    """A file that works here, and is in no wheel, image or bundle, would be missed by users alone."""
    files = [path for path in PACKAGE_FOLDER.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    paths = [path.relative_to(ROOT) for path in files]
    private = [path.as_posix() for path in paths if any(map(is_private, path.parts))]
    assert private == [], "these are named as secrets are, and are left out: rename them, or move them out of src/"


def test_same_project_gives_the_same_bundle(project: Path) -> None:
    """To the byte: the registry's clients compare its hash."""
    (made,) = bundled(project)
    first = made.read_bytes()
    with zipfile.ZipFile(made) as archive:
        assert {each.date_time for each in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    for path in project.rglob("*.py"):
        path.touch()
    bundled(project)
    assert made.read_bytes() == first


def test_registry_entry_asks_for_what_is_not_known(project: Path) -> None:
    """Whose server it is, no file says until its author does; then everything is made of that, and of the bundle."""
    assert problem(project, "--registry").startswith("pyproject.toml: [project.urls] Repository must be set")
    assert not (project / "dist").exists()
    with (project / "pyproject.toml").open("a", encoding="utf-8") as file:
        file.write('[project.urls]\nRepository = "https://github.com/octo-org/tools.git"\n')
    public = "https://tools.example.com/mcp"
    new_key(project / "hashes.json", "tests", [], None)
    keys = {"MCP_AUTH_MODE": "api_key", "MCP_API_KEYS_FILE": str(project / "hashes.json"), "MCP_PUBLIC_URL": public}
    made, entry_file = bundled(project, "--registry", **keys)
    entry = json.loads(entry_file.read_text(encoding="utf-8"))
    (package,), (remote,) = entry["packages"], entry["remotes"]
    slug = made.name.rpartition("-")[0]
    assert entry["name"] == f"io.github.octo-org/{slug}"
    assert entry["repository"]["url"] == "https://github.com/octo-org/tools"
    assert 0 < len(entry["description"]) <= 100
    release = f"https://github.com/octo-org/tools/releases/download/v{entry['version']}"
    assert package["identifier"] == f"{release}/{made.name}"
    assert package["fileSha256"] == hashlib.sha256(made.read_bytes()).hexdigest()
    assert (remote["type"], remote["url"]) == ("streamable-http", public)
    assert remote["headers"][0]["variables"]["api_key"]["isSecret"] is True


def test_lock_file_is_needed(project: Path) -> None:
    """What users get is what was tested."""
    (project / "uv.lock").unlink()
    assert problem(project).startswith("uv.lock: is not there; `uv lock` makes it")


def test_source_tree_is_needed_for_bundle(project: Path) -> None:
    """An installed package does not know what it was built of."""
    (project / "pyproject.toml").unlink()
    assert "source tree only" in problem(project)


def test_settings_are_asked_for_as_they_are_declared(project: Path) -> None:
    """Both files have every setting of a server over stdio, with its type, default and choices; secrets say so.

    The settings left out are named in `clients.py`, and are settings.
    """
    with (project / "pyproject.toml").open("a", encoding="utf-8") as file:
        file.write('[project.urls]\nRepository = "https://github.com/octo-org/tools"\n')
    made, entry_file = bundled(project, "--registry")
    with zipfile.ZipFile(made) as archive:
        described = json.loads(archive.read("manifest.json"))
    (package,) = json.loads(entry_file.read_text(encoding="utf-8"))["packages"]
    variables = {each["name"]: each for each in package["environmentVariables"]}
    assert NOT_LOCAL | NOT_ASKED < set(Settings.model_fields)
    local = [field for field in Settings.model_fields if field not in NOT_LOCAL | NOT_ASKED]
    assert [each.field for each in questions()] == local == [*described["user_config"]]
    assert [*variables] == [f"MCP_{field.upper()}" for field in local]
    for field in local:
        declared: Any = Settings.model_fields[field]
        asked, variable = described["user_config"][field], variables[f"MCP_{field.upper()}"]
        is_secret = "SecretStr" in str(declared.annotation)
        assert (asked.get("sensitive", False), variable["isSecret"]) == (is_secret, is_secret), field
        assert (asked["required"], variable["isRequired"]) == (declared.is_required(), declared.is_required())
        assert declared.description in asked["description"]
        assert variable["description"] == declared.description
        if isinstance(declared.default, str | int | float):
            assert asked["default"] == declared.default
            assert variable["default"] == str(declared.default)
        for choice in getattr(declared.annotation, "__args__", ()):
            if isinstance(choice, str):
                assert choice in variable["choices"]
                assert choice in asked["description"]
