"""The production checklist: each row fails where it should, passes where it should, and stops a start in production."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import date, timedelta
from decimal import Decimal
from enum import Enum
from importlib import metadata
from ipaddress import IPv4Address
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from mcp.server.subscriptions import InMemorySubscriptionBus
from pydantic import AnyUrl, BaseModel, Field, HttpUrl, JsonValue

from {{ cookiecutter.package_name }} import settings as settings_module
from {{ cookiecutter.package_name }}.auth.api_keys import new_key
from {{ cookiecutter.package_name }}.contracts import Signature
from {{ cookiecutter.package_name }}.doctor import checks
from {{ cookiecutter.package_name }}.doctor.bounds import unbounded
from {{ cookiecutter.package_name }}.doctor.checks import Check, Deployment, Finding
from {{ cookiecutter.package_name }}.registry import Registry, Surroundings
from {{ cookiecutter.package_name }}.serving import http
from {{ cookiecutter.package_name }}.settings import PREFIX, load_settings
from {{ cookiecutter.package_name }}.threads import Threads

from .conftest import PACKAGE_FOLDER, Start
from .harness import HTTP, PACKAGE, SERVE_HTTP, STDIO, Json, Peer, Transport, answer_of, environment, run_command

ITEMS = [check.judge.__name__.replace("_", "-") for check in checks.CHECKS]
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="file modes and pseudo-terminals are POSIX")

WELL_MADE = '''"""A tool that writes, as it should be."""

from typing import Annotated

from pydantic import Field

from ..tooling import tool


@tool(scopes=["notes:write"], timeout_seconds=5)
async def add_note(text: Annotated[str, Field(max_length=100)]) -> str:
    """Keep a note."""
    return text
'''

ILL_MADE = '''"""Tools that no checklist should let through."""

from typing import Any

from ..tooling import tool


@tool(timeout_seconds=3600)
async def wipe(what: dict[str, Any], sure: bool) -> bool:
    """Wipe something."""
    return sure
'''


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source that serves one tool, which passes: what you serve is judged in a test of its own."""
    copy = tmp_path_factory.mktemp("served")
    shutil.copytree(PACKAGE_FOLDER, copy / PACKAGE)
    for part in ("tools", "resources", "prompts"):
        for file in (copy / PACKAGE / part).glob("[!_]*.py"):
            file.unlink()
    (copy / PACKAGE / "tools" / "add_note.py").write_text(WELL_MADE, encoding="utf-8")
    return copy


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """Where keys are kept."""
    return tmp_path / "keys.json"


@pytest.fixture
def key(key_file: Path) -> str:
    """A valid key that grants what the tool needs."""
    return new_key(key_file, "tests", ["notes:write"], None)


def expire_last(key_file: Path) -> None:
    """Let the key that was made last have expired long ago."""
    kept = json.loads(key_file.read_text(encoding="utf-8"))
    kept["keys"][-1]["expires"] = "2026-01-31T12:00:00Z"
    key_file.write_text(json.dumps(kept), encoding="utf-8")


@pytest.fixture
def good(key: str, key_file: Path) -> dict[str, str]:
    """A configuration that passes every row: reached by its name, through a proxy on this machine."""
    return {
        "MCP_TRANSPORT": "http",
        "MCP_ALLOWED_HOSTS": "tools.example.com,127.0.0.1",
        "MCP_TRUSTED_PROXIES": "127.0.0.1",
        "MCP_AUTH_MODE": "api_key",
        "MCP_API_KEYS_FILE": str(key_file),
    }


def examine(settings: Mapping[str, str], source: Path | None, *options: str) -> tuple[int, Json]:
    """The exit code, and the report, of `doctor --json`."""
    done = run_command("doctor", "--json", *options, settings=settings, source=source)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, json.loads(done.stdout)


def failures(report: Json) -> dict[str, str]:
    """What was found, and the remedy, of each row that has failed."""
    return {row["item"]: f"{row['found']}; {row['remedy']}" for row in report["rows"] if not row["passed"]}


def test_good_configuration_passes_every_row(good: dict[str, str], served: Path) -> None:
    """Exit 0; each row has its item, its title and what was found, and a remedy only where it has failed."""
    code, report = examine(good, served, "--production")
    assert (code, report["passed"], report["judged_as"]) == (0, True, "production"), failures(report)
    assert [row["item"] for row in report["rows"]] == ITEMS
    for row in report["rows"]:
        assert row.keys() == {"item", "title", "passed", "found"}
        assert row["title"]
        assert row["found"]
        assert row["found"] != "only in production"
        assert row["found"] != "only over HTTP"


