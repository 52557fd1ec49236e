"""Which protocol revision a message is served in: headers and body agree, and what is not served says what is.

Guards: the checks of the modern era's headers cannot be bypassed by leaving a header out, in any mode of sessions; a
client of any era finds the revision that it shares with the server, over HTTP and on a pipe.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from installed import Installed
from raw import (
    ENVELOPE,
    HELLO,
    INITIALIZED,
    LEGACY,
    MODERN,
    SERVE_HTTP,
    Connection,
    Json,
    Response,
    Server,
    message,
    post,
)
from raw import headers_of as headers_of_message

pytestmark = [pytest.mark.install, pytest.mark.timeout(300)]

VERSION, CAPABILITIES = ENVELOPE
ALL = [MODERN, "2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"]
UNKNOWN = ["2027-05-05", "2024-10-07", "", "latest"]
CALL = {"name": "search_parts", "arguments": {"query": "bolt"}}
MISMATCH, UNSERVED, PARAMS, REQUEST, NO_METHOD = -32020, -32022, -32602, -32600, -32601


@pytest.fixture(scope="module", params=["stateless", "stateful"])
def port(installed: Installed, request: pytest.FixtureRequest) -> Iterator[int]:
    """A server that serves the handshake revisions this way."""
    settings = {"MCP_HTTP_SESSIONS": request.param, "MCP_RATE_LIMIT_PER_MINUTE": "0"}
    with Server([installed.command, *SERVE_HTTP], settings) as server:
        yield server.port


def call(envelope: Json | None, method: str = "tools/list", params: Json | None = None) -> Json:
    """A request with this envelope, or without one."""
    meta = {} if envelope is None else {"_meta": envelope}
    return {"jsonrpc": "2.0", "id": "n", "method": method, "params": {**(params or {}), **meta}}


def headers_of(body: Json, version: str | None) -> dict[str, str]:
    """The headers that go with a message, and this revision in one of them; None: in none."""
    headers = headers_of_message(body, MODERN) if "params" in body else headers_of_message(body, LEGACY)
    del headers["MCP-Protocol-Version"]
    return headers | ({} if version is None else {"MCP-Protocol-Version": version})


def ask(port: int, body: Json, headers: dict[str, str]) -> Response:
    """The answer to one POST on a connection of its own."""
    with Connection(port) as connection:
        return connection.ask(post(headers, body))


def assert_refused(answer: Response, code: int, rpc_id: object, status: int = 400) -> Json:
    """It is a complete error; returns it."""
    (body,) = answer.messages
    assert (answer.status, body["id"], body["error"]["code"]) == (status, rpc_id, code), body
    error: Json = body["error"]
    assert error["data"]["code"] == "invalid_request"
    assert error["data"]["message"] == error["message"]
    return error


DISAGREE: list[tuple[object, str | None]] = [
    *((MODERN, version) for version in (None, *ALL[1:], *UNKNOWN, "2026-07-28, 2026-07-28", "2026-07-28x")),
    *(("2025-11-25", version) for version in (None, "2025-06-18", MODERN)),
    *((odd, version) for odd in (5, None, [], {}, True, "") for version in (None, LEGACY, MODERN)),
    *(("2027-05-05", version) for version in (None, LEGACY, MODERN)),
]


@pytest.mark.parametrize("kind", ["request", "call", "notification"])
def test_headers_and_envelope_disagree(port: int, kind: str) -> None:
    """A message whose header does not name the revision of its envelope is refused, whichever of them is wrong."""
    for named, version in DISAGREE:
        envelope = {VERSION: named, CAPABILITIES: {}}
        body = call(envelope) if kind != "call" else call(envelope, "tools/call", CALL)
        if kind == "notification":
            body = {**body, "method": "notifications/cancelled"}
            del body["id"]
        error = assert_refused(ask(port, body, headers_of(body, version)), MISMATCH, body.get("id"))
        assert "MCP-Protocol-Version" in error["message"], (named, version)


def test_headers_and_envelope_agree(port: int) -> None:
    """Such a request is served, if its revision is."""
    body = call(ENVELOPE, "tools/call", CALL)
    (answer,) = ask(port, body, headers_of(body, MODERN)).messages
    assert answer["result"]["isError"] is False
    body = call({**ENVELOPE, VERSION: "2027-05-05"})
    error = assert_refused(ask(port, body, headers_of(body, "2027-05-05")), UNSERVED, "n")
    assert (error["data"]["supported"], error["data"]["requested"]) == (ALL, "2027-05-05")


WRONG_HEADERS = [
    {"Mcp-Method": None},
    {"Mcp-Method": "tools/list"},
    {"Mcp-Method": "TOOLS/CALL"},
    {"Mcp-Name": None},
    {"Mcp-Name": "place_order"},
    {"Mcp-Name": "=?base64?cGxhY2Vfb3JkZXI=?="},
    {"Mcp-Name": "=?base64?%%%?="},
    {"MCP-NAME": "search_parts"},
    {"mcp-method": "tools/call"},
    {"mcp-protocol-version": MODERN},
]


def test_other_headers_of_the_modern_era(port: int) -> None:
    """They say what the body says, once each, or the request is refused with the header's name and the remedy."""
    body = call(ENVELOPE, "tools/call", CALL)
    for change in WRONG_HEADERS:
        wanted = headers_of(body, MODERN) | change
        headers = {name: value for name, value in wanted.items() if value is not None}
        doubled = len(headers) > len({name.lower() for name in headers})
        error = assert_refused(ask(port, body, headers), MISMATCH, None if doubled else "n")
        assert doubled or next(iter(change)).lower() in error["message"]
        assert "Send" in error["message"]
        assert "place_order" not in error["message"]


