"""GCRA, the generic cell rate algorithm (ITU-T I.371): a token bucket in one number for each client.

That number is the time at which the client would have its whole burst again. A call moves it on by what the call costs; a
call that would move it further than a burst away is refused, moves nothing, and is told exactly how long to wait.
"""

import time
from collections.abc import Callable

_MOST_CLIENTS = 100_000


class Gcra:
    """The limits of many clients, in memory.

    A client that has its whole burst is forgotten, and so is the one that was longest silent when there are too many.
    """

    def __init__(
        self,
        per_minute: int,
        burst: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        most_clients: int = _MOST_CLIENTS,
    ) -> None:
        """
        Args:
            per_minute: what calls may cost in a minute.
            burst: what calls may cost at once.
            clock: in seconds.
            most_clients: whose limits are kept.
        """
        self._seconds = 60 / per_minute
        self._burst = burst * self._seconds
        self._clock = clock
        self._most = most_clients
        self._whole_at: dict[str, float] = {}  # in the order of the last call

    def __len__(self) -> int:
        return len(self._whole_at)

    def wait(self, key: str, cost: int = 1) -> float:
        """Seconds until a call would be let through; 0 if it would be now. Charges nothing."""
        now = self._clock()
        return max(0.0, self._after(key, cost, now) - now - self._burst)

    def take(self, key: str, cost: int = 1) -> float:
        """Let a call through and charge it: 0. Or charge nothing: the seconds to wait."""
        now = self._clock()
        after = self._after(key, cost, now)
        if (wait := after - now - self._burst) > 1e-9:  # of seconds: adding up rounds
            return wait
        self._whole_at.pop(key, None)
        self._whole_at[key] = after
        self._forget(now)
        return 0.0

    def _after(self, key: str, cost: int, now: float) -> float:
        return max(self._whole_at.get(key, now), now) + cost * self._seconds

    def _forget(self, now: float) -> None:
        for _ in range(2):  # for each that comes: the table shrinks, and no call pays for all of it
            oldest = next(iter(self._whole_at))
            if self._whole_at[oldest] > now and len(self._whole_at) <= self._most:
                return
            del self._whole_at[oldest]
