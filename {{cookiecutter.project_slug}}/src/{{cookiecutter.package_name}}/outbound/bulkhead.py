"""How much of this server one slow service may hold."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import anyio

from .exchange import NoAnswer

_RETRY_SECONDS = 1.0  # after which a caller who found it full is to try again


class Bulkhead:
    """At most `size` attempts at once, in at most twice as many calls: the others wait, for a place or before a retry.

    `running`: the attempts.
    """

    def __init__(self, size: int) -> None:
        self.running = 0
        self._most_calls = 2 * size
        self._calls = 0
        self._places = anyio.Semaphore(size)

    @contextmanager
    def call(self) -> Iterator[None]:
        """One call, from its begin to its end.

        Raises:
            NoAnswer: there are too many.
        """
        if self._calls >= self._most_calls:
            raise self._full()
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1

    @asynccontextmanager
    async def place(self, seconds: float) -> AsyncIterator[None]:
        """One attempt of a call.

        Args:
            seconds: how long it can wait for its place.

        Raises:
            NoAnswer: there was none.
        """
        with anyio.move_on_after(seconds) as scope:
            await self._places.acquire()
        if scope.cancelled_caught:
            raise self._full()
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            self._places.release()

    def _full(self) -> NoAnswer:
        return NoAnswer("full", "has as many calls under way as it may have", was_sent=False, wait=_RETRY_SECONDS)
