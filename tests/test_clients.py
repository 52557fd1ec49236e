"""Other people's clients and what they see of an installed server, over both transports and in both eras.

Over HTTP they send an API key, which grants what they may not use on stdio.
The Python SDK's client is not here: the suite of every generated project drives its server with it, in all four ways.
"""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from bootstrap import ROOT, environment
from installed import Installed, install, modern
from node import Node, install_packages
from rendering import render

pytestmark = [pytest.mark.install, pytest.mark.timeout(300)]

PACKAGES = ["@modelcontextprotocol/client@2.4.0", "@modelcontextprotocol/inspector@2.12.0", "mcp-remote@0.15.1"]
MODERN, LEGACY = "2026-07-28", "2025-11-25"

Json = dict[str, Any]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The default project, installed."""
    return install(render(tmp_path_factory.mktemp("server"), project_name="Spare Parts"))


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Node:
    """Node with the clients."""
    return install_packages(tmp_path_factory.mktemp("clients"), *PACKAGES)


class Guarded(NamedTuple):
    """Settings that ask for an API key, and one that may place orders."""

    settings: dict[str, str]
    key: str


@pytest.fixture(scope="module")
def guarded(installed: Installed) -> Guarded:
    """A file of keys, with one in it."""
    file = installed.path / "keys.json"
    key = installed.new_key(file, "orders:write")
    return Guarded({"MCP_AUTH_MODE": "api_key", "MCP_API_KEYS_FILE": str(file)}, key)


class Target(NamedTuple):
    """What a client is told: the server's command, or the address of a running one and what to say there."""

    address: str
    authorization: str = ""


@pytest.fixture(params=["stdio", "http"])
def target(installed: Installed, guarded: Guarded, request: pytest.FixtureRequest) -> Iterator[Target]:
    """Where a client is to connect to."""
    if request.param == "stdio":
        yield Target(str(installed.command))
    else:
        with installed.http(**guarded.settings) as url:
            yield Target(url, f"Bearer {guarded.key}")


@pytest.fixture(params=["modern", "legacy"])
def era(request: pytest.FixtureRequest) -> str:
    """The era that a client is told to speak."""
    chosen: str = request.param
    return chosen


def check(seen: Json, era: str, *, has_key: bool) -> None:
    """Check what every client shows: the tools it may use, a tool's result and its error, a resource, a prompt."""
    tools = {"convert_price", "get_part", "search_parts", "stocktake"} | ({"place_order"} if has_key else set())
    assert {tool["name"] for tool in seen["tools"]["tools"]} == tools
    part = seen["part"]["structuredContent"]
    assert part["aisle"] == "A1"
    # Only modern results name the server: a client that quietly spoke the other era is found out.
    assert ("io.modelcontextprotocol/serverInfo" in seen["part"].get("_meta", {})) == (era == "modern")
    refused = seen["refused"]
    assert refused["isError"] is True
    assert refused["content"] == [{"type": "text", "text": r"sku: must match the pattern ^[A-Z]{3}-\d{4}$"}]
    assert refused["_meta"]["plinth/error"]["code"] == "invalid_arguments"
    assert json.loads(seen["resource"]["contents"][0]["text"]) == part
    assert part["name"] in seen["prompt"]["messages"][0]["content"]["text"]


def test_inspector(node: Node, target: Target, era: str) -> None:
    """The official Inspector shows everything, has nothing against the schemas, and exits with 5 after a tool's error."""
    launcher = "@modelcontextprotocol/inspector/clients/launcher/build/index.js"
    sent = ("--header", f"Authorization: {target.authorization}") if target.authorization else ()
    call = ("tools/call", "--tool-name", "get_part", "--tool-args-json")
    seen, codes = {}, {}
    for name, arguments in {
        "tools": ("tools/list", "--strict"),
        "part": (*call, '{"sku": "BRG-6204"}'),
        "refused": (*call, '{"sku": "bearing"}'),
        "resource": ("resources/read", "--uri", "part://BRG-6204"),
        "prompt": ("prompts/get", "--prompt-name", "reorder", "--prompt-args", "sku=BRG-6204"),
    }.items():
        options = ("--protocol-era", era, "--format", "json", "--method", *arguments)
        done = node.run(node.command(launcher, "--cli", target.address, *options, *sent))
        seen[name], codes[name] = json.loads(done.stdout)["result"], done.returncode
    check(seen, era, has_key=bool(sent))
    assert codes == {"tools": 0, "part": 0, "refused": 5, "resource": 0, "prompt": 0}