BAD: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "open": (
        {
            "MCP_AUTH_MODE": "none",
            "MCP_HOST": "0.0.0.0",
            "MCP_ALLOWED_HOSTS": "",
            "MCP_ALLOWED_ORIGINS": "*",
            "MCP_TRUSTED_PROXIES": "0.0.0.0/0",
        },
        {
            "authentication": "set MCP_AUTH_MODE to api_key",
            "allowed-hosts": "set MCP_ALLOWED_HOSTS to",
            "allowed-origins": "1 of 1 are not a page's origin; set MCP_ALLOWED_ORIGINS",
            "trusted-proxies": "1 of 1 networks are so wide that callers are in them; set MCP_TRUSTED_PROXIES",
        },
    ),
    "replicas": (
        {"MCP_REPLICAS": "2", "MCP_HTTP_SESSIONS": "stateful"},
        {
            "request-state-keys": "set MCP_REQUEST_STATE_KEYS",
            "shared-rate-limit": "set MCP_RATE_LIMIT_STORE to redis://",
            "sessions": "set MCP_HTTP_SESSIONS=stateless",
        },
    ),
    "careless": (
        {
            "MCP_RATE_LIMIT_PER_MINUTE": "0",
            "MCP_DRAIN_DELAY_SECONDS": "5",
            "MCP_LOG_FORMAT": "console",
            "MCP_LOG_LEVEL": "DEBUG",
        },
        {
            "rate-limit": "off; set MCP_RATE_LIMIT_PER_MINUTE",
            "stop-time": "takes up to 35 s of 30 s; lower MCP_DRAIN_DELAY_SECONDS",
            "log-format": "console; set MCP_LOG_FORMAT to json",
            "log-level": "DEBUG; set MCP_LOG_LEVEL to INFO",
        },
    ),
    "tokens": (
        {
            "MCP_AUTH_MODE": "jwt",
            "MCP_JWT_ISSUER": "https://issuer.example.com",
            "MCP_JWT_AUDIENCE": "tools",
        },
        {"public-url": "not set, with jwt; set MCP_PUBLIC_URL"},
    ),
}


@pytest.mark.parametrize(("settings", "expected"), BAD.values(), ids=BAD)
def test_bad_configuration_fails_its_rows(
    good: dict[str, str], served: Path, settings: dict[str, str], expected: dict[str, str]
) -> None:
    """Those, no others; each names what to change. Exit 1."""
    code, report = examine(good | settings, served, "--production")
    found = failures(report)
    assert (code, report["passed"], found.keys()) == (1, False, expected.keys())
    for item, text in expected.items():
        assert text in found[item]


@POSIX
def test_keys_that_others_can_read_or_nobody_can_use(good: dict[str, str], served: Path, key_file: Path) -> None:
    """The file's mode, and a file whose keys have all expired."""
    expire_last(key_file)
    key_file.chmod(0o644)
    code, report = examine(good, served)
    assert (code, failures(report)) == (
        1,
        {
            "secret-files": "others can read or change MCP_API_KEYS_FILE (0644); "
            "take the rights of others away: chmod o= FILE",
            "api-keys": "none is valid; make one: `keys new --name NAME`",
        },
    )


@POSIX
def test_bad_project_fails_its_rows(served: Path, tmp_path: Path) -> None:
    """Tools, dependencies, and a `.env` with a secret that others can read."""
    source = tmp_path / "project" / "src"
    shutil.copytree(served, source)
    (source / PACKAGE / "tools" / "wipe.py").write_text(ILL_MADE, encoding="utf-8")
    (source.parent / "pyproject.toml").touch()
    (source.parent / ".env").write_text("SOME_API_TOKEN=canary\n", encoding="utf-8")
    (source.parent / ".env").chmod(0o604)
    known = source / "pyjwt-2.10.1.dist-info"
    known.mkdir()
    (known / "METADATA").write_text("Metadata-Version: 2.1\nName: pyjwt\nVersion: 2.10.1\n", encoding="utf-8")
    _, report = examine({}, source, "--production")
    found = failures(report)
    assert found == {
        "secret-files": "others can read or change .env (0604); take the rights of others away: chmod o= FILE",
        "dependencies": found["dependencies"],
        "tool-scopes": "without scopes: wipe; give @tool(scopes={...}), or read_only=True where nothing is changed",
        "timeouts": "more than 600 s: wipe; give timeout_seconds in the decorator, or lower MCP_TOOL_TIMEOUT_SECONDS",
        "argument-bounds": found["argument-bounds"],
        "dotenv": found["dotenv"],
    }
    assert found["argument-bounds"].startswith("without a bound: wipe.what; ")
    assert found["dependencies"].startswith("pyjwt 2.10.1 (CVE-")
    assert found["dependencies"].endswith("; uv lock --upgrade-package pyjwt, then uv sync")


