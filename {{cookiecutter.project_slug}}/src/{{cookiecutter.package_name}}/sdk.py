"""Where the SDK's private or provisional parts are touched, and nowhere else. Seen on mcp 2.3.0.

* `Server.middleware` is marked provisional ("signature and semantics may change in a 2.x minor"). It is the only place
  that sees every request of both eras on every transport. What replaces it: the SDK's context rework.
* A result that middleware returns is not completed by the SDK: `resultType` and `serverInfo` are added here.
* Errors that the SDK makes outside its middleware (a wrong header, a mixed-up era, a malformed message) do not pass the
  guards: `complete_error` gives them the members every error has, and their log line.
* A session is how a tool sends something ahead of its result: over every transport, so it is replaced for the call by one
  that cleans it (`_CleanSession`).
* `ServerRunner` and `aclose_shielded` are exported for the SDK's own entries. They serve a request without a task or a channel
  of their own and leave the answer to the caller, who can then drain it, give it a real HTTP status, and is several
  times as fast.
* `StreamableHTTPSessionManager` tells nobody when a session has ended (`_discard_session` is what each comes to), and
  its loops keep the last message of each direction, as large as it is, until the next one comes. What replaces it: a hook,
  and loops that let go.
* With sessions, legacy answers over HTTP are `sse_starlette`'s (3.7.0), which ends every stream when uvicorn's own signal handler
  runs, calls in flight included. Ours does not call it; its switch is thrown when the calls are answered.
"""

import os
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import replace
from functools import cached_property
from hashlib import sha256
from itertools import count
from typing import Any, NamedTuple, TypeVar

import anyio
import structlog
from mcp.server import Server, ServerRequestContext
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.connection import Connection, NotifyOnlyOutbound
from mcp.server.context import CallNext, HandlerResult
from mcp.server.request_state import (
    AESGCMRequestStateCodec,
    RequestStateBoundary,
    RequestStateSecurity,
    compact_json,
)
from mcp.server.runner import ServerRunner, aclose_shielded
from mcp.server.session import ServerSession
from mcp.server.streamable_http import StreamableHTTPServerTransport
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.shared.dispatcher import DispatchContext, Outbound
from mcp.shared.exceptions import MCPError
from mcp.shared.inbound import ERROR_CODE_HTTP_STATUS
from mcp.shared.message import ServerMessageMetadata, SessionMessage
from mcp.shared.transport_context import TransportContext
from mcp_types import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    INVALID_REQUEST,
    PARSE_ERROR,
    SERVER_INFO_META_KEY,
    DiscoverResult,
    JSONRPCNotification,
    RequestParams,
)
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS, MODERN_PROTOCOL_VERSIONS
from pydantic import BaseModel, ValidationError
from pydantic_core import to_json
from sse_starlette.sse import AppStatus

from .auth.credentials import Rejected
from .auth.principal import ANONYMOUS, SCOPE_KEY, Principal, current_principal
from .calls import Call, Guard, Parent, Target, Transport, chain, current_size, current_target
from .contracts import cleaned
from .errors import CallError, Internal, InvalidRequest, Outcome
from .guards.request_log import log_request
from .logs import Events
from .text import clean, is_clean
from .validation import request_problems

ERROR_KEY = "plinth/error"
NOT_JSON = "This is not JSON. Send one JSON-RPC message at a time."
_NOT_A_MESSAGE = (
    'This is not one JSON-RPC message: an object with "jsonrpc": "2.0", a method, and an id that is a string or an '
    "integer. Batches are not accepted."
)
SERVED_VERSIONS = (*reversed(MODERN_PROTOCOL_VERSIONS), *reversed(HANDSHAKE_PROTOCOL_VERSIONS))
"""Newest first."""
_REMEDIES = {
    "Method not found": "Method not found: in this protocol revision the server has none of this name.",
    "Invalid request parameters": "This connection has no protocol revision yet. Send initialize first, or the envelope "
    "of 2026-07-28 in params._meta.",
    "Invalid or expired requestState": "params.requestState: is not valid here, or has expired. Call again without it.",
}
"""What the SDK says with fewer words than its reader needs."""
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_LET_GO_SECONDS = 1.0  # for each direction: one whose client does not read is stuck
_LARGE = 65_536  # bytes of a message
_LONGEST_TRACESTATE = 512  # characters that have to be passed on (W3C Trace Context, section 3.3.1.5)
_BOOT = os.urandom(6).hex()
_opened: ContextVar[str] = ContextVar("opened")
_SERIAL = count(1)


