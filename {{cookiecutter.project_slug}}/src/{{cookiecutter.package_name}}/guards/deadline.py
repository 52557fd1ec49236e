"""How long a call may take."""

from typing import Any

import anyio

from ..calls import Call, Proceed, effect_of
from ..errors import TimedOut


class Deadline:
    """Stops a call that runs past its own limit, or past `default` seconds."""

    def __init__(self, default: float) -> None:
        self._default = default

    async def __call__(self, call: Call, proceed: Proceed) -> Any:
        if call.target is None:
            return await proceed(call)
        limit = call.target.timeout_seconds or self._default
        with anyio.move_on_after(limit) as scope:
            result = await proceed(call)
        if scope.cancelled_caught:
            effect, repeatable = effect_of(call.target)
            raise TimedOut(f"Stopped after {limit:g} s. {effect}", retryable=repeatable)
        return result
