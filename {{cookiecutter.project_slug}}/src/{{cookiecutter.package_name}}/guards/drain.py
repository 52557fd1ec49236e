"""How calls end when the server does."""

from typing import Any

import anyio

from ..calls import Call, Proceed, effect_of
from ..errors import ShuttingDown
from ..listening import Listeners


class Drain:
    """Knows the calls in flight, and cuts them when they have had their time: each is answered all the same."""

    def __init__(self, listeners: Listeners) -> None:
        self._listeners = listeners
        self._running: set[anyio.CancelScope] = set()
        self._begun = False

    async def __call__(self, call: Call, proceed: Proceed) -> Any:
        if call.target is None:
            if self._begun and call.method == "subscriptions/listen":
                raise ShuttingDown("The server is stopping. Listen again in a moment.")
            return await proceed(call)
        with anyio.CancelScope() as scope:
            self._running.add(scope)
            try:
                result = await proceed(call)
            finally:
                self._running.discard(scope)
        if scope.cancelled_caught:
            effect, repeatable = effect_of(call.target)
            raise ShuttingDown(f"The server is stopping, and cut this call. {effect}", retryable=repeatable)
        return result

    def begin(self) -> None:
        """End every listen stream with its result, and take no new one."""
        self._begun = True
        self._listeners.close()

    def cut(self) -> int:
        """End every call in flight with `shutting_down`; returns how many."""
        cut = len(self._running)
        for scope in self._running:
            scope.cancel()
        return cut