def test_typescript_client(node: Node, target: Target, era: str) -> None:
    """The TypeScript SDK's client finds the era by itself, or goes by the handshake as it does by default."""
    driver = shutil.copy(ROOT / "tests" / "clients" / "typescript.mjs", node.folder)  # imports from where it lies
    done = node.run([node.program, driver, "auto" if era == "modern" else "legacy", *target])
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    check(seen, era, has_key=bool(target.authorization))
    assert seen["version"] == (MODERN if era == "modern" else LEGACY)
    # Progress that it reads in one go with the answer is lost on this client, so the last steps may be missing.
    assert seen["progress"][0] == {"progress": 1, "total": 7, "message": "aisle A1"}


def test_mcp_remote(node: Node, installed: Installed, guarded: Guarded, era: str) -> None:
    """mcp-remote, started as `client-config` says, joins a client on stdio to the server, and passes on all progress."""
    requests: dict[str, tuple[str, Json]] = {
        "tools": ("tools/list", {}),
        "part": ("tools/call", {"name": "get_part", "arguments": {"sku": "BRG-6204"}}),
        "refused": ("tools/call", {"name": "get_part", "arguments": {"sku": "bearing"}}),
        "counted": ("tools/call", {"name": "stocktake", "arguments": {}, "_meta": {"progressToken": "count"}}),
        "resource": ("resources/read", {"uri": "part://BRG-6204"}),
        "prompt": ("prompts/get", {"name": "reorder", "arguments": {"sku": "BRG-6204"}}),
    }
    with installed.http(**guarded.settings) as url, bridged(*configured(node, installed, guarded, url)) as ask:
        if era == "legacy":
            hello = {"protocolVersion": LEGACY, "capabilities": {}, "clientInfo": {"name": "raw", "version": "0"}}
            (answer,) = ask({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": hello})
            assert answer["result"]["protocolVersion"] == LEGACY
            ask({"jsonrpc": "2.0", "method": "notifications/initialized"})
        seen: Json = {}
        for name, (method, params) in requests.items():
            legacy = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
            *notifications, answer = ask(modern(1, method, **params) if era == "modern" else legacy)
            seen[name] = answer["result"]
            assert [each["params"]["progress"] for each in notifications] == (
                [1, 2, 3, 4, 5, 6, 7] if name == "counted" else []
            )
    check(seen, era, has_key=True)


def configured(node: Node, installed: Installed, guarded: Guarded, url: str) -> tuple[list[str | Path], dict[str, str]]:
    """The command line and the environment of mcp-remote in the snippet for Claude Desktop, with the key filled in."""
    variables = environment() | guarded.settings | {"MCP_TRANSPORT": "http", "MCP_PORT": str(urlsplit(url).port)}
    shown = subprocess.check_output([installed.command, "client-config", "claude-desktop"], env=variables, text=True)
    (entry,) = json.loads(shown.replace("<API key>", guarded.key))["mcpServers"].values()
    yes, package, *arguments = entry["args"]
    assert (yes, package in PACKAGES) == ("-y", True)  # the version that is tried here is the one that users start
    return node.command("mcp-remote/dist/proxy.js", *arguments), node.environment() | entry["env"]


@contextmanager
def bridged(command: list[str | Path], variables: dict[str, str]) -> Iterator[Callable[[Json], list[Json]]]:
    """Start mcp-remote, and end it; what is yielded sends one message and returns what comes back, up to the answer."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, encoding="utf-8", env=variables) as process:

        def ask(message: Json) -> list[Json]:
            assert process.stdin
            assert process.stdout
            process.stdin.write(json.dumps(message) + "\n")
            process.stdin.flush()
            received: list[Json] = []
            while "id" in message and not (received and "id" in received[-1]):
                received.append(json.loads(process.stdout.readline()))
            return received

        try:
            yield ask
        finally:
            process.kill()
