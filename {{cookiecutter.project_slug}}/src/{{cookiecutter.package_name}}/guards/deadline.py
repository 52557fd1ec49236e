"""How long a call may take."""

from typing import Any

import anyio

from ..calls import Call, Proceed, Target
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
            repeatable = call.target.read_only or call.target.idempotent
            raise TimedOut(f"Stopped after {limit:g} s. {_effect(call.target)}", retryable=repeatable)
        return result


def _effect(target: Target) -> str:
    if target.read_only:
        return "Nothing was changed; it is safe to retry."
    if target.idempotent:
        return "It may have taken effect; repeating the same call is safe."
    return "It is not known whether it took effect: check before you repeat it."
