"""What is refused before anything runs: each refusal names the field, the rule and the remedy, and no value of it.

Guards: messages and parameters of the wrong shape, contents that cannot be read, answers that a client cannot take, and
clients of a transport that is not served, over both transports and in both eras.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from installed import Installed
from raw import (
    ENVELOPE,
    HELLO,
    INITIALIZED,
    LEGACY,
    MODERN,
    PATIENCE,
    SERVE_HTTP,
    Connection,
    Json,
    Response,
    Server,
    headers_of,
    message,
    post,
)

pytestmark = [pytest.mark.install, pytest.mark.timeout(300)]

SECRET = "hunter22-is-a-value"
UNLIMITED = {"MCP_RATE_LIMIT_PER_MINUTE": "0"}
PARSE, REQUEST, PARAMS = -32700, -32600, -32602
INFO, CAPABILITIES = "io.modelcontextprotocol/clientInfo", "io.modelcontextprotocol/clientCapabilities"
MARK = b"\xef\xbb\xbf"  # a byte order mark


@pytest.fixture(scope="module")
def port(installed: Installed) -> Iterator[int]:
    """A server over HTTP."""
    with Server([installed.command, *SERVE_HTTP], UNLIMITED) as server:
        yield server.port


@pytest.fixture(scope="module")
def stateful(installed: Installed) -> Iterator[int]:
    """One with sessions."""
    with Server([installed.command, *SERVE_HTTP], {**UNLIMITED, "MCP_HTTP_SESSIONS": "stateful"}) as server:
        yield server.port


@pytest.fixture(scope="module")
def pipes(installed: Installed) -> Iterator[dict[str, Server]]:
    """A server on a pipe for each era."""
    with Server([installed.command], UNLIMITED) as modern, Server([installed.command], UNLIMITED) as legacy:
        legacy.send(message(LEGACY, 0, "initialize", HELLO), INITIALIZED)
        assert "result" in json.loads(legacy.receive())
        yield {MODERN: modern, LEGACY: legacy}


@pytest.fixture(params=["http", "sessions", "stdio"])
def ask(request: pytest.FixtureRequest, port: int, pipes: dict[str, Server]) -> Any:
    """Sends bytes or a message of an era, by each transport, and returns the answer."""

    def over_http(era: str, body: Json | bytes) -> Json:
        sent = body if isinstance(body, dict) else INITIALIZED | {"params": {}}
        with Connection(port) as connection:
            return connection.ask(post(headers_of(sent, era), body)).messages[-1]  # type: ignore[no-any-return]

    def in_session(era: str, body: Json | bytes) -> Json:
        sent = body if isinstance(body, dict) else INITIALIZED | {"params": {}}
        with Connection(request.getfixturevalue("stateful")) as connection:
            session = connection.shake_hands() if era == LEGACY else {}
        with Connection(request.getfixturevalue("stateful")) as connection:
            answer = connection.ask(post(headers_of(sent, era) | session, body))
            return answer.messages[-1]  # type: ignore[no-any-return]

    def over_stdio(era: str, body: Json | bytes) -> Json:
        pipes[era].send(body)
        return json.loads(pipes[era].receive())  # type: ignore[no-any-return]

    return {"http": over_http, "sessions": in_session, "stdio": over_stdio}[request.param]


def assert_told(answer: Json, code: int, rpc_id: object, *said: str) -> str:
    """It is a complete error that says this; returns its text."""
    assert (answer["id"], answer["error"]["code"]) == (rpc_id, code), answer
    text: str = answer["error"]["message"]
    assert answer["error"]["data"]["message"] == text
    assert all(each in text for each in said), text
    assert not any(each in json.dumps(answer) for each in (SECRET, "pydantic", "Traceback")), text
    return text


STRINGS = "must be a string or an integer"
SHAPES: list[tuple[object, object, str]] = [
    ({"id": 1, "method": "ping"}, 1, 'jsonrpc: must be "2.0"'),
    ({"jsonrpc": 2.0, "id": "a", "method": "ping"}, "a", 'jsonrpc: must be "2.0"'),
    *(({"jsonrpc": "2.0", "id": odd, "method": "ping"}, None, f"id: {STRINGS}") for odd in (None, 1.5, [], {}, True)),
    ({"jsonrpc": "2.0", "id": 1}, 1, "method: is required"),
    *(({"jsonrpc": "2.0", "id": 1, "method": odd}, 1, "method: must be a string") for odd in (None, 5, [SECRET], {})),
    *(
        ({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": odd}, 1, "params: must be an object")
        for odd in ([], SECRET, 5, True)
    ),
    ({"jsonrpc": "2.0", "id": 1, "result": {}, "error": {}}, 1, "result, error: must not stand together"),
    ({"jsonrpc": "2.0", "result": {}}, None, "id: is required"),
    ({"id": [], "method": SECRET, "params": []}, None, 'jsonrpc: must be "2.0"; id: must be'),
    ([{"jsonrpc": "2.0", "id": 1, "method": "ping"}], None, "Send one JSON-RPC message at a time"),
    ([], None, "Send one JSON-RPC message at a time"),
    (SECRET, None, "A JSON-RPC message is an object"),
    (7, None, "A JSON-RPC message is an object"),
]


@pytest.mark.parametrize("era", [MODERN, LEGACY])
def test_what_is_no_message(ask: Any, era: str) -> None:
    """It is told which member is wrong and what it must be, under its id where there is one."""
    for shape, rpc_id, said in SHAPES:
        assert_told(ask(era, json.dumps(shape).encode()), REQUEST, rpc_id, said)


NOT_JSON = [
    (b"junk", "This is not JSON"),
    (b"{'a': 1}", "This is not JSON"),
    (b'{"jsonrpc": "2.0", "id": 1, "method": "ping"} x', "This is not JSON"),
    (b'{"jsonrpc": "2.0", "id": "\\ud800", "method": "ping"}', "This is not JSON"),
    (b'{"jsonrpc": "2.0", "id": 1, "method": "\\udc00"}', "This is not JSON"),
    (b'{"jsonrpc": "2.0", "id": NaN, "method": "ping"}', "This is not JSON"),
    (b'{"jsonrpc": "2.0", "id": ' + b"1" * 5000 + b', "method": "ping"}', "This is not JSON"),
    (b'{"jsonrpc": "2.0", "id": 1, "method": "\xed\xa0\x80"}', "This is not UTF-8"),
    (b'{"jsonrpc": "2.0", "id": 1, "method": "\xe9"}', "This is not UTF-8"),
    ('{"jsonrpc": "2.0", "id": 1, "method": "ping"}'.encode("utf-16").replace(b"\n", b" "), "This is not UTF-8"),
    (b"[" * 1000, "nested too deeply"),
    (MARK + MARK + b'{"jsonrpc": "2.0", "id": 1, "method": "ping"}', "This is not JSON"),
]


@pytest.mark.parametrize("era", [MODERN, LEGACY])
def test_what_is_not_json(ask: Any, era: str) -> None:
    """It is told why, and what to send."""
    ask(era, b"{}")  # the first line of a pipe may have a mark
    for body, said in NOT_JSON:
        assert_told(ask(era, body), PARSE, None, said)


def test_nothing_at_all(port: int) -> None:
    """A body of nothing is told so."""
    for body in (b"", b"  \r\n", MARK):
        with Connection(port) as connection:
            answer = connection.ask(post(headers_of(INITIALIZED, LEGACY), body))
        assert answer.status == 400
        assert_told(answer.messages[0], PARSE, None, "There is nothing here. Send one JSON-RPC message")


TWICE = [
    (b'"id": 2, "method": "ping"', 2, "id: must stand once"),
    (b'"method": "ping"', 1, "method: must stand once"),
    (b'"m\\u0065thod": "ping"', 1, "method: must stand once"),
    (b'"params": {"name": "search_parts"}, "params": {"name": "place_order"}', 1, "params: must stand once"),
    (b'"params": {"name": "search_parts", "name": "place_order"}', 1, "params.name: must stand once"),
    (b'"params": {"n\\u0061me": "search_parts", "name": "place_order"}', 1, "params.name: must stand once"),
    (b'"params": {"uri": "part://a", "uri": "part://b"}', 1, "params.uri: must stand once"),
    (b'"params": {"arguments": {}, "arguments": {"name": "x"}}', 1, "params.arguments: must stand once"),
    (b'"params": {"_meta": {}, "_meta": {"x": 1}}', 1, "params._meta: must stand once"),
]


@pytest.mark.parametrize("size", [0, 2_000], ids=["small", "large"])
@pytest.mark.parametrize("era", [MODERN, LEGACY])
def test_member_that_stands_twice(ask: Any, era: str, size: int) -> None:
    """Two readers could read it differently, and one of them may be a gateway: it is refused, in a large message too."""
    rows = json.dumps([{"name": "id", "method": "params"}] * size).encode()
    for more, rpc_id, said in TWICE:
        more = more.replace(b'"params": {', b'"params": {"arguments": {"rows": %b}, ' % rows) if size else more
        body = b'{"jsonrpc": "2.0", "id": 1, "method": "tools/call", %b}' % more
        assert_told(ask(era, body), REQUEST, rpc_id, said)


@pytest.mark.parametrize("era", [MODERN, LEGACY])
def test_names_that_may_stand_twice(ask: Any, era: str) -> None:
    """What has the same name elsewhere, or is written with escapes, is no fault."""
    params: Json = {"name": "search_parts", "arguments": {"query": '\u00e9 "method" "id"'}}
    call = message(era, 1, "tools/call", params)
    if era == MODERN:
        call["params"]["_meta"] = {**ENVELOPE, INFO: {"name": "name", "version": "1"}, "params": {"id": {"id": 1}}}
    answer = ask(era, call)
    assert answer["result"]["isError"] is False


BOTH: list[tuple[str, Json, str]] = [
    ("tools/call", {"name": "search_parts", "arguments": []}, "params.arguments: must be an object"),
    ("tools/call", {"name": "search_parts", "arguments": SECRET}, "params.arguments: must be an object"),
    ("tools/call", {}, "params.name: is required"),
    ("tools/list", {"cursor": 5}, "params.cursor: must be a string"),
    ("prompts/list", {"cursor": [SECRET]}, "params.cursor: must be a string"),
    ("resources/list", {"cursor": {}}, "params.cursor: must be a string"),
    ("resources/templates/list", {"cursor": True}, "params.cursor: must be a string"),
    ("tools/list", {"cursor": SECRET}, "cursor"),
    ("tools/list", {"_meta": {"progressToken": [SECRET]}}, f"params._meta.progressToken: {STRINGS}"),
    ("tools/list", {"_meta": {"progressToken": 1.5}}, f"params._meta.progressToken: {STRINGS}"),
    ("tools/list", {"_meta": {"progressToken": {}}}, f"params._meta.progressToken: {STRINGS}"),
    ("prompts/get", {}, "params.name: is required"),
    ("prompts/get", {"name": "reorder", "arguments": []}, "params.arguments: must be an object"),
    ("prompts/get", {"name": "reorder", "arguments": {"sku": 5}}, "params.arguments.sku: must be a string"),
    ("prompts/get", {"name": "reorder", "arguments": {f"{SECRET} ": 5}}, "params.arguments.(name): must be a string"),
    ("resources/read", {}, "params.uri: is required"),
    ("completion/complete", {}, "params.ref: is required"),
    ("completion/complete", {"ref": 5, "argument": 5}, "params.ref: must be an object"),
    (
        "completion/complete",
        {"ref": {"type": SECRET}, "argument": {}},
        "params.ref.type: must be 'ref/prompt' or 'ref/resource'",
    ),
    ("completion/complete", {"ref": {"type": "ref/prompt"}, "argument": {}}, "params.ref.name: is required"),
    ("completion/complete", {"ref": {"type": "ref/resource"}, "argument": {}}, "params.ref.uri: is required"),
    (
        "completion/complete",
        {"ref": {"type": "ref/prompt", "name": "reorder"}, "argument": {"name": "sku", "value": 5}},
        "params.argument.value: must be a string",
    ),
]
ONLY: dict[str, list[tuple[str, Json, str]]] = {
    MODERN: [
        ("tools/list", {"_meta": {INFO: {"name": SECRET}}}, f"params._meta.{INFO}.version: is required"),
        ("tools/list", {"_meta": {INFO: 5}}, f"params._meta.{INFO}: must be an object"),
        ("tools/list", {"_meta": {CAPABILITIES: []}}, f"params._meta.{CAPABILITIES}: must be an object"),
        (
            "tools/list",
            {"_meta": {CAPABILITIES: {"sampling": 5}}},
            f"params._meta.{CAPABILITIES}.sampling: must be an object",
        ),
        (
            "tools/list",
            {"_meta": {"io.modelcontextprotocol/logLevel": SECRET}},
            "params._meta.io.modelcontextprotocol/logLevel: must be 'alert'",
        ),
        ("subscriptions/listen", {}, "params.notifications: is required"),
        ("subscriptions/listen", {"notifications": []}, "params.notifications: must be an object"),
        (
            "subscriptions/listen",
            {"notifications": {"toolsListChanged": SECRET}},
            "params.notifications.toolsListChanged: must be true or false",
        ),
        (
            "subscriptions/listen",
            {"notifications": {"resourceSubscriptions": [5]}},
            "params.notifications.resourceSubscriptions.0: must be a string",
        ),
        ("tools/call", {"name": "search_parts", "requestState": 5}, "params.requestState: is not valid here"),
        ("tools/call", {"name": "search_parts", "inputResponses": 5}, "params.inputResponses: must be an object"),
    ],
    LEGACY: [
        ("initialize", {**HELLO, "clientInfo": {"name": SECRET}}, "params.clientInfo.version: is required"),
        ("initialize", {**HELLO, "capabilities": [SECRET]}, "params.capabilities: must be an object"),
        ("initialize", {**HELLO, "protocolVersion": 5}, "params.protocolVersion: must be a string"),
        ("initialize", {}, "params.protocolVersion: is required"),
        ("logging/setLevel", {"level": SECRET}, "params.level: must be 'alert'"),
        ("tools/list", {"_meta": 5}, "params._meta: must be an object"),
        ("tools/list", {"_meta": [SECRET]}, "params._meta: must be an object"),
    ],
}


@pytest.mark.parametrize("era", [MODERN, LEGACY])
def test_parameters_of_the_wrong_shape(ask: Any, era: str) -> None:
    """Of every method, in both eras: the text names the field as the specification spells it, and what it must be."""
    for method, params, said in [*BOTH, *ONLY[era]]:
        sent = message(era, "n", method, params)
        if era == MODERN:
            sent["params"]["_meta"] = ENVELOPE | params.get("_meta", {})
        assert_told(ask(era, sent), PARAMS, "n", said)


@pytest.mark.parametrize("era", [MODERN, LEGACY])
def test_name_of_the_wrong_type(pipes: dict[str, Server], era: str) -> None:
    """On a pipe, which has no header that it would have to agree with."""
    for method, field in (("tools/call", "name"), ("prompts/get", "name"), ("resources/read", "uri")):
        for odd in (5, [SECRET], {}, True, None):
            pipes[era].send(message(era, "n", method, {field: odd}))
            assert_told(json.loads(pipes[era].receive()), PARAMS, "n", f"params.{field}: must be a string")


@pytest.mark.parametrize("meta", [5, [], SECRET, None, {}])
def test_envelope_of_the_wrong_type(port: int, meta: object) -> None:
    """It is told what it must carry."""
    sent = {"jsonrpc": "2.0", "id": "n", "method": "tools/list", "params": {"_meta": meta}}
    with Connection(port) as connection:
        answer = connection.ask(post(headers_of(sent, MODERN), sent))
    assert answer.status == 400
    assert_told(answer.messages[0], PARAMS, "n", "params._meta", "io.modelcontextprotocol/protocolVersion")


def test_many_problems(ask: Any) -> None:
    """The first twenty are told, and how many more there are."""
    params = {"name": "reorder", "arguments": {f"key{n}": n for n in range(5000)}}
    text = assert_told(ask(MODERN, message(MODERN, "n", "prompts/get", params)), PARAMS, "n", "and 4980 more")
    assert len(text.splitlines()) == 21


def test_method_that_there_is_not(ask: Any) -> None:
    """It is told so in words that stand alone."""
    for era in (MODERN, LEGACY):
        answer = ask(era, message(era, "n", SECRET, {}))
        assert_told(
            answer, -32601, "n", "Method not found: in this protocol revision the server has none of this name."
        )


# Of a POST: header, value, status, and a header of the answer that tells what is taken.
CONTENTS: list[tuple[str, str | None, int, tuple[str, str] | None]] = [
    *(
        ("Content-Encoding", coding, 415, ("accept-encoding", "identity"))
        for coding in ("gzip", "GZIP", "br", "deflate", "zstd", "x-gzip", "identity, gzip", "gzip, gzip", "none")
    ),
    *(("Content-Encoding", coding, 200, None) for coding in ("identity", "Identity", "", "identity, identity")),
    *(
        ("Content-Type", kind, 415, ("accept", "application/json"))
        for kind in (
            *(None, "", "text/plain", "application/json-rpc", "application/jsonp", "application/json, text/plain"),
            *("application/json; charset=utf-16", "application/json;charset=utf-7", "application/json; charset"),
            *("application/json; charset=utf-8; charset=utf-16", 'application/json; charset="iso-8859-1"'),
        )
    ),
    *(
        ("Content-Type", kind, 200, None)
        for kind in (
            *("application/json", "Application/JSON", "application/json ; charset = utf-8", "application/json;"),
            *('application/json; charset="UTF-8"', "application/json;charset=utf8", "application/json; x=y"),
        )
    ),
]


@pytest.mark.parametrize("era", [MODERN, LEGACY])
def test_content_that_cannot_be_read(port: int, era: str) -> None:
    """It is refused with what would be taken, before its body has come; what says the same in other words is served."""
    call = message(era, 1, "tools/call", {"name": "search_parts", "arguments": {"query": "bolt"}})
    for name, value, status, taken in CONTENTS:
        wanted = headers_of(call, era) | {name: value}
        request = post({key: each for key, each in wanted.items() if each is not None}, call)
        if status != 200:
            request = request[: request.index(b"\r\n\r\n") + 4]
        with Connection(port) as connection:
            answer = connection.ask(request)
        assert answer.status == status, (name, value)
        if taken is not None:
            assert answer.headers[taken[0]] == taken[1]
            assert_told(answer.messages[0], REQUEST, None, f"{name}: must be {taken[1]}")


JSON, EVENTS = "application/json", "text/event-stream"
# Whether JSON and whether events are accepted.
ACCEPTED: list[tuple[str | None, bool, bool]] = [
    *((each, True, True) for each in (None, "", "*/*", f"{JSON}, {EVENTS}", f"{JSON.upper()},{EVENTS.upper()}", " , ")),
    *((f"{JSON};q=0.1, {EVENTS};q=0.001, text/html", True, True) for _ in range(1)),
    ("application/*, text/*;q=0.5", True, True),
    (f"{JSON};charset=utf-8, {EVENTS}; charset=utf-8", True, True),
    *((each, True, False) for each in (JSON, "application/*", f"{JSON}, text/html", f"{JSON}, {EVENTS};q=0")),
    *((f"{JSON}, {EVENTS}{zero}", True, False) for zero in (";q=0.0", "; Q=0", " ; q = 0.000", ";x=y;q=0", ";q=0.;x")),
    (f"*/*, {EVENTS};q=0", True, False),
    ("*/*, text/*;q=0", True, False),
    (f"text/*;q=0, {JSON}, */*;q=0.1", True, False),
    *((each, False, True) for each in (EVENTS, "text/*", f"{EVENTS}, {JSON};q=0", f"*/*;q=0, {EVENTS}")),
    (f"{EVENTS}, application/*;q=0, */*", False, True),
    *((each, False, False) for each in ("text/html", "*/*;q=0", f"{JSON};q=0, {EVENTS};q=0", "application/xml", "*")),
    (f'text/html;x="{JSON}, {EVENTS}, */*"', False, False),
    (f"*/*, {JSON};q=0, {EVENTS};q=0", False, False),
    (f"*/*;q=0, {JSON};q=0.0", False, False),
]


def ask_accepting(port: int, era: str, accept: str | None, method: str, params: Json, **more: str) -> Response:
    """The answer to one request with this `Accept` header; None: without one."""
    call = message(era, 1, method, params)
    if era == MODERN:
        call["params"]["_meta"] = ENVELOPE | {"progressToken": "p"}
    else:
        call["params"]["_meta"] = {"progressToken": "p"}
    headers = headers_of(call, era) | more
    del headers["Accept"]
    with Connection(port) as connection:
        return connection.ask(post(headers if accept is None else headers | {"Accept": accept}, call))


@pytest.mark.parametrize("era", [MODERN, LEGACY])
def test_answer_that_the_client_accepts(port: int, era: str) -> None:
    """One of a kind that it named, weights and the more specific range considered; or 406."""
    for accept, plain, events in ACCEPTED:
        answer = ask_accepting(
            port, era, accept, "tools/call", {"name": "search_parts", "arguments": {"query": "bolt"}}
        )
        assert answer.status == (200 if plain or events else 406), accept
        if not plain and not events:
            assert_told(answer.messages[0], REQUEST, None, "Accept: must admit")
            continue
        assert answer.headers["content-type"] == (JSON if plain else EVENTS), accept
        assert answer.messages[-1]["result"]["isError"] is False
        counted = ask_accepting(port, era, accept, "tools/call", {"name": "stocktake", "arguments": {"pause_ms": 0}})
        assert counted.headers["content-type"] == (EVENTS if events else JSON), accept
        assert (len(counted.messages) > 1) == events, accept
        assert counted.messages[-1]["result"]["structuredContent"]["aisles"] >= 1


@pytest.mark.parametrize("era", [MODERN, LEGACY])
def test_errors_are_json_whatever_is_accepted(port: int, era: str) -> None:
    """Their status says more than a stream could."""
    answer = ask_accepting(port, era, EVENTS, "no/such/method", {})
    assert (answer.status, answer.headers["content-type"]) == ((404, JSON) if era == MODERN else (200, EVENTS))
    assert answer.messages[-1]["error"]["code"] == -32601


def test_listening_needs_events(port: int) -> None:
    """Without them there would be no answer until the end."""
    listen = ("subscriptions/listen", {"notifications": {"toolsListChanged": True}})
    assert_told(
        ask_accepting(port, MODERN, JSON, *listen).messages[0], REQUEST, 1, "Accept: must admit text/event-stream"
    )


def test_what_a_session_answers_with(stateful: int) -> None:
    """Events: who does not accept them is told so, and who names nothing gets them."""
    with Connection(stateful) as connection:
        session = connection.shake_hands()
    for accept, plain, events in ACCEPTED:
        answer = ask_accepting(stateful, LEGACY, accept, "tools/list", {}, **session)
        assert answer.status == (200 if events else 406), accept
        assert answer.headers["content-type"] == (EVENTS if events else JSON)
        assert events or "Accept: must admit" in answer.messages[0]["error"]["message"]
        assert events or answer.messages[0]["id"] == (1 if plain else None)


@pytest.mark.parametrize("era", [MODERN, LEGACY])
@pytest.mark.parametrize("sessions", [False, True])
def test_byte_order_mark_of_a_body(request: pytest.FixtureRequest, port: int, sessions: bool, era: str) -> None:
    """One is ignored; nothing else of the body is changed."""
    where = request.getfixturevalue("stateful") if sessions else port
    with Connection(where) as connection:
        session = connection.shake_hands() if sessions and era == LEGACY else {}
    call = message(era, 1, "tools/call", {"name": "search_parts", "arguments": {"query": "\ufeffbolt"}})
    body = MARK + json.dumps(call, ensure_ascii=False).encode()
    with Connection(where) as connection:
        answer = connection.ask(post(headers_of(call, era) | session, body))
    assert answer.messages[-1]["result"]["isError"] is False


@pytest.mark.parametrize("era", [MODERN, LEGACY])
@pytest.mark.parametrize("cuts", [(), (1,), (2,), (1, 2), (3,), (4,)])
def test_byte_order_mark_of_a_pipe(installed: Installed, era: str, cuts: tuple[int, ...]) -> None:
    """One before the first line is ignored, however it comes; none before another line is."""
    first = message(era, 1, "tools/list" if era == MODERN else "initialize", HELLO if era == LEGACY else {})
    ping = b'{"jsonrpc": "2.0", "id": 2, "method": "ping"}'
    data = MARK + json.dumps(first).encode() + b"\n"
    with Server([installed.command]) as server:
        assert server.process.stdin is not None
        for start, end in zip((0, *cuts), (*cuts, len(data)), strict=True):
            server.process.stdin.write(data[start:end])
            server.process.stdin.flush()
            if end < len(data):
                server.wait_for("started") if start == 0 else None
        assert "result" in json.loads(server.receive())
        server.send(MARK + ping)
        assert_told(json.loads(server.receive()), PARSE, None, "This is not JSON")


def test_end_of_input_within_a_mark(installed: Installed) -> None:
    """What has come of it is a line that is no message."""
    with Server([installed.command]) as server:
        assert server.process.stdin is not None
        server.process.stdin.write(MARK[:2])
        code, (line,) = server.finish()
    assert code == 0
    assert_told(json.loads(line), PARSE, None, "This is not UTF-8")


def ask_with(port: int, method: str, path: str, **headers: str) -> Response:
    """The answer to a request without a body."""
    fields = {"Host": "127.0.0.1", **{name.replace("_", "-"): value for name, value in headers.items()}}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    with Connection(port) as connection:
        connection.send(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode())
        answer = connection.receive(method)
    assert answer is not None
    return answer


@pytest.mark.parametrize("sessions", [False, True])
@pytest.mark.parametrize("accept", [EVENTS, "*/*", "text/html"])
def test_client_of_the_old_transport(request: pytest.FixtureRequest, port: int, sessions: bool, accept: str) -> None:
    """Its stream is refused at once with what to do instead, as it would wait for an event that never comes."""
    where = request.getfixturevalue("stateful") if sessions else port
    with Connection(where) as connection:
        connection.send(f"GET /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: {accept}\r\n\r\n".encode())
        assert connection.socket.recv(65536).startswith(b"HTTP/1.1 405 "), "a stream has no end to wait for"
    answer = ask_with(where, "GET", "/mcp", Accept=accept)
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    assert_told(answer.messages[0], REQUEST, None, "Streamable HTTP", "HTTP+SSE", "POST")


@pytest.mark.parametrize("version", ["2025-03-26", "2025-06-18", "2025-11-25"])
def test_stream_of_a_client_of_this_transport(port: int, version: str) -> None:
    """It is opened, as some take a refusal for a fault."""
    head = f"GET /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: {EVENTS}\r\nMCP-Protocol-Version: {version}\r\n\r\n"
    with Connection(port) as connection:
        connection.send(head.encode())
        connection.socket.settimeout(PATIENCE)
        assert connection.socket.recv(65536).startswith(b"HTTP/1.1 200 ")


PATHS = [
    "/sse",
    "/sse/",
    "/messages",
    "/messages/?session_id=1",
    "/message",
    "/mcp/",
    "//mcp",
    "/mcp/sse",
    "/MCP",
    "/mcp%2F",
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_path_that_is_another(port: int, method: str, path: str) -> None:
    """It is told where MCP is, and over which transport: one server has one address."""
    answer = ask_with(port, method, path, Content_Length="0")
    assert answer.status == 404
    assert_told(answer.messages[0], REQUEST, None, "MCP is at /mcp", "Streamable HTTP", "HTTP+SSE")


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("path", ["/mcp", "/mcp?x=1", "/%6dcp"])
def test_other_methods(port: int, method: str, path: str) -> None:
    """They are refused with those that there are, however the path is written."""
    answer = ask_with(port, method, path)
    assert (answer.status, answer.headers["allow"]) == (405, "GET, POST")
