"""MCP over the process's pipe: one JSON-RPC message a line (specification, basic/transports/stdio).

The SDK's own transport reads and writes in the thread pool that blocking tools share, ignores a line that is no
message, and drops the calls in flight at the end of input.
"""

import asyncio
import codecs
import os
import select
import stat
import sys
from collections import deque
from contextlib import AsyncExitStack, suppress

import anyio
import anyio.to_thread
import structlog
from mcp_types import INVALID_REQUEST

from ..errors import StartError
from ..server import Application
from ..wire import Wire
from .conversation import Conversation
from .lifecycle import Limit, first_of
from .output import Output
from .readiness import Readiness

_DRAIN_SECONDS = 1.5  # clients wait 2 s after closing stdin, then kill
_CUT_SECONDS = 0.2  # for the answers of the calls that were cut
_OPEN_SECONDS = 60  # for dependencies, after the end of input
_CHUNK = 65_536


class Stdio:
    """The two ends of the pipe. `cut`: calls that had to be ended."""

    stop_seconds = 1.9  # for all of it, cleanup too

    def __init__(self, app: Application, wire: Wire) -> None:
        self._app = app
        self.readiness = Readiness(app.dependencies)
        self._loop = asyncio.get_running_loop()
        self._tasks = anyio.create_task_group()
        self._input, self._pollable = wire.stdin, _make_pollable(wire.stdin)
        _make_pollable(wire.stdout)
        self._output = Output(wire.stdout, self)
        self._client = Conversation(app, self._output, self._tasks)
        self._longest = app.settings.max_request_bytes
        self._lines: deque[bytes | None] = deque()
        self._rest = bytearray()
        self._start: bytes | None = b""  # of the input, while it may be the start of a byte order mark
        self._skipping = self._is_reading = self._is_open = False
        self._ended, self._stopped, self._hurried = anyio.Event(), anyio.Event(), anyio.Event()
        self.cut = 0

    @property
    def lost(self) -> int:
        """As in `Serving`."""
        return self._output.lost

    async def serve(self, limit: Limit) -> int:
        """Serve until the input ends or a signal comes; returns the exit code, 1 if a call was cut or lost.

        Raises:
            StartError: a dependency cannot be opened.
        """
        log, lost, failed = structlog.get_logger(), 0, None
        async with self._tasks:
            if self._pollable:
                self.pump()
            else:  # a file, a terminal, Windows
                self._tasks.start_soon(self._read_in_thread)
            async with AsyncExitStack() as stack:
                with anyio.CancelScope() as opening:
                    self._tasks.start_soon(self._give_up_opening, opening, limit)
                    try:
                        await stack.enter_async_context(self._app.open())
                    except StartError as error:
                        failed = error
                    else:
                        self._is_open = True
                        self.readiness.ready()
                        self.pump()
                        await self._ended.wait()
                limit(self.stop_seconds)
                lost = await self._drain()
                await self._client.close()
            self._tasks.cancel_scope.cancel()
        if failed is not None:
            raise failed
        (log.error if lost else log.info)("stopped", transport="stdio", cut_calls=self.cut, lost_calls=lost)
        return 1 if self.cut or lost else 0

    def stop(self) -> None:
        """Read no more, and answer what was read."""
        self._stopped.set()
        self.end()

    def hurry(self) -> None:
        """Answer the calls in flight with `shutting_down`, and end."""
        self._hurried.set()

    def has_hung_up(self) -> bool:
        """Whether nobody holds the other end of the input any more."""
        if sys.platform == "win32" or not self._pollable:
            return False
        poll = select.poll()
        poll.register(self._input, 0)  # POLLHUP is always told
        return bool(poll.poll(0))

    def end(self) -> None:
        """As at the end of input."""
        self._ended.set()
        self._pause()

    def pump(self) -> None:
        """Hand over what has been read, as far as the client keeps up."""
        while self._is_open and self._lines and not self._client.is_full:
            if (line := self._lines.popleft()) is not None:
                self._client.take(line)
            else:
                self._client.refuse(INVALID_REQUEST, f"A message is at most {self._longest} bytes long.")
        if self._pollable:
            if self._lines:
                self._pause()
            else:
                self._resume()

    async def _give_up_opening(self, opening: anyio.CancelScope, limit: Limit) -> None:
        """What is still being opened when the client has gone, or a signal came, is for nobody."""
        await self._ended.wait()
        if self._is_open:
            return
        if self._lines:  # it has asked before it went, as `printf … | server` does
            limit(_OPEN_SECONDS)
            await self._stopped.wait()
        opening.cancel()

    async def _drain(self) -> int:
        """Answer what was read; returns how many requests got no answer."""
        self.readiness.drain()
        self._app.drain.begin()
        self._client.end()
        await first_of(_DRAIN_SECONDS, self._answered, self._hurried.wait)
        self.cut = self._app.drain.cut()
        await first_of(_CUT_SECONDS, self._answered)
        return self._client.pending + self._output.lost + self._output.waiting + len(self._lines)

    async def _answered(self) -> None:
        while (self._is_open and self._lines) or self._client.pending or self._output.waiting:
            await self._output.changed()

    async def _read_in_thread(self) -> None:
        while not self._ended.is_set():
            self._feed(await anyio.to_thread.run_sync(self._read, abandon_on_cancel=True))
            while self._lines and not self._ended.is_set():
                await self._output.changed()

    def _resume(self) -> None:
        if not self._is_reading and not self._ended.is_set():
            self._is_reading = True
            self._loop.add_reader(self._input, self._readable)

    def _pause(self) -> None:
        if self._is_reading:
            self._is_reading = False
            self._loop.remove_reader(self._input)

    def _readable(self) -> None:
        with suppress(BlockingIOError):
            self._feed(self._read())

    def _read(self) -> bytes:
        try:
            return os.read(self._input, _CHUNK)
        except BlockingIOError:
            raise
        except OSError:  # a connection that was reset, a terminal that hung up
            return b""

    def _feed(self, chunk: bytes) -> None:
        if not chunk:
            self._rest += self._start or b""
            if self._rest:  # the last line lacks its end
                self._lines.append(bytes(self._rest))
                self._rest.clear()
            self.pump()
            self.end()
            return
        if self._start is not None:
            chunk = self._start + chunk
            if len(chunk) < len(codecs.BOM_UTF8) and codecs.BOM_UTF8.startswith(chunk):
                self._start = chunk
                return
            self._start, chunk = None, chunk.removeprefix(codecs.BOM_UTF8)  # RFC 8259, section 8.1
        *lines, rest = chunk.split(b"\n")
        for line in lines:
            whole = bytes(self._rest) + line if self._rest else line
            self._rest.clear()
            if not self._skipping:
                self._lines.append(whole if len(whole) <= self._longest else None)
            self._skipping = False
        if not self._skipping:
            self._rest += rest
        if len(self._rest) > self._longest:
            self._rest.clear()
            self._skipping = True
            self._lines.append(None)
        self.pump()


def _make_pollable(descriptor: int) -> bool:
    """Make a pipe or socket non-blocking; nothing else can be polled, and a terminal is shared with the shell."""
    if sys.platform == "win32":
        return False
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        return False
    os.set_blocking(descriptor, False)
    return True
