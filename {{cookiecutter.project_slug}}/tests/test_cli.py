"""The command line: results on stdout, problems one to a line on stderr, and an exit code."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

from {{ cookiecutter.package_name }}.auth.api_keys import new_key
from {{ cookiecutter.package_name }}.server import build_server
from {{ cookiecutter.package_name }}.settings import Settings

from .conftest import PACKAGE_FOLDER, ROOT
from .harness import PACKAGE, PATIENCE, Json, Server, environment, run_command

CLIENTS = ["claude-desktop", "claude-code", "cursor", "vscode"]


def problems(*arguments: str, source: Path | None = None) -> list[str]:
    """The problems that a command ends with, exit code 2 and nothing on stdout."""
    done = run_command(*arguments, source=source)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    return [json.loads(line)["event"] for line in done.stderr.splitlines()]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["frobnicate"], "invalid choice: 'frobnicate'"),
        (["serve", "--frobnicate"], "unrecognized arguments: --frobnicate"),
        (["serve", "--transport", "pigeon"], "invalid choice: 'pigeon'"),
        (["serve", "--port", "x"], "MCP_PORT: must be an integer"),
        (["client-config", "emacs"], "invalid choice: 'emacs'"),
        (["new-tool", "not a name"], "must be a Python function name"),
        (["new-tool", "class"], "must be a Python function name"),
        (["new-tool", "print"], "must be a Python function name"),
        (["--port", "x", "tools"], "MCP_PORT: must be an integer"),
    ],
)
def test_wrong_command_line(arguments: list[str], problem: str) -> None:
    """One line says what is wrong."""
    (line,) = problems(*arguments)
    assert problem in line


def test_help_and_version() -> None:
    """They are results: on stdout, exit 0."""
    for option in ("--help", "--version"):
        done = run_command(option)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_result_that_cannot_be_written() -> None:
    """It is one line and exit 1; a reader that has read enough is no failure."""
    command = [sys.executable, "-m", PACKAGE, "--version"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=environment(), check=False)
    assert done.returncode == 1
    assert json.loads(done.stderr)["event"].startswith("the result cannot be written")


def test_tools_lists_what_is_served(source: Path) -> None:
    """With scopes, cost, timeout, and whether it is read-only."""
    rows = {row["name"]: row for row in json.loads(run_command("tools", "--json", source=source).stdout)}
    assert rows["probe_privileged"] == {
        "name": "probe_privileged",
        "scopes": ["probe:more", "probe:use"],
        "cost": 1,
        "timeout_seconds": Settings.model_fields["tool_timeout_seconds"].default,
        "read_only": False,
    }
    table = run_command("tools", source=source).stdout
    assert "probe_privileged" in table
    assert "probe:more probe:use" in table


def entry_of(client: str, settings: dict[str, str] | None = None) -> tuple[Json, Json]:
    """The one server of a client's snippet, and the whole snippet."""
    unset = {"MCP_RATE_LIMIT_BURST": ""}  # what the tests set for every server would be carried, too
    done = run_command("client-config", client, settings=unset | (settings or {}))
    assert (done.returncode, done.stderr) == (0, "")
    shown = json.loads(done.stdout)
    (entry,) = shown["servers" if client == "vscode" else "mcpServers"].values()
    return entry, shown


@pytest.mark.parametrize("client", CLIENTS)
async def test_client_config_starts_a_server(client: str, tmp_path: Path) -> None:
    """Command, arguments and variables of the snippet, in another folder and with little else in the environment: all
    that is configured is granted, and a tool answers."""
    served = build_server(Settings.model_construct()).registry
    scopes = sorted(frozenset({"probe:use"}).union(*(tool.scopes for tool in served.tools.values())))
    settings = {"MCP_LOG_LEVEL": "ERROR", "MCP_LOCAL_SCOPES": ",".join(scopes)}
    entry, _ = entry_of(client, settings)
    assert entry.pop("type", "stdio") == "stdio"
    assert entry["env"] == settings
    async with Client(StdioServerParameters(**entry, cwd=tmp_path)) as connected:
        assert {tool.name for tool in (await connected.list_tools()).tools} == set(served.tools)
        refused = await connected.call_tool(min(served.tools), {"no_such_argument": 1})
    assert (refused.meta or {})["plinth/error"]["code"] == "invalid_arguments"


