"""The edge under 10,000 malformed and mutated inputs: nothing crashes, hangs, leaks or goes unanswered.

Each goes to a server that lives as long as the module, and a good call after it has to succeed. Where CI is set,
Hypothesis takes its own `ci` profile, which tries the same inputs each time: no change fails for what another one broke.
Anywhere else they are new ones. What they found is kept, as cases with a name.
"""

import codecs
import copy
import json
import re
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bootstrap import BIN
from raw import (
    HELLO,
    INITIALIZED,
    LEGACY,
    MODERN,
    SERVE_HTTP,
    Connection,
    Json,
    Response,
    Server,
    headers_of,
    message,
    post,
)
from rendering import render, run

# Hypothesis takes up to five minutes to make a failing input small.
pytestmark = [pytest.mark.install, pytest.mark.timeout(600)]

# What is tried at each edge, once for either era but for the sessions, which only one has.
PIPES, BODIES, SOCKETS, SESSIONS = 2000, 1000, 1900, 200
assert 2 * (PIPES + BODIES + SOCKETS) + SESSIONS == 10_000

PATIENCE = 10  # seconds for one answer, or for a start
LARGEST = 200_000  # bytes of a message; with the default, what exceeds it would be slow to make
SETTINGS = {"MCP_MAX_REQUEST_BYTES": str(LARGEST), "MCP_LOCAL_SCOPES": "orders:write,datasheets:check"}
ERAS = pytest.mark.parametrize("era", [MODERN, LEGACY], ids=["modern", "legacy"])

PLANTED = "planted-value"
LEAK = re.compile(rf"Traceback|\.py\b|site-packages|pydantic|\b[A-Z]\w*Error\b|Exception|{PLANTED}", re.ASCII)
STATUSES = {200, 202, 204, 400, 403, 404, 405, 406, 413, 415, 421, 431, 501, 505}

# --- what is sent: messages

CALLS: dict[str, Json] = {
    "check_datasheet": {"url": "http://127.0.0.1/"},
    "convert_price": {"sku": "SEN-0007", "currency": "EUR"},
    "get_part": {"sku": "SEN-0007"},
    "place_order": {"sku": "SEN-0007", "quantity": 2, "idempotency_key": "order-0001"},
    "search_parts": {"query": "sensor", "limit": 3},
    "stocktake": {"pause_ms": 0},
}
REFERENCE = {"type": "ref/prompt", "name": "reorder"}
REQUESTS: list[tuple[str, Json]] = [
    *(("tools/call", {"name": name, "arguments": arguments}) for name, arguments in CALLS.items() for _ in range(4)),
    ("tools/call", {"name": "stocktake", "arguments": CALLS["stocktake"], "_meta": {"progressToken": "p"}}),
    ("initialize", HELLO),
    ("ping", {}),
    ("server/discover", {}),
    ("tools/list", {}),
    ("resources/list", {"cursor": PLANTED}),
    ("resources/templates/list", {}),
    ("resources/read", {"uri": "part://SEN-0007"}),
    ("resources/subscribe", {"uri": "part://SEN-0007"}),
    ("prompts/list", {}),
    ("prompts/get", {"name": "reorder", "arguments": {"sku": "SEN-0007", "quantity": "3"}}),
    ("completion/complete", {"ref": REFERENCE, "argument": {"name": "sku", "value": PLANTED}}),
    ("logging/setLevel", {"level": "debug"}),
    ("sampling/createMessage", {"messages": [], "maxTokens": 1}),
    ("tasks/get", {"taskId": PLANTED}),
    ("notifications/cancelled", {"requestId": 1, "reason": PLANTED}),
    ("notifications/progress", {"progressToken": "p", "progress": 1}),
    ("notifications/initialized", {}),
    (PLANTED, {}),
]
# What json.dumps cannot write, by the string that stands for it.
VERBATIM = {
    "@deep list": "[" * 90_000 + "]" * 90_000,
    "@deep object": '{"a":' * 30_000 + "1" + "}" * 30_000,
    "@deeper": "[" * 100_000,
    "@digits": "9" * 5000,
    "@minus zero": "-0",
    "@whole": "1.0",
    "@overflow": "1e999",
    "@hexadecimal": "0x10",
    "@nothing": "",
    "@twice": '1, "id": 2, "method": "ping", "name": "get_part", "params": {}',
}
TEXTS = [
    *("", PLANTED, PLANTED * 900, "\0", "\ud800", "\udfff\ud800x", "\u2028", "\ufeff", "\r", "\r\n", "\n", "é🔩"),
    *("__proto__", "../../etc/passwd", "{{7*7}}", "%s%n", "\x1b[31m", "1e3", "null", "file:///etc/passwd", "part://"),
    *("id", "name", "params", "_meta", "sku", "jsonrpc", "2.0", "get_part", "place_order", "tools/call", "tools/list"),
    *(MODERN, LEGACY, "2024-11-05", "9999-99-99", "io.modelcontextprotocol/protocolVersion", "progressToken"),
    *VERBATIM,
]
# None that is a fair pause of the stocktake: it would take it.
NUMBERS = [0, 1, -1, 51, 10_000, 2**31, 2**53 + 1, 2**64, -(10**300), 1.5, -0.0, 1e308, float("nan"), float("inf")]
ODD_BYTES = [b"\0", b"\xff", b"\xc3", b"\r", b",", b'"', b"\\", b"}", b"]", b"\xe2\x80\xa8", b"//x", b"\x1b[2J"]