def test_what_this_project_serves_passes() -> None:
    """Its own tools, resources and prompts, and its dependencies: here rather than at the start in production."""
    _, report = examine({}, None, "--production")
    found = failures(report)
    assert not {
        item: found[item] for item in ("dependencies", "tool-scopes", "timeouts", "argument-bounds") if item in found
    }


def test_bad_settings_are_no_report() -> None:
    """One line each, exit 2."""
    done = run_command("doctor", settings={"MCP_PORT": "x"})
    assert (done.returncode, done.stdout) == (2, "")
    assert json.loads(done.stderr)["event"].startswith("MCP_PORT: must be an integer")


@pytest.mark.parametrize("transport", ["stdio", "http"])
def test_start_in_production_is_refused(good: dict[str, str], served: Path, start: Start, transport: Transport) -> None:
    """With a line for each row that has failed, and its remedy, exit 2."""
    bad = good | {"MCP_TRANSPORT": transport, "MCP_LOG_LEVEL": "DEBUG", "MCP_AUTH_MODE": "none", "MCP_PORT": "0"}
    done = run_command("serve", settings=bad | {"MCP_ENVIRONMENT": "production"}, source=served)
    assert (done.returncode, done.stdout) == (2, "")
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert {line["level"] for line in lines} == {"error"}
    expected = ["log-level: DEBUG; set MCP_LOG_LEVEL to INFO"]
    if transport == "http":
        expected.insert(
            0,
            "authentication: none, and other machines reach the server, by MCP_ALLOWED_HOSTS, MCP_TRUSTED_PROXIES; set "
            "MCP_AUTH_MODE to api_key (`keys new` makes keys) or jwt, or let only this machine reach it",
        )
    assert [line["event"] for line in lines] == expected


def test_start_in_development_is_not_refused(served: Path, start: Start) -> None:
    """Whatever the checklist would say."""
    bad = {"MCP_ALLOWED_HOSTS": "tools.example.com", "MCP_LOG_LEVEL": "DEBUG", "MCP_REPLICAS": "2"}
    start(*SERVE_HTTP, settings=bad, source=served).wait_for("listening")


def test_good_configuration_starts_in_production_over_http(
    good: dict[str, str], served: Path, start: Start, key: str
) -> None:
    """And answers who has a key."""
    server = start(*SERVE_HTTP, settings=good | {"MCP_ENVIRONMENT": "production"}, source=served)
    peer = Peer(HTTP[0], server)
    message = peer.message("tools/call", {"name": "add_note", "arguments": {"text": "hello"}})
    answer = answer_of(peer.post(message, {"Authorization": f"Bearer {key}"}))
    peer.http.close()
    assert answer["result"]["structuredContent"] == {"result": "hello"}


def test_good_configuration_starts_in_production_over_stdio(
    served: Path, start: Start, key: str, key_file: Path
) -> None:
    """And answers who has a key."""
    settings = {"MCP_ENVIRONMENT": "production", "MCP_API_KEYS_FILE": str(key_file), "MCP_API_KEY": key}
    peer = Peer(STDIO[0], start(settings=settings, source=served))
    assert peer.call("add_note", text="hello")["result"]["structuredContent"] == {"result": "hello"}


