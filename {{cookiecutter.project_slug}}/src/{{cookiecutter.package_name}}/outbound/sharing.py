"""Reads that run at the same time, and are the same, as one."""

from collections.abc import Awaitable, Callable
from copy import copy
from typing import Generic, TypeVar

import anyio

from ..errors import CallError

_ValueT = TypeVar("_ValueT")


class _Flight(Generic[_ValueT]):
    """One read under way, and what came of it."""

    def __init__(self) -> None:
        self.landed = anyio.Event()
        self.value: _ValueT | None = None
        self.error: CallError | None = None


class Shared(Generic[_ValueT]):
    """The first who asks does the reading, and the others wait for it; when it is cancelled, the next one reads."""

    def __init__(self) -> None:
        self._flights: dict[str, _Flight[_ValueT]] = {}

    async def get(self, key: str, read: Callable[[], Awaitable[_ValueT]], seconds: float) -> _ValueT:
        """The value of `read`, or of another one with this key.

        Args:
            seconds: how long to wait for another one.

        Raises:
            TimeoutError: it took longer.
            CallError: what `read` raised.
        """
        with anyio.fail_after(seconds) as scope:
            while (flight := self._flights.get(key)) is not None:
                await flight.landed.wait()
                if flight.error is not None:
                    raise copy(flight.error)
                if flight.value is not None:
                    return flight.value
            scope.deadline = float("inf")  # `read` keeps its own time
            flight = self._flights[key] = _Flight()
            try:
                flight.value = await read()
            except CallError as error:
                flight.error = error
                raise
            finally:
                del self._flights[key]
                flight.landed.set()
            return flight.value