texts = st.sampled_from(TEXTS) | st.text(max_size=8)
names = st.sampled_from([text for text in TEXTS if PLANTED not in text]) | st.text(max_size=8)  # errors name fields
leaves = st.sampled_from([None, True, False, *NUMBERS]) | texts
values = leaves | st.lists(leaves, max_size=3) | st.dictionaries(names, leaves, max_size=3)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in it, with each of its keys or indexes."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield value, key
        yield from places(item)


@st.composite
def mutated_messages(draw: st.DrawFn, era: str) -> Any:
    """A message of the specification in which up to three members are something else, missing or new."""
    method, params = draw(st.sampled_from(REQUESTS))
    sent = copy.deepcopy(message(era, draw(st.integers(1, 9)), method, params))
    if method.startswith("notifications/") and draw(st.booleans()):
        del sent["id"]
    # A wrong member of the frame or the envelope hides every other: so each part has its turn.
    whole = {"message": sent}
    part = draw(st.sampled_from([whole, sent["params"], sent["params"].get("arguments"), sent["params"].get("_meta")]))
    for _ in range(draw(st.integers(0, 3))):
        holder, key = draw(st.sampled_from(list(places(part or sent)) or [(part, "")]))
        match draw(st.sampled_from(["replace", "replace", "remove", "add"])):
            case "replace":
                holder[key] = draw(values)
            case "remove" if key in holder:
                del holder[key]
            case _ if isinstance(holder, dict):
                holder[draw(names)] = draw(values)
    return whole.get("message")


@st.composite
def written(draw: st.DrawFn, value: Any) -> bytes:
    """A value as bytes: JSON, or nearly."""
    text = json.dumps(value, ensure_ascii=draw(st.booleans()))
    for name, verbatim in VERBATIM.items():
        text = text.replace(f'"{name}"', verbatim)
    line = text.encode("utf-8", "surrogatepass")
    at = draw(st.integers(0, len(line)))
    faults = ["cut", "insert", "drop", "mark", "ends", "wrap", "twice", "utf-16"]
    match draw(st.sampled_from(["none"] * 2 * len(faults) + faults)):
        case "cut":
            return line[:at]
        case "insert":
            return line[:at] + draw(st.sampled_from(ODD_BYTES)) + line[at:]
        case "drop":
            return line[:at] + line[at + 1 :]
        case "mark":
            return b"\xef\xbb\xbf" + line
        case "ends":
            return b"\r \t" + line + b"\r"
        case "wrap":
            return b"[" + line + b"]"
        case "twice":
            return line + line
        case "utf-16":
            return text.encode("utf-16", "surrogatepass")
    return line


def inputs(era: str) -> st.SearchStrategy[bytes]:
    """What is sent in place of a message: mostly nearly right, as what is far off is all refused in one place."""
    near = mutated_messages(era).flatmap(written)
    return st.one_of(near, near, near, near, values.flatmap(written), st.binary(max_size=100))


# --- what is sent: HTTP

