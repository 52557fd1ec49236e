"""MCP over HTTP on uvicorn: its start, its stop, and what is answered in between (`edge.py`)."""

import asyncio
import errno
import math
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from typing import Any

import anyio
import structlog
import uvicorn

from ..errors import StartError
from ..server import Application
from .connections import Connections
from .edge import Edge
from .lifecycle import Limit, first_of
from .listener import listen, url_of
from .protocol import Protocol, make_protocol
from .proxies import Proxies
from .readiness import Readiness
from .sessions import Sessions

# Longer than load balancers keep idle connections (up to 600 s), or they send into closed ones.
_KEEP_ALIVE_SECONDS = 620
_ON_THE_WIRE = 3  # times its own size an answer has at most: a structured result stands in it twice, once with escapes
_UNREAD_ANSWERS = 4  # of the largest, that may wait for one address
_CUT_SECONDS = 2  # for the answers of calls that were cut
_EXPECTED_SECONDS = 0.5  # for the requests of those who connected as the listener closed, or have begun to send
_TICK_SECONDS = 0.02  # of waiting for what tells nobody when it is over
_SPARE_SECONDS = 10  # for cleanup, beyond the drain, before the process is ended


class Http:
    """The server on its port. `cut`: calls that had to be ended."""

    def __init__(self, app: Application) -> None:
        """Raises StartError: the address cannot be listened on."""
        settings = app.settings
        self._app = app
        self._listener = listen(settings.host, settings.port, "MCP_HOST, MCP_PORT")
        self._sessions = Sessions(app) if settings.http_sessions == "stateful" else None
        self.readiness = Readiness(app.dependencies)
        self._edge = Edge(app, self.readiness, self._sessions)
        unread = _UNREAD_ANSWERS * _ON_THE_WIRE * settings.max_result_bytes
        self._server = _Server(
            uvicorn.Config(
                Proxies(self._edge, settings.trusted_proxies) if settings.trusted_proxies else self._edge,
                http=make_protocol(Connections(settings.trusted_proxies, unread)),
                lifespan="off",
                log_config=None,  # its default writes the access log to stdout
                access_log=False,
                proxy_headers=False,  # its default believes X-Forwarded-For from loopback
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=math.ceil(
                    settings.drain_timeout_seconds + 5
                ),  # a backstop: the drain is ours
                ws="none",  # MCP has no use for it
            )
        )
        self._tasks = anyio.create_task_group()
        self._hurried = anyio.Event()
        self.cut = 0
        self.stop_seconds = settings.drain_delay_seconds + settings.drain_timeout_seconds + _SPARE_SECONDS

    @property
    def lost(self) -> int:
        """As in `Serving`."""
        return self._edge.lost

    async def serve(self, limit: Limit) -> int:
        """Serve until stopped; returns the exit code, 1 if a call was cut or lost.

        Raises:
            StartError: a dependency cannot be opened.
        """
        log, failed = structlog.get_logger(), None
        async with self._tasks:
            self._tasks.start_soon(self._server.run_until_stopped, self._listener)  # probes are answered from now on
            try:
                async with self._app.open(), self._sessions.open() if self._sessions is not None else nullcontext():
                    self.readiness.ready()
                    log.info("listening", transport="http", url=url_of(self._listener, "/mcp"))
                    await self._server.stopped.wait()
            except StartError as error:
                failed = error
            self._tasks.cancel_scope.cancel()
        if failed is not None:
            raise failed
        lost = self._edge.pending + self._edge.lost
        (log.error if lost else log.info)("stopped", transport="http", cut_calls=self.cut, lost_calls=lost)
        return 1 if self.cut or lost else 0

    def stop(self) -> None:
        """Drain; there is nothing to drain while the server starts."""
        if self.readiness.state == "starting":
            self._tasks.cancel_scope.cancel()
        elif self.readiness.state == "ready":
            self.readiness.drain()
            self._tasks.start_soon(self._drain)

    def hurry(self) -> None:
        """Answer the calls in flight with `shutting_down`, and end."""
        self._hurried.set()

    def has_hung_up(self) -> bool:
        """Never: there will be other clients."""
        return False

    async def _drain(self) -> None:
        settings = self._app.settings
        structlog.get_logger().info("draining", calls=self._edge.pending)
        await self._wait(settings.drain_delay_seconds, lambda: True)
        self._server.should_exit = True  # uvicorn takes no new connection from here on
        self._app.drain.begin()
        await self._wait(_EXPECTED_SECONDS, self._expects_requests)
        await self._wait(settings.drain_timeout_seconds, self._owes_answers)
        self.cut = self._app.drain.cut()
        for each in self._connections():
            each.give_up()
        hurried, self._hurried = self._hurried, anyio.Event()
        await self._wait(_CUT_SECONDS, self._owes_answers)
        self._edge.end_streams()
        if self._sessions is not None:
            self._sessions.end_streams()
        self._edge.lost += sum(each.abort_if_stuck() for each in self._connections())
        await first_of(math.inf, hurried.wait, self._hurried.wait)
        self._server.force_exit = True

    async def _wait(self, seconds: float, is_needed: Callable[[], bool]) -> None:
        """Wait while it is needed, and nobody is in a hurry. It is not needed any more at the moment this returns."""
        until = anyio.current_time() + seconds
        while is_needed() and anyio.current_time() < until and not self._hurried.is_set():
            await first_of(min(_TICK_SECONDS, until - anyio.current_time()), self._hurried.wait)

    def _expects_requests(self) -> bool:
        return not self._server.closed.is_set() or any(each.is_expected for each in self._connections())

    def _owes_answers(self) -> bool:
        # A POST whose last byte has just come is pending a turn of the loop later.
        return self._edge.pending > 0 or any(each.owes_answer for each in self._connections())

    def _connections(self) -> list[Protocol]:
        return [each for each in self._server.server_state.connections if isinstance(each, Protocol)]


class _Server(uvicorn.Server):
    """uvicorn with a stop of our own: its own ends the process by the signal, before anything is closed."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.closed, self.stopped = anyio.Event(), anyio.Event()
        self._has_descriptors = True

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        if counter % 10 == 0:
            self._look_for_descriptors()
        return await super().on_tick(counter)

    def _look_for_descriptors(self) -> None:
        """Log when none is left, and when there are some again: uvloop then closes connections without a word."""
        try:
            os.close(os.open(os.devnull, os.O_RDONLY))
            has_some = True
        except OSError as error:
            has_some = error.errno not in (errno.EMFILE, errno.ENFILE)
        if has_some != self._has_descriptors:
            self._has_descriptors, log = has_some, structlog.get_logger()
            log.info("descriptors_back") if has_some else log.error("descriptors_exhausted")

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `lifecycle.py`."""
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop, but first take the connections that the kernel has accepted: with the listener they would be reset."""
        waiting = [found for listener in sockets or () for found in _accepted(listener)]
        for each in self.servers:
            each.close()
        loop = asyncio.get_running_loop()
        for found in waiting:
            made: Any = self.config.http_protocol_class
            await loop.connect_accepted_socket(partial(made, self.config, self.server_state, {}), found)
        self.closed.set()
        await super().shutdown(sockets)

    async def run_until_stopped(self, listener: socket.socket) -> None:
        """Serve on the listener."""
        try:
            await self.serve(sockets=[listener])
        finally:
            self.stopped.set()


def _accepted(listener: socket.socket) -> Iterator[socket.socket]:
    with suppress(OSError):  # no more, or Windows, where another kind of loop accepts
        while True:
            found, _ = listener.accept()
            found.setblocking(False)
            yield found
