"""Threads for `def` functions, whose calls can be given up: Python cannot stop a thread."""

import asyncio
import math
import threading
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Any

import anyio
import anyio.to_thread
import structlog

from .calls import current_caller
from .errors import Overloaded
from .limits.shares import Shares


class Threads:
    """At most `size` at once, and `share` of them for one caller, those included that were left behind when their call
    was cancelled or timed out."""

    def __init__(self, size: int, share: float) -> None:
        self._shares = Shares(size, share)
        self.abandoned: dict[object, str] = {}
        """What the threads left behind are still running, by name."""
        self._unlimited = anyio.CapacityLimiter(math.inf)  # anyio's own limit would not count those

    async def run(self, name: str, work: Callable[[], Any]) -> Any:
        """The result of `work`.

        Raises:
            Overloaded: every thread is busy.
        """
        caller = current_caller.get()
        place = self._shares.take(caller)
        if place != "ok":
            whose = "what your earlier calls have left running" if place == "share" else "all its threads"
            raise Overloaded(f"The server is busy with {whose}. Retry after 1 s.", retry_after=1)
        loop, thread, began = asyncio.get_running_loop(), object(), monotonic()
        ended, taken = False, threading.Lock()

        def run() -> Any:
            if not taken.acquire(blocking=False):
                return None  # given up before it began
            try:
                return work()
            finally:
                with suppress(RuntimeError):  # the server has stopped meanwhile
                    loop.call_soon_threadsafe(end)

        def end() -> None:
            nonlocal ended
            ended = True
            self._shares.release(caller)
            if self.abandoned.pop(thread, None):
                self._log("abandoned_thread_ended", name, seconds=round(monotonic() - began, 3))

        try:
            return await anyio.to_thread.run_sync(run, abandon_on_cancel=True, limiter=self._unlimited)
        finally:
            if taken.acquire(blocking=False):
                self._shares.release(caller)
            elif not ended:
                self.abandoned[thread] = name
                self._log("thread_abandoned", name)

    def _log(self, event: str, name: str, **fields: Any) -> None:
        structlog.get_logger().warning(event, function=name, abandoned_threads=len(self.abandoned), **fields)
