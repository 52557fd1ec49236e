"""MCP over HTTP: `/mcp`, `/livez` and `/readyz` on uvicorn, with the SDK's Streamable HTTP application behind."""

import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from contextlib import contextmanager, nullcontext
from http import HTTPStatus
from math import ceil
from typing import Any

import anyio
import structlog
import uvicorn
from anyio.abc import TaskStatus
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from mcp_types import INVALID_REQUEST
from pydantic_core import from_json, to_json

from ..errors import StartError
from ..sdk import complete_error, end_idle_streams
from ..server import Application

_CUT_SECONDS = 2  # for the answers of calls that were cut

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


async def serve(app: Application) -> int:
    """Serve until a signal comes; returns the exit code, 1 if a call had to be cut.

    Raises:
        StartError: the address cannot be listened on.
    """
    settings = app.settings
    listener = _listen(settings.host, settings.port)
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    manager = StreamableHTTPSessionManager(
        app.mcp,
        stateless=settings.http_sessions == "stateless",
        security_settings=TransportSecuritySettings(
            allowed_hosts=_with_any_port(settings.allowed_hosts),
            allowed_origins=_with_any_port(settings.allowed_origins),
        ),
        max_request_body_size=settings.max_request_bytes,
    )
    routes = _Routes(manager.handle_request)
    config = uvicorn.Config(
        routes,
        lifespan="off",
        log_config=None,  # its default writes the access log to stdout
        access_log=False,
        proxy_headers=False,  # its default believes X-Forwarded-For from loopback
        server_header=False,
        timeout_graceful_shutdown=ceil(settings.drain_timeout_seconds) + 5,  # a backstop: the drain is ours
        ws="none",  # MCP has no use for it, and uvicorn warns twice for each who tries
    )
    server = _Server(config, app, routes)
    async with manager.run(), anyio.create_task_group() as tasks:
        if sys.platform != "win32":  # which has no signal receivers; uvicorn's own handling will do
            await tasks.start(server.stop_on_signal)
        structlog.get_logger().info("listening", transport="http", url=f"http://{shown}:{port}/mcp")
        await server.serve(sockets=[listener])
        server.cut += app.drain.cut()  # none is left but after a second signal
        tasks.cancel_scope.cancel()
    structlog.get_logger().info("stopped", transport="http", cut_calls=server.cut)
    return 1 if server.cut else 0


class _Server(uvicorn.Server):
    """uvicorn with a stop of our own: its own ends the process by the signal, before anything is closed."""

    def __init__(self, config: uvicorn.Config, app: Application, routes: "_Routes") -> None:
        super().__init__(config)
        self._app = app
        self._routes = routes
        self.cut = 0

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `stop_on_signal`, where there are signals."""
        with super().capture_signals() if sys.platform == "win32" else nullcontext():
            yield

    async def stop_on_signal(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Stop on the first SIGTERM or SIGINT, at once on the second."""
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            task_status.started()
            async with anyio.create_task_group() as tasks:
                async for _ in signals:
                    if self._routes.draining:
                        self.force_exit = self.should_exit = True
                    else:
                        self._routes.draining = True
                        tasks.start_soon(self._stop)

    async def _stop(self) -> None:
        settings = self._app.settings
        structlog.get_logger().info("draining", calls=self._routes.posts)
        await anyio.sleep(settings.drain_delay_seconds)
        self.should_exit = True  # uvicorn takes no new connection from here on
        with anyio.move_on_after(settings.drain_timeout_seconds):
            await self._routes.answered()
        self.cut = self._app.drain.cut()
        with anyio.move_on_after(_CUT_SECONDS):
            await self._routes.answered()
        end_idle_streams()


class _Routes:
    """The paths there are. Probes stand outside Host checks and the request log.

    `posts`: requests that are not answered to their last byte; `draining`: whether the server is about to stop.
    """

    def __init__(self, mcp: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._mcp = mcp
        self._progress = anyio.Event()
        self.posts = 0
        self.draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        if path == "/mcp" and method == "POST":
            await self._post(scope, receive, send)
        elif path == "/mcp":
            await self._mcp(scope, receive, _Completed(send).send)
        elif path == "/readyz" and self.draining:
            await _answer(send, 503, {"status": "draining"})
        elif path in ("/livez", "/readyz"):
            # uvicorn accepts connections only once everything has been opened, so answering is being ready.
            await _answer(send, 200, {"status": "ok"})
        else:
            await _answer(send, 404, {"error": _refusal("There is nothing at this path. MCP is at /mcp.")})

    async def answered(self) -> None:
        """Wait until every request is answered."""
        while self.posts:
            await self._progress.wait()

    async def _post(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.posts += 1
        try:
            if _is_json(scope["headers"]):
                await self._mcp(scope, receive, _Completed(send).send)
            else:
                await _answer(send, 415, {"jsonrpc": "2.0", "id": None, "error": _refusal("Send application/json.")})
        finally:
            self.posts -= 1
            self._progress.set()
            self._progress = anyio.Event()


class _Completed:
    """Gives an error that the SDK answers by itself the body that every error has.

    Some of its refusals are plain text, and none has passed a guard. Successful answers pass through untouched.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None
        self._body = b""

    async def send(self, message: Message) -> None:
        """An ASGI send."""
        if message["type"] == "http.response.start" and message["status"] >= 400:
            self._start = message
        elif self._start is None:
            await self._send(message)
        elif message["type"] == "http.response.body":
            self._body += message.get("body", b"")
            if not message.get("more_body"):
                headers = {k: v for k, v in self._start["headers"] if k not in (b"content-type", b"content-length")}
                await _answer(self._send, self._start["status"], self._complete(self._start["status"]), headers)

    def _complete(self, status: int) -> dict[str, Any]:
        try:
            found = from_json(self._body)
        except ValueError:
            found = None
        if not isinstance(found, dict) or not isinstance(found.get("error"), dict):
            return {"jsonrpc": "2.0", "id": None, "error": _refusal(self._body.decode("utf-8", "replace"))}
        error, rpc_id = found["error"], found.get("id")
        message = error["message"] or HTTPStatus(status).phrase
        completed = complete_error(error["code"], message, error.get("data"), "http", rpc_id)
        return {"jsonrpc": "2.0", "id": rpc_id, "error": completed}


def _refusal(text: str) -> dict[str, Any]:
    return complete_error(INVALID_REQUEST, text, None, "http", None)


def _is_json(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    kind = next((value for name, value in headers if name == b"content-type"), b"")
    return kind.partition(b";")[0].strip().lower() == b"application/json"


async def _answer(send: Send, status: int, body: dict[str, Any], headers: dict[bytes, bytes] | None = None) -> None:
    content = to_json(body)
    fixed = {b"content-type": b"application/json", b"content-length": b"%d" % len(content)}
    await send({"type": "http.response.start", "status": status, "headers": list(((headers or {}) | fixed).items())})
    await send({"type": "http.response.body", "body": content})


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise StartError([f"MCP_HOST, MCP_PORT: cannot listen on {host}:{port} ({error.strerror})"]) from None


def _with_any_port(names: tuple[str, ...]) -> list[str]:
    """The SDK's patterns: `name:*` matches any port, but not the bare name."""
    return [pattern for name in names for pattern in (name, f"{name}:*")]
