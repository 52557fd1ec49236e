"""The HTTP edge: what comes in, what is refused before anything is parsed or run, and who answers the rest."""

import asyncio
import codecs
import html
import math
from collections.abc import Mapping
from string import Template

import anyio
from mcp.shared.exceptions import MCPError
from mcp.shared.inbound import validate_mcp_param_headers, x_mcp_header_map
from mcp_types import DEFAULT_NEGOTIATED_VERSION, INTERNAL_ERROR
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS
from pydantic_core import to_json

from .. import NAME
from ..auth.principal import ANONYMOUS, SCOPE_KEY
from ..calls import current_size
from ..errors import Outcome
from ..guards.share import caller_of, key_of
from ..limits.shares import Shares
from ..sdk import answer, http_status, log_crash, one_request
from ..server import Application
from .admission import Admission
from .bodies import Bodies
from .exchange import Exchange, PlainAnswer, Receive, Scope, Send, Stream
from .headers import Accepted, Names, accepted_of, check_content, read_headers
from .lifecycle import first_of
from .messages import Json, Unreadable, parse
from .readiness import Readiness
from .refusals import Refused, no_place
from .sessions import Sessions
from .versions import as_error, revision_of, route_of

_STARTING = Outcome("unavailable", "The server is starting. Retry after 1 s.", retryable=True, retry_after_ms=1000)
_ONE_TRANSPORT = "Its transport is Streamable HTTP; the older HTTP+SSE is not served."
_MOST_STREAMS = 1024  # that carry nothing
_JSON = [(b"content-type", b"application/json")]
_PAGE_HEADERS = [
    (b"content-type", b"text/html; charset=utf-8"),
    (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
]
_PAGE = Template("""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>$name</title><style>body { font: 16px/1.5 system-ui; max-width: 40rem; margin: 3rem auto; padding: 0 1rem }</style>
<h1>$name</h1>
<p>$name $version is an MCP server. Connect an MCP client to <code>$url</code>, transport Streamable HTTP.</p>
<p>Whether it is ready to serve: <a href="/readyz"><code>/readyz</code></a>.</p>
</html>
""")


class Edge:
    """The ASGI application. `pending`: POSTs that are not answered to their last byte; `lost`: that never will be."""

    def __init__(self, app: Application, readiness: Readiness, sessions: Sessions | None) -> None:
        """`sessions`: who serves the handshake revisions when they have sessions."""
        self._app = app
        self._readiness = readiness
        self._sessions = sessions
        self._admission = Admission(app)
        self._hosts = Names(app.settings.allowed_hosts)
        self._origins = Names(app.settings.allowed_origins)
        self._bodies = Bodies(app.settings.max_request_bytes)
        self._mirrored = {
            tool.name: tool.signature.schema
            for tool in app.registry.tools.values()
            if x_mcp_header_map(tool.signature.schema)
        }
        self._streams = Shares(_MOST_STREAMS, app.settings.caller_share)
        self._ended = anyio.Event()
        self.pending = self.lost = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            path, method = scope["path"], scope["method"]
            if path == "/mcp" and method == "POST":
                await self._counted(scope, receive, send)
            elif path == "/mcp":
                await self._stream(scope, receive, send)
            elif path not in ("/livez", "/readyz", "/", *self._admission.metadata_paths):
                raise Refused(404, f"There is nothing at this path. MCP is at /mcp. {_ONE_TRANSPORT}")
            elif method not in ("GET", "HEAD"):
                raise Refused(405, "This path is for GET.", headers={b"allow": b"GET, HEAD"})
            elif path == "/":
                await self._page(scope, send)
            elif path in self._admission.metadata_paths:
                await self._answer(send, 200, self._admission.metadata(scope, self._check_names(scope)["host"]))
            else:
                status, body = await self._readiness.report() if path == "/readyz" else (200, {"status": "ok"})
                await self._answer(send, status, body)
        except Refused as refused:
            await self._refuse(scope, send, refused)

    def end_streams(self) -> None:
        """End the streams that carry no answer."""
        self._ended.set()

    async def _counted(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.pending += 1
        try:
            await self._post(scope, receive, send)
        except Refused as refused:
            await self._refuse(scope, send, refused)
        except asyncio.CancelledError:
            self.lost += 1
            raise
        except Exception as error:  # noqa: BLE001 - uvicorn would answer in plain text
            await self._refuse(scope, send, Refused(500, "", code=INTERNAL_ERROR, request_id=log_crash(error)))
        finally:
            self.pending -= 1

    async def _post(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = self._check_names(scope)
        check_content(headers)
        accepted = accepted_of(headers.get("accept", ""))
        if not any(accepted):
            raise Refused(406, "Accept: must admit application/json and text/event-stream, or one of them.")
        if self._readiness.state == "starting":
            raise Refused(503, _STARTING.message, code=503, headers={b"retry-after": b"1"}, outcome=_STARTING)
        await self._admission.authenticate(scope, headers)  # nobody else's body is waited for
        caller = key_of(scope.get(SCOPE_KEY, ANONYMOUS), _address(scope), is_open=False)
        body = await self._bodies.read(headers, receive, caller)
        if body is None:
            return  # the client has gone
        self._admission.afford(scope, headers, body, caller)
        body = body.removeprefix(codecs.BOM_UTF8)  # RFC 8259, section 8.1
        message = _parse(body)
        current_size.set(len(body))
        self._admission.authorize(scope, headers, message)
        rpc_id, is_request = message.get("id"), "id" in message and "method" in message
        try:
            version = revision_of(message, headers)
        except MCPError as error:
            raise _refused(error, rpc_id) from None
        if version not in HANDSHAKE_PROTOCOL_VERSIONS or self._sessions is None:
            body = b""  # nobody is to hold it while the request is served
        if version not in HANDSHAKE_PROTOCOL_VERSIONS:
            if is_request:
                await self._exchange(message, version, accepted, headers, scope, receive, send)
            elif rpc_id is not None:
                raise Refused(400, "method: is required. In this revision clients send no responses.", rpc_id=rpc_id)
            else:
                await self._accepted(send)  # this revision has no notification that a server acts on
        elif self._sessions is not None:
            if is_request and not accepted.events:
                raise Refused(406, "Accept: must admit text/event-stream, as sessions answer with it.", rpc_id=rpc_id)
            is_handshake = message.get("method") == "initialize"
            message.clear()  # the SDK's application reads the body again
            await self._sessions.post(
                scope, body, rpc_id, receive, send, is_request=is_request, is_handshake=is_handshake
            )
        elif not is_request:
            await self._accepted(send)
        else:
            await self._exchange(message, version, accepted, headers, scope, receive, send)

    async def _exchange(
        self,
        message: Json,
        version: str,
        accepted: Accepted,
        headers: dict[str, str],
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        """One request, as each stands for itself in this revision and in stateless legacy service."""
        is_modern = version not in HANDSHAKE_PROTOCOL_VERSIONS
        info = capabilities = None
        if is_modern:
            try:
                route = route_of(message, headers)
                self._check_mirrored(message, headers)
            except MCPError as error:
                raise _refused(error, message["id"]) from None
            info, capabilities = route.client_info, route.client_capabilities
            if message["method"] == "subscriptions/listen" and not accepted.events:
                raise Refused(406, "Accept: must admit text/event-stream to listen.", rpc_id=message["id"])
        stream = (Stream if accepted.events else PlainAnswer)(send, self._closing())
        exchange = Exchange(message, headers, scope, receive, stream)
        opened = self._app.dependencies.opened

        request = one_request(self._app.mcp, exchange, message, version, info, capabilities, opened)
        found = await exchange.run(answer(request, message["id"], "http"), ends_with_client=is_modern)
        if found is None:
            return
        status = http_status(found.code) if is_modern else 200
        if stream.begun or (status == 200 and not accepted.json):
            await stream.end(found.body)
        else:
            await self._send(send, status, found.body, _JSON)

    def _check_mirrored(self, message: Json, headers: Mapping[str, str]) -> None:
        """Arguments that a tool's schema mirrors into `Mcp-Param-*` headers are the same in both."""
        if not self._mirrored or message["method"] != "tools/call":
            return
        params = message["params"]
        schema = self._mirrored.get(str(params.get("name")))
        arguments = params.get("arguments") or {}
        if schema is not None and isinstance(arguments, dict):
            rejection = validate_mcp_param_headers(schema, arguments, headers)
            if rejection is not None:
                raise as_error(rejection)

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        """GET and DELETE, which only the handshake revisions have."""
        headers, method = self._check_names(scope), scope["method"]
        modern = headers.get("mcp-protocol-version", DEFAULT_NEGOTIATED_VERSION) not in HANDSHAKE_PROTOCOL_VERSIONS
        if method not in ("GET", "DELETE") or modern or (method == "DELETE" and self._sessions is None):
            allowed = b"POST" if modern else b"GET, POST" if self._sessions is None else b"GET, POST, DELETE"
            raise Refused(405, "Send requests with POST.", headers={b"allow": allowed})
        if method == "GET" and headers.keys().isdisjoint(("mcp-protocol-version", "mcp-session-id")):
            # No client of Streamable HTTP needs an answer to this, and one of HTTP+SSE would wait on a stream for ever.
            raise Refused(405, f"Send requests with POST. {_ONE_TRANSPORT}", headers={b"allow": b"POST"})
        if method == "GET" and not accepted_of(headers.get("accept", "")).events:
            raise Refused(406, "Accept: must admit text/event-stream.")
        await self._admission.authenticate(scope, headers)
        if self._sessions is not None:
            await self._sessions.other(scope, receive, send)
            return
        caller = caller_of(scope, self._app.settings)
        if (found := self._streams.take(caller)) != "ok":
            raise no_place(found, "streams")
        try:
            await self._idle_stream(scope, receive, send)
        finally:
            self._streams.release(caller)

    async def _idle_stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Without sessions there is nothing to send on it, but clients open one, and some take a refusal for a fault."""
        stream, withdrawn = Stream(send, self._closing()), anyio.Event()
        with self._app.watch.holding(scope.get(SCOPE_KEY, ANONYMOUS), frozenset(), withdrawn.set):
            await stream.write(b": open\n\n")

            async def disconnected() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass

            await first_of(math.inf, stream.ping, disconnected, self._ended.wait, withdrawn.wait)
        await stream.write(b"", last=True)

    async def _page(self, scope: Scope, send: Send) -> None:
        host = self._check_names(scope)["host"]
        url = html.escape(self._app.settings.public_url or f"{scope['scheme']}://{host}/mcp")
        version = html.escape(self._app.mcp.version or "")
        page = _PAGE.substitute(name=html.escape(NAME), version=version, url=url).encode()
        await self._send(send, 200, page, _PAGE_HEADERS)

    def _check_names(self, scope: Scope) -> dict[str, str]:
        """The headers, if Host and Origin are allowed (specification, transports: DNS rebinding)."""
        headers = read_headers(scope["headers"])
        if not self._hosts.allow(headers.get("host", "")):
            raise Refused(421, "This server is not reached by this Host. Add it to MCP_ALLOWED_HOSTS.")
        if (origin := headers.get("origin")) is not None and not self._origins.allow(origin):
            raise Refused(403, "Pages of this Origin may not call. Add it to MCP_ALLOWED_ORIGINS.")
        return headers

    async def _refuse(self, scope: Scope, send: Send, refused: Refused) -> None:
        await self._answer(send, refused.status, refused.body(_address(scope)), refused.headers)

    async def _accepted(self, send: Send) -> None:
        await self._send(send, 202, b"", [])

    async def _answer(self, send: Send, status: int, body: Json, headers: Mapping[bytes, bytes] | None = None) -> None:
        await self._send(send, status, to_json(body), [*_JSON, *(headers or {}).items()])

    async def _send(self, send: Send, status: int, content: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        headers = [*headers, (b"content-length", b"%d" % len(content)), *self._closing()]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    def _closing(self) -> list[tuple[bytes, bytes]]:
        """While the server stops, clients are told to go elsewhere with their next request."""
        return [(b"connection", b"close")] if self._readiness.state == "draining" else []


def _address(scope: Scope) -> str | None:
    client = scope.get("client")
    return client[0] if client else None


def _parse(body: bytes) -> Json:
    try:
        return parse(body)
    except Unreadable as error:
        raise Refused(400, error.text, code=error.code, rpc_id=error.rpc_id) from None


def _refused(error: MCPError, rpc_id: str | int | None) -> Refused:
    return Refused(400, error.message, code=error.code, data=error.data, rpc_id=rpc_id)