def test_no_secret_is_shown(good: dict[str, str], served: Path) -> None:
    """Neither in the table, nor in what stops a start; and no path."""
    planted = good | {
        "MCP_API_KEY": "mcp_canary-of-the-key",
        "MCP_REQUEST_STATE_KEYS": "canary-of-the-state-" + "x" * 32,
        "MCP_RATE_LIMIT_STORE": "redis://user:canary-of-the-store@127.0.0.1:1/0",
        "MCP_LOG_LEVEL": "DEBUG",
        "MCP_ALLOWED_ORIGINS": "canary-of-the-origin",
        "MCP_ENVIRONMENT": "production",
        "CANARY_TOKEN": "canary-of-the-surroundings",
    }
    for command in ("doctor", "serve"):
        done = run_command(command, settings=planted, source=served)
        assert done.returncode in (1, 2)
        assert "MCP_LOG_LEVEL" in done.stdout + done.stderr
        assert "canary" not in done.stdout + done.stderr
        assert good["MCP_API_KEYS_FILE"] not in done.stdout + done.stderr


def test_table_in_plain_words(good: dict[str, str], served: Path) -> None:
    """Where stdout is no terminal: a line for each row, what to do under it, and a summary at the end."""
    done = run_command("doctor", settings=good | {"MCP_REPLICAS": "2", "MCP_LOG_LEVEL": "DEBUG"}, source=served)
    *rows, empty, last = done.stdout.splitlines()
    assert last == f"Judged as development: {len(ITEMS) - 2} passed, 2 failed."
    assert not empty
    assert done.stdout.isascii()
    assert "\x1b" not in done.stdout
    (place,) = [number for number, row in enumerate(rows) if row.startswith("FAILED  request-state-keys  each of 2 ")]
    assert rows[place + 1].strip().startswith("To do: set MCP_REQUEST_STATE_KEYS, ")
    assert sum(row.startswith("passed  ") for row in rows) == len(ITEMS) - 2
    assert ["passed", "log-level", "only in production"] in [row.split(maxsplit=2) for row in rows]


@POSIX
def test_table_on_a_terminal(served: Path) -> None:
    """With symbols, in colour."""
    terminal, other_end = os.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", PACKAGE, "--transport", "http", "--host", "0.0.0.0", "doctor"],
        stdin=subprocess.DEVNULL,
        stdout=other_end,
        stderr=subprocess.DEVNULL,
        env=environment(served, {"TERM": "xterm", "NO_COLOR": ""}),
    ):
        os.close(other_end)
        shown = b"".join(chunks(terminal)).decode()
    os.close(terminal)
    assert "\x1b[31m✗\x1b[0m  authentication" in shown
    assert "\x1b[32m✓\x1b[0m  api-keys" in shown


def chunks(terminal: int) -> Iterator[bytes]:
    """What comes from a terminal until its other end is closed."""
    with suppress(OSError):  # Linux's word for that
        while chunk := os.read(terminal, 65536):
            yield chunk


@pytest.mark.parametrize(
    ("told", "wanted"), [({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)]
)
def test_colour_is_left_out_where_it_is_not_wanted(
    monkeypatch: pytest.MonkeyPatch, told: dict[str, str], wanted: bool
) -> None:
    """As no-color.org has it."""
    for name, value in ({"NO_COLOR": "", "TERM": "xterm"} | told).items():
        monkeypatch.setenv(name, value)
    assert settings_module.wants_colour() is wanted


def test_process_1_of_a_container_is_judged(served: Path) -> None:
    """As root in a PID namespace of its own: that is what a container without a user of its own starts."""
    command = ["unshare", "--user", "--map-root-user", "--pid", "--fork"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*command, "true"], check=False, capture_output=True).returncode
    ):
        pytest.skip("this machine does not let a test make a PID namespace")
    done = subprocess.run(
        [*command, sys.executable, "-m", PACKAGE, "doctor", "--production", "--json"],
        env=environment(served),
        capture_output=True,
        check=False,
        timeout=20,
    )
    assert failures(json.loads(done.stdout))["unprivileged-user"].startswith("root; run it as another user, by number")


# What follows judges single checks, for the cases that would each need a process of their own.


@pytest.fixture
def judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Finding]:
    """One check, against these settings and nothing served."""
    monkeypatch.setattr(settings_module, "_ROOT", tmp_path)
    for name in os.environ:
        if name.startswith((PREFIX, "KUBERNETES_")):
            monkeypatch.delenv(name)

    def judge_one(check: Callable[[Deployment], Finding], **settings: Any) -> Finding:
        registry = Registry((), Surroundings(Threads(1, 1), InMemorySubscriptionBus()))
        return check(Deployment(load_settings(settings), registry))

    return judge_one


JWT = {"transport": "http", "auth_mode": "jwt", "jwt_issuer": "https://issuer.example.com"}
PUBLIC = "https://tools.example.com/mcp"

