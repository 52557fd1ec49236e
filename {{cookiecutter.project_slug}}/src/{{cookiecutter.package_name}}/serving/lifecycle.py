"""Signals in, an exit code out, and a process that ends whatever its tools do."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from types import CodeType, FrameType
from typing import Protocol

import anyio

from ..measures import Histogram
from .readiness import Readiness
from .watchdog import Watchdog

_HURRY_SECONDS = 0.5
_LEFTOVER_SECONDS = 0.2

Limit = Callable[[float], None]
"""`limit(seconds)`: from now on the process has so long to end."""


class Serving(Protocol):
    """One transport. `stop_seconds`: how long its stop may take at most; `cut`: calls that had to be ended."""

    stop_seconds: float
    readiness: Readiness
    cut: int

    @property
    def lost(self) -> int:
        """Calls that, as far as is known by now, get no answer."""

    async def serve(self, limit: Limit) -> int:
        """Serve until stopped; returns the exit code."""

    def stop(self) -> None:
        """Begin to stop: take nothing new, and finish what was accepted."""

    def hurry(self) -> None:
        """Finish nothing any more."""

    def has_hung_up(self) -> bool:
        """Whether the only client has gone. Called from another thread."""


@contextmanager
def attended(
    serving: Serving,
    signals: Iterable[signal.Signals],
    tools: Mapping[CodeType, str],
    end: Callable[[], None],
    lag: Histogram,
) -> Iterator[Watchdog]:
    """Stop `serving` on the first of `signals`, at once on the second.

    Signals are counted in their handler, which runs while a tool holds the event loop too; if the stop does not come to
    its end in time, `end` ends the process from another thread. Not to be left: the handlers stay. `lag`: how late the
    event loop is.
    """
    loop, came = asyncio.get_running_loop(), count(1)
    watchdog = Watchdog(tools, lambda: serving.stop_seconds if serving.has_hung_up() else None, end, lag)

    def handle(number: int, frame: FrameType | None) -> None:
        first = next(came) == 1
        watchdog.limit(serving.stop_seconds if first else _HURRY_SECONDS)
        loop.call_soon_threadsafe(serving.stop if first else serving.hurry)

    for number in signals:
        signal.signal(number, handle)
    with watchdog.watch():
        yield watchdog


async def end_leftovers() -> None:
    """Cancel the tasks that tools have left behind; one that does not listen is left to the end of the process."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=_LEFTOVER_SECONDS)


async def first_of(seconds: float, *waits: Callable[[], Awaitable[object]]) -> None:
    """Wait until one of `waits` is over, or the time is."""
    with anyio.move_on_after(seconds):
        async with anyio.create_task_group() as tasks:

            async def wait_for(wait: Callable[[], Awaitable[object]]) -> None:
                await wait()
                tasks.cancel_scope.cancel()

            for each in waits:
                tasks.start_soon(wait_for, each)
