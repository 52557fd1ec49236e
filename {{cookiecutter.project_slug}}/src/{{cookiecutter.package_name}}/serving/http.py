"""MCP over HTTP on uvicorn: its start, its stop, and what is answered in between (`edge.py`)."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from math import ceil

import anyio
import structlog
import uvicorn

from ..errors import StartError
from ..server import Application
from .edge import Edge
from .protocol import Protocol
from .readiness import Readiness
from .sessions import Sessions
from .signals import on_signals
from .watchdog import Watchdog

_KEEP_ALIVE_SECONDS = (
    620  # longer than load balancers keep idle connections, or they send into closed ones (up to 600 s)
)
_CUT_SECONDS = 2  # for the answers of calls that were cut
_SPARE_SECONDS = 10  # for cleanup, beyond the drain, before the process is ended


async def serve(app: Application, end: Callable[[], None]) -> int:
    """Serve until a signal comes; returns the exit code, 1 if a call had to be cut.

    Args:
        end: ends the process at once, if it does not stop by itself.

    Raises:
        StartError: the address cannot be listened on, or a dependency cannot be opened.
    """
    settings, log = app.settings, structlog.get_logger()
    listener = _listen(settings.host, settings.port)
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    sessions = Sessions(app) if settings.http_sessions == "stateful" else None
    readiness = Readiness(app.dependencies)
    edge = Edge(app, readiness, sessions)
    config = uvicorn.Config(
        edge,
        http=Protocol,
        lifespan="off",
        log_config=None,  # its default writes the access log to stdout
        access_log=False,
        proxy_headers=bool(settings.trusted_proxies),  # its default believes X-Forwarded-For from loopback
        forwarded_allow_ips=list(settings.trusted_proxies),
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=ceil(settings.drain_timeout_seconds) + 5,  # a backstop: the drain is ours
        ws="none",  # MCP has no use for it
    )
    server = _Server(config)
    stop = _Stop(app, readiness, edge, sessions, server)
    watchdog = Watchdog(app.registry.code, end)
    longest = settings.drain_delay_seconds + settings.drain_timeout_seconds + _SPARE_SECONDS
    failed: StartError | None = None
    with watchdog.watch(), on_signals(lambda: watchdog.give(longest), stop.signal):
        async with stop.tasks:
            stop.tasks.start_soon(server.run_until_stopped, listener)  # probes are answered while dependencies open
            try:
                async with app.open(), sessions.open() if sessions is not None else nullcontext():
                    readiness.ready()
                    log.info("listening", transport="http", url=f"http://{shown}:{port}/mcp")
                    await server.stopped.wait()
            except StartError as error:
                failed = error
                server.force_exit = server.should_exit = True
            await server.stopped.wait()
            stop.tasks.cancel_scope.cancel()
    if failed is not None:
        raise failed
    lost = edge.pending
    (log.error if lost else log.info)("stopped", transport="http", cut_calls=stop.cut, lost_calls=lost)
    return 1 if stop.cut or lost else 0


class _Server(uvicorn.Server):
    """uvicorn with a stop of our own: its own ends the process by the signal, before anything is closed."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.stopped = anyio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `_Stop`."""
        yield

    async def run_until_stopped(self, listener: socket.socket) -> None:
        """Serve on the listener."""
        try:
            await self.serve(sockets=[listener])
        finally:
            self.stopped.set()


class _Stop:
    """What a signal sets off. `cut`: calls that had to be ended."""

    def __init__(
        self, app: Application, readiness: Readiness, edge: Edge, sessions: Sessions | None, server: _Server
    ) -> None:
        self._app = app
        self._readiness = readiness
        self._edge = edge
        self._sessions = sessions
        self._server = server
        self.tasks = anyio.create_task_group()
        self.cut = 0

    def signal(self) -> None:
        """Drain on the first signal, end at once on the second; there is nothing to drain while the server starts."""
        if self._readiness.state == "draining":
            self._server.force_exit = self._server.should_exit = True
        elif self._readiness.state == "starting":
            self.tasks.cancel_scope.cancel()
        else:
            self._readiness.drain()
            self.tasks.start_soon(self._drain)

    async def _drain(self) -> None:
        settings = self._app.settings
        structlog.get_logger().info("draining", calls=self._edge.pending)
        await anyio.sleep(settings.drain_delay_seconds)
        self._server.should_exit = True  # uvicorn takes no new connection from here on
        self._app.drain.begin()
        with anyio.move_on_after(settings.drain_timeout_seconds):
            await self._edge.answered()
        self.cut = self._app.drain.cut()
        with anyio.move_on_after(_CUT_SECONDS):
            await self._edge.answered()
        self._edge.end_streams()
        if self._sessions is not None:
            self._sessions.end_streams()
        for connection in list(self._server.server_state.connections):
            if isinstance(connection, Protocol):
                connection.abort_if_stuck()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise StartError([f"MCP_HOST, MCP_PORT: cannot listen on {host}:{port} ({error.strerror})"]) from None