CASES: list[tuple[Callable[[Deployment], Finding], dict[str, Any], bool]] = [
    (checks.authentication, {}, True),
    (checks.authentication, {"host": "localhost"}, True),
    (checks.authentication, {"host": "::1", "allowed_hosts": "[::1]:8000,127.0.0.2"}, True),
    (checks.authentication, {"host": "::"}, False),
    (checks.authentication, {"allowed_hosts": "localhost,tools.example.com:443"}, False),
    (checks.authentication, {"allowed_hosts": "[::1"}, False),
    (checks.authentication, {"trusted_proxies": "127.0.0.1"}, False),
    (checks.authentication, {"public_url": PUBLIC}, False),
    (checks.authentication, {"public_url": "http://127.0.0.1:8000/mcp"}, True),
    (checks.authentication, {**JWT, "host": "0.0.0.0", "jwt_audience": "tools"}, True),
    (checks.allowed_hosts, {}, True),
    (checks.allowed_hosts, {"host": "0.0.0.0"}, False),
    (checks.allowed_hosts, {"public_url": PUBLIC}, False),
    (checks.allowed_hosts, {"host": "0.0.0.0", "allowed_hosts": "tools.example.com:443"}, True),
    (checks.allowed_hosts, {"host": "0.0.0.0", "allowed_hosts": "localhost"}, True),  # a port published on loopback
    (checks.allowed_hosts, {"allowed_hosts": ","}, False),
    (checks.allowed_hosts, {"allowed_hosts": "*"}, False),
    (checks.allowed_hosts, {"allowed_hosts": "localhost,*.example.com"}, False),
    (checks.allowed_hosts, {"allowed_hosts": "https://tools.example.com"}, False),
    (checks.allowed_origins, {"allowed_origins": ","}, True),
    (checks.allowed_origins, {"allowed_origins": "https://app.example.com:8443,vscode-webview://x"}, True),
    (checks.allowed_origins, {"allowed_origins": "https://app.example.com/"}, False),
    (checks.allowed_origins, {"allowed_origins": "null"}, False),
    (checks.allowed_origins, {"allowed_origins": "https://*.example.com"}, False),
    (checks.trusted_proxies, {"trusted_proxies": "10.0.0.0/8,fc00::/7,192.0.2.1"}, True),
    (checks.trusted_proxies, {"trusted_proxies": "10.0.0.1,128.0.0.0/1"}, False),
    (checks.trusted_proxies, {"trusted_proxies": "::/0"}, False),
    (checks.trusted_proxies, {"replicas": 2}, True),
    (checks.trusted_proxies, {"host": "0.0.0.0"}, True),
    (checks.trusted_proxies, {"host": "0.0.0.0", "allowed_hosts": "tools.example.com"}, True),
    (checks.trusted_proxies, {"host": "0.0.0.0", "replicas": 2}, False),
    (checks.trusted_proxies, {"host": "0.0.0.0", "replicas": 2, "trusted_proxies": "none"}, True),
    (checks.trusted_proxies, {"host": "0.0.0.0", "replicas": 2, "trusted_proxies": "10.1.0.0/16"}, True),
    (checks.trusted_proxies, {"host": "0.0.0.0", "public_url": PUBLIC}, False),
    (checks.trusted_proxies, {"allowed_hosts": "tools.example.com"}, False),
    (checks.public_url, {**JWT, "public_url": PUBLIC}, True),
    (checks.public_url, {**JWT, "public_url": "http://127.0.0.1:8000/mcp"}, True),
    (
        checks.public_url,
        {**JWT, "public_url": "http://localhost:8000/mcp", "allowed_hosts": "tools.example.com"},
        False,
    ),
    (checks.request_state_keys, {"replicas": 2, "request_state_keys": "x" * 32}, True),
    (checks.shared_rate_limit, {"replicas": 2, "rate_limit_store": "redis://127.0.0.1:6379/0"}, True),
    (checks.shared_rate_limit, {"replicas": 2, "rate_limit_per_minute": 0}, True),
    (checks.sessions, {"http_sessions": "stateful"}, True),
    (checks.stop_time, {"drain_delay_seconds": 10, "drain_timeout_seconds": 10}, True),
    (checks.stop_time, {"drain_timeout_seconds": 60, "grace_period_seconds": 70}, True),
    (checks.stop_time, {"drain_timeout_seconds": 60, "grace_period_seconds": 69}, False),
    (checks.timeouts, {"tool_timeout_seconds": 601}, True),  # nothing is served that would take so long
]


