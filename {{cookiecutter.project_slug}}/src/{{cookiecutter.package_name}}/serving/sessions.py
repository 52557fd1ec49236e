"""Sessions of the handshake revisions (`MCP_HTTP_SESSIONS=stateful`), served by the SDK's own application."""

from collections import deque
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

import anyio
from mcp_types import INTERNAL_ERROR, INVALID_REQUEST
from pydantic_core import from_json, to_json

from ..auth.principal import ANONYMOUS, SCOPE_KEY, Principal
from ..guards.share import caller_of
from ..limits.shares import Shares
from ..sdk import SessionManager, as_user, complete_error, end_idle_streams
from ..server import Application
from ..text import one_line
from .exchange import Message, Receive, Scope, Send
from .refusals import Refused, no_place, refusal

_MOST_SESSIONS = 1000
_IDLE_SECONDS = 600  # without a request or stream, after which a session is over: not every client ends its own
_LARGE = 1024  # bytes of a message and its answer, beyond which a session is to forget them
_OVER_SECONDS = 0.25  # that a request may take to end once its answer is there
_ID_HEADER = b"mcp-session-id"


RpcId = str | int | None


class Sessions:
    """Each lives in this process: replicas need sticky sessions."""

    def __init__(self, app: Application) -> None:
        self._app = app
        self._places = Shares(_MOST_SESSIONS, app.settings.caller_share)
        self._callers: dict[str, str | None] = {}  # whose place each session has
        self._running: dict[tuple[str, str], anyio.Event] = {}  # by session and id: the SDK would mix up the answers
        # The edge has looked at Host, Origin, content type and size before; the places are counted here.
        self._manager = SessionManager(
            app.mcp,
            max_request_body_size=app.settings.max_request_bytes,
            session_idle_timeout=_IDLE_SECONDS,
            max_sessions=None,
        )
        self._manager.ended = self._ended

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Serve, and end every session at the end."""
        async with self._manager.run():
            yield

    async def post(
        self,
        scope: Scope,
        body: bytes,
        rpc_id: RpcId,
        receive: Receive,
        send: Send,
        *,
        is_request: bool,
        is_handshake: bool,
    ) -> None:
        """One message, whose body has been read; `rpc_id`: its id. A handshake needs no header to agree with.

        Raises:
            Refused: there is no place for the session that it opens, or its id is in use.
        """
        scope = _owned(scope, {b"accept", b"mcp-protocol-version"} if is_handshake else {b"accept"})
        session_id = next((value.decode("latin-1") for name, value in scope["headers"] if name == _ID_HEADER), None)
        if session_id is None:
            await self._begin(scope, body, rpc_id, receive, send)
            return
        if not is_request:
            await self._pass_on(scope, body, rpc_id, receive, send, session_id)
            return
        key = (session_id, str(rpc_id))
        if (earlier := self._running.get(key)) is not None:  # it may have its answer, and not yet be over
            with anyio.move_on_after(_OVER_SECONDS):
                await earlier.wait()
        if key in self._running:
            text = "id: is that of a request of this session that is not answered yet. Give each its own."
            raise Refused(400, text, rpc_id=rpc_id)
        self._running[key] = over = anyio.Event()
        try:
            await self._pass_on(scope, body, rpc_id, receive, send, session_id)
        finally:
            del self._running[key]
            over.set()

    async def _begin(self, scope: Scope, body: bytes, rpc_id: RpcId, receive: Receive, send: Send) -> None:
        caller, session_id = caller_of(scope, self._app.settings), None
        if (found := self._places.take(caller)) != "ok":
            raise no_place(found, "sessions")

        async def watched(message: Message) -> None:
            nonlocal session_id
            if message["type"] == "http.response.start" and message["status"] < 400:
                session_id = dict(message["headers"])[_ID_HEADER].decode()
                self._callers[session_id] = caller
            await send(message)

        try:
            await self._pass_on(scope, body, rpc_id, receive, watched)
        finally:
            if session_id is None:
                self._places.release(caller)
        if session_id is not None:
            await self._manager.let_go(session_id)

    async def _pass_on(
        self, scope: Scope, body: bytes, rpc_id: RpcId, receive: Receive, send: Send, session_id: str | None = None
    ) -> None:
        ready: deque[Message] = deque([{"type": "http.request", "body": body, "more_body": False}])

        async def replay() -> Message:
            return ready.popleft() if ready else await receive()

        completed = _Completed(scope, send, rpc_id)
        try:
            await self._manager.handle_request(scope, replay, completed.send)
        finally:
            if session_id is not None and len(body) + completed.size > _LARGE:
                await self._manager.let_go(session_id)

    async def other(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The stream for what the server sends on its own (GET), or the end of a session (DELETE)."""
        principal: Principal = scope.get(SCOPE_KEY, ANONYMOUS)
        completed = _Completed(scope, send)

        async def asked(message: Message) -> None:
            if held.ask():
                await completed.send(message)

        with (
            anyio.CancelScope() as lasting,
            self._app.watch.holding(principal, frozenset(), lasting.cancel) as held,
        ):
            # No events are kept, so there are none to go on after; asked for them, the SDK would answer nothing at all.
            await self._manager.handle_request(_owned(scope, {b"accept", b"last-event-id"}), receive, asked)
        await completed.close()

    def _ended(self, session_id: str) -> None:
        if session_id in self._callers:
            self._places.release(self._callers.pop(session_id))

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
        self.size = 0  # bytes of an answer so far

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
            self.size += len(message.get("body", b""))
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
