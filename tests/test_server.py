"""A rendered and installed server, reached as its users reach it: by its own command."""

import contextlib
import http.client
import json
from typing import Any
from urllib.parse import urlsplit

import pytest

from bootstrap import ROOT
from installed import PACKAGE, SLUG, Installed, install, modern
from raw import LEGACY, MODERN, headers_of, message
from rendering import render, run

pytestmark = [pytest.mark.install, pytest.mark.timeout(300)]

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


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The default project with two more tools dropped in, installed."""
    path = render(tmp_path_factory.mktemp("server"), project_name="Spare Parts")
    tools = path / "src" / PACKAGE / "tools"
    (tools / "nap.py").write_text(DROPPED, encoding="utf-8")
    (tools / "find_invoice.py").write_text(README_TOOL, encoding="utf-8")
    return install(path)


def test_dropped_tool_is_served_without_another_edit(installed: Installed) -> None:
    """It is listed for those who may use it, with its annotations, and guarded, validated, timed and logged."""
    rows = json.loads(run(installed.path, f"uv run {SLUG} tools --json").stdout)
    row = {"name": "nap", "scopes": ["naps:take"], "cost": 3, "timeout_seconds": 0.2, "read_only": False}
    assert row in rows

    def call(rpc_id: int, **arguments: Any) -> dict[str, Any]:
        return modern(rpc_id, "tools/call", name="nap", arguments=arguments)

    answers, _ = installed.stdio(modern(1, "tools/list"), call(2, seconds=0))
    by_id = {answer["id"]: answer["result"] for answer in answers}
    assert "nap" not in {tool["name"] for tool in by_id[1]["tools"]}
    assert by_id[2]["_meta"]["plinth/error"]["code"] == "forbidden"
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


@pytest.mark.parametrize("era", [MODERN, LEGACY])
def test_long_call_keeps_its_connection_alive(installed: Installed, era: str) -> None:
    """A call that is silent for 15 s becomes a stream of events with a comment, which proxies take for life."""
    with installed.http() as url:
        address = urlsplit(url)
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=30)
        call = message(era, 1, "tools/call", {"name": "stocktake", "arguments": {"pause_ms": 5000}})
        with contextlib.closing(connection):
            connection.request("POST", address.path, json.dumps(call), headers_of(call, era))
            answer = connection.getresponse()
            assert answer.headers["content-type"] == "text/event-stream"
            assert answer.readline() == b": ping\n"