@pytest.mark.parametrize(("check", "settings", "passes"), CASES)
def test_check(
    judge: Callable[..., Finding],
    check: Callable[[Deployment], Finding],
    settings: dict[str, Any],
    passes: bool,
) -> None:
    """A good deployment raises no alarm, and a bad one does."""
    finding = judge(check, **settings)
    assert (finding.remedy is None) is passes, finding


def test_proxy_that_is_not_named(judge: Callable[..., Finding], monkeypatch: pytest.MonkeyPatch) -> None:
    """The row says what tells of it; in a pod, and in a container that has a name, there is one too."""
    found, remedy = judge(checks.trusted_proxies, allowed_hosts="tools.example.com", replicas=2)
    assert found == "none, and there seems to be one, by MCP_REPLICAS, MCP_HOST"
    assert remedy is not None
    assert "or to none" in remedy
    assert judge(checks.trusted_proxies, host="0.0.0.0").remedy is None
    monkeypatch.setattr(os, "getpid", lambda: 1)
    assert judge(checks.trusted_proxies, host="0.0.0.0", allowed_hosts="localhost").remedy is None
    assert judge(checks.trusted_proxies, host="0.0.0.0", allowed_hosts="tools.example.com").remedy
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert judge(checks.trusted_proxies, host="0.0.0.0").remedy
    assert judge(checks.trusted_proxies).remedy is None


def test_key_that_expires_soon_is_noted(judge: Callable[..., Finding], key: str, key_file: Path) -> None:
    """The row passes, and says when."""
    settings = {"transport": "http", "auth_mode": "api_key", "api_keys_file": key_file}
    assert judge(checks.api_keys, **settings) == Finding("1 valid")
    new_key(key_file, "tests", (), 15)
    assert judge(checks.api_keys, **settings) == Finding("2 valid")
    new_key(key_file, "tests", (), 13)
    new_key(key_file, "tests", (), None)
    expire_last(key_file)
    found, remedy = judge(checks.api_keys, **settings)
    assert remedy is None
    assert found.startswith("3 valid; 1 expires soon, the first on 20")


def test_key_of_a_stdio_server(judge: Callable[..., Finding], key: str, key_file: Path, tmp_path: Path) -> None:
    """It is one of the file's."""
    assert judge(checks.api_keys, api_key=key, api_keys_file=key_file) == Finding("1 valid")
    other = new_key(tmp_path / "other", "tests", (), None)
    found, remedy = judge(checks.api_keys, api_key=other, api_keys_file=key_file)
    assert found == "MCP_API_KEY: unknown key"
    assert remedy is not None
    assert judge(checks.api_keys, api_keys_file=key_file) == Finding("not used")


@POSIX
@pytest.mark.parametrize(
    ("mode", "passes"), [(0o600, True), (0o640, True), (0o660, True), (0o604, False), (0o602, False)]
)
def test_modes_of_secrets(
    judge: Callable[..., Finding],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: int,
    passes: bool,
) -> None:
    """A group may read them, as platforms give them to a group; others may not. In a container there are no others."""
    secret = tmp_path / "secret"
    secret.write_text("x" * 32, encoding="utf-8")
    secret.chmod(mode)
    monkeypatch.setenv("MCP_REQUEST_STATE_KEYS_FILE", str(secret))
    finding = judge(checks.secret_files)
    assert (finding.remedy is None) is passes
    assert ("MCP_REQUEST_STATE_KEYS_FILE" in finding.found) is not passes
    monkeypatch.setattr(os, "getpid", lambda: 1)
    assert judge(checks.secret_files).remedy is None


def test_dotenv_without_a_secret_may_be_read(tmp_path: Path, judge: Callable[..., Finding]) -> None:
    """Settings are no secret, and neither is the name of a file that holds one."""
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / ".env").write_text("MCP_PORT=1\nMCP_API_KEYS_FILE=keys\nMCP_API_KEY=\n", encoding="utf-8")
    assert settings_module.secret_paths(load_settings({})).keys() == {"MCP_API_KEYS_FILE"}
    (tmp_path / ".env").write_text("MCP_RATE_LIMIT_STORE=redis://u:p@h\n", encoding="utf-8")
    assert settings_module.secret_paths(load_settings({})) == {".env": tmp_path / ".env"}