METHODS = ["GET", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE", "CONNECT", "PRI", "post", "BREW", "", "P T", PLANTED]
TARGETS = [
    *("/", "/mcp/", "//mcp", f"/mcp?x={PLANTED}", "/mcp#x", "/MCP", "/%6dcp", "/mcp%00", "/mcp/../mcp", "/etc/passwd"),
    *("*", "http://127.0.0.1/mcp", "http://evil.example.com/mcp", "http://127.0.0.1", "http://[::1/mcp", "mcp", ""),
    *("/livez", "/readyz?x", "/" + "a" * 70_000, "/\xff", "/mcp\\", "127.0.0.1:443", "//", "http:///mcp", "/%zz"),
    *(f"/{PLANTED}", "/.well-known/oauth-protected-resource/mcp", "/mcp /mcp", "/mcp\t", "/mcp?\0", "?", "#", "/%ff"),
]
VERSIONS = ["HTTP/1.0", "HTTP/0.9", "HTTP/2.0", "HTTP/1.2", "http/1.1", "", "HTTP/1.1 ", "HTTP/11", "HTTP/1.1\0"]
LINES = [
    *("Host: evil.example.com", "Host:", "Host: 127.0.0.1:99999999", "Host: 127.0.0.1, 127.0.0.1", "Host: [::1"),
    *("Host: a@127.0.0.1", "Origin: null", "Origin:", "Origin: https://evil.example.com", "Origin: http://localhost"),
    *("Content-Type: text/plain", "Content-Type: application/json; charset=utf-16", "Content-Type:"),
    *("Accept: */*", "Accept: text/html", "Accept: application/json", "Accept: text/event-stream", "Accept:;q=x"),
    *(f"MCP-Protocol-Version: {version}" for version in (MODERN, LEGACY, "9999-99-99", "", PLANTED)),
    *(f"Mcp-Method: {method}" for method in ("tools/call", "tools/list", "initialize", "", " tools/call\t", PLANTED)),
    *(
        f"Mcp-Name: {name}"
        for name in ("get_part", "place_order", "", "\xff", "=?base64?Z2V0X3BhcnQ=?=", "=?base64?*?")
    ),
    *("Mcp-Param-x: 1", f"Mcp-Session-Id: {PLANTED}", "Mcp-Session-Id: \xff", f"Last-Event-ID: {PLANTED}"),
    *("Expect: 100-continue", "Expect: 200-ok", "Connection: close", "Connection: keep-alive, x", "Upgrade: h2c"),
    *("Connection: Upgrade\r\nUpgrade: h2c", "Connection: Upgrade\r\nUpgrade: websocket", "Content-Encoding: gzip"),
    *(f"Authorization: Bearer {PLANTED}", f"Cookie: a={PLANTED}", f"traceparent: {PLANTED}", "X-Forwarded-For: x"),
    *(f"X: {'a' * 70_000}", f"{'a' * 70_000}: x", "\r\n".join(["X: x"] * 3000), "No-Colon", ": no name", "A B: x"),
    *("Space : x", " folded", "\0: x", "X: \0", "X: \xff\xfe", "X: \x7f", "X: a\rb", "X: a\nb"),
]
LENGTHS = ["+5", "-1", "5, 5", "0x5", "5 5", "5;", "", "9" * 30, "1_0", "1000000", "0"]
CODINGS = ["identity", "chunked, identity", "identity, chunked", "xchunked", "chunked, chunked", "", "\x0bchunked"]
CHUNKS = [
    *(b"zz\r\n", b"-1\r\n{}\r\n0\r\n\r\n", b"F" * 17 + b"\r\n{}", b"2\r\n{}0\r\n\r\n", b"2\n{}\n0\n\n"),
    *(b" 2\r\n{}\r\n", b"2\r\n{}", b"", b"0\r\n", b"0\r\nHost: x\r\n\r\n", b"2\r\n{}\r\n0\r\n\r\n" * 2),
]


class Sent(NamedTuple):
    """What is sent on a connection of its own. `whole`: it is one request by any reading, and owed an answer."""

    data: bytes
    method: str = "POST"
    whole: bool = True
    resets: bool = False


@st.composite
def heads(draw: st.DrawFn, lines: list[str]) -> list[str]:
    """Header lines of which one or two are odd."""
    for _ in range(draw(st.integers(1, 2))):
        at, odd = draw(st.integers(0, len(lines) - 1)), draw(st.sampled_from(LINES))
        match draw(st.sampled_from(["add", "add", "add", "replace", "replace", "remove", "twice", "case", "pad"])):
            case "add":
                lines.insert(at, odd)
            case "replace":
                lines = [line for line in lines if line.partition(":")[0] != odd.partition(":")[0]] + [odd]
            case "remove" if len(lines) > 1:
                del lines[at]
            case "twice":
                lines.append(lines[at])
            case "case":
                name, colon, value = lines[at].partition(":")
                lines[at] = name.upper() + colon + value
            case "pad":
                lines[at] = lines[at].replace(": ", ":\t  ") + " \t"
    return lines


@st.composite
def framed(draw: st.DrawFn, body: bytes) -> tuple[list[str], bytes, bool]:
    """A body that is marked off in an odd way: header lines, bytes, and whether every reader finds its end."""
    length, chunked = f"Content-Length: {len(body)}", "Transfer-Encoding: chunked"
    chunks = b"%X;a=b\r\n%b\r\n%x\r\n%b\r\n0\r\n" % (len(body[:9]), body[:9], len(body[9:]), body[9:])
    kinds = ["chunks", "trailer", "bad chunks", "bad length", "two lengths", "coding", "both", "cut", "none"]
    match draw(st.sampled_from(kinds)):
        case "chunks":
            return [chunked], chunks + b"\r\n", True
        case "trailer":
            return [chunked], chunks + draw(st.sampled_from(LINES)).encode("latin-1") + b"\r\n\r\n", False
        case "bad chunks":
            return [chunked], draw(st.sampled_from(CHUNKS)), False
        case "bad length":
            return [f"Content-Length: {draw(st.sampled_from(LENGTHS))}"], body, False
        case "two lengths":
            return [length, f"Content-Length: {draw(st.sampled_from(LENGTHS))}"], body, False
        case "coding":
            return [f"Transfer-Encoding: {draw(st.sampled_from(CODINGS))}"], chunks + b"\r\n", False
        case "both":
            return [chunked, length], chunks + b"\r\n", False
        case "cut":
            return [length], body[: draw(st.integers(0, len(body) - 1))], False
    return [], body, False


@st.composite
def mutated_requests(draw: st.DrawFn, era: str) -> Sent:
    """A good request with one thing wrong: its first line, its headers, its framing, or what comes with it."""
    good = message(era, 1, *draw(st.sampled_from(REQUESTS)))
    body, line = json.dumps(good).encode(), ["POST", "/mcp", "HTTP/1.1"]
    lines = [f"{name}: {value}" for name, value in headers_of(good, era).items()]
    framing, whole, end, resets = [f"Content-Length: {len(body)}"], True, "\r\n", False
    before, after = b"", b""
    kinds = ["head"] * 5 + ["line"] * 3 + ["framing"] * 3 + ["ends", "before", "after", "pipeline", "reset"]
    match draw(st.sampled_from(kinds)):
        case "head":
            lines = draw(heads(lines))
        case "line":
            at = draw(st.integers(0, 2))
            line[at] = draw(st.sampled_from([METHODS, TARGETS, VERSIONS][at]))
        case "framing":
            framing, body, whole = draw(framed(body))
        case "ends":
            end, whole = draw(st.sampled_from(["\n", "\r", "\r\r\n"])), False
        case "before":
            before, whole = draw(st.sampled_from([b"\r\n", b"\r\n\r\n", b"\n", b" ", b"\0", b"\x16\x03\x01"])), False
        case "after":
            after, whole = draw(st.binary(min_size=1, max_size=20)), False
        case "pipeline":
            after, whole, resets = post(headers_of(good, era), good) * 3, False, draw(st.booleans())
        case "reset":
            whole, resets = False, True
    data = before + end.join([" ".join(line), *lines, *framing, "", ""]).encode("latin-1") + body + after
    if line[0] == "GET":  # it may be answered by a stream, which goes on until the client ends it
        whole = False
    if draw(st.integers(0, 9)) == 9:
        data, whole = data[: draw(st.integers(0, len(data) - 1))], False
    return Sent(data, line[0], whole, resets)


# Steps of a handshake, for any order.
HANDSHAKE = [
    message(LEGACY, 1, "initialize", HELLO),
    message(LEGACY, 2, "initialize", HELLO | {"protocolVersion": "9999-99-99"}),
    message(MODERN, 3, "initialize", HELLO),
    INITIALIZED,
    message(LEGACY, 4, "ping"),
    message(LEGACY, 5, "tools/list"),
    message(MODERN, 6, "server/discover"),
    message(LEGACY, 7, "tools/call", {"name": "get_part", "arguments": CALLS["get_part"]}),
    message(MODERN, 8, "tools/call", {"name": "get_part", "arguments": CALLS["get_part"]}),
    {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 99}},
    {"jsonrpc": "2.0", "id": 1, "result": {}},
    {"jsonrpc": "2.0", "id": 1, "error": {"code": 1, "message": PLANTED}},
]
handshakes = st.sampled_from([json.dumps(each).encode() for each in HANDSHAKE])


