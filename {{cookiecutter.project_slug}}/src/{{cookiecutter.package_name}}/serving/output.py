"""Whole messages out on a pipe, without blocking the loop."""

import asyncio
import errno
import os
from typing import Protocol

import anyio
import structlog

from ..text import one_line

_FULL = 1 << 20  # bytes not taken by the client yet


class Reader(Protocol):
    """Who is told how it goes."""

    def pump(self) -> None:
        """Something was sent or settled."""

    def end(self) -> None:
        """Nothing can be sent any more."""


class Output:
    """Messages written in one turn of the loop leave together. `lost`: messages that could not be written."""

    def __init__(self, descriptor: int, reader: Reader) -> None:
        self._descriptor = descriptor
        self._reader = reader
        self._loop = asyncio.get_running_loop()
        self._unsent = bytearray()
        self._scheduled = self._blocked = False
        self._failure: int | None = None
        self._changed: anyio.Event | None = None
        self.lost = 0

    @property
    def is_full(self) -> bool:
        """Whether the client does not read what it is sent."""
        return len(self._unsent) > _FULL

    @property
    def waiting(self) -> int:
        """How many messages have not been handed over, or only in part."""
        return self._unsent.count(b"\n")

    def write(self, message: bytes, *, at_once: bool = False) -> None:
        """Send one message, with the others of this turn unless `at_once`."""
        if self._failure is not None:
            self.lost += self._failure not in _GONE
            return
        self._unsent += one_line(message)
        self._unsent += b"\n"
        if not self._scheduled:
            self._scheduled = True
            if at_once:
                self._flush()
            else:
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
        self._reader.pump()

    def _flush(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: os.write(self._descriptor, self._unsent)]
        except BlockingIOError:
            if not self._blocked:
                self._blocked = True
                self._loop.add_writer(self._descriptor, self._flush)
        except OSError as error:
            self._fail(error)
        if not self._unsent:
            self._scheduled = False
            if self._blocked:
                self._blocked = False
                self._loop.remove_writer(self._descriptor)
        self.tell()

    def _fail(self, error: OSError) -> None:
        self._failure = error.errno or errno.EIO
        if self._failure not in _GONE:
            self.lost += self._unsent.count(b"\n")
            structlog.get_logger().error("stdout_failed", reason=error.strerror)
        self._unsent.clear()
        self._reader.end()


_GONE = (errno.EPIPE, errno.ECONNRESET)  # the client; whatever it has not read, it does not want
