"""How many calls may run at once, and how many of one caller."""

from typing import Any

from ..calls import Call, Proceed, current_caller
from ..errors import Overloaded
from ..limits.shares import Shares
from .share import key_of


class Capacity:
    """Refuses at once what would exceed `limit` calls in flight, or the part of them that one caller may take: waiting
    would only move the queue."""

    def __init__(self, limit: int, share: float, *, is_open: bool) -> None:
        """
        Args:
            limit: calls in flight.
            share: of them, for one caller.
            is_open: whether nobody over HTTP has to say who they are. Whatever calls from this machine is then the same
                user's, and has no share.
        """
        self._shares = Shares(limit, share)
        self._is_open = is_open

    async def __call__(self, call: Call, proceed: Proceed) -> Any:
        if call.target is None:
            return await proceed(call)
        is_alone = call.transport == "stdio"  # a pipe has one caller
        caller = None if is_alone else key_of(call.principal, call.client, is_open=self._is_open)
        taken = self._shares.take(caller)
        if taken == "share":
            text = f"As many calls of yours are in flight as one caller may have ({self._shares.most_of_one})."
            raise Overloaded(f"{text} Wait for one to end, or retry after 1 s.", retry_after=1)
        if taken == "full":
            raise Overloaded("The server is busy. Retry after 1 s.", retry_after=1)
        token = current_caller.set(caller)
        try:
            return await proceed(call)
        finally:
            current_caller.reset(token)
            self._shares.release(caller)