class Step(NamedTuple):
    """One request of a session, and the session that it names."""

    method: str
    body: bytes
    session: str


steps = st.builds(
    Step,
    st.sampled_from(["POST", "POST", "POST", "POST", "DELETE", "GET", "HEAD"]),
    handshakes | handshakes | inputs(LEGACY),
    st.sampled_from(["given", "given", "none", "ended", "unknown"]),
)


def fitting_headers(body: bytes, era: str) -> dict[str, str]:
    """Those of a good call, but with the method and the name that are in the body, if they can be sent."""
    try:
        own = headers_of(json.loads(body), era)
        if all(value.isascii() and value.isprintable() for value in own.values()):
            return own
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        pass
    return headers_of(good_call(era, 1), era)


# --- what has to come back


class Owed(NamedTuple):
    """How many answers a line may have, and under which id, where that can be told."""

    least: int
    most: int
    rpc_id: int | str | None = None


def owed(line: bytes) -> Owed:
    """What JSON-RPC owes for a line. Where parsers may differ, or no message is meant, either is right."""
    if not line.strip():
        return Owed(0, 0)
    try:
        found = json.loads(line.decode())
    except (ValueError, RecursionError):
        return Owed(1, 1)
    if not isinstance(found, dict):
        return Owed(1, 1)
    rpc_id = found.get("id")
    rpc_id = rpc_id if isinstance(rpc_id, str | int) and not isinstance(rpc_id, bool) else None
    if "result" in found or "error" in found:
        return Owed(0, 1, rpc_id)
    if "id" in found or "method" not in found:
        return Owed(1, 1, rpc_id)
    is_sound = found.get("jsonrpc") == "2.0" and isinstance(found["method"], str)
    return Owed(0, 0 if is_sound and isinstance(found.get("params", {}), dict) and is_plain(found) else 1)