@pytest.mark.parametrize("client", CLIENTS[1:])
async def test_client_config_reaches_a_server(client: str, tmp_path: Path) -> None:
    """Address and header of the snippet, the key filled in where the client does, reach the server of the same settings
    with all that the key grants. (Claude Desktop goes through mcp-remote, which the template's tests run.)"""
    served = build_server(Settings.model_construct()).registry
    keys = tmp_path / "keys.json"
    key = new_key(keys, "tests", sorted(frozenset().union(*(tool.scopes for tool in served.tools.values()))), None)
    settings = {"MCP_TRANSPORT": "http", "MCP_AUTH_MODE": "api_key", "MCP_API_KEYS_FILE": str(keys)}
    with Server("serve", "--port", "0", settings=settings) as server:
        entry, shown = entry_of(client, settings | {"MCP_PORT": str(urlsplit(server.url).port)})
        asked = {each["id"]: key for each in shown.get("inputs", ()) if each["password"]}
        known = {"${MCP_API_KEY}": key, "${env:MCP_API_KEY}": key} | {"${input:" + each + "}": key for each in asked}
        scheme, place = entry["headers"]["Authorization"].split(" ")
        headers = {"Authorization": f"{scheme} {known[place]}"}
        async with (
            httpx2.AsyncClient(headers=headers, timeout=PATIENCE) as http,
            Client(streamable_http_client(entry["url"], http_client=http)) as connected,
        ):
            assert {tool.name for tool in (await connected.list_tools()).tools} == set(served.tools)
            refused = await connected.call_tool(min(served.tools), {"no_such_argument": 1})
    assert (refused.meta or {})["plinth/error"]["code"] == "invalid_arguments"


def test_client_config_holds_no_secret() -> None:
    """What is configured goes along, a file by its full path, and no secret: these files are shared."""
    settings = {"MCP_API_KEY": "hunter22hunter22", "MCP_API_KEYS_FILE": "keys.json"}
    entry, shown = entry_of("cursor", settings)
    assert entry["env"] == {"MCP_API_KEYS_FILE": str(Path("keys.json").resolve())}
    assert "hunter22" not in json.dumps(shown)


@pytest.mark.parametrize("client", CLIENTS)
def test_client_config_for_http_names_the_address(client: str) -> None:
    """It follows the configured transport."""
    settings = {"MCP_TRANSPORT": "http", "MCP_PORT": "8123"}
    assert "http://127.0.0.1:8123/mcp" in run_command("client-config", client, settings=settings).stdout


@pytest.mark.parametrize("client", CLIENTS)
def test_client_config_starts_no_program_of_any_version(client: str) -> None:
    """What npx fetches is named by an exact version, and by none that lets a server run commands (CVE-2025-6514)."""
    entry, _ = entry_of(client, {"MCP_TRANSPORT": "http"})
    if client != "claude-desktop":
        assert "command" not in entry
        return
    assert (entry["command"], entry["args"][0]) == ("npx", "-y")
    name, _, version = entry["args"][1].partition("@")
    assert name == "mcp-remote"
    assert re.fullmatch(r"\d+\.\d+\.\d+", version), "a range, or a tag, is whatever was published last"
    assert tuple(map(int, version.split("."))) >= (0, 1, 16)


@pytest.mark.parametrize("client", CLIENTS)
def test_client_config_says_where_the_key_goes(client: str, tmp_path: Path) -> None:
    """In the header, filled in by the client; the address is the one clients use."""
    settings = {"MCP_TRANSPORT": "http", "MCP_AUTH_MODE": "api_key", "MCP_API_KEYS_FILE": str(tmp_path / "keys.json")}
    shown = run_command("client-config", client, settings=settings | {"MCP_PUBLIC_URL": "https://tools.example.com/x"})
    (entry,) = json.loads(shown.stdout)["servers" if client == "vscode" else "mcpServers"].values()
    assert "https://tools.example.com/x" in (entry.get("url"), *entry.get("args", ()))
    header = entry["headers"]["Authorization"] if "headers" in entry else entry["env"]["AUTHORIZATION"]
    assert header.startswith("Bearer ")