def test_notification_of_the_modern_era(port: int) -> None:
    """It is accepted with no envelope and no header of its method, and refused if that one says something else."""
    body: Json = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}
    headers = headers_of_message(INITIALIZED, LEGACY) | {"MCP-Protocol-Version": MODERN}
    assert ask(port, body, headers).status == 202
    assert ask(port, body, headers | {"Mcp-Method": body["method"]}).status == 202
    error = assert_refused(ask(port, body, headers | {"Mcp-Method": "tools/call"}), MISMATCH, None)
    assert "Mcp-Method" in error["message"]


def test_no_envelope(port: int) -> None:
    """A request without one is told what it lacks, or under an unknown revision which there are."""
    body = call(None)
    error = assert_refused(ask(port, body, headers_of(body, MODERN)), PARAMS, "n")
    assert VERSION in error["message"]
    response: Json = {"jsonrpc": "2.0", "id": "n", "result": {}}
    for version in UNKNOWN:
        for sent in (body, call({CAPABILITIES: {}}), INITIALIZED, response):
            error = assert_refused(ask(port, sent, headers_of(sent, version)), UNSERVED, sent.get("id"))
            assert (error["data"]["supported"], error["data"]["requested"]) == (ALL, version)
            assert all(each in error["message"] for each in ALL)


@pytest.mark.parametrize("version", [None, *ALL, *UNKNOWN])
def test_handshake_negotiates_in_its_body(port: int, version: str | None) -> None:
    """Whatever the header says, `initialize` agrees on what its body asks for, or on the newest that has it."""
    for asked, agreed in [*((each, each) for each in ALL[1:]), ("2099-01-01", LEGACY), (MODERN, LEGACY)]:
        for meta in ({}, {"_meta": {}}, {"_meta": {"progressToken": 1}}):
            hello = {**message(LEGACY, "hello", "initialize", {**HELLO, "protocolVersion": asked, **meta})}
            answer = ask(port, hello, headers_of(hello, version))
            assert answer.status == 200
            assert answer.messages[-1]["result"]["protocolVersion"] == agreed
    if session := answer.headers.get("mcp-session-id"):
        headers = headers_of_message(INITIALIZED, LEGACY) | {"Mcp-Session-Id": session}
        assert ask(port, INITIALIZED, headers).status == 202
        listed = ask(port, call(None), headers)
        assert listed.messages[-1]["result"]["tools"]


def test_handshake_with_an_envelope(port: int) -> None:
    """It is a request of the modern era, which has no handshake."""
    hello = call(ENVELOPE, "initialize", HELLO)
    assert_refused(ask(port, hello, headers_of(hello, MODERN)), NO_METHOD, "n", status=404)
    for version in (None, LEGACY):
        assert_refused(ask(port, hello, headers_of(hello, version)), MISMATCH, "n")


