"""How many calls may run at once."""

from typing import Any

from ..calls import Call, Proceed
from ..errors import Overloaded


class Capacity:
    """Refuses at once what would exceed `limit` calls in flight: waiting would only move the queue."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._running = 0

    async def __call__(self, call: Call, proceed: Proceed) -> Any:
        if call.target is None:
            return await proceed(call)
        if self._running >= self._limit:
            raise Overloaded("The server is busy. Retry after 1 s.", retry_after=1)
        self._running += 1
        try:
            return await proceed(call)
        finally:
            self._running -= 1