def test_client_config_carries_what_is_configured() -> None:
    """The snippet starts the server with the scopes and the limits of this configuration, and nothing that is of HTTP."""
    settings = {"MCP_LOCAL_SCOPES": "a:b, c:d", "MCP_MAX_CONCURRENT_CALLS": "8", "MCP_RATE_LIMIT_PER_MINUTE": "0"}
    entry, _ = entry_of("cursor", settings | {"MCP_PORT": "8123", "MCP_RATE_LIMIT_STORE": "redis://user:hunter22@here"})
    assert entry["env"] == settings | {"MCP_LOCAL_SCOPES": "a:b,c:d"}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project, to write in."""
    copy = tmp_path / "project"
    keep_out = shutil.ignore_patterns(".venv", ".git", "*_cache", "__pycache__", "dist")
    shutil.copytree(ROOT, copy, ignore=keep_out)
    return copy


def test_new_tool_is_served_and_passes_its_test(project: Path) -> None:
    """`new-tool` writes a tool and a test, and both are good as they are. (The name is one that no project has.)"""
    source = project / "src"
    done = run_command("new-tool", "made_by_a_test", source=source)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.removeprefix("wrote ") for line in done.stdout.splitlines()] == [
        str(Path("src") / PACKAGE / "tools" / "made_by_a_test.py"),
        str(Path("tests") / "test_made_by_a_test.py"),
    ]
    assert "made_by_a_test" in run_command("tools", source=source).stdout
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-n",
            "0",
            "-p",
            "no:cacheprovider",
            "-k",
            "modern",
            "tests/test_made_by_a_test.py",
        ],
        cwd=project,
        env=environment(source),
        check=True,
        capture_output=True,
        timeout=60,
    )
    (again, other) = problems("new-tool", "made_by_a_test", source=source)
    assert "made_by_a_test.py is there already" in again
    assert "test_made_by_a_test.py is there already" in other


TOOL = f"""from {PACKAGE}.tooling import tool


@tool()
def bad() -> str:
    \"\"\"Say something.\"\"\"
    return ""
