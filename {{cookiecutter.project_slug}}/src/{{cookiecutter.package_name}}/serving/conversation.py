"""A client on a pipe: its requests are served side by side, and the server can ask and notify it.

The era is fixed for good by the first request that is served in it: `initialize` opens a conversation of the handshake
revisions; in 2026-07-28 each request carries what it needs. `server/discover` only asks which there are (specification,
basic/transports/stdio: backward compatibility), and what is refused fixes nothing.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

import anyio
from anyio.abc import TaskGroup
from mcp.shared.dispatcher import CallOptions, DispatchContext
from mcp.shared.exceptions import MCPError, NoBackChannelError
from mcp.shared.transport_context import TransportContext
from mcp_types import (
    CONNECTION_CLOSED,
    INVALID_REQUEST,
    REQUEST_TIMEOUT,
    UNSUPPORTED_PROTOCOL_VERSION,
)
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic_core import to_json

from ..calls import current_size
from ..sdk import answer, complete_error, conversation, end_conversation, one_request
from ..server import Application
from .messages import Json, RequestContext, Unreadable, parse
from .output import Output
from .versions import has_envelope, route_of

_MOST_PENDING = 1000  # requests, beside the calls that may run, that are read before one is answered


class Conversation:
    """`pending`: requests that are not answered yet; the next one waits while `opening`, the handshake, is one of them."""

    def __init__(self, app: Application, output: Output, tasks: TaskGroup) -> None:
        self._app = app
        self._output = output
        self._tasks = tasks
        self._is_modern: bool | None = None
        self._legacy = conversation(app.mcp, self, app.dependencies.opened)
        self._scopes: dict[str | int, anyio.CancelScope] = {}
        self._asked: dict[str | int, asyncio.Future[Json]] = {}
        self._serial = 0
        self._most = _MOST_PENDING + app.settings.max_concurrent_calls
        self.pending = self._listening = 0
        self._opening = False

    @property
    def is_full(self) -> bool:
        """Whether nothing more should be read for now."""
        return self._opening or self.pending - self._listening >= self._most or self._output.is_full

    def take(self, line: bytes) -> None:
        """Handle one line."""
        if not line.strip():
            return
        try:
            message = parse(line)
        except Unreadable as error:
            self.refuse(error.code, error.text, error.rpc_id)
            if (found := self._asked.get(error.rpc_id or "")) is not None and not found.done():
                found.set_exception(MCPError(error.code, error.text))  # it was to be the answer
            return
        current_size.set(len(line))
        if "method" not in message:
            self._settle(message)
        elif "id" not in message:
            self._notified(message)
        else:
            self.pending += 1
            self._listening += message["method"] == "subscriptions/listen"
            self._opening = message["method"] == "initialize"
            self._scopes[message["id"]] = scope = anyio.CancelScope()  # what comes next may cancel it
            self._tasks.start_soon(self._serve, message, scope)

    def refuse(self, code: int, text: str, rpc_id: str | int | None = None, data: Any = None) -> None:
        """Answer with a JSON-RPC error."""
        error = complete_error(code, text, data, "stdio", rpc_id)
        self._write({"jsonrpc": "2.0", "id": rpc_id, "error": error})

    def end(self) -> None:
        """The client will answer nothing any more."""
        for found in self._asked.values():
            if not found.done():
                found.set_exception(MCPError(CONNECTION_CLOSED, "The client has gone"))

    async def close(self) -> None:
        """Let go of what requests have left with their connection."""
        await end_conversation(self._legacy)

    async def send_raw_request(
        self, method: str, params: Mapping[str, Any] | None, opts: CallOptions | None = None
    ) -> Json:
        """Ask the client, and wait for its answer (`mcp.shared.dispatcher.Outbound`).

        Raises:
            MCPError: the client's error, or no answer within `opts["timeout"]` seconds.
        """
        self._serial += 1
        rpc_id = f"server-{self._serial}"
        self._asked[rpc_id] = found = asyncio.get_running_loop().create_future()
        self._write({"jsonrpc": "2.0", "id": rpc_id, "method": method, "params": dict(params or {})})
        try:
            with anyio.fail_after((opts or {}).get("timeout")):
                result: Json = await found
                return result
        except BaseException as error:
            if not found.done() or found.cancelled():
                await self.notify("notifications/cancelled", {"requestId": rpc_id})
            if isinstance(error, TimeoutError):
                raise MCPError(REQUEST_TIMEOUT, "The client did not answer in time") from None
            raise
        finally:
            del self._asked[rpc_id]

    async def notify(self, method: str, params: Mapping[str, Any] | None, opts: CallOptions | None = None) -> None:
        """Send a notification."""
        self._write({"jsonrpc": "2.0", "method": method, "params": dict(params or {})})
        await self._output.room()

    async def _serve(self, message: Json, scope: anyio.CancelScope) -> None:
        rpc_id = message["id"]
        with scope:
            try:
                exchange = _Exchange(self, message)
                found = await answer(self._handle(message, exchange), rpc_id, "stdio")
                exchange.close()
                if not scope.cancel_called:  # by the client, who then expects no answer
                    self._output.write(found.body, at_once=self.pending == 1)
            finally:
                if self._scopes.get(rpc_id) is scope:  # a client may use an id twice
                    del self._scopes[rpc_id]
                self.pending -= 1
                self._listening -= message["method"] == "subscriptions/listen"
                if message["method"] == "initialize":
                    self._opening = False
                self._output.tell()

    async def _handle(self, message: Json, exchange: "_Exchange") -> Json:
        method, params = message["method"], message.get("params")
        is_enveloped = method != "initialize" and has_envelope(message)
        if is_enveloped and self._is_modern is False:
            text = "This connection has begun with a handshake; its requests carry no envelope."
            raise MCPError(INVALID_REQUEST, text)
        if self._is_modern and method == "initialize":
            text = "This connection has begun with revision 2026-07-28, which has no initialize. Go on in it."
            data = {"supported": list(MODERN_PROTOCOL_VERSIONS), "requested": (params or {}).get("protocolVersion")}
            raise MCPError(UNSUPPORTED_PROTOCOL_VERSION, text, data)
        if self._is_modern or is_enveloped:
            route = route_of(message)
            self._is_modern = self._is_modern or method != "server/discover" or None
            opened = self._app.dependencies.opened
            version, info, capabilities = route.protocol_version, route.client_info, route.client_capabilities
            return await one_request(self._app.mcp, exchange, message, version, info, capabilities, opened, self)
        exchange.can_send_request = True
        result = await self._legacy.on_request(exchange, method, params)
        if method == "initialize":
            self._is_modern = False
        return result

    def _write(self, message: Json) -> None:
        self._output.write(to_json(message))

    def _notified(self, message: Json) -> None:
        params = message.get("params") or {}
        if message["method"] == "notifications/cancelled":
            rpc_id = params.get("requestId")
            if isinstance(rpc_id, bool) or not isinstance(rpc_id, str | int):  # True would be 1
                return
            if (scope := self._scopes.get(rpc_id)) is not None:
                scope.cancel()
        elif not self._is_modern:
            self._tasks.start_soon(self._notify_server, message)

    async def _notify_server(self, message: Json) -> None:
        exchange: DispatchContext[TransportContext] = _Exchange(self, message)
        await self._legacy.on_notify(exchange, message["method"], message.get("params"))

    def _settle(self, message: Json) -> None:
        """The client's answer to what it was asked."""
        found = self._asked.get(message["id"])
        if found is None or found.done():
            return
        error, result = message.get("error"), message.get("result")
        if isinstance(result, dict):
            found.set_result(result)
        elif isinstance(error, dict) and isinstance(error.get("code"), int):
            found.set_exception(MCPError(error["code"], str(error.get("message")), error.get("data")))
        else:
            found.set_exception(MCPError(INVALID_REQUEST, "The client's answer is malformed"))


class _Exchange(RequestContext):
    """A request on the pipe."""

    message_metadata = None

    def __init__(self, client: Conversation, message: Json) -> None:
        super().__init__(message)
        self.can_send_request = False
        self._is_closed = False
        self._client = client

    def close(self) -> None:
        """What comes after the answer is dropped."""
        self._is_closed = True
        self.can_send_request = False

    @property
    def transport(self) -> TransportContext:
        """What is known of the way the request came."""
        return TransportContext(kind="stdio", can_send_request=self.can_send_request)

    async def send_raw_request(
        self, method: str, params: Mapping[str, Any] | None, opts: CallOptions | None = None
    ) -> Json:
        """Ask the client; raises NoBackChannelError in 2026-07-28, where servers ask with their result."""
        if not self.can_send_request:
            raise NoBackChannelError(method)
        return await self._client.send_raw_request(method, params, opts)

    async def notify(self, method: str, params: Mapping[str, Any] | None, opts: CallOptions | None = None) -> None:
        """Send a notification that belongs to the request."""
        if not self._is_closed:
            await self._client.notify(method, params)