def is_plain(found: Any) -> bool:
    """Whether every parser takes it: no NaN, no half of a surrogate pair."""
    try:
        json.dumps(found, allow_nan=False, ensure_ascii=False).encode()
    except ValueError:
        return False
    return True


def good_call(era: str, rpc_id: int | str) -> Json:
    """A call that is served, whatever came before it."""
    return message(era, rpc_id, "tools/call", {"name": "get_part", "arguments": CALLS["get_part"]})


def judge(answer: Json) -> None:
    """An answer is JSON-RPC, an error in it is complete and none of the server's making, and neither tells too much."""
    assert answer["jsonrpc"] == "2.0"
    assert ("result" in answer) != ("error" in answer)
    shown = answer.get("error") or answer["result"]
    error = shown["data"] if "error" in answer else shown["_meta"]["plinth/error"] if shown.get("isError") else None
    if error is not None:
        assert {"code", "message", "retryable", "request_id"} <= error.keys(), error
        assert error["message"], error
        assert error["code"] not in ("internal", "timeout", "overloaded", "unavailable", "shutting_down"), error
    if "error" in answer:  # the specification wants these two back
        shown = {**shown, "data": {k: v for k, v in shown["data"].items() if k not in ("uri", "requested")}}
    assert not LEAK.search(json.dumps(shown)), shown


