"""A thread beside the event loop: it sees what the loop cannot, that the loop itself is stuck."""

import asyncio
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from time import monotonic
from types import CodeType, FrameType
from typing import Any

import structlog

from ..measures import Histogram

_STALL_SECONDS = 0.25
_LOOP = ("asyncio", "selectors.py", "anyio", "uvloop")


class Watchdog:
    """Logs when the event loop stalls, with the tool that holds it; ends the process if it will not stop.

    A `time.sleep` or a long computation in an `async def` tool stops every other call, probes and signals included.
    """

    def __init__(
        self,
        tools: Mapping[CodeType, str],
        at_hangup: Callable[[], float | None],
        end: Callable[[], None],
        lag: Histogram,
    ) -> None:
        """The parts it is made of.

        Args:
            tools: the functions that are served.
            at_hangup: how many seconds the process has left if its client has gone, else None; asked while the loop,
                which would see that itself, is stuck.
            end: ends the process at once.
            lag: what is told how late the loop is, each time that it is asked.
        """
        self._tools = tools
        self._at_hangup = at_hangup
        self._end = end
        self._lag = lag
        self._closed = threading.Event()
        self._deadline = math.inf

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Watch the running loop, from its own thread."""
        loop, owner = asyncio.get_running_loop(), threading.get_ident()
        thread = threading.Thread(target=self._run, args=(loop, owner), name="watchdog", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._closed.set()

    def limit(self, seconds: float) -> None:
        """From now on the process has so long to end, or less if it was told so before. Callable from a signal handler."""
        self._deadline = min(self._deadline, monotonic() + seconds)

    @property
    def left(self) -> float:
        """Seconds until the process has to end; infinite until it was told to."""
        return self._deadline - monotonic()

    def _run(self, loop: asyncio.AbstractEventLoop, owner: int) -> None:
        log = structlog.get_logger()
        stalled: float | None = None
        beat = threading.Event()
        asked = monotonic()

        def answer() -> None:
            self._lag.observe(monotonic() - asked)
            beat.set()

        loop.call_soon_threadsafe(answer)
        while not self._closed.wait(_STALL_SECONDS if stalled is None and self._deadline == math.inf else 0.01):
            if stalled is not None and (seconds := self._at_hangup()) is not None:
                self.limit(seconds)
            if monotonic() > self._deadline:
                log.error("stop_overdue", **self._holder(owner))
                self._end()
            if beat.is_set():
                if stalled is not None:
                    log.warning("event_loop_resumed", seconds=round(monotonic() - stalled, 3))
                stalled, asked = None, monotonic()
                beat.clear()
                try:
                    loop.call_soon_threadsafe(answer)
                except RuntimeError:  # the loop has been closed
                    return
            elif stalled is None and monotonic() - asked >= _STALL_SECONDS and (holder := self._holder(owner)):
                stalled = asked
                log.warning("event_loop_stalled", **holder)

    def _holder(self, owner: int) -> dict[str, Any]:
        """Whose code the loop's thread is in; empty when it is the loop's own, and the machine is only busy."""
        top: FrameType | None = sys._current_frames().get(owner)
        frame, tool = top, None
        while frame is not None and tool is None:
            tool = self._tools.get(frame.f_code)
            frame = frame.f_back
        if top is None or (tool is None and any(name in top.f_code.co_filename.split(os.sep) for name in _LOOP)):
            return {}
        return {"tool": tool, "at": f"{top.f_code.co_filename}:{top.f_lineno} {top.f_code.co_name}"}
