"""A rendered and installed server, reached as its users reach it: by its own command, and by the official Inspector."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bootstrap import BIN, ROOT, environment
from rendering import render, run

pytestmark = [pytest.mark.install, pytest.mark.timeout(300)]

INSPECTOR = "@modelcontextprotocol/inspector@2.12.0"
SLUG, PACKAGE = "spare-parts", "spare_parts"

DROPPED = '''"""A tool that somebody dropped in."""

from typing import Annotated

import anyio
from pydantic import Field

from ..tooling import tool


@tool(title="Nap", scopes={"naps:take"}, cost=3, timeout_seconds=0.2, idempotent=True, open_world=False)
async def nap(seconds: Annotated[float, Field(ge=0, le=60, description="How long.")]) -> str:
    """Take a nap."""
    await anyio.sleep(seconds)
    return "rested"
'''


README_TOOL = (ROOT / "README.md").read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]


class Installed(NamedTuple):
    """An installed project and its own command."""

    path: Path
    command: Path

    def stdio(self, *messages: dict[str, Any], **settings: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Every answer and every log event of a server that is sent these messages and then the end of input."""
        done = subprocess.run(
            [self.command],
            input="".join(json.dumps(message) + "\n" for message in messages),
            capture_output=True,
            encoding="utf-8",
            env=environment() | settings,
            timeout=60,
            check=True,
        )
        return [json.loads(line) for line in done.stdout.splitlines()], [
            json.loads(line) for line in done.stderr.splitlines()
        ]

    @contextmanager
    def http(self) -> Iterator[str]:
        """The address of a server that is stopped at the end."""
        command = [self.command, "serve", "--transport", "http", "--port", "0"]
        with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, encoding="utf-8") as server:
            assert server.stderr
            try:
                events = (json.loads(line) for line in server.stderr)
                yield next(event["url"] for event in events if event["event"] == "listening")
            finally:
                server.kill()