@POSIX
@pytest.mark.parametrize(("pid", "parent"), [(1, 0), (7, 0)])
def test_container_of_its_own(
    judge: Callable[..., Finding], monkeypatch: pytest.MonkeyPatch, pid: int, parent: int
) -> None:
    """Process 1, and what is started beside it from outside: a read-only root, and not root."""
    monkeypatch.setattr(os, "getpid", lambda: pid)
    monkeypatch.setattr(os, "getppid", lambda: parent)
    monkeypatch.setattr(os, "geteuid", lambda: 65532)
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_flag=os.ST_RDONLY | os.ST_NOSUID))
    assert judge(checks.root_file_system) == Finding("read-only")
    assert judge(checks.unprivileged_user) == Finding("not root")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_flag=os.ST_NOSUID))
    assert judge(checks.root_file_system).remedy
    assert judge(checks.unprivileged_user).remedy


def test_machine_that_is_no_container(judge: Callable[..., Finding], monkeypatch: pytest.MonkeyPatch) -> None:
    """A service manager's process 1 is the parent there: root and a writable root file system are not judged."""
    monkeypatch.setattr(os, "getppid", lambda: 1)
    for check in (checks.root_file_system, checks.unprivileged_user):
        assert judge(check) == Finding("not judged: not a container of its own")


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("2.9", "2.10"),
        ("2.13.0rc1", "2.13.0"),
        ("2.13.0.dev3", "2.13"),
        ("2.13.0b2", "2.13.0.post1"),
        ("0.9.9", "1"),
        ("?", "0.1"),
    ],
)
def test_order_of_versions(older: str, newer: str) -> None:
    """By number, and a pre-release before its release."""
    assert checks._order(older) < checks._order(newer)
    assert checks._order(newer) == checks._order(f"{newer}.0" if newer.replace(".", "").isdigit() else newer)


def test_every_fault_is_of_something_installed_and_cured() -> None:
    """The table names distributions as they are installed; a misspelt one would be passed over."""
    for name, fixed_in, faults in checks.FAULTS:
        assert checks._order(metadata.version(name)) >= checks._order(fixed_in)
        assert all(each.startswith("CVE-") for each in faults.split(", "))


class Shade(Enum):
    """An enumeration."""

    DARK = "dark"


class Tree(BaseModel):
    """A model that holds itself."""

    name: str
    branches: "list[Tree]" = []


class Loose(BaseModel):
    """A model with a field of any type."""

    anything: Any


BOUNDED = [
    *(str, bytes, int, float, bool, None, date, timedelta, UUID, IPv4Address, Path, Shade, Literal["a", 1], HttpUrl),
    *(list[str], set[int], tuple[int, str], tuple[str, ...], dict[str, list[int]], str | int | None, Tree, Decimal),
    *(Decimal | None, AnyUrl, deque[str], OrderedDict[str, int]),
    dict[Annotated[str, Field(pattern="^[a-z]$")], AnyUrl],
]
OPEN = [
    *(Any, object, dict, list, list[Any], dict[str, Any], dict[str, object], JsonValue, Loose, re.Pattern[str]),
    *(Any | None, list[dict[str, Any]], dict[Annotated[str, Field(pattern="^[a-z]$")], Any], tuple[int, Any]),
]


@pytest.mark.parametrize(
    ("kind", "is_open"), [(kind, False) for kind in BOUNDED] + [(kind, True) for kind in OPEN], ids=str
)
def test_bounds_of_arguments(kind: Any, is_open: bool) -> None:
    """What the server bounds by itself, and what authors bound, is no alarm; the rest is named."""

    def function(argument: Any, other: int) -> None:
        pass

    function.__annotations__["argument"] = kind
    assert unbounded(Signature(function).schema) == (["argument"] if is_open else [])


def test_stop_is_as_long_as_the_server_takes() -> None:
    """The checklist counts with the time after which the server ends itself."""
    assert checks._CLEANUP_SECONDS == http._SPARE_SECONDS


def test_each_check_says_what_and_why() -> None:
    """Its docstring is the row's title, and the reason for it."""
    assert len(set(ITEMS)) == len(checks.CHECKS)
    for check in checks.CHECKS:
        assert isinstance(check, Check)
        title, empty, *why = (check.judge.__doc__ or "").splitlines()
        assert title
        assert not empty
        assert "".join(why).strip()
