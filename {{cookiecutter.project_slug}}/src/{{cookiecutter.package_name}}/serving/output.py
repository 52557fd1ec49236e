"""Whole messages out on a pipe, without blocking the loop."""

import asyncio
import errno
import os
from collections.abc import Callable, Mapping
from typing import Any

import anyio
from pydantic_core import to_json

_FULL = 1 << 20  # bytes not taken by the client yet


class Output:
    """Messages written in one turn of the loop leave together."""

    def __init__(self, descriptor: int, told: Callable[[], None]) -> None:
        """`told` is called after each change of what is waiting."""
        self._descriptor = descriptor
        self._told = told
        self._loop = asyncio.get_running_loop()
        self._unsent = bytearray()
        self._scheduled = self._blocked = self._gone = False
        self._changed: anyio.Event | None = None

    @property
    def is_full(self) -> bool:
        """Whether the client does not read what it is sent."""
        return len(self._unsent) > _FULL

    @property
    def is_empty(self) -> bool:
        """Whether everything has been handed over."""
        return not self._unsent

    def write(self, message: Mapping[str, Any]) -> None:
        """Send one message, soon."""
        if self._gone:
            return
        self._unsent += to_json(message)
        self._unsent += b"\n"
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    async def room(self) -> None:
        """Wait while the client does not read."""
        while self.is_full:
            await self.changed()

    async def changed(self) -> None:
        """Wait until something was sent or settled."""
        self._changed = self._changed or anyio.Event()
        await self._changed.wait()

    def tell(self) -> None:
        """Something was settled."""
        if self._changed is not None:
            self._changed.set()
            self._changed = None
        self._told()

    def _flush(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: os.write(self._descriptor, self._unsent)]
        except BlockingIOError:
            if not self._blocked:
                self._blocked = True
                self._loop.add_writer(self._descriptor, self._flush)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.ECONNRESET):
                raise
            self._gone = True  # the client; the end of input says so too
            self._unsent.clear()
        if not self._unsent:
            self._scheduled = False
            if self._blocked:
                self._blocked = False
                self._loop.remove_writer(self._descriptor)
        self.tell()