def judge_response(response: Response) -> None:
    """A response has a status that says what it is, and is JSON, a stream of it or empty."""
    assert response.status in STATUSES, response
    for found in response.messages if response.body else []:
        if "result" in found or "error" in found:
            judge({"jsonrpc": "2.0"} | found)  # nothing but /mcp speaks JSON-RPC
    assert not LEAK.search(json.dumps(response.headers)), response


class Watched:
    """A server that is looked at after every input, which it counts."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.seen = 0
        self._read = 0

    def check_log(self) -> None:
        """What it has logged since the last time is JSON, tells of no fault and shows nothing of the input."""
        new = self.server.stderr[self._read :]
        self._read += len(new)
        for line in new:
            event = json.loads(line)
            assert event["level"] in ("debug", "info", "warning"), event
            assert event["event"] not in ("crash", "stdout_noise", "stderr_noise", "unloggable"), event
            assert PLANTED not in json.dumps(event | {"rpc_id": None}), event


class Pipe(Watched):
    """A server on stdio, in one era."""

    def __init__(self, server: Server, era: str) -> None:
        super().__init__(server)
        self.era = era
        if era == LEGACY:
            self.server.send(message(era, 0, "initialize", HELLO))
            assert json.loads(self.server.receive())["result"]["protocolVersion"] == LEGACY
            self.server.send(INITIALIZED)

    def feed(self, data: bytes) -> None:
        """Send lines, then a good call; everything owed has to come back."""
        self.seen += 1
        due = [owed(line) for line in data.split(b"\n")]
        good = good_call(self.era, f"good {self.seen}")
        self.server.send(data, good)
        answers: list[Json] = []
        served: Json = {}
        while not served or len(answers) < sum(each.least for each in due):
            answer = json.loads(self.server.receive().decode(), parse_constant=pytest.fail)
            if answer.get("id") == good["id"]:
                served = answer
            elif "method" not in answer:  # which progress has
                answers.append(answer)
        assert served["result"]["structuredContent"]["sku"] == "SEN-0007"
        assert len(answers) <= sum(each.most for each in due), answers
        for answer in answers:
            judge(answer)
            is_refused = answer["id"] is None and "error" in answer
            assert is_refused or any(answer["id"] == each.rpc_id for each in due), answer
        self.check_log()


class Edge(Watched):
    """A server on HTTP."""

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self.port = server.port

    def connect(self) -> Connection:
        """A new connection."""
        return Connection(self.port, PATIENCE)

    def feed(self, sent: Sent, era: str) -> list[Response]:
        """Send something like a request, and look at what comes back."""
        self.seen += 1
        responses: list[Response] = []
        with self.connect() as connection, self.connect() as other:
            try:
                connection.send(sent.data)
                if sent.resets:
                    connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    connection.close()
                elif sent.whole:
                    responses += filter(None, [connection.receive(sent.method)])
                    if responses and responses[0].headers.get("connection") != "close":
                        self.check_good_call(connection, era)
                else:
                    # The server takes what comes in its order: when this is answered, so is all that will be.
                    self.check_good_call(other, era)
                    connection.end()
                    while response := connection.receive("POST" if responses else sent.method):
                        responses.append(response)
            except (ConnectionResetError, BrokenPipeError, EOFError):
                assert not sent.whole or len(sent.data) > 60_000  # closed before it was all read
            self.check_good_call(other, era)
        for response in responses:
            judge_response(response)
        assert responses or not sent.whole or len(sent.data) > 60_000
        self.check_log()
        return responses

    def feed_body(self, body: bytes, era: str) -> None:
        """Send a body with headers that fit it where it has what they repeat."""
        self.seen += 1
        due = owed(body.removeprefix(codecs.BOM_UTF8))
        with self.connect() as connection, self.connect() as other:
            connection.send(post(fitting_headers(body, era), body))
            response = connection.receive()
            assert response is not None
            is_over = response.headers.get("connection") == "close"  # it was answered without its body
            self.check_good_call(other if is_over else connection, era)
        judge_response(response)
        if response.status == 202:
            assert not response.body
            assert due.least == 0
        else:
            (answer,) = (found for found in response.messages if "method" not in found)
            assert answer["id"] == due.rpc_id or (answer["id"] is None and "error" in answer)
        self.check_log()

    def feed_session(self, taken: list[Step]) -> None:
        """Take steps that make no handshake, then make one and call."""
        self.seen += 1
        sessions = {"unknown": PLANTED}
        for step in taken:
            response = self._step(step.method, step.body, sessions.get(step.session))
            if response is None:
                continue
            judge_response(response)
            if given := response.headers.get("mcp-session-id"):
                sessions["given"] = given
            if step.method == "DELETE" and response.status == 200:
                sessions["ended"] = sessions.pop(step.session)
        hello = self._step("POST", json.dumps(HANDSHAKE[0]).encode(), None)
        assert hello is not None
        session = hello.headers["mcp-session-id"]
        called = self._step("POST", json.dumps(good_call(LEGACY, "good")).encode(), session)
        assert called is not None
        assert called.messages[-1]["result"]["structuredContent"]["sku"] == "SEN-0007"
        ended = self._step("DELETE", b"", session)
        assert ended is not None
        assert ended.status == 200
        self.check_log()

    def _step(self, method: str, body: bytes, session: str | None) -> Response | None:
        """One request of a session; a GET may open a stream, and leaves."""
        headers = headers_of({}, LEGACY) | ({"Mcp-Session-Id": session} if session else {})
        with self.connect() as connection:
            connection.send(post(headers, body, method))
            if method == "GET":
                connection.end()
                return None
            response = connection.receive(method)
            assert response is not None
            return response

    def check_good_call(self, connection: Connection, era: str) -> None:
        """The next call is served."""
        good = good_call(era, f"good {self.seen}")
        connection.send(post(headers_of(good, era), good))
        response = connection.receive()
        assert response is not None
        (answer,) = response.messages
        assert answer["id"] == good["id"], answer
        assert answer["result"]["structuredContent"]["sku"] == "SEN-0007"


# --- the servers


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of the default project, rendered and installed."""
    path = render(tmp_path_factory.mktemp("fuzz"))
    sync = run(path, "uv sync --compile-bytecode")  # without bytecode the first start may be too slow for its patience
    assert sync.returncode == 0, sync.stderr
    tools = json.loads(run(path, f"uv run {path.name} tools --json").stdout)
    assert {tool["name"] for tool in tools} == CALLS.keys()
    return path / ".venv" / BIN / path.name