def modern(rpc_id: int, method: str, **params: Any) -> dict[str, Any]:
    """A request of revision 2026-07-28."""
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    return {"jsonrpc": "2.0", "id": rpc_id, "method": method, "params": params | {"_meta": meta}}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The default project with two more tools dropped in, installed."""
    path = render(tmp_path_factory.mktemp("server"), project_name="Spare Parts")
    tools = path / "src" / PACKAGE / "tools"
    (tools / "nap.py").write_text(DROPPED, encoding="utf-8")
    (tools / "find_invoice.py").write_text(README_TOOL, encoding="utf-8")
    sync = run(path, "uv sync")
    assert sync.returncode == 0, sync.stderr
    return Installed(path, path / ".venv" / BIN / SLUG)


def test_dropped_tool_is_served_without_another_edit(installed: Installed) -> None:
    """It is listed with its scopes and annotations, guarded, validated, timed and logged."""
    rows = json.loads(run(installed.path, f"uv run {SLUG} tools --json").stdout)
    row = {"name": "nap", "scopes": ["naps:take"], "cost": 3, "timeout_seconds": 0.2, "read_only": False}
    assert row in rows

    def call(rpc_id: int, **arguments: Any) -> dict[str, Any]:
        return modern(rpc_id, "tools/call", name="nap", arguments=arguments)

    (refused,), _ = installed.stdio(call(1, seconds=0))
    assert refused["result"]["_meta"]["plinth/error"]["code"] == "unauthenticated"
    answers, log = installed.stdio(
        modern(1, "tools/list"),
        call(2, seconds=0),
        call(3, seconds="0"),
        call(4, seconds=30),
        MCP_LOCAL_SCOPES="naps:take",
    )
    by_id = {answer["id"]: answer["result"] for answer in answers}
    (listed,) = [tool for tool in by_id[1]["tools"] if tool["name"] == "nap"]
    assert (listed["title"], listed["description"]) == ("Nap", "Take a nap.")
    assert listed["annotations"]["idempotentHint"] is True
    assert listed["annotations"]["openWorldHint"] is False
    assert listed["inputSchema"]["additionalProperties"] is False
    assert by_id[2]["structuredContent"] == {"result": "rested"}
    assert by_id[3]["_meta"]["plinth/error"]["message"] == "seconds: must be a number"
    assert by_id[4]["_meta"]["plinth/error"]["code"] == "timeout"
    outcomes = {event["rpc_id"]: event["outcome"] for event in log if event["event"] == "request"}
    assert outcomes == {1: "ok", 2: "ok", 3: "invalid_arguments", 4: "timeout"}
    assert all(event["tool"] == "nap" for event in log if event.get("method") == "tools/call")


def test_tool_of_the_readme_works(installed: Installed) -> None:
    """The first tool that a reader copies does what it says."""
    calls = [modern(n, "tools/call", name="find_invoice", arguments={"number": n}) for n in (1, 2000)]
    answers, _ = installed.stdio(*calls, MCP_LOCAL_SCOPES="invoices:read")
    by_id = {answer["id"]: answer["result"] for answer in answers}
    assert by_id[1]["structuredContent"] == {"number": 1, "amount_cents": 4200}
    assert by_id[2000]["_meta"]["plinth/error"]["code"] == "failed"


def test_examples_as_a_client_meets_them(installed: Installed) -> None:
    """The worked examples answer over stdio, the resource and the prompt too."""
    order = {"sku": "SEN-0007", "quantity": 2, "idempotency_key": "order-0001"}
    answers, _ = installed.stdio(
        modern(1, "tools/call", name="search_parts", arguments={"query": "sensor"}),
        modern(2, "tools/call", name="get_part", arguments={"sku": "ZZZ-0000"}),
        modern(3, "tools/call", name="place_order", arguments=order),
        modern(4, "resources/read", uri="part://SEN-0007"),
        modern(5, "prompts/get", name="reorder", arguments={"sku": "SEN-0007"}),
        MCP_LOCAL_SCOPES="orders:write",
    )
    by_id = {answer["id"]: answer["result"] for answer in answers}
    assert by_id[1]["structuredContent"]["total"] == 2
    assert by_id[2]["_meta"]["plinth/error"]["code"] == "failed"
    assert by_id[3]["structuredContent"] == {"number": 1, "sku": "SEN-0007", "quantity": 2, "total_cents": 6840}
    assert json.loads(by_id[4]["contents"][0]["text"])["name"] == "Wheel speed sensor"
    assert "Wheel speed sensor" in by_id[5]["messages"][0]["content"]["text"]


# Node of the dev group, first on PATH. It trusts what the machine trusts, which may stand behind a proxy.
NODE_PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
NODE_ENVIRONMENT = {"PATH": NODE_PATH, "NODE_OPTIONS": "--use-system-ca"}


@pytest.fixture(scope="module")
def inspector(tmp_path_factory: pytest.TempPathFactory) -> list[str | Path]:
    """The Inspector's command line, installed with npm."""
    folder = tmp_path_factory.mktemp("inspector")
    npm, node = shutil.which("npm", path=NODE_PATH), shutil.which("node", path=NODE_PATH)
    if npm is None or node is None:
        pytest.skip("there is no Node for this platform in the dev group, and none on PATH")
    install = [npm, "install", "--no-audit", "--no-fund", "--save-exact", "--prefix", folder, INSPECTOR]
    variables = environment() | NODE_ENVIRONMENT
    done = subprocess.run(install, env=variables, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    launcher = folder / "node_modules/@modelcontextprotocol/inspector/clients/launcher/build/index.js"
    return [node, launcher, "--cli"]


@pytest.mark.parametrize("era", ["modern", "legacy"])
@pytest.mark.parametrize("transport", ["stdio", "http"])
def test_inspector_lists_and_calls(
    installed: Installed, inspector: list[str | Path], transport: str, era: str, tmp_path: Path
) -> None:
    """The official Inspector, over both transports and in both eras."""

    def inspect(target: list[str | Path], *arguments: str) -> tuple[int, dict[str, Any]]:
        done = subprocess.run(
            [*inspector, *target, "--protocol-era", era, "--format", "json", *arguments],
            capture_output=True,
            encoding="utf-8",
            env=environment() | NODE_ENVIRONMENT | {"HOME": str(tmp_path)},  # it writes to the home folder
            timeout=60,
            check=False,
        )
        return done.returncode, json.loads(done.stdout)["result"]

    def drive(target: list[str | Path]) -> None:
        code, listed = inspect(target, "--method", "tools/list")
        assert (code, {tool["name"] for tool in listed["tools"]}) == (
            0,
            {"find_invoice", "get_part", "nap", "place_order", "search_parts", "stocktake"},
        )
        call = ("--method", "tools/call", "--tool-name", "get_part", "--tool-args-json")
        code, part = inspect(target, *call, '{"sku": "BRG-6204"}')
        assert (code, part["structuredContent"]["aisle"]) == (0, "A1")
        code, refused = inspect(target, *call, '{"sku": "bearing"}')
        assert (code, refused["isError"]) == (5, True)

    if transport == "stdio":
        drive([installed.command])
    else:
        with installed.http() as url:
            drive(["--server-url", url, "--transport", "http"])
