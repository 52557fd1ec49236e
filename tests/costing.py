"""What an input costs the server, and what of it the server keeps: counted without a clock, as multiples of a plain call's.

Processor time is that of the process, all its threads, in nanoseconds, as the kernel keeps it; a busy machine does not
change it much. A byte is one that the sender puts on the wire: a connection costs him 52 bytes of headers for each packet.
"""

import base64
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

from installed import Installed
from judge import KEY
from raw import (
    ENVELOPE,
    HELLO,
    INITIALIZED,
    LEGACY,
    MODERN,
    SERVE_HTTP,
    Connection,
    Forgetful,
    Json,
    Server,
    headers_of,
    message,
    post,
    resident,
)

MOST = 20
"""Times a plain call's processor time: for each byte, and for the whole of an input as large as a plain call."""
FEW, LINEAR = 50, 2
"""Each of many pipelined requests takes at most so many times what it takes among one in fifty of them."""
MOST_KEPT = 10
"""Bytes of memory for each byte sent, while it is held."""
CONNECTION = 48 << 10
"""Bytes of memory that a connection may take whatever comes on it: how many there may be is bounded by itself."""
MOST_MB = 256
"""Of memory, for all that any number of callers can make it keep: half of what compose.yaml and the manifests give."""
PACKET = 52  # bytes of IP and TCP headers
NOTE = "x" * 100
ENOUGH = 3.0  # seconds of processor time, after which an input is not repeated any more

WIDE = {
    "MCP_RATE_LIMIT_PER_MINUTE": "1000000000",
    "MCP_RATE_LIMIT_BURST": "1000000000",
    "MCP_AUTH_FAILURES_PER_MINUTE": "1000000000",
}
"""Limits that would refuse what is to be counted."""

Make = Callable[[str], Any]
"""One message of an era; bytes, if it is not JSON."""


class Row(NamedTuple):
    """One kind of input by one way. `each`: bytes; `micros`: of processor time; multiples of a plain call's."""

    kind: str
    way: str
    each: int
    micros: float
    by_byte: float
    by_size: float
    most_by_size: float

    @property
    def holds(self) -> bool:
        """Whether it is within the bounds."""
        return self.by_byte <= MOST and self.by_size <= self.most_by_size


class Kept(NamedTuple):
    """What is held of one kind of input. `sent`, `grown`: bytes; `more`: of `grown`, for what connections may take."""

    kind: str
    inputs: int
    sent: int
    grown: int
    more: int
    is_flood: bool

    @property
    def multiple(self) -> float:
        """Of the bytes sent."""
        return max(self.grown - self.more, 0) / self.sent

    @property
    def holds(self) -> bool:
        """Whether it is within the bounds."""
        return self.grown <= MOST_MB << 20 if self.is_flood else self.multiple <= MOST_KEPT


def processor(server: Server) -> float:
    """Seconds of processor time that it has used: clock_getcpuclockid(3)."""
    return time.clock_gettime((~server.process.pid << 3) | 2)


# --- what is sent: messages


def call(tool: str, **arguments: Any) -> Make:
    """A call of a tool."""
    return lambda era: message(era, 1, "tools/call", {"name": tool, "arguments": arguments})


def plain(size: int) -> Make:
    """A call that has to be served, of about so many bytes."""
    return call("cost_take", text="x" * size)


def asks(method: str, **params: Any) -> Make:
    """Any request."""
    return lambda era: message(era, 1, method, params)


def says(**meta: Any) -> Make:
    """A list is asked for, with more in the envelope."""

    def make(era: str) -> Json:
        made = message(era, 1, "tools/list", {})
        made["params"]["_meta"] = {**(ENVELOPE if era == MODERN else {}), **meta}
        return made

    return make


def hello(**more: Any) -> Make:
    """The handshake."""
    return lambda era: message(LEGACY, 1, "initialize", {**HELLO, **more})


def written(make: Make, old: str, new: str) -> Make:
    """What json.dumps cannot write, or not so."""
    return lambda era: json.dumps(make(era)).replace(old, new).encode("utf-8", "surrogatepass")


def notification(method: str, **params: Any) -> Make:
    """One that nobody answers."""

    def make(era: str) -> Json:
        made = message(era, 1, method, params)
        del made["id"]
        return made

    return make


IO = "io.modelcontextprotocol/"
PAIRS = [{"": 0}]
ODD = call("search_parts", query="a", limit=1.5)