def started(command: Path, *arguments: str, **settings: str) -> Server:
    """A server process."""
    return Server([command, *arguments], SETTINGS | settings, patience=PATIENCE)


@pytest.fixture(scope="module")
def pipes(command: Path) -> Iterator[dict[str, Pipe]]:
    """A stdio server of each era, which end well."""
    with started(command) as one, started(command) as other:
        pipes = {MODERN: Pipe(one, MODERN), LEGACY: Pipe(other, LEGACY)}
        yield pipes
        for pipe in pipes.values():
            assert pipe.server.finish() == (0, [])
            pipe.check_log()


@pytest.fixture(scope="module")
def edge(command: Path) -> Iterator[Edge]:
    """An HTTP server, which ends well."""
    with started(command, *SERVE_HTTP) as server:
        edge = Edge(server)
        yield edge
        server.process.terminate()
        assert server.wait() == 0
        edge.check_log()


def relaxed(count: int) -> settings:
    """So many examples; no machine is too slow for them."""
    return settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck))


# --- the tests


@ERAS
def test_lines_on_a_pipe(pipes: dict[str, Pipe], era: str) -> None:
    """Every line is answered as JSON-RPC owes, and the next good call is served by the same process."""
    pipe = pipes[era]

    @relaxed(PIPES)
    @given(inputs(era))
    def feed(data: bytes) -> None:
        pipe.feed(data)

    feed()
    assert pipe.seen >= PIPES


@ERAS
def test_bodies_over_http(edge: Edge, era: str) -> None:
    """Every message is answered with a fitting status and in JSON, on a connection that goes on serving."""
    before = edge.seen

    @relaxed(BODIES)
    @given(inputs(era))
    def feed(body: bytes) -> None:
        edge.feed_body(body, era)

    feed()
    assert edge.seen - before >= BODIES


@ERAS
def test_requests_on_a_socket(edge: Edge, era: str) -> None:
    """Whatever HTTP is made of may be wrong: the answer is JSON, or the connection ends."""
    before = edge.seen

    @relaxed(SOCKETS)
    @given(mutated_requests(era))
    def feed(sent: Sent) -> None:
        edge.feed(sent, era)

    feed()
    assert edge.seen - before >= SOCKETS


