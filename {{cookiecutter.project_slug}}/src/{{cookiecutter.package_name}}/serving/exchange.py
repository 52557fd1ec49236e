"""One JSON-RPC request over HTTP and its answer: plain JSON, or a stream of events if there is something to send first.

The SDK's own entry makes a task, a channel and a Starlette response of every request, and leaves the answers of the
handshake revisions to `sse_starlette`, which drops them when the server stops.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

import anyio
from mcp.shared.dispatcher import CallOptions
from mcp.shared.exceptions import NoBackChannelError
from mcp.shared.message import ServerMessageMetadata
from mcp.shared.transport_context import TransportContext
from pydantic_core import to_json
from starlette.requests import Request

from ..sdk import Answer
from ..text import one_line
from .messages import Json, RequestContext

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

PING_SECONDS = 15  # proxies close a stream that is silent for longer, commonly after 30 s or 60 s
_BRIEF_SECONDS = 0.05  # most calls are over by then, and need nobody to look after their client

_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),  # nginx would hold events back
]


class Stream:
    """A response of server-sent events, which begins with the first of them."""

    def __init__(self, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        self._send = send
        self._headers = headers
        self._lock: anyio.Lock | None = None
        self.begun = self.ended = False

    async def write(self, data: bytes, *, last: bool = False) -> None:
        """Write one chunk."""
        self._lock = self._lock or anyio.Lock()
        async with self._lock:
            if not self.begun:
                self.begun = True
                headers = _STREAM_HEADERS + self._headers
                await self._send({"type": "http.response.start", "status": 200, "headers": headers})
            await self._send({"type": "http.response.body", "body": data, "more_body": not last})

    async def message(self, message: Mapping[str, Any]) -> None:
        """Write one JSON-RPC message; what comes after the answer is dropped."""
        data = _event(to_json(message))
        if not self.ended:
            await self.write(data)

    async def end(self, answer: bytes) -> None:
        """Write the answer."""
        self.ended = True
        await self.write(_event(answer), last=True)

    async def ping(self) -> None:
        """Write a comment every now and then."""
        while True:
            await anyio.sleep(PING_SECONDS)
            await self.write(b": ping\n\n")


class PlainAnswer(Stream):
    """For a client that accepts no events: what would come before the answer is dropped."""

    async def message(self, message: Mapping[str, Any]) -> None:
        """Nothing is written."""

    async def ping(self) -> None:
        """Nothing is written."""


def _event(data: bytes) -> bytes:
    return b"event: message\ndata: " + one_line(data) + b"\n\n"


class Exchange(RequestContext):
    """A request over HTTP.

    Notifications that belong to the request go to its own answer. The server cannot ask the client anything here: a
    stateless client has nowhere to answer to.
    """

    can_send_request = False

    def __init__(
        self, message: Json, headers: Mapping[str, str], scope: Scope, receive: Receive, stream: Stream
    ) -> None:
        super().__init__(message)
        self._headers = headers
        self.message_metadata = ServerMessageMetadata(request_context=Request(scope, receive))
        self._receive = receive
        self._stream = stream

    @property
    def transport(self) -> TransportContext:
        """What is known of the way the request came."""
        return TransportContext(kind="streamable-http", can_send_request=False, headers=self._headers)

    async def send_raw_request(
        self, method: str, params: Mapping[str, Any] | None, opts: CallOptions | None = None
    ) -> Json:
        """Raises NoBackChannelError."""
        raise NoBackChannelError(method)

    async def notify(self, method: str, params: Mapping[str, Any] | None, opts: CallOptions | None = None) -> None:
        """Send a notification ahead of the answer."""
        await self._stream.message({"jsonrpc": "2.0", "method": method, "params": dict(params or {})})

    async def run(self, answer: Awaitable[Answer], *, ends_with_client: bool) -> Answer | None:
        """The answer; None if the client has gone first and `ends_with_client` (specification, basic/cancellation)."""
        found: Answer | None = None
        over = attended = False  # the attendant may be on its way when the answer comes

        async def attend() -> None:
            nonlocal attended
            if over:
                return
            attended = True
            tasks.start_soon(self._stream.ping)
            if ends_with_client:
                while (await self._receive())["type"] != "http.disconnect":
                    pass
                tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            timer = asyncio.get_running_loop().call_later(_BRIEF_SECONDS, tasks.start_soon, attend)
            try:
                found = await answer
            finally:
                timer.cancel()
                over = True
                self._stream.ended = not self._stream.begun
            if attended:
                tasks.cancel_scope.cancel()
        return found
