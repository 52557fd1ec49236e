"""Settings: what exists is documented, and what is wrong is said by name."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from {{ cookiecutter.package_name }} import settings
from {{ cookiecutter.package_name }}.errors import StartError
from {{ cookiecutter.package_name }}.settings import PREFIX, Settings, load_settings

from .conftest import PACKAGE_FOLDER, ROOT
from .harness import PACKAGE, run_command

VARIABLES = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}


def known(name: str) -> str:
    """The setting that a variable is for: a secret can be given as a file."""
    return name if name in VARIABLES else name.removesuffix("_FILE")


@pytest.fixture(autouse=True)
def _no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's variables, and the project's `.env`, do not reach the tests."""
    monkeypatch.setattr(settings, "_ROOT", tmp_path)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("document", ["README.md", ".env.example"])
def test_every_setting_is_documented_and_every_documented_one_exists(document: str) -> None:
    """The model, the README and `.env.example` say the same."""
    text = (ROOT / document).read_text(encoding="utf-8")
    named = set(re.findall(rf"\b{PREFIX}[A-Z_]+\b", text))
    assert {known(name) for name in named} - VARIABLES - {f"{PREFIX}NAME"} == set()
    assert named >= VARIABLES


def test_operations_guide_names_what_exists() -> None:
    """Its settings are settings, and its outcomes, events and fields stand in the source."""
    text = (ROOT / "OPERATIONS.md").read_text(encoding="utf-8")
    assert {known(name) for name in re.findall(rf"\b{PREFIX}[A-Z_]+[A-Z]\b", text)} <= VARIABLES
    source = "".join(path.read_text(encoding="utf-8") for path in PACKAGE_FOLDER.rglob("*.py"))
    names = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)`", text))
    assert names
    assert {name for name in names if not re.search(rf"\b{name}\b", source)} == set()


def test_documented_defaults_are_the_defaults() -> None:
    """Each line of `.env.example` shows the default, and setting them all changes nothing."""
    shown = re.findall(
        rf"^# ({PREFIX}[A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert {name for name, _ in shown} == VARIABLES
    given = {name.removeprefix(PREFIX).lower(): value for name, value in shown if value}
    assert load_settings(given) == load_settings({})


def test_only_settings_are_read_by_name() -> None:
    """No source file names a variable that is no setting."""
    for path in PACKAGE_FOLDER.rglob("*.py"):
        named = set(re.findall(rf"\b{PREFIX}[A-Z_]+\b", path.read_text(encoding="utf-8")))
        assert {known(name) for name in named} <= VARIABLES, path.name


BAD = {
    "MCP_PORT": ("70000", "must be at most 65535"),
    "MCP_TRANSPORT": ("carrier-pigeon", "must be 'stdio' or 'http'"),
    "MCP_LOG_LEVEL": ("LOUD", "must be 'DEBUG', 'INFO', 'WARNING' or 'ERROR'"),
    "MCP_TOOL_TIMEOUT_SECONDS": ("soon", "must be a number"),
    "MCP_MAX_CONCURRENT_CALLS": ("0", "must be at least 1"),
    "MCP_TRUSTED_PROXIES": ("proxy.example.com", "must be IP addresses, or networks as in 10.0.0.0/8"),
    "MCP_JWT_ISSUER": ("http://login.example.com", "must be an https address"),
    "MCP_JWT_JWKS_URL": ("https://user:canary@login.example.com/keys", "without user, query and fragment"),
    "MCP_PUBLIC_URL": ("server.example/mcp", "must be an https address"),
    "MCP_RATE_LIMIT_PER_MINUTE": ("-1", "must be at least 0"),
    "MCP_RATE_LIMIT_BURST": ("0", "must be at least 1"),
    "MCP_RATE_LIMIT_STORE": (
        "postgres://canary:canary@db",
        "must be memory://, or an address that starts with redis://",
    ),
    "MCP_AUTH_FAILURES_PER_MINUTE": ("0", "must be at least 1"),
    "MCP_UPSTREAM_BASE_URL": ("canary.example.com", "must be an http or https address without user"),
    "MCP_UPSTREAM_TOKEN": ("canary with spaces", "must be visible ASCII characters"),
    "MCP_REQUEST_STATE_KEYS": ("too-short-canary", "must be keys of at least 32 characters each"),
}


def test_bad_settings_give_one_line_each() -> None:
    """All at once, with the variable's name and what it accepts, never its value; exit 2."""
    done = run_command("serve", settings={name: value for name, (value, _) in BAD.items()})
    assert (done.returncode, done.stdout) == (2, "")
    lines = sorted(json.loads(line)["event"] for line in done.stderr.splitlines())
    assert len(lines) == len(BAD)
    for name, (value, problem) in BAD.items():
        (line,) = [line for line in lines if line.startswith(f"{name}: ")]
        assert problem in line
        assert value not in line.replace(problem, "")


def test_command_line_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """And is judged by the same rules."""
    monkeypatch.setenv("MCP_PORT", "1")
    assert load_settings({"port": "9000"}).port == 9000
    with pytest.raises(StartError, match="MCP_PORT: must be an integer"):
        load_settings({"port": "x"})


def test_dotenv_is_the_projects_own_and_for_development(tmp_path: Path) -> None:
    """Clients start servers in the folder that is open in them: a `.env` there is not read. Nor is any in production."""
    package = tmp_path / "project" / "src" / PACKAGE
    shutil.copytree(PACKAGE_FOLDER, package)
    (tmp_path / "project" / "pyproject.toml").touch()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def exit_code(**settings: str) -> int:
        return run_command("tools", source=package.parent, folder=elsewhere, settings=settings).returncode

    (elsewhere / ".env").write_text("MCP_PORT=bad\n", encoding="utf-8")
    assert exit_code() == 0
    (tmp_path / "project" / ".env").write_text("MCP_PORT=bad\n", encoding="utf-8")
    assert exit_code() == 2
    assert exit_code(MCP_ENVIRONMENT="production") == 0
    (tmp_path / "project" / ".env").write_text("MCP_ENVIRONMENT=production\n", encoding="utf-8")
    assert exit_code() == 2


def test_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Compose files pass them."""
    monkeypatch.setenv("MCP_ALLOWED_HOSTS", "")
    assert "localhost" in load_settings({}).allowed_hosts


KEY = "0123456789abcdef0123456789abcdef"


def test_secret_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`MCP_<NAME>_FILE` names a file that holds the secret."""
    (tmp_path / "key").write_text(f"{KEY},{KEY}2\n", encoding="utf-8")
    monkeypatch.setenv("MCP_REQUEST_STATE_KEYS_FILE", str(tmp_path / "key"))
    loaded = load_settings({})
    assert loaded.sealing_keys == [KEY, f"{KEY}2"]
    assert KEY not in repr(loaded)


@pytest.mark.parametrize(
    ("environ", "problem"),
    [
        ({"MCP_REQUEST_STATE_KEYS_FILE": "nowhere"}, "MCP_REQUEST_STATE_KEYS_FILE: the file it names cannot be read"),
        ({"MCP_REQUEST_STATE_KEYS_FILE": "x", "MCP_REQUEST_STATE_KEYS": KEY}, "both are set; keep one"),
        ({"MCP_REQUEST_STATE_KEYS_FILE": os.devnull}, "MCP_REQUEST_STATE_KEYS: must be keys of at least 32 characters"),
        ({"MCP_REQUEST_STATE_KEYS": ","}, "MCP_REQUEST_STATE_KEYS: must be keys of at least 32 characters"),
        ({"MCP_RATE_LIMIT_STORE": "redis://[x"}, "MCP_RATE_LIMIT_STORE: must be memory://, or an address"),
    ],
)
def test_secret_file_that_cannot_be_used(
    environ: dict[str, str], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is an error, not a server without its secret."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StartError, match=problem):
        load_settings({})
