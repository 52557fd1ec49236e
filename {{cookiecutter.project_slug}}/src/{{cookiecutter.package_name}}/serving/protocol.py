"""HTTP/1.1 as uvicorn speaks it, with limits: on the time and size of a request, and on a client that never reads."""

import asyncio
import re
from http import HTTPStatus
from typing import Any, cast

from mcp_types import INVALID_REQUEST
from pydantic_core import to_json
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from ..errors import Outcome
from .refusals import refusal

_STOPPING = Outcome("shutting_down", "The server is stopping. Send this again.", retryable=True, level="warning")
_RECEIVE_SECONDS = 10  # for a whole request, and a second more for each _LEAST_RATE bytes of it
_LEAST_RATE = 10_000
_LARGEST_HEAD = 65_536  # bytes of request line, headers and trailers
_MOST_FRAMING = 9  # bytes for each byte of a body, which may come in chunks of one
_UPGRADE = re.compile(rb"\r\nupgrade:", re.IGNORECASE)
_STALL_SECONDS = 30  # a client that reads nothing of its answer for so long has gone


class Protocol(HttpToolsProtocol):
    """One connection.

    uvicorn waits for ever for the rest of a request, keeps headers of any size, and answers what is no HTTP in plain
    text, ahead of the answers that are still owed on the connection.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._received = self._body = 0
        self._in_head, self._is_whole, self._retires, self._is_deaf = True, False, False, False
        self._earlier: list[RequestResponseCycle] = []  # pipelined requests that are still owed their answer
        self._stall: asyncio.TimerHandle | None = None
        self._began = self.loop.time()
        self._patience: asyncio.TimerHandle | None = self.loop.call_later(_RECEIVE_SECONDS, self._out_of_patience)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for cycle in self._earlier:  # uvicorn tells only the newest that its client has gone
            cycle.disconnected = True
            cycle.message_event.set()
        self._unset_keepalive_if_required()
        for timer in (self._patience, self._stall):
            if timer is not None:
                timer.cancel()

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            return
        self._received += len(data)
        if (self._in_head or self._is_whole) and _UPGRADE.search(data) is not None:
            # An offer of another protocol (Java's client makes one) may be ignored, but httptools 0.9 drops the body.
            head, end, rest = data.partition(b"\r\n\r\n")
            data = _UPGRADE.sub(b"\r\nx-upgrade:", head) + end + rest
        super().data_received(data)
        if self._is_whole:
            self._received = self._body = 0
            if self._patience is not None:
                self._patience.cancel()
                self._patience = None
        elif self._received > _LARGEST_HEAD + _MOST_FRAMING * self._body:
            self._refuse(431, f"Request line and headers are at most {_LARGEST_HEAD} bytes long.")
        elif self._patience is None:
            self._began = self.loop.time()
            self._patience = self.loop.call_later(_RECEIVE_SECONDS, self._out_of_patience)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._is_whole = True, False

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # uvicorn would take trailers, which proxies do not look at, for headers
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        self._body += len(body)
        super().on_body(body)

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self.cycle is not None and not self.cycle.response_complete:
            self._earlier = [cycle for cycle in self._earlier if not cycle.response_complete] + [self.cycle]
        super().on_headers_complete()
        if self.scope["method"] == "POST":
            self.cycle.transport = cast("asyncio.Transport", _Whole(self.transport))
        if self._retires:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        self._is_whole = True
        super().on_message_complete()

    def _unsupported_upgrade_warning(self) -> None:
        """The offer of another protocol came in pieces: the parser has lost the body, and would take it for a request."""
        self.cycle.keep_alive = False
        self._is_deaf = True

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP."""
        self._refuse(400, "This is not an HTTP/1.1 request.")

    def shutdown(self) -> None:
        """Take no further request; one that is being received, or is about to come, is served."""
        self._retires = True
        if self._is_whole:
            super().shutdown()
        elif self.cycle is not None:
            self.cycle.keep_alive = False

    @property
    def is_expected(self) -> bool:
        """Whether its client has connected, or begun to send, but not come to the end of a request's head."""
        return self._in_head and not self._is_whole

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall = self._stall or self.loop.call_later(_STALL_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

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

    @property
    def owes_answer(self) -> bool:
        """Whether a POST is not answered yet, or its client has not read all of the answer."""
        is_answering = self.cycle is not None and not self.cycle.response_complete and self.scope["method"] == "POST"
        return is_answering or self._is_stuck

    @property
    def _is_stuck(self) -> bool:
        return self.transport.get_write_buffer_size() > 0

    def abort_if_stuck(self) -> bool:
        """Give up a connection whose client does not read, as closing it would wait for that; returns whether it did."""
        if found := self._is_stuck:
            self.transport.abort()
        return found

    def _out_of_patience(self) -> None:
        allowed = _RECEIVE_SECONDS + self._received / _LEAST_RATE
        if (left := self._began + allowed - self.loop.time()) > 0:
            self._patience = self.loop.call_later(left, self._out_of_patience)
        elif self._received:
            self._refuse(408, "The request came too slowly.")
        else:
            self.transport.close()

    def _refuse(self, status: int, text: str, outcome: Outcome | None = None) -> None:
        cycle: Any = self.cycle
        if cycle is not None and not cycle.response_complete:
            if not cycle.more_body:  # it is whole, and owed its answer; what is wrong came after it
                cycle.keep_alive = False
                self._is_deaf = True
                return
            if cycle.response_started:
                self.transport.abort()
                return
        if not self.transport.is_closing():
            body = to_json(refusal(text, code=INVALID_REQUEST if outcome is None else status, outcome=outcome))
            head = (
                f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
            self.transport.close()


class _Whole:
    """The transport of one response: its head leaves with what comes first of its body, in one packet."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head: bytes | None = None
        self.is_closing, self.close = transport.is_closing, transport.close

    def write(self, data: bytes) -> None:
        """Write, but keep the head for a moment."""
        if self._head is None and not data.startswith(b"HTTP/1.1 100 "):
            self._head = data
        else:
            self._transport.write((self._head or b"") + data)
            self._head = b"" if self._head is not None else None