def messages(size: int) -> dict[str, Make]:
    """Kinds of messages, of about so many bytes where it matters."""
    many = size // 20
    return {
        "a plain call of some size": plain(size),
        "unknown URI of schemes": asks("resources/read", uri="a://" * (min(size, 50_000) // 4)),
        "unknown URI of a query": asks("resources/read", uri="part://x?" + "?a#" * (min(size, 50_000) // 3)),
        "unknown URI, long": asks("resources/read", uri="x" * size),
        "unknown URI of slashes": asks("resources/read", uri="part://" + "a/" * (size // 2)),
        "unknown URI, user and password": asks("resources/read", uri="a://" + "a:" * (min(size, 50_000) // 2)),
        "unknown arguments": call("search_parts", query="a", limit=1.5, **{f"k{n:09}": 0 for n in range(many)}),
        "an unknown argument, long": call("search_parts", query="a", **{"k" * size: 0}),
        "wrong types in a list": call("cost_take", entries=[{"name": "A", "count": "x"}] * min(many, 1000)),
        "too long a list, of wrong types": call("cost_take", entries=[{"name": "A", "count": "x"}] * (size // 30)),
        "wrong types in a mapping": call("cost_take", counts={f"{n:09}": "x" for n in range(many)}),
        "wrong for each of several types": call("cost_take", choice=[["x"]] * (size // 7)),
        "a wrong type, long": call("cost_take", text=[0] * (size // 3)),
        "arguments that are a list": asks("tools/call", name="cost_take", arguments=[0] * (size // 3)),
        "deep nesting": written(call("cost_take", text="@"), '"@"', "[" * (size // 2) + "]" * (size // 2)),
        "nesting as deep as it may be": call("cost_take", choice=[json.loads("[" * 90 + "]" * 90)] * (size // 182)),
        "a large integer": written(call("cost_take", choice="@"), '"@"', "9" * size),
        "large integers": call("cost_take", choice=[int("9" * 4000)] * max(size // 4000, 1)),
        "digits of a fraction": written(call("cost_take", choice="@"), '"@"', "0." + "1" * size),
        "escapes": written(call("cost_take", text="@"), "@", "\\u0041" * (size // 6)),
        "escapes of what is hidden": written(call("cost_take", text="@"), "@", "\\u200b\\u202e" * (size // 12)),
        "quotes": call("cost_take", text='"' * (size // 2)),
        "backslashes": call("cost_take", text="\\" * (size // 2)),
        "quotes in a wrong type": call("cost_take", entries=['"' * (size // 2)]),
        "quotes in a name": call("cost_take", counts={'"' * (size // 2): "x"}),
        "quotes in the name of an argument": call("search_parts", query="a", **{'"\\' * (size // 4): 0}),
        "surrogates": written(call("cost_take", text="@"), "@", "\\ud800" * (size // 6)),
        "a member many times": written(call("cost_take", text="@"), '"text"', '"text": "", ' * (size // 12) + '"text"'),
        "small objects in the arguments": call("cost_take", choice=PAIRS * (size // 9)),
        "small objects in the envelope": says(more=PAIRS * (size // 9)),
        "members of the envelope": says(**{f"k{n:09}": 0 for n in range(many)}),
        "icons of the client": says(**{f"{IO}clientInfo": {"name": "a", "version": "0", "icons": [0] * (size // 3)}}),
        "wrong icons of the client": says(
            **{f"{IO}clientInfo": {"name": "a", "version": "0", "icons": [{"src": 0}] * (size // 12)}}
        ),
        "capabilities of the client": says(
            **{f"{IO}clientCapabilities": {"experimental": {"a": {"b": PAIRS * (size // 9)}}}}
        ),
        "wrong capabilities": says(**{f"{IO}clientCapabilities": {f"k{n:09}": 0 for n in range(many)}}),
        "a progress token, long": lambda era: says(progressToken="x" * size)(era),
        "trace context, long": says(traceparent="0" * size, tracestate="a=b," * (size // 4)),
        "unknown tool, long": call("x" * size),
        "unknown method, long": asks("x" * size),
        "unknown revision, long": says(**{f"{IO}protocolVersion": "9" * size}),
        "a long id": lambda era: message(era, "x" * size, "tools/list", {}),
        "a cursor, long": asks("tools/list", cursor="x" * size),
        "an unknown prompt": asks("prompts/get", name="x" * size),
        "arguments of a prompt": asks("prompts/get", name="reorder", arguments={f"k{n:09}": "" for n in range(many)}),
        "a completion": asks(
            "completion/complete",
            ref={"type": "ref/prompt", "name": "reorder"},
            argument={"name": "sku", "value": "x" * size},
        ),
        "a completion of nothing": asks(
            "completion/complete",
            ref={"type": "ref/resource", "uri": "a://" * (size // 4)},
            argument={"name": "a", "value": ""},
        ),
        "a level of the log": asks("logging/setLevel", level="x" * size),
        "the handshake": hello(),
        "the handshake with capabilities": hello(capabilities={"experimental": {"a": {"b": PAIRS * (size // 9)}}}),
        "the handshake with icons": hello(clientInfo={"name": "a", "version": "0", "icons": [0] * (size // 3)}),
        "an old handshake, long": hello(protocolVersion="9" * size),
        "a ping": asks("ping"),
        "discovery": asks("server/discover"),
        "lists": asks("resources/templates/list"),
        "a notification": notification("notifications/cancelled", requestId="x", reason="x" * size),
        "notifications of progress": notification("notifications/progress", progressToken="x" * size, progress=1),
        "an answer to nothing": lambda era: {"jsonrpc": "2.0", "id": 7, "result": {"a": PAIRS * (size // 9)}},
        "a batch": lambda era: json.dumps([message(era, 1, "ping")] * (size // 180 + 1)).encode(),
        "numbers": lambda era: json.dumps([0] * (size // 3)).encode(),
        "no JSON": lambda era: b"x" * size,
        "nearly JSON": lambda era: json.dumps(message(era, 1, "ping", {"a": "x" * size})).encode()[:-1],
        "brackets": lambda era: b"[" * size,
        "white space": lambda era: b" " * size,
        "no UTF-8": lambda era: b'{"a": "' + b"\xff" * size,
        "what a tool prints, of dots": call("cost_say", text="a." * (min(size, 10_000) // 2)),
        "what a tool prints, of schemes": call("cost_say", text="a://" * (min(size, 10_000) // 4)),
        "what a tool prints, of words": call("cost_say", text="bearer " * (min(size, 10_000) // 7)),
        "what a tool prints, of tokens": call("cost_say", text="eyJ" * (min(size, 10_000) // 3)),
        "what a tool prints, of lines": call("cost_say", text="\n" * min(size, 10_000)),
        "what a tool logs, of schemes": call("cost_say", text="a://@" * (min(size, 10_000) // 5), way="log"),
        "what a tool logs, of queries": call("cost_say", text="a://?" * (min(size, 10_000) // 5), way="log"),
        "what a tool logs, of slashes": call("cost_say", text="://" + "/" * min(size, 9_000), way="log"),
    }


# --- what is sent: HTTP


class Packets(NamedTuple):
    """What is written on a connection. `answers`: how many come; `alone`: it takes a connection of its own."""

    parts: Sequence[bytes]
    answers: int = 1
    alone: bool = False
    method: str = "POST"

    @property
    def size(self) -> int:
        """Bytes on the wire."""
        packets = len(self.parts) + (4 if self.alone else 0)  # to connect and to leave
        return sum(map(len, self.parts)) + PACKET * packets


def one(make: Make, era: str, **fields: str | None) -> Packets:
    """One message as a POST. `fields`: headers besides, or instead, with `_` for `-`; None: without it."""
    made = make(era)
    data = made if isinstance(made, bytes) else json.dumps(made).encode()
    described = made if isinstance(made, dict) and "params" in made else message(era, 1, "ping")
    headers = headers_of(described, era)
    # Headers that are too long are refused for that, and hide what is to be counted.
    headers = {name: value for name, value in headers.items() if len(value) < 55_000}
    given = headers | {"Authorization": f"Bearer {KEY}"} | {n.replace("_", "-"): v for n, v in fields.items()}
    return Packets([post({n: v for n, v in given.items() if v is not None}, data)])


def head(first: str, *lines: str) -> bytes:
    """A request without a body."""
    return "\r\n".join([first, "Host: 127.0.0.1", *lines, "", ""]).encode("latin-1")


def requests() -> dict[str, Packets]:
    """Kinds of bytes that are no message, or are wrapped in more than they are."""
    body = json.dumps(plain(100)(MODERN)).encode()
    bare = one(plain(100), MODERN).parts[0]
    single = b"".join(b"1\r\n%c\r\n" % each for each in body) + b"0\r\n\r\n"
    to_chunk = bare.partition(b"\r\n\r\n")[0].replace(b"Content-Length: %d" % len(body), b"Transfer-Encoding: chunked")
    get = head("GET /livez HTTP/1.1")
    return {
        "GETs in one write": Packets([get * 3000], 3000),
        "GETs without Host in one write": Packets([b"GET / HTTP/1.1\r\n\r\n" * 7000], 7000, True),
        "GETs of nothing in one write": Packets([head("GET /x HTTP/1.1") * 1000], 1000),
        "calls in one write": Packets([bare * 200], 200),
        "calls without a credential in one write": Packets(
            [one(plain(100), MODERN, Authorization=None).parts[0] * 200], 200
        ),
        "a GET": Packets([get], 1, method="GET"),
        "readiness": Packets([head("GET /readyz HTTP/1.1")], 1, method="GET"),
        "the page": Packets([head("GET / HTTP/1.1")], 1, method="GET"),
        "OPTIONS": Packets([head("OPTIONS /mcp HTTP/1.1")], 1),
        "a long path": Packets([head(f"GET /{'a' * 60_000} HTTP/1.1")], 1, True, "GET"),
        "many headers": Packets([head("GET /livez HTTP/1.1", *["X: y"] * 10_000)], 1, True, "GET"),
        "many different headers": Packets(
            [head("GET /mcp HTTP/1.1", *[f"X{n}: y" for n in range(6000)])], 1, True, "GET"
        ),
        "long headers": Packets([head("GET /mcp HTTP/1.1", *[f"X: {'y' * 6000}"] * 10)], 1, True, "GET"),
        "a header of commas": Packets([head("GET /mcp HTTP/1.1", f"Accept: {',' * 60_000}")], 1, True, "GET"),
        "a header of quotes": Packets(
            [head("GET /mcp HTTP/1.1", "MCP-Protocol-Version: 2025-11-25", "Accept: " + '"\\' * 30_000)], 1, True, "GET"
        ),
        "a type of parameters": one(plain(100), MODERN, Content_Type="application/json" + ';a="' * 12_000),
        "a chain of proxies": Packets(
            [head("GET /mcp HTTP/1.1", f"X-Forwarded-For: {', '.join(['127.0.0.1'] * 5000)}")], 1, True, "GET"
        ),
        "a Host of colons": Packets([head("GET / HTTP/1.1", f"X: {':' * 60_000}")], 1, True, "GET"),
        "chunks of one byte": Packets([to_chunk + b"\r\n\r\n" + single]),
        "chunk extensions": Packets([to_chunk + b"\r\n\r\n" + b"1;" + b"a" * 9000 + b"\r\n{\r\n0\r\n\r\n"], 1, True),
        "trailers": Packets([to_chunk + b"\r\n\r\n0\r\n" + b"X: y\r\n" * 2000 + b"\r\n"], 1, True),
        "a byte at a time": Packets([bytes([each]) for each in bare], 1, True),
        "no HTTP": Packets([b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + b"\0" * 500], 1, True),
        "lines of nothing": Packets([b"\r\n" * 20_000 + get], 1, True, "GET"),
        "a connection": Packets([get], 1, True, "GET"),
        "a wrong Host": Packets(
            [get.replace(b"livez", b"mcp").replace(b"127.0.0.1", b"evil.example.com")], 1, False, "GET"
        ),
        "a wrong Origin": one(plain(100), MODERN, Origin="https://evil.example.com"),
        "a wrong type": one(plain(100), MODERN, Content_Type="text/plain"),
        "gzip": one(plain(100), MODERN, Content_Encoding="gzip"),
        "no Accept": one(plain(100), MODERN, Accept="text/html"),
        "an offer of h2c": one(
            plain(100), MODERN, Connection="Upgrade, HTTP2-Settings", Upgrade="h2c", HTTP2_Settings="AA"
        ),
        "no credential": one(plain(100), MODERN, Authorization=None),
        "no credential, large": one(plain(900_000), MODERN, Authorization=None)._replace(alone=True),
        "a wrong key": one(plain(100), MODERN, Authorization=f"Bearer {KEY[:-1]}x"),
        "an unknown key": one(plain(100), MODERN, Authorization=f"Bearer {KEY.replace('0123', 'abcd')}"),
        "a long wrong key": one(plain(100), MODERN, Authorization="Bearer " + "x" * 8000),
        "a very long wrong key": one(plain(100), MODERN, Authorization="Bearer " + "x" * 32_000),
        "spaces for a key": one(plain(100), MODERN, Authorization="Bearer" + " " * 8000 + "x"),
        "another scheme": one(plain(100), MODERN, Authorization="Basic QUFB"),
        "headers of another call": one(plain(100), MODERN, Mcp_Name="wait"),
        "an unknown revision": one(plain(100), MODERN, MCP_Protocol_Version="9" * 4000),
    }


def tokens() -> dict[str, Packets]:
    """Garbage in place of an access token."""
    header = _encoded({"alg": "ES256", "kid": "known", "typ": "at+jwt"})
    texts = {
        "a JWT of dots": "." * 30_000,
        "a JWT of letters": "e" * 30_000,
        "a JWT with an unknown key": f"{_encoded({'alg': 'ES256', 'kid': 'other'})}.{'e' * 20_000}.AAAA",
        "a JWT without an algorithm": f"{_encoded({'alg': 'none'})}.{_encoded({})}.",
        "a JWT with a wrong signature": f"{header}.{_encoded({'iss': 'x' * 20_000})}.{'A' * 86}",
        "a small JWT with a wrong signature": f"{header}.{_encoded({'iss': 'x'})}.{'A' * 86}",
        "a JWT whose header is deep": f"{_encoded_text('[' * 15_000 + ']' * 5000)}.e30.AAAA",
        "a JWT whose header is large": f"{_encoded({'alg': 'ES256', 'kid': 'x', 'x': [0] * 6000})}.e30.AAAA",
    }
    return {name: one(plain(100), MODERN, Authorization=f"Bearer {text}") for name, text in texts.items()}


def _encoded(value: Json) -> str:
    return _encoded_text(json.dumps(value))


def _encoded_text(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


# --- counting


class Meter:
    """Counts by one way: a plain call first, then everything else as a multiple of it."""

    def __init__(self, server: Server, way: str, play: Callable[[Packets | bytes], int], times: int) -> None:
        self.server, self._way, self._play, self._times = server, way, play, times
        self._plain: list[tuple[int, float]] = []

    def learn(self, plain_calls: Sequence[Packets | bytes]) -> None:
        """Count plain calls of several sizes, the smallest first."""
        for each in plain_calls:
            self._repeat(each, self._times)  # warm
            self._plain.append(self._repeat(each, self._times * (4 if not self._plain else 1)))

    def count(self, kind: str, sent: Packets | bytes) -> Row:
        """One row."""
        each, seconds = self._repeat(sent, self._times)
        size, base = self._plain[0]
        by_byte = (seconds / each) / (base / size)
        most, by_size = MOST, seconds / self._of(each)
        if isinstance(sent, Packets) and sent.answers > 1:
            # Many requests in one write are as many calls: each takes as long as where there are few of them.
            few = sent._replace(parts=[sent.parts[0][: len(sent.parts[0]) // FEW]], answers=sent.answers // FEW)
            _, less = self._repeat(few, self._times * 4)
            most, by_size = LINEAR, seconds / sent.answers / (less / few.answers)
        return Row(kind, self._way, each, seconds * 1e6, by_byte, by_size, most)

    def _of(self, size: int) -> float:
        """Seconds of a plain call of so many bytes, but no less than of a small one."""
        found = self._plain[0][1]
        for (small, less), (large, more) in zip(self._plain, self._plain[1:], strict=False):
            if size >= small:
                found = less + (more - less) * min((size - small) / (large - small), 1)
        return found

    def _repeat(self, sent: Packets | bytes, times: int) -> tuple[int, float]:
        size = sent.size if isinstance(sent, Packets) else len(sent) + 1
        times = max(2, min(times, 4_000_000 // size))
        total, done = 0.0, 0
        before = processor(self.server)
        while done < times and total < ENOUGH:
            self._play(sent)
            done += 1
            total = processor(self.server) - before
        self._rest()
        return size, (processor(self.server) - before) / done

    def _rest(self) -> None:
        """Wait until it has done what it does after the answer: it tells nobody."""
        idle = 0
        for _ in range(1000):
            before = processor(self.server)
            time.sleep(0.02)
            idle = idle + 1 if processor(self.server) - before < 0.001 else 0
            if idle == 2:
                return


class Http:
    """Plays packets on kept connections."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._kept: Connection | None = None

    def __call__(self, sent: Packets | bytes) -> int:
        """Send it, and read its answers; returns how many there were."""
        assert isinstance(sent, Packets)
        if sent.alone:
            with Connection(self._port, 60) as connection:
                return self._exchange(connection, sent)[0]
        self._kept = self._kept or Connection(self._port, 60)
        found, is_open = self._exchange(self._kept, sent)
        if not is_open:
            self._kept.close()
            self._kept = None
        return found

    def close(self) -> None:
        """Leave."""
        if self._kept is not None:
            self._kept.close()

    @staticmethod
    def _exchange(connection: Connection, sent: Packets) -> tuple[int, bool]:
        found, writing = 0, None
        try:
            if len(sent.parts) == 1 and sent.answers > 1:
                # Answers come while it is still being written.
                writing = threading.Thread(target=_send_quietly, args=(connection, sent.parts[0]))
                writing.start()
            else:
                for part in sent.parts:
                    connection.send(part)
            while found < sent.answers:
                response = connection.receive(sent.method)
                if response is None:
                    return found, False
                found += 1
                if response.headers.get("connection") == "close":
                    return found, False
        except (OSError, EOFError, ValueError, IndexError):
            return found, False  # refused and closed, with some of it unread
        finally:
            if writing is not None:
                if found < sent.answers:
                    connection.end()
                    with suppress(OSError):
                        connection.socket.shutdown(socket.SHUT_RD)
                writing.join(30)
        return found, True


def _send_quietly(connection: Connection, data: bytes) -> None:
    with suppress(OSError):
        connection.send(data)


class Pipe:
    """Plays lines on a pipe. A ping after each tells that it is done."""

    def __init__(self, server: Server, era: str) -> None:
        self._server, self._serial, self._era = server, count(), era

    def __call__(self, sent: Packets | bytes) -> int:
        """Send it, and read up to the answer of what follows it."""
        assert isinstance(sent, bytes)
        mark = f"mark-{next(self._serial)}"
        self._server.send(sent, message(self._era, mark, "tools/call", {"name": "cost_take", "arguments": {}}))
        needle = f'"{mark}"'.encode()
        found = 0
        while needle not in self._server.receive():
            found += 1
        return found


def line(make: Make, era: str) -> bytes:
    """One message as a line."""
    made = make(era)
    return (made if isinstance(made, bytes) else json.dumps(made).encode()).replace(b"\n", b" ")


def rows(
    installed: Installed, folder: Path, times: int, size: int, *, is_brief: bool, only: Sequence[str] = ()
) -> Iterator[Row]:
    """All of them. `size`: of what is large; `is_brief`: each kind by fewer ways; `only`: kinds whose names hold one of these."""

    def wanted(name: str) -> bool:
        return not only or any(each in name for each in only)

    keys = write_keys(folder)
    sizes = (300, 10_000, size)
    guarded = {"MCP_AUTH_MODE": "api_key", "MCP_API_KEYS_FILE": keys, "MCP_TRUSTED_PROXIES": "127.0.0.1"}
    with served(installed, WIDE | guarded) as server, closing(Http(server.port)) as play:
        meter = Meter(server, "HTTP", play, times)
        meter.learn([one(plain(each), MODERN) for each in sizes])
        for name, packets in filter(lambda kind: wanted(kind[0]), requests().items()):
            yield meter.count(name, packets)
        for number, (name, make) in enumerate(filter(lambda kind: wanted(kind[0]), messages(size).items())):
            for era in (MODERN, LEGACY):
                yield meter.count(f"{name}, {era}", one(make, era))
            if not is_brief or number % 4 == 0:
                yield meter.count(f"{name}, no key", one(make, MODERN, Authorization=None))
    stateful = {"MCP_HTTP_SESSIONS": "stateful"}
    with served(installed, WIDE | stateful) as server, closing(Http(server.port)) as play:
        meter = Meter(server, "HTTP, sessions", play, times)
        meter.learn([one(plain(each), MODERN, Authorization=None) for each in sizes])
        for name, packets in filter(lambda kind: wanted(kind[0]), sessions(size).items()):
            yield meter.count(name, packets)
    with (
        issuer() as address,
        served(
            installed,
            WIDE
            | {
                "MCP_AUTH_MODE": "jwt",
                "MCP_JWT_ISSUER": address,
                "MCP_JWT_AUDIENCE": "x",
                "MCP_JWT_JWKS_URL": f"{address}/jwks",
            },
        ) as server,
        closing(Http(server.port)) as play,
    ):
        meter = Meter(server, "HTTP, JWT", play, times)
        # No token is valid here: a call without one is the nearest that is served. It costs less than a valid one.
        meter.learn(
            [
                Packets([head("GET /livez HTTP/1.1", f"X: {'x' * each}")], 1, method="GET")
                for each in (300, 10_000, 40_000)
            ]
        )
        for name, packets in filter(lambda kind: wanted(kind[0]), tokens().items()):
            yield meter.count(name, packets)
    for era in (MODERN,) if is_brief else (MODERN, LEGACY):
        with served(installed, WIDE, "stdio") as server:
            if era == LEGACY:
                server.send(message(LEGACY, 0, "initialize", HELLO), INITIALIZED)
                server.receive()
            meter = Meter(server, f"stdio, {'modern' if era == MODERN else 'legacy'}", Pipe(server, era), times)
            meter.learn([line(plain(each), era) for each in sizes])
            for name, make in messages(size).items():
                if "handshake" not in name and wanted(name):
                    yield meter.count(name, line(make, era))


def sessions(size: int) -> dict[str, Packets]:
    """What only a server with sessions has."""
    plain_hello = {"Authorization": None}
    unknown = {"Authorization": None, "Mcp_Session_Id": "0" * 32}
    return {
        "a session": one(hello(), LEGACY, **plain_hello),
        "a session with capabilities": one(
            hello(capabilities={"experimental": {"a": {"b": PAIRS * (size // 9)}}}), LEGACY, **plain_hello
        ),
        "a session with icons": one(
            hello(clientInfo={"name": "a", "version": "0", "icons": [0] * (size // 3)}), LEGACY, **plain_hello
        ),
        "an unknown session": one(asks("tools/list"), LEGACY, **unknown),
        "a call without a session": one(plain(100), LEGACY, **plain_hello),
        "the end of an unknown session": Packets([head("DELETE /mcp HTTP/1.1", f"Mcp-Session-Id: {'0' * 32}")], 1),
        "no stream without a session": Packets(
            [head("GET /mcp HTTP/1.1", "Accept: text/event-stream")], 1, method="GET"
        ),
    }


# --- what is kept


LARGE_ANSWERS = "large answers that nobody reads"


def held(installed: Installed, folder: Path, *, is_brief: bool, only: Sequence[str] = ()) -> Iterator[Kept]:
    """What is held of each kind: some of it, and far more than there may be. `only`: kinds whose names hold one of these."""
    keys = write_keys(folder)
    locked = WIDE | {"MCP_AUTH_MODE": "api_key", "MCP_API_KEYS_FILE": keys}
    large = 1_000_000
    pairs = says(more=PAIRS * (large // 9))
    listen = asks("subscriptions/listen", notifications={"resourceSubscriptions": ["part://SEN-0007"]})

    def wrapped(make: Make) -> Make:
        def made(era: str) -> Json:
            found = make(era)
            found["params"]["_meta"] = {**found["params"].get("_meta", {}), "more": PAIRS * (large // 9)}
            return found

        return made

    body = one(plain(large), MODERN).parts[0]
    hold = call("cost_hold", seconds=60, text="x" * (large - 1000))
    arguments = call("cost_hold", seconds=60, more=PAIRS * (large // 9))
    kinds: dict[str, tuple[dict[str, str], bytes]] = {
        "bodies without their last byte": (locked, body[:-1]),
        "bodies without a credential and their last byte": (
            locked,
            one(plain(large), MODERN, Authorization=None).parts[0][:-1],
        ),
        "chunks without their end": (locked, _chunks(one(plain(large), MODERN).parts[0])),
        "heads without their end": (locked, head("GET /livez HTTP/1.1", f"X: {'x' * 60_000}")[:-2]),
        "heads of many lines without their end": (locked, head("GET /livez HTTP/1.1", *["X: y"] * 9000)[:-2]),
        "listeners with much in the envelope": (WIDE, one(wrapped(listen), MODERN, Authorization=None).parts[0]),
        "long calls with much in the envelope": (
            WIDE,
            one(wrapped(call("cost_hold", seconds=60)), MODERN, Authorization=None).parts[0],
        ),
        "long calls with much in the arguments": (WIDE, one(hold, MODERN, Authorization=None).parts[0]),
        "long calls of the handshake revisions": (
            WIDE,
            one(wrapped(call("cost_hold", seconds=60)), LEGACY, Authorization=None).parts[0],
        ),
        "refused calls with much in the arguments": (WIDE, one(arguments, MODERN, Authorization=None).parts[0]),
        "calls behind a long one": (
            WIDE,
            one(call("cost_hold", seconds=60), MODERN, Authorization=None).parts[0]
            + one(plain(large // 4), MODERN, Authorization=None).parts[0] * 4,
        ),
        "GETs behind a long call": (
            WIDE,
            one(call("cost_hold", seconds=60), MODERN, Authorization=None).parts[0]
            + head("GET /livez HTTP/1.1") * 5000,
        ),
        "sessions with capabilities": (
            WIDE | {"MCP_HTTP_SESSIONS": "stateful"},
            one(
                hello(capabilities={"experimental": {"a": {"b": PAIRS * (large // 9)}}}), LEGACY, Authorization=None
            ).parts[0],
        ),
        "lists with much in the envelope": (WIDE, one(pairs, MODERN, Authorization=None).parts[0]),
        "answers that nobody reads": (locked, one(asks("tools/list"), MODERN).parts[0] * 400),
        LARGE_ANSWERS: (WIDE, one(call("wait", seconds=0, size=1_000_000), MODERN, Authorization=None).parts[0]),
        "streams": (WIDE, head("GET /mcp HTTP/1.1", "Accept: text/event-stream")),
        "connections": (WIDE, head("GET /livez HTTP/1.1")),
    }
    few, flood = (8, 300) if is_brief else (16, 800)

    def of(name: str) -> list[Kept]:
        settings, data = kinds[name]
        with served(installed, settings) as server:
            return list(_held(server, name, data, few, flood))

    # Each on a server of its own, as memory that was let go is used again and not given back.
    with ThreadPoolExecutor(2) as pool:
        for found in pool.map(of, [name for name in kinds if not only or any(each in name for each in only)]):
            yield from found


def _held(server: Server, name: str, data: bytes, few: int, flood: int) -> Iterator[Kept]:
    """Memory once some of it are held, and once as many as there can be are."""
    port = server.port
    with ExitStack() as stack:
        _settle(port)
        before, sent, opened = (resident(server.process.pid) << 10), 0, 0
        for number in range(flood):
            with suppress(OSError):
                connection = stack.enter_context(Connection(port, 5, f"127.0.{1 + number // 200}.{2 + number % 200}"))
                connection.socket.setblocking(False)
                opened += 1
                sent += _push(connection.socket, data, port)
            if number + 1 == few and name != LARGE_ANSWERS:  # which are a thousand times what was sent for them
                _settle(port)
                small = len(data) < 20_000
                yield Kept(
                    name,
                    few,
                    max(sent, 1),
                    (resident(server.process.pid) << 10) - before,
                    opened * CONNECTION if small else opened * CONNECTION // 4,
                    False,
                )
            if not number % 20:
                _settle(port)
                if (resident(server.process.pid) << 10) - before > 2 * MOST_MB << 20:
                    break  # it is known by now, and the machine is others' too
        _settle(port)
        yield Kept(name, opened, max(sent, 1), (resident(server.process.pid) << 10) - before, 0, True)


def _push(link: socket.socket, data: bytes, port: int) -> int:
    """Write as much as the server takes; returns how many bytes that was."""
    done = last = 0
    while done < len(data):
        try:
            done += link.send(data[done : done + 65536])
        except BlockingIOError:
            if done == last:
                return done  # it has had its time, and reads no more of this
            last = done
            _settle(port)
        except OSError:
            return done  # refused
    return done


def _settle(port: int) -> None:
    """Wait until the server has read what was written before."""
    for _ in "12":
        with suppress(OSError, EOFError), Connection(port, 60) as probe:
            probe.send(head("GET /livez HTTP/1.1", "Connection: close"))
            probe.receive("GET")


def _chunks(whole: bytes) -> bytes:
    at = whole.index(b"Content-Length")
    start, _, body = whole.partition(b"\r\n\r\n")
    return (
        start[:at]
        + b"Transfer-Encoding: chunked\r\n\r\n"
        + b"".join(b"1\r\n%c\r\n" % each for each in islice(body, 150_000))
    )


# --- servers


@contextmanager
def served(installed: Installed, settings: Mapping[str, str], transport: str = "http") -> Iterator[Server]:
    """A server whose log is read, and not kept."""
    arguments = SERVE_HTTP if transport == "http" else ()
    with Forgetful([installed.command, *arguments], settings, patience=120) as server:
        if transport == "http":
            assert server.port
        server.forgets.set()
        yield server


def write_keys(folder: Path) -> str:
    """The file of keys with the one that `judge.KEY` is; its path."""
    folder.mkdir(parents=True, exist_ok=True)
    known = {"id": KEY[4:16], "name": "judged", "sha256": sha256(KEY.encode()).hexdigest(), "scopes": []}
    path = folder / "keys.json"
    path.write_text(json.dumps({"keys": [known | {"created": "2026-01-01T00:00:00Z"}]}), encoding="utf-8")
    return str(path)


@contextmanager
def issuer() -> Iterator[str]:
    """The address of somebody who publishes one key (RFC 7515, appendix A.3)."""
    key = {"kty": "EC", "crv": "P-256", "kid": "known", "use": "sig", "alg": "ES256"}
    key |= {"x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}
    body = json.dumps({"keys": [key]}).encode()

    class Publish(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Publish) as server:
        serving = threading.Thread(target=partial(server.serve_forever, 0.05))
        serving.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            serving.join()
