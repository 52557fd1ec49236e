"""Sessions of the handshake revisions (`MCP_HTTP_SESSIONS=stateful`), served by the SDK's own application."""

from collections import deque
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp_types import INTERNAL_ERROR, INVALID_REQUEST
from pydantic_core import from_json, to_json

from ..auth.principal import ANONYMOUS, SCOPE_KEY, Principal
from ..sdk import as_user, complete_error, end_idle_streams
from ..server import Application
from ..text import one_line
from .exchange import Message, Receive, Scope, Send
from .refusals import refusal


class Sessions:
    """Each lives in this process: replicas need sticky sessions."""

    def __init__(self, app: Application) -> None:
        # The edge has looked at Host, Origin, content type and size before.
        self._manager = StreamableHTTPSessionManager(app.mcp, max_request_body_size=app.settings.max_request_bytes)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Serve, and end every session at the end."""
        async with self._manager.run():
            yield

    async def post(
        self,
        scope: Scope,
        body: bytes,
        rpc_id: str | int | None,
        receive: Receive,
        send: Send,
        *,
        is_handshake: bool,
    ) -> None:
        """One message, whose body has been read; `rpc_id`: its id. A handshake needs no header to agree with."""
        ready: deque[Message] = deque([{"type": "http.request", "body": body, "more_body": False}])

        async def replay() -> Message:
            return ready.popleft() if ready else await receive()

        dropped = {b"accept", b"mcp-protocol-version"} if is_handshake else {b"accept"}
        await self._manager.handle_request(_owned(scope, dropped), replay, _Completed(scope, send, rpc_id).send)

    async def other(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The stream for what the server sends on its own (GET), or the end of a session (DELETE)."""
        completed = _Completed(scope, send)
        await self._manager.handle_request(_owned(scope, {b"accept"}), receive, completed.send)
        await completed.close()

    def end_streams(self) -> None:
        """End the streams that clients hold open for what the server sends on its own."""
        end_idle_streams()


def _owned(scope: Scope, dropped: Collection[bytes]) -> Scope:
    """The scope of a request as the SDK wants it, which lets nobody use the session that another has opened.

    `dropped`: headers that the edge has judged already, and the SDK would judge otherwise.
    """
    headers = [*(each for each in scope["headers"] if each[0] not in dropped), (b"accept", b"*/*")]
    principal: Principal = scope.get(SCOPE_KEY, ANONYMOUS)
    return {**scope, "headers": headers} | ({} if principal is ANONYMOUS else {"user": as_user(principal)})


class _Completed:
    """Gives an error that the SDK answers by itself the body that every error has.

    Some of its refusals are plain text, and none has passed a guard. Of successful answers only the line ends change.
    """

    def __init__(self, scope: Scope, send: Send, rpc_id: str | int | None = None) -> None:
        self._client = address[0] if (address := scope.get("client")) else None
        self._rpc_id = rpc_id
        self._send = send
        self._start: Message | None = None
        self._body = b""
        self._is_open = self._has_events = False

    async def send(self, message: Message) -> None:
        """An ASGI send."""
        if message["type"] == "http.response.start" and message["status"] >= 400:
            self._start = message
        elif self._start is None:
            self._is_open = message["type"] == "http.response.start" or bool(message.get("more_body"))
            if message["type"] == "http.response.start":
                kind = dict(message["headers"]).get(b"content-type", b"")
                self._has_events = kind.startswith(b"text/event-stream")
            elif self._has_events:  # a whole event, whose lines the SDK ends with CRLF
                body = one_line(message.get("body", b"")).replace(b"\r\n", b"\n")
                message = {**message, "body": body}
            await self._send(message)
        elif message["type"] == "http.response.body":
            self._body += message.get("body", b"")
            if not message.get("more_body"):
                await self._finish(self._start)

    async def close(self) -> None:
        """End a stream that the SDK has left without its end."""
        if self._is_open:
            await self._send({"type": "http.response.body", "body": b""})

    async def _finish(self, start: Message) -> None:
        content = to_json(self._complete(start["status"]))
        fixed = {b"content-type": b"application/json", b"content-length": b"%d" % len(content)}
        headers = [*((k, v) for k, v in start["headers"] if k not in fixed), *fixed.items()]
        await self._send({**start, "headers": headers})
        await self._send({"type": "http.response.body", "body": content})

    def _complete(self, status: int) -> dict[str, Any]:
        try:
            found = from_json(self._body)
        except ValueError:
            found = None
        if not isinstance(found, dict) or not isinstance(found.get("error"), dict):
            code = INTERNAL_ERROR if status >= 500 else INVALID_REQUEST
            text = self._body.decode("utf-8", "replace")
            return refusal(text, code=code, rpc_id=self._rpc_id, client=self._client)
        error = found["error"]
        rpc_id = self._rpc_id if found.get("id") is None else found["id"]
        message = error["message"] or HTTPStatus(status).phrase
        completed = complete_error(error["code"], message, error.get("data"), "http", rpc_id, self._client)
        return {"jsonrpc": "2.0", "id": rpc_id, "error": completed}
