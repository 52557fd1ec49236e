"""HTTP/1.1 as uvicorn speaks it, with limits: on what a connection may send, in what time, and on a client that never reads.

Where a message begins and ends is said by one parser, llhttp, and by nothing else: its input is not looked into, and not
changed. Where its events do not suffice, the connection is refused and read no further (RFC 9112, sections 2.2 and 9.6).
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from http import HTTPStatus
from ipaddress import IPv6Address, ip_address
from typing import Any, cast
from urllib.parse import unquote

import httptools
from mcp_types import INVALID_REQUEST
from pydantic_core import to_json
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from ..errors import Outcome
from .connections import Connections
from .refusals import refusal

_STOPPING = Outcome("shutting_down", "The server is stopping. Send this again.", retryable=True, level="warning")
_RECEIVE_SECONDS = 10  # for a whole request, and a second more for each _LEAST_RATE bytes of it
_LEAST_RATE = 10_000  # bytes in a second
_LARGEST_HEAD = 65_536  # bytes of request line, headers and trailers
_MOST_HEADERS = 200  # each takes ten times its bytes
_MOST_FRAMING = 9  # bytes for each byte of a body, which may come in chunks of one
_STALL_SECONDS = 30  # a client that takes less than _LEAST_RATE of its answer in each of so many has gone
_MOST_PIPELINED = 16  # requests that are kept while one is answered; then nothing is read
_PIECE = 1024  # bytes that are parsed at a time: no more requests than stand in one are kept beyond those
_MOST_STRAY = 16  # bytes of empty lines between requests (RFC 9112, section 2.2)
_LONGEST_LENGTH = 20  # digits of a Content-Length, as other parsers have it
_MOST_IGNORED = 1 << 20  # bytes that are read and dropped so that a refusal reaches a client that is still sending
_LINGER_SECONDS = 5


class Protocol(HttpToolsProtocol):
    """One connection.

    uvicorn waits for ever for the rest of a request, keeps headers of any size and requests of any number, and answers
    what is no HTTP in plain text, ahead of the answers that are still owed on the connection.
    """

    def __init__(self, connections: Connections, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._places = connections
        self.parser = httptools.HttpRequestParser(self)  # without the leniencies that uvicorn asks for

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.client is not None:
            self.client = (plain_address(self.client[0]), self.client[1])
        self._unparsed = b""
        self._received = self._body = self._stray = self._ignored = 0
        self._in_head, self._is_whole, self._retires, self._is_deaf, self._is_offered = True, False, False, False, False
        self._running: RequestResponseCycle | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._lingering: asyncio.TimerHandle | None = None
        self._began = self.loop.time()
        self._patience: asyncio.TimerHandle | None = self.loop.call_later(_RECEIVE_SECONDS, self._out_of_patience)
        if not self._places.take(self):
            self._is_deaf = True
            transport.write(_FULL)
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._places.leave(self)
        super().connection_lost(exc)
        self._forget_requests()
        self._unset_keepalive_if_required()
        for timer in (self._patience, self._stall, self._lingering):
            if timer is not None:
                timer.cancel()

    # What comes in

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            self._ignore(len(data))
        else:
            self._unparsed = self._unparsed + data if self._unparsed else data
            self._parse()

    def _parse(self) -> None:
        """Parse what was received, as long as the requests in it are few."""
        data: bytes | memoryview = self._unparsed if len(self._unparsed) <= _PIECE else memoryview(self._unparsed)
        at = 0
        try:
            while at < len(data) and len(self.pipeline) < _MOST_PIPELINED and not self._is_deaf:
                piece = data[at : at + _PIECE]
                at += len(piece)
                self._received += len(piece)
                try:
                    self.parser.feed_data(piece)
                except httptools.HttpParserUpgrade as offer:
                    at += offer.args[0] - len(piece)
                    self._decline_offer()
                self._account(len(piece))
        except (_Faulty, httptools.HttpParserError) as error:
            found = error.__context__ if isinstance(error, httptools.HttpParserCallbackError) else error
            fault = found if isinstance(found, _Faulty) else _no_http()
            self._refuse(fault.status, fault.text)
        if self._is_deaf:
            self._ignore(len(data) - at)
            at = len(data)
        self._unparsed = b""
        if at < len(data):
            self._unparsed = bytes(data[at:])
            self.flow.pause_reading()

    def _account(self, size: int) -> None:
        """Hold what has come of a request, and between requests, to its bounds."""
        if self._is_whole:
            self._received = self._body = 0
            if self._patience is not None:
                self._patience.cancel()
                self._patience = None
            self._stray += size
            if self._stray > _PIECE + _MOST_STRAY:
                raise _no_http()
            return
        if self._received > _LARGEST_HEAD + _MOST_FRAMING * self._body:
            raise _Faulty(431, f"Request line and headers are at most {_LARGEST_HEAD} bytes long.")
        if self._patience is None:
            self._began = self.loop.time()
            self._patience = self.loop.call_later(_RECEIVE_SECONDS, self._out_of_patience)

    def _decline_offer(self) -> None:
        """Serve a request that offers another protocol, as Java's client does, and nothing behind it.

        The offer may be ignored (RFC 9110, section 7.8), but llhttp in httptools 0.9 ends such a request with its head. So
        a parser of its own, which has seen no offer, is told how the body is framed, and reads that and nothing more.
        """
        framing = [b": ".join(field) for field in self.headers if field[0] in (b"content-length", b"transfer-encoding")]
        self.parser = httptools.HttpRequestParser(_BodyAlone(self))
        self._is_offered = False
        self.parser.feed_data(b"\r\n".join([b"POST / HTTP/1.1", b"connection: close", *framing, b"", b""]))

    def on_message_begin(self) -> None:
        if self._is_deaf:
            raise _no_http()
        super().on_message_begin()
        self._unset_keepalive_if_required()
        self._in_head, self._is_whole = True, False
        self._stray = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:  # uvicorn would take trailers, which proxies do not look at, for headers
            return
        super().on_header(name, value)
        if len(self.headers) > _MOST_HEADERS:
            raise _Faulty(431, f"A request has at most {_MOST_HEADERS} headers.")

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._unset_keepalive_if_required()
        scope, version = self.scope, self.parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise _Faulty(505, "Send HTTP/1.1.")
        scope["http_version"] = version
        scope["method"] = self.parser.get_method().decode("ascii")
        target = httptools.parse_url(self.url)
        raw_path: bytes = target.path or b"/"
        path = raw_path.decode("ascii")
        scope["path"] = unquote(path) if "%" in path else path
        scope["raw_path"] = raw_path
        scope["query_string"] = target.query or b""
        self._check_framing(version, target)
        self._is_offered = self.parser.should_upgrade()
        earlier = self.cycle
        self.cycle = _Cycle(
            scope=scope,
            transport=self._transport_for(scope["method"]),
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=(
                version != "1.0" and not self._retires and not self._is_offered and self.parser.should_keep_alive()
            ),
            on_response=self.on_response_complete,
        )
        if earlier is None or earlier.response_complete:
            self._start_asgi_task(self.cycle, self.app)
        else:
            self.pipeline.appendleft((self.cycle, self.app))

    def _check_framing(self, version: str, target: Any) -> None:
        """Refuse what another reader may read differently; a target that names a host decides which it is (RFC 9112, 3.2)."""
        hosts, codings = 0, []
        for name, value in self.headers:
            if name == b"host":
                hosts += 1
            elif name == b"transfer-encoding":
                codings.append(value.strip(b" \t").lower())
            elif name == b"content-length" and len(value.strip(b" \t")) > _LONGEST_LENGTH:
                raise _Faulty(400, f"A Content-Length has at most {_LONGEST_LENGTH} digits.")
        if hosts > 1 or (version == "1.1" and not hosts):
            raise _Faulty(400, "Send one Host header.")
        if codings and version == "1.0":
            raise _Faulty(400, "HTTP/1.0 has no Transfer-Encoding.")
        if codings and codings != [b"chunked"]:
            raise _Faulty(501, "The only Transfer-Encoding there is here is chunked.")
        if target.host is not None:
            port = b"" if target.port is None else b":%d" % target.port
            host = b"[%b]" % target.host if b":" in target.host else target.host
            self.headers[:] = [field for field in self.headers if field[0] != b"host"] + [(b"host", host + port)]

    def on_body(self, body: bytes) -> None:
        self._body += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._is_offered:  # its body is still to come
            return
        self._is_whole = True
        super().on_message_complete()
        if not self.cycle.keep_alive:
            self._is_deaf = True

    # What goes out

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        self._places.is_answered(self)
        super().on_response_complete()
        if self._unparsed and not self.transport.is_closing():
            self._parse()

    def _transport_for(self, method: str) -> asyncio.Transport:
        return cast("asyncio.Transport", _Whole(self.transport, self._hang_up)) if method == "POST" else self.transport

    def pause_writing(self) -> None:
        super().pause_writing()
        self._places.is_unread(self)
        if self._stall is None:
            self._watch_reader()

    def _watch_reader(self) -> None:
        self._seen_unread = self.unread
        self._stall = self.loop.call_later(_STALL_SECONDS, self._look_at_reader)

    def _look_at_reader(self) -> None:
        """Give up a client that reads more slowly than it has to write."""
        if self._seen_unread - self.unread < _LEAST_RATE * _STALL_SECONDS:
            self.transport.abort()
        else:
            self._watch_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._places.is_read(self)
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    # How it ends

    def shutdown(self) -> None:
        """Take no further request; one that is being received, or is about to come, is served."""
        self._retires = True
        if self._is_whole:
            super().shutdown()
        elif self.cycle is not None:
            self.cycle.keep_alive = False

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, at once if its client has not read the last answer yet."""
        self.abort_if_stuck()
        super().timeout_keep_alive_handler()

    def give_up(self) -> None:
        """Refuse a request that is still being received."""
        if not self._received and self.is_expected:
            self.transport.close()
        elif not self._is_whole:
            self._refuse(503, _STOPPING.message, _STOPPING)

    def give_way(self) -> None:
        """Close for others: there are too many connections, and this one is served nothing."""
        self._is_deaf = True
        self.timeout_keep_alive_handler()

    @property
    def address(self) -> str | None:
        """Of who has connected."""
        return self.client[0] if self.client is not None else None

    @property
    def waits(self) -> bool:
        """Whether it is its client's turn: nothing that was sent whole is still to be answered."""
        return all(cycle.response_complete or cycle.more_body for cycle in self._cycles())

    @property
    def is_expected(self) -> bool:
        """Whether its client has connected, or begun to send, but not come to the end of a request's head."""
        return self._in_head and not self._is_whole

    @property
    def owes_answer(self) -> bool:
        """Whether a POST is not answered yet, or its client has not read all of the answer."""
        open_ones = (cycle for cycle in self._cycles() if not cycle.response_complete)
        return self._is_stuck or any(cycle.scope["method"] == "POST" for cycle in open_ones)

    @property
    def unread(self) -> int:
        """Bytes of its answers that the system has not taken yet."""
        return self.transport.get_write_buffer_size()

    @property
    def _is_stuck(self) -> bool:
        return self.unread > 0

    def abort_if_stuck(self) -> bool:
        """Give up a connection whose client does not read, as closing it would wait for that; returns whether it did."""
        if found := self._is_stuck:
            self.transport.abort()
        return found

    def _cycles(self) -> Iterator[RequestResponseCycle]:
        """The request that is being answered, and those that wait for it."""
        if self._running is not None:
            yield self._running
        for cycle, _ in self.pipeline:
            yield cycle

    def _forget_requests(self) -> None:
        """Tell who answers that nobody listens any more: uvicorn tells only the newest."""
        for cycle in self._cycles():
            cycle.disconnected = True
            cycle.message_event.set()
        self.pipeline.clear()
        self._running, self._unparsed = None, b""

    def _out_of_patience(self) -> None:
        allowed = _RECEIVE_SECONDS + self._received / _LEAST_RATE
        if self._unparsed:  # it is not the client who is late
            self._began = self.loop.time()
        if (left := self._began + allowed - self.loop.time()) > 0:
            self._patience = self.loop.call_later(left, self._out_of_patience)
        elif self._received:
            self._refuse(408, "The request came too slowly.")
        else:
            self.transport.close()

    def _refuse(self, status: int, text: str, outcome: Outcome | None = None) -> None:
        """Answer what is being received with an error, after the answers that are owed, and read no further."""
        self._is_deaf = True
        cycle: Any = self.cycle
        if self._lingering is not None:  # it was answered without its body
            return
        if cycle is not None and not cycle.response_complete:
            if not cycle.more_body:  # it is whole, and owed its answer; what is wrong came after it
                cycle.keep_alive = False
                return
            if self.pipeline:  # it waits behind others, which are owed theirs
                self.pipeline.popleft()
                last: Any = self.pipeline[0][0] if self.pipeline else self._running
                self.cycle, last.keep_alive = last, False
                return
            if cycle.response_started:
                self.transport.abort()
                return
        if not self.transport.is_closing():
            code = INVALID_REQUEST if outcome is None else status
            self._forget_requests()
            self.transport.write(_response(status, refusal(text, code=code, client=self.address, outcome=outcome)))
            self._linger()

    def _hang_up(self) -> None:
        """Close after a response."""
        if self._is_whole:
            self.transport.close()
        else:
            self._linger()

    def _linger(self) -> None:
        """Close, but not at once: with bytes still to come the kernel would take back what was just sent."""
        self._is_deaf = True
        if self._retires or not self.transport.can_write_eof():
            self.transport.close()
            return
        self.flow.resume_reading()
        self.transport.write_eof()
        self._lingering = self._lingering or self.loop.call_later(_LINGER_SECONDS, self.transport.abort)

    def _ignore(self, size: int) -> None:
        """Drop what nobody will look at; after much of it the client is not heard any more."""
        self._ignored += size
        if self._ignored <= _MOST_IGNORED or self._lingering is not None:
            return
        if self._running is None or self._running.response_complete:
            self._linger()
        else:
            self.flow.pause_reading()


