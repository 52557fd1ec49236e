"""MCP over the process's pipe: one JSON-RPC message a line (specification, basic/transports/stdio).

The SDK's own transport reads and writes in the thread pool that blocking tools share, ignores a line that is no
message, and drops the calls in flight at the end of input.
"""

import asyncio
import os
import stat
import sys
from collections import deque
from collections.abc import Callable

import anyio
import anyio.to_thread
import structlog
from anyio.abc import TaskGroup
from mcp_types import INVALID_REQUEST

from ..server import Application
from ..wire import Wire
from .conversation import Conversation
from .output import Output
from .signals import on_signals
from .watchdog import Watchdog

_DRAIN_SECONDS = 1.5  # clients wait 2 s after closing stdin, then kill
_CUT_SECONDS = 0.2  # for the answers of the calls that were cut
_STOP_SECONDS = 1.9  # for all of it, cleanup too; then the process is ended
_CHUNK = 65_536


async def serve(app: Application, wire: Wire, end: Callable[[], None]) -> int:
    """Serve until the input ends or a signal comes; returns the exit code, 1 if a call had to be cut.

    Args:
        end: ends the process at once, if it does not stop by itself.

    Raises:
        StartError: a dependency cannot be opened.
    """
    pipe, watchdog = _Pipe(app, wire), Watchdog(app.registry.code, end)
    with watchdog.watch(), on_signals(lambda: watchdog.give(_STOP_SECONDS), pipe.end):
        async with app.open():
            await pipe.serve(lambda: watchdog.give(_STOP_SECONDS))
    log = structlog.get_logger()
    (log.error if pipe.lost else log.info)("stopped", transport="stdio", cut_calls=pipe.cut, lost_calls=pipe.lost)
    return 1 if pipe.cut or pipe.lost else 0


class _Pipe:
    """The two ends of it. `cut`: calls that had to be ended; `lost`: requests that got no answer at all."""

    def __init__(self, app: Application, wire: Wire) -> None:
        self._app = app
        self._wire = wire
        self._longest = app.settings.max_request_bytes
        self._lines: deque[bytes | None] = deque()
        self._rest = bytearray()
        self._skipping = False
        self._is_reading = False
        self._ended, self._hurried = anyio.Event(), anyio.Event()
        self.cut = self.lost = 0

    def end(self) -> None:
        """Read no more, as at the end of input; the second time, wait for no call any more."""
        if self._ended.is_set():
            self._hurried.set()
        self._ended.set()

    async def serve(self, at_end: Callable[[], None]) -> None:
        """Answer every request that was read; `at_end` is told when the last was."""
        async with anyio.create_task_group() as tasks:
            self._output = output = Output(self._wire.stdout, self._pump)
            _make_pollable(self._wire.stdout)
            self._client = client = Conversation(self._app, output, tasks)
            self._read(tasks)
            await self._ended.wait()
            self._pause()
            at_end()
            self._app.drain.begin()
            await self._answered(_DRAIN_SECONDS)
            self.cut = self._app.drain.cut()
            self._hurried = anyio.Event()
            await self._answered(_CUT_SECONDS)
            self.lost = client.pending
            tasks.cancel_scope.cancel()

    async def _answered(self, seconds: float) -> None:
        with anyio.move_on_after(seconds):
            async with anyio.create_task_group() as tasks:

                async def hurry() -> None:
                    await self._hurried.wait()
                    tasks.cancel_scope.cancel()

                tasks.start_soon(hurry)
                while self._lines or self._client.pending or not self._output.is_empty:
                    await self._output.changed()
                tasks.cancel_scope.cancel()

    def _read(self, tasks: TaskGroup) -> None:
        self._loop = asyncio.get_running_loop()
        self._pollable = _make_pollable(self._wire.stdin)
        if self._pollable:
            self._resume()
        else:  # a file, a terminal, Windows
            tasks.start_soon(self._read_in_thread)

    async def _read_in_thread(self) -> None:
        while not self._ended.is_set():
            self._feed(await anyio.to_thread.run_sync(os.read, self._wire.stdin, _CHUNK, abandon_on_cancel=True))
            while self._lines and not self._ended.is_set():
                await self._output.changed()

    def _resume(self) -> None:
        if not self._is_reading and not self._ended.is_set():
            self._is_reading = True
            self._loop.add_reader(self._wire.stdin, self._readable)

    def _pause(self) -> None:
        if self._is_reading:
            self._is_reading = False
            self._loop.remove_reader(self._wire.stdin)

    def _readable(self) -> None:
        try:
            self._feed(os.read(self._wire.stdin, _CHUNK))
        except BlockingIOError:
            pass
        except ConnectionResetError:
            self._feed(b"")

    def _feed(self, chunk: bytes) -> None:
        if not chunk:
            if self._rest:  # the last line lacks its end
                self._lines.append(bytes(self._rest))
                self._rest.clear()
            self._pump()
            self._ended.set()
            return
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
        self._pump()

    def _pump(self) -> None:
        """Hand over what has been read, as far as the client keeps up."""
        while self._lines and not self._client.is_full:
            if (line := self._lines.popleft()) is not None:
                self._client.take(line)
            else:
                self._client.refuse(INVALID_REQUEST, f"A message is at most {self._longest} bytes long.")
        if self._pollable:
            if self._lines:
                self._pause()
            else:
                self._resume()


def _make_pollable(descriptor: int) -> bool:
    """Make a pipe or socket non-blocking; nothing else can be polled, and a terminal is shared with the shell."""
    if sys.platform == "win32":
        return False
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        return False
    os.set_blocking(descriptor, False)
    return True