class SessionManager(StreamableHTTPSessionManager):
    """The SDK's. `ended`: what is told the id of a session that has ended; it may be told twice."""

    ended: Callable[[str], None]

    async def let_go(self, session_id: str) -> None:
        """Displace the messages that a session keeps, with one that says nothing and reaches nobody."""
        if (transport := self._server_instances.get(session_id)) is None:
            return
        nothing = JSONRPCNotification(jsonrpc="2.0", method="notifications/nothing")
        message = SessionMessage(nothing, ServerMessageMetadata(related_request_id="nobody"))
        for stream in (transport._read_stream_writer, transport._write_stream):
            with anyio.move_on_after(_LET_GO_SECONDS), suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):
                if stream is not None:
                    await stream.send(message)

    async def _discard_session(self, session_id: str, transport: StreamableHTTPServerTransport) -> None:
        self.ended(session_id)
        await super()._discard_session(session_id, transport)


class LeanServer(Server[Any]):
    """The SDK copies the stamp that every modern result carries, deeply and for each. Nothing writes to it."""

    @cached_property
    def server_info_stamp(self) -> dict[str, Any]:
        return super().server_info_stamp


def install(
    server: Server[Any],
    guards: Sequence[Guard],
    aim: Callable[[str, Any], tuple[Target | None, frozenset[str]]],
    local: Callable[[], Principal],
    sealing_keys: Sequence[str],
    once: Callable[[str], Awaitable[bool]],
) -> None:
    """Put the guards around every request of `server`, outside everything else.

    Args:
        server: the SDK's low-level server.
        guards: outermost first.
        aim: what a request is for, and the scopes it takes, read from its method and raw parameters.
        local: who calls over stdio; may raise Rejected.
        sealing_keys: for `requestState`; none means a key of this process's own.
        once: whether something happens for the first time.
    """

    async def ring(ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> Any:
        if ctx.request_id is None:  # a notification: nothing is answered
            return await call_next(ctx)

        async def serve(call: Call) -> Any:
            if target is not None and ctx.method == "tools/call" and call.size > _LARGE:
                arguments = (ctx.params or {}).get("arguments")
                if isinstance(arguments, dict):
                    target.refuse_unknown(arguments)  # the SDK's models would look at each, twice
            try:
                return await call_next(ctx)
            except MCPError as error:
                if error.code == INTERNAL_ERROR:  # the SDK's word for a crash: it is ours to log and answer
                    raise
                data = cleaned(error.data) if isinstance(error.data, dict) else {}
                raise InvalidRequest(_REMEDIES.get(error.message, error.message), error.code, data) from None
            except ValidationError as error:
                problems = request_problems(error, {"params": ctx.params})
                if not problems:  # it is not the caller's
                    raise
                raise InvalidRequest("\n".join(problems), INVALID_PARAMS) from None

        transport: Transport = "stdio" if ctx.request is None else "http"
        principal, rejected = ANONYMOUS, None
        if ctx.request is not None:
            principal = ctx.request.scope.get(SCOPE_KEY, ANONYMOUS)
        else:
            try:
                principal = local()
            except Rejected as error:
                rejected = error
        target, needs = aim(ctx.method, ctx.params)
        call = Call(
            request_id=new_request_id(),
            rpc_id=ctx.request_id,
            method=ctx.method if server.get_request_handler(ctx.method) or ctx.method == "initialize" else "unknown",
            target=target,
            needs=needs,
            principal=principal,
            transport=transport,
            protocol_version=ctx.protocol_version,
            parent=parent_of(ctx.meta) or _parent_of_headers(ctx.request),
            client=_client(ctx.request),
            rejected=rejected,
            size=current_size.get(),
        )
        if target is not None and target.has_context:
            session = ctx.session
            ctx.session = _CleanSession(session._request_outbound, session._connection, request_meta=ctx.meta)
        token, aimed = current_principal.set(principal), current_target.set(target)
        try:
            return await chain(guards, serve)(call)
        except CallError as error:
            shown = error.outcome.wire(call.request_id)
            if ctx.method == "tools/call" and error.as_result:
                return _error_result(server, ctx.protocol_version, shown)
            raise MCPError(error.rpc_code, error.message, error.rpc_data | shown) from None
        finally:
            current_target.reset(aimed)
            current_principal.reset(token)

    async def discover(ctx: ServerRequestContext[Any, Any], params: RequestParams) -> DiscoverResult:
        # The SDK names only the revisions without a handshake, and a client that speaks none of them would give up.
        capabilities = server.get_capabilities(protocol_version=ctx.protocol_version)
        return DiscoverResult(
            supported_versions=list(SERVED_VERSIONS), capabilities=capabilities, instructions=server.instructions
        )

    server.add_request_handler("server/discover", RequestParams, discover)
    security = RequestStateSecurity(codec=_Codec(sealing_keys or [os.urandom(32)]), bind_principal=_bound)
    server.middleware[:] = [ring, _Boundary(security, server.name, once)]


class _Codec(AESGCMRequestStateCodec):
    """Tells which state it has opened last; there is one way only to write each."""

    def unseal(self, token: str) -> bytes:
        payload = super().unseal(token)
        _opened.set(sha256(token.encode()).hexdigest())
        return payload


class _Boundary(RequestStateBoundary):
    """Binds state to a digest of the arguments, as they are not kept until it is sealed; a tool that acts runs once on it."""

    def __init__(self, security: RequestStateSecurity, audience: str, once: Callable[[str], Awaitable[bool]]) -> None:
        super().__init__(security, default_audience=audience)
        self._once = once

    async def __call__(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        params, target = ctx.params, current_target.get()
        if params is not None and target is not None and params.get("requestState") is not None:
            call_next = self._spending(target, call_next)
        if params is None or target is None or not target.asks:
            return await super().__call__(ctx, call_next)
        text = compact_json(params.get("arguments"), sort_keys=True)
        shown = {**params, "arguments": {"sha256": sha256(text.encode()).hexdigest()}}
        del text

        async def restored(judged: ServerRequestContext[Any, Any]) -> HandlerResult:
            unsealed = {key: value for key, value in (judged.params or {}).items() if key == "requestState"}
            return await call_next(replace(judged, params={**params, **unsealed}))

        return await super().__call__(replace(ctx, params=shown), restored)

    def _spending(self, target: Target, call_next: CallNext) -> CallNext:
        """What runs when all else about the state is right: nobody can use up another's."""

        async def spend(ctx: ServerRequestContext[Any, Any]) -> HandlerResult:
            is_act = ctx.method == "tools/call" and not target.idempotent
            if is_act and not await self._once(_opened.get()):
                text = "This requestState has been used, and this tool acts once on each. Call it again without one."
                raise InvalidRequest(text, INVALID_PARAMS, {"reason": "invalid_request_state"})
            return await call_next(ctx)

        return spend


def let_go_of_all(ctx: ServerRequestContext[Any, Any], params: RequestParams) -> None:
    """Keep nothing that a request has said, but for what its handler takes from `params`: the envelope neither.

    Emptied in place, as `let_go` of `registry.py` does.
    """
    connection = ctx.session._connection
    connection.client_params = connection.client_capabilities = params.meta = ctx.meta = None
    inside: list[Any] = list((ctx.params or {}).values())
    while inside:
        each = inside.pop()
        if isinstance(each, dict | list):
            inside.extend(each.values() if isinstance(each, dict) else each)
            each.clear()


_MessageT = TypeVar("_MessageT", bound=BaseModel)
_NOT_FOR_READERS = ("_meta", "progressToken", "requestId", "elicitationId")  # names that have to come back as they went


class _CleanSession(ServerSession):
    """What a tool tells or asks the client before its result comes, cleaned as results are."""

    async def send_request(self, request: Any, *arguments: Any, **options: Any) -> Any:
        """Raises InvalidResult, as the others do."""
        return await super().send_request(_cleaned(request), *arguments, **options)

    async def report_progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        await super().report_progress(progress, total, clean(message))

    async def _notify(self, notification: Any, *, request_scoped: bool) -> None:
        await super()._notify(_cleaned(notification), request_scoped=request_scoped)


def _cleaned(message: _MessageT) -> _MessageT:
    data = message.model_dump(by_alias=True, mode="json", exclude_none=True)
    if is_clean(to_json(data)):
        return message
    params = data.get("params", {})
    kept = {name: params[name] for name in _NOT_FOR_READERS if name in params}
    return type(message).model_validate({**data, "params": cleaned(params) | kept}, by_name=False)


def _bound(ctx: ServerRequestContext[Any, Any]) -> str | None:
    """Whom sealed request state belongs to."""
    principal = current_principal.get()
    return principal.name if principal.kind in ("api_key", "jwt") else None


def as_user(principal: Principal) -> AuthenticatedUser:
    """A principal as the SDK knows it: it lets no other use the session that this one has opened."""
    claims = {"iss": principal.issuer} if principal.issuer is not None else {}
    client = principal.client or ""
    return AuthenticatedUser(
        AccessToken(token="", client_id=client, scopes=[], subject=principal.subject, claims=claims)
    )


async def one_request(
    server: Server[Any],
    exchange: DispatchContext[TransportContext],
    message: dict[str, Any],
    version: str,
    client_info: Any,
    client_capabilities: Any,
    opened: Any,
    outbound: Outbound | None = None,
) -> dict[str, Any]:
    """The result of one request that stands for itself.

    Args:
        exchange: its way back to the client.
        version: the protocol revision it is served in.
        client_info, client_capabilities: of its envelope, as they came; None in the handshake revisions.
        opened: what the lifespan yielded.
        outbound: the way to the client outside this request, where there is one.
    """
    channel = {"outbound": NotifyOnlyOutbound(outbound)} if outbound is not None else {}
    connection = Connection.from_envelope(version, client_info, client_capabilities, **channel)
    runner = ServerRunner(server, connection, opened)
    try:
        return await runner.on_request(exchange, message["method"], message.get("params"))
    finally:
        # `serve_one` closes the stack of every request, with a cancel scope and a timer; nearly all are empty.
        if getattr(connection.exit_stack, "_exit_callbacks", True):
            await aclose_shielded(connection)


def conversation(server: Server[Any], outbound: Outbound, opened: Any) -> ServerRunner[Any]:
    """What serves a client of the handshake revisions for as long as it is connected."""
    return ServerRunner(server, Connection.for_loop(outbound), opened)


async def end_conversation(runner: ServerRunner[Any]) -> None:
    """Let go of what requests have left with the connection."""
    await aclose_shielded(runner.connection)


class Answer(NamedTuple):
    """A JSON-RPC answer, and the code of its error if it is one."""

    body: bytes
    code: int | None


async def answer(handling: Awaitable[dict[str, Any]], rpc_id: str | int | None, transport: Transport) -> Answer:
    """The whole answer to a request that is being handled; an error is complete."""
    request_id: str | None = None
    try:
        return Answer(to_json({"jsonrpc": "2.0", "id": rpc_id, "result": await handling}), None)
    except MCPError as error:
        with suppress(ValueError):  # its data cannot be written
            return _error_answer(error.code, error.message, error.data, rpc_id, transport)
    except Exception as error:  # noqa: BLE001 - the guards let none through; one of the SDK's own must not end the server
        request_id = log_crash(error)
    return _error_answer(INTERNAL_ERROR, "", None, rpc_id, transport, request_id)


def log_crash(error: Exception) -> str:
    """Log what no guard has seen; returns the id of its request, for `complete_error`."""
    request_id = new_request_id()
    structlog.get_logger().error("crash", request_id=request_id, exc_info=error)
    return request_id


def _error_answer(
    code: int,
    message: str,
    data: Any,
    rpc_id: str | int | None,
    transport: Transport,
    request_id: str | None = None,
) -> Answer:
    error = complete_error(code, message, data, transport, rpc_id, request_id=request_id)
    return Answer(to_json({"jsonrpc": "2.0", "id": rpc_id, "error": error}), code)


def http_status(code: int | None) -> int:
    """The HTTP status that the specification gives a modern answer with this error; 200 where it gives none."""
    return ERROR_CODE_HTTP_STATUS.get(code, 200) if code is not None else 200


def complete_error(
    code: int,
    message: str,
    data: Any,
    transport: Transport,
    rpc_id: Any,
    client: str | None = None,
    outcome: Outcome | None = None,
    request_id: str | None = None,
) -> dict[str, Any]:
    """The `error` member of a JSON-RPC error, completed and logged if no guard has seen it.

    Args:
        outcome: else `invalid_request`, or `internal` for the SDK's own word for a crash, whose text is not shown.
        request_id: if it has one already.
    """
    kept = data if isinstance(data, dict) else {}
    if "request_id" not in kept:
        if code == PARSE_ERROR:  # the SDK's goes on with what it has found
            message = NOT_JSON if message.startswith("Parse error") else message
        elif message.startswith("Validation error"):  # goes on with pydantic's text, which quotes the input
            code, message = INVALID_REQUEST, _NOT_A_MESSAGE
        request_id = request_id or new_request_id()
        if outcome is None:
            outcome = (Internal(request_id) if code == INTERNAL_ERROR else InvalidRequest(message)).outcome
        message = outcome.message
        principal = Principal("local") if transport == "stdio" else ANONYMOUS
        nothing = frozenset[str]()
        call = Call(request_id, rpc_id, "unknown", None, nothing, principal, transport, "unknown", client=client)
        log_request(Events(), call, outcome, 0, code)
        kept = kept | outcome.wire(request_id)
    return {"code": code, "message": message, "data": kept}


def end_idle_streams() -> None:
    """End the streams that legacy clients hold open for server-to-client messages: uvicorn would wait for them."""
    AppStatus.should_exit = True


def new_request_id() -> str:
    """Unique over processes and restarts, and cheap."""
    return f"{_BOOT}{next(_SERIAL):08x}"


def _error_result(server: Server[Any], protocol_version: str, shown: dict[str, Any]) -> dict[str, Any]:
    meta: dict[str, Any] = {ERROR_KEY: shown}
    result: dict[str, Any] = {"content": [{"type": "text", "text": shown["message"]}], "isError": True, "_meta": meta}
    if protocol_version in MODERN_PROTOCOL_VERSIONS:
        meta[SERVER_INFO_META_KEY] = server.server_info_stamp
        result["resultType"] = "complete"
    return result


def _client(request: Any) -> str | None:
    address = None if request is None else request.scope.get("client")
    return address[0] if address else None


def parent_of(carrier: Any) -> Parent | None:
    """The span that a request's `_meta`, or the headers it came with, name; what is malformed names none."""
    found = carrier.get("traceparent") if isinstance(carrier, Mapping) else None
    if not isinstance(found, str) or not _TRACEPARENT.fullmatch(found):
        return None
    state = carrier.get("tracestate")
    return Parent(found, state if isinstance(state, str) and len(state) <= _LONGEST_TRACESTATE else None)


def _parent_of_headers(request: Any) -> Parent | None:
    if request is None or all(name != b"traceparent" for name, _ in request.scope["headers"]):
        return None
    return parent_of(request.headers)