class _Faulty(Exception):
    """What is not HTTP as it is spoken here: the status and text of its refusal."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


def _no_http() -> _Faulty:
    return _Faulty(400, "This is not an HTTP/1.1 request.")


class _BodyAlone:
    """What a parser tells of a body whose head another one has read."""

    def __init__(self, protocol: Protocol) -> None:
        self.on_body, self.on_message_complete = protocol.on_body, protocol.on_message_complete


class _Cycle(RequestResponseCycle):
    """A request and its response. One that comes before the request is whole ends the connection, as nobody is to wait for
    the rest; for HTTP/1.0 none is chunked, but ends with the connection too (RFC 9112, section 6.1)."""

    _ends_with_connection = False

    def send(self, message: Any) -> Awaitable[None]:  # type: ignore[override]
        """An ASGI send."""
        if message["type"] == "http.response.start" and self.more_body:
            self.keep_alive = False
        if self.scope["http_version"] == "1.0":
            if message["type"] == "http.response.start":
                self._ends_with_connection = all(name != b"content-length" for name, _ in message["headers"])
                if self._ends_with_connection:
                    self.chunked_encoding = False
            elif self._ends_with_connection:
                self.expected_content_length = len(message.get("body", b""))
        return super().send(message)


class _Whole:
    """The transport of one response: its head leaves with what comes first of its body, in one packet."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self._transport = transport
        self._head: bytes | None = None
        self.is_closing, self.close = transport.is_closing, close

    def write(self, data: bytes) -> None:
        """Write, but keep the head for a moment."""
        if self._head is None and not data.startswith(b"HTTP/1.1 100 "):
            self._head = data
        else:
            self._transport.write((self._head or b"") + data)
            self._head = b"" if self._head is not None else None


def plain_address(address: str) -> str:
    """An IPv4 address that came in over a socket of both families, as itself."""
    if not address.startswith("::ffff:"):
        return address
    found = ip_address(address)
    return str(found.ipv4_mapped) if isinstance(found, IPv6Address) and found.ipv4_mapped else address


def _response(status: int, body: Any) -> bytes:
    content = to_json(body)
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(content)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + content


_FULL = _response(503, {"error": "There are too many connections. Retry after 1 s."})


def make_protocol(connections: Connections) -> Any:
    """What uvicorn makes of each connection."""
    return partial(Protocol, connections)