def test_long_revision(port: int) -> None:
    """What is given back of it is bounded."""
    body = call({**ENVELOPE, VERSION: "9" * 5000})
    error = assert_refused(ask(port, body, headers_of(body, "9" * 5000)), UNSERVED, "n")
    assert error["data"]["requested"] == "9" * 64


def test_discovery_names_every_revision(port: int) -> None:
    """The newest first, so that a client of any era finds one that it knows."""
    body = call(ENVELOPE, "server/discover")
    (answer,) = ask(port, body, headers_of(body, MODERN)).messages
    assert answer["result"]["supportedVersions"] == ALL


@contextmanager
def pipe(installed: Installed) -> Iterator[Server]:
    """A server on a pipe of its own."""
    with Server([installed.command]) as server:
        yield server


def tell(server: Server, body: Json) -> Any:
    """The answer on a pipe."""
    server.send(body)
    return json.loads(server.receive())


DISCOVER = call(ENVELOPE, "server/discover")
FUTURE = call({**ENVELOPE, VERSION: "2027-05-05"}, "server/discover")
INITIALIZE = message(LEGACY, "n", "initialize", HELLO)
PING = call(None, "ping")
LIST, MODERN_LIST = call(None), call(ENVELOPE)
NAMES_NO_VERSION = message(LEGACY, "n", "initialize", {**HELLO, "clientInfo": {"name": "raw"}})

# What is sent, and the code of the error that it is answered with, if it is one.
PIPES: dict[str, list[tuple[Json, int | None]]] = {
    "discover, then a handshake": [(DISCOVER, None), (INITIALIZE, None), (LIST, None), (MODERN_LIST, REQUEST)],
    "discover, then modern": [(DISCOVER, None), (MODERN_LIST, None), (INITIALIZE, UNSERVED), (LIST, PARAMS)],
    "unknown, then a handshake": [(FUTURE, UNSERVED), (INITIALIZE, None), (LIST, None)],
    "unknown, then modern": [(FUTURE, UNSERVED), (DISCOVER, None), (MODERN_LIST, None)],
    "half an envelope, then a handshake": [(call({VERSION: MODERN}), PARAMS), (INITIALIZE, None), (LIST, None)],
    "a bare discover, then either": [(call(None, "server/discover"), NO_METHOD), (DISCOVER, None), (MODERN_LIST, None)],
    "ping, then modern": [(PING, None), (MODERN_LIST, None), (PING, PARAMS)],
    "too early, then a handshake": [(LIST, PARAMS), (INITIALIZE, None), (LIST, None)],
    "a bad handshake, then modern": [(NAMES_NO_VERSION, PARAMS), (MODERN_LIST, None)],
    "a bad handshake, then a good one": [(NAMES_NO_VERSION, PARAMS), (INITIALIZE, None), (DISCOVER, REQUEST)],
    "an envelope of the other era": [(call({**ENVELOPE, VERSION: LEGACY}), REQUEST), (INITIALIZE, None), (LIST, None)],
    "a handshake in an envelope": [(call(ENVELOPE, "initialize", HELLO), None), (LIST, None)],
}


@pytest.mark.parametrize("name", PIPES)
def test_era_of_a_pipe(installed: Installed, name: str) -> None:
    """It is fixed by the first request that is served in it, and not by a question or by what is refused."""
    with pipe(installed) as server:
        for body, code in PIPES[name]:
            answer = tell(server, body)
            assert answer.get("error", {}).get("code") == code, answer
            if code == UNSERVED and body is FUTURE:
                assert answer["error"]["data"]["supported"] == ALL
            if body is DISCOVER and code is None:
                assert answer["result"]["supportedVersions"] == ALL
            if name.startswith(("too early", "an envelope of")) and code is not None:
                assert "Send initialize first" in answer["error"]["message"]


def test_era_of_a_pipe_that_is_sent_all_at_once(installed: Installed) -> None:
    """A client that does not wait for the answer to its question finds its era too."""
    with pipe(installed) as server:
        later = {**LIST, "id": "later"}
        server.send({**DISCOVER, "id": "asked"}, {**INITIALIZE, "id": "hello"}, INITIALIZED, later)
        answers = {answer["id"]: answer for answer in (json.loads(server.receive()) for _ in range(3))}
    assert set(answers) == {"asked", "hello", "later"}
    assert all("result" in answer for answer in answers.values())