def test_handshakes_over_http(command: Path) -> None:
    """Steps of a session in any order, with any session named: the next handshake is served."""
    with started(command, *SERVE_HTTP, MCP_HTTP_SESSIONS="stateful") as server:
        edge = Edge(server)

        @relaxed(SESSIONS)
        @given(st.lists(steps, min_size=1, max_size=6))
        def feed(taken: list[Step]) -> None:
            edge.feed_session(taken)

        feed()
        assert edge.seen >= SESSIONS
        server.process.terminate()
        assert server.wait() == 0


def test_first_lines_on_a_pipe(command: Path) -> None:
    """Whatever comes first, each line is answered as JSON-RPC owes, and the end of input ends it."""

    @relaxed(10)
    @given(st.lists(handshakes | st.sampled_from([b"", b"junk", b"[]", b"{}"]), max_size=6))
    def feed(lines: list[bytes]) -> None:
        with started(command) as server:
            server.send(*lines)
            code, answers = server.finish()
            assert code == 0
            due = [owed(line) for line in lines]
            assert sum(each.least for each in due) <= len(answers) <= sum(each.most for each in due)
            for answer in answers:
                judge(json.loads(answer))
            Watched(server).check_log()

    feed()


# --- what was found

INNER = b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


@pytest.mark.parametrize("where", [b"grade: h2c", b"Upgrade: h2c", b"POST"])
@pytest.mark.parametrize("before", [b"", post(headers_of(good_call(MODERN, 1), MODERN), good_call(MODERN, 1))])
def test_body_of_an_offered_upgrade_is_no_request(edge: Edge, where: bytes, before: bytes) -> None:
    """What follows a head that offers another protocol is its body, wherever packets end and whatever came before."""
    headers = headers_of(good_call(MODERN, 1), MODERN) | {"Connection": "Upgrade", "Upgrade": "h2c"}
    whole = before + post(headers, INNER)
    at, body = whole.rindex(where), whole.rindex(INNER)
    with edge.connect() as connection, edge.connect() as other:
        try:
            for piece in (whole[:at], whole[at:body], INNER):
                connection.send(piece)
                edge.check_good_call(other, MODERN)  # so that the server reads one piece before the next comes
            connection.end()
            while response := connection.receive():
                assert "result" in response.messages[0] or response.status == 400, response
        except (ConnectionResetError, BrokenPipeError):
            pass


def test_trailer_is_no_header(edge: Edge) -> None:
    """What stands behind a body comes too late to decide anything."""
    good = good_call(MODERN, 1)
    headers = {k: v for k, v in headers_of(good, MODERN).items() if k != "Host"} | {"Transfer-Encoding": "chunked"}
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode()
    body = json.dumps(good).encode()
    data = b"POST /mcp HTTP/1.1\r\n%b\r\n%x\r\n%b\r\n0\r\nHost: 127.0.0.1\r\n\r\n" % (head, len(body), body)
    (response,) = edge.feed(Sent(data), MODERN)
    assert response.status in (400, 421)


@ERAS
def test_client_that_leaves_pipelined_calls(edge: Edge, era: str) -> None:
    """The call that runs when it goes is cancelled where the revision says so, and nobody writes to it."""
    call = {"name": "stocktake", "arguments": {"pause_ms": 20}}
    sent = message(era, "left", "tools/call", call)
    edge.feed(Sent(post(headers_of(sent, era), sent) * 3, whole=False, resets=True), era)
    (event,) = edge.server.wait_for("request", rpc_id="left", protocol_version=era)
    assert event["outcome"] == ("cancelled" if era == MODERN else "ok")
    edge.feed(Sent(b"", whole=False), era)


@ERAS
@pytest.mark.parametrize("rpc_id", [True, 1.0, "1"])
def test_cancellation_of_an_id_of_another_type(pipes: dict[str, Pipe], era: str, rpc_id: object) -> None:
    """It is not the request's, which is answered."""
    call = message(era, 1, "tools/call", {"name": "stocktake", "arguments": {"pause_ms": 5}})
    cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": rpc_id}}
    pipes[era].feed(b"\n".join(json.dumps(each).encode() for each in (call, cancel)))