"""


SAME = (
    TOOL.replace("import tool", "import resource")
    .replace("@tool()", '@resource("probe://text")')
    .replace("bad", "same")
)


@pytest.fixture
def problems_of(source: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """The problems of a server into which these files were dropped."""
    copy = tmp_path / "source"

    def drop(files: dict[str, str], *options: str) -> list[str]:
        shutil.copytree(source, copy, dirs_exist_ok=True)
        for name, text in files.items():
            (copy / PACKAGE / name).write_text(text, encoding="utf-8")
        return problems("serve", *options, source=copy)

    return drop


def test_tool_files_that_cannot_be_imported(problems_of: Callable[..., list[str]]) -> None:
    """One line for each names the file and what to do; exit 2, never a traceback."""
    files = {
        "tools/bad1.py": "def broken(:\n",
        "tools/bad2.py": "import no_such_module\n",
        "tools/bad3.py": "X = 1 / 0\n",
        "tools/bad4.py": "X = 1\n",
        "tools/bad5.py": TOOL.replace("tool()", "tool(cots=1)"),
        "tools/bad6.py": TOOL.replace("@tool()", "@missing()"),
        "tools/bad7.py": TOOL.replace("import tool", "import prompt").replace("@tool()", "@prompt()"),
        "tools/bad8.py": "import sys\nsys.exit('no')\n",
        "tools/bad9.py": TOOL.replace("@tool()", "@tool"),
        "tools/bada.py": TOOL.replace("tool()", "tool(scopes='orders:write')"),
        "tools/badb.py": TOOL.replace("tool()", "tool(cost=0)"),
        "tools/badc.py": TOOL.replace("tool()", "tool(timeout_seconds='5')"),
        "tools/badd.py": TOOL + "\n\n" + TOOL.partition("\n\n\n")[2],
    }
    assert problems_of(files) == [
        "tools/bad1.py, line 1: invalid syntax",
        "tools/bad2.py, line 1: No module named 'no_such_module'",
        "tools/bad3.py, line 1: ZeroDivisionError while it was imported",
        "tools/bad4.py: declares no @tool; start the name of a helper module with an underscore",
        "tools/bad5.py, line 4: TypeError while it was imported",
        "tools/bad6.py, line 4: name 'missing' is not defined",
        "tools/bad7.py: bad is a @prompt; move it to prompts/",
        "tools/bad8.py, line 2: SystemExit while it was imported",
        "tools/bad9.py, line 4: write @tool() with parentheses",
        "tools/bada.py, line 4: scopes is a set of names, as in scopes=['orders:write']",
        "tools/badb.py, line 4: cost is 1 or more",
        "tools/badc.py, line 4: timeout_seconds is a number greater than 0",
        "tools/badd.py, line 10: bad: there is a tool of this name above; rename one",
    ]


def test_tools_that_cannot_be_served(problems_of: Callable[..., list[str]]) -> None:
    """Two of one name, none to describe it, and signatures that no schema can be made of."""
    files = {
        "tools/bad1.py": TOOL.replace("bad()", "probe_reached()"),
        "tools/bad2.py": TOOL.replace("Say something.", ""),
        "tools/bad3.py": TOOL.replace("bad()", "bad3(x)"),
        "tools/bad4.py": TOOL.replace("bad()", "bad4(*x: int)"),
        "tools/bad5.py": TOOL.replace("bad()", "bad5(x: Path)").replace(
            "from", "from threading import Lock as Path\nfrom", 1
        ),
        "tools/bad6.py": TOOL.replace("bad()", "bad6()").replace('return ""', 'yield ""'),
        "tools/bad8.py": TOOL.replace("bad()", "bad8(x: Annotated[int, Field(alias='y')])").replace(
            "from", "from typing import Annotated\nfrom pydantic import Field\nfrom", 1
        ),
        "tools/bad9.py": TOOL.replace("bad()", "bad9(x: Iterable[str])").replace(
            "from", "from collections.abc import Iterable\nfrom", 1
        ),
        "resources/same.py": SAME,
        "tools/bad7.py": TOOL.replace("bad() -> str", "bad7()"),
        "resources/bad.py": TOOL.replace("import tool", "import resource").replace("@tool()", '@resource("a://{b}")'),
    }
    found = problems_of(files)
    assert len(found) == len(files)
    for line, problem in zip(
        found,
        (
            "tools/bad2.py: bad: has no docstring",
            "tools/bad3.py: bad3: x has no annotation",
            "tools/bad4.py: bad4: x: *args, **kwargs and positional-only parameters have no schema",
            "tools/bad5.py: bad5: ",
            "tools/bad6.py: bad6: is a generator; return the whole value",
            "tools/bad7.py: bad7: has no return annotation; it is the schema of the result",
            "tools/bad8.py: bad8: x: an alias is not published; give the parameter the name it is to have",
            "tools/bad9.py: bad9: an Iterable or Iterator is not validated before it is read; write list[...]",
            "tools/probes.py: probe_reached: tools/bad1.py has a tool of this name too; rename one",
            "resources/bad.py: bad: the variables of a://{b} are not the function's parameters",
            "resources/: two resources have the URI probe://text; change one",
        ),
        strict=True,
    ):
        assert line.startswith(problem)


DEPENDENT = (
    TOOL.replace("import tool", "import Depends, tool")
    .replace("bad()", "bad(x: Annotated[int, Depends(open_x)])")
    .replace("from", "from contextlib import asynccontextmanager\nfrom typing import Annotated\nfrom", 1)
    .replace(
        "\n\n\n",
        """


@asynccontextmanager
async def open_x(settings):
    raise ConnectionRefusedError("hunter22")
    yield


""",
        1,
    )
)


@pytest.mark.parametrize("transport", ["stdio", "http"])
def test_dependency_that_does_not_open(problems_of: Callable[..., list[str]], transport: str) -> None:
    """The start ends with a line that names it, over both transports."""
    crash, problem = problems_of({"tools/bad.py": DEPENDENT}, "--transport", transport, "--port", "0")
    assert (crash, problem) == (
        "crash",
        "bad.open_x: ConnectionRefusedError while this dependency was opened; see the line before",
    )


def test_source_tree_is_needed_for_new_tool(tmp_path: Path) -> None:
    """An installed package has no place for a new file."""
    shutil.copytree(PACKAGE_FOLDER, tmp_path / "a" / PACKAGE)
    (line,) = problems("new-tool", "find_invoice", source=tmp_path / "a")
    assert "source tree only" in line
