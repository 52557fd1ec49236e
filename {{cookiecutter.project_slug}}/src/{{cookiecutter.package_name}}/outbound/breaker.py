"""When to leave a failing service alone, and when to stop repeating calls to it."""

from collections import deque
from collections.abc import Callable
from typing import Literal

State = Literal["closed", "open", "half_open"]


_PROBE_SECONDS = 1.0  # after which to ask again while a probe is under way


class Breaker:
    """Opens when too many attempts of the last seconds failed; then one at a time may probe, and a success closes it.

    Every `admit` is followed by one `settle` with what it returned.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        on_change: Callable[[State], None],
        *,
        least: int,
        rate: float,
        window: float,
        rest: float,
        longest_rest: float = 60,
    ) -> None:
        """
        Args:
            clock: in seconds.
            on_change: is told the new state.
            least: attempts within the window, below which nothing is concluded.
            rate: the part of them that must have failed.
            window: seconds.
            rest: seconds until the first probe; doubled with each probe that fails.
            longest_rest: seconds.
        """
        self.state: State = "closed"
        self._clock = clock
        self._on_change = on_change
        self._least = least
        self._rate = rate
        self._window = window
        self._first_rest = self._rest = rest
        self._longest_rest = longest_rest
        self._until = 0.0
        self._seconds: deque[list[int]] = deque()  # one [second, attempts, failures] for each of the window
        self._period = 0  # what was begun in an earlier one says nothing of this

    @property
    def resting(self) -> float:
        """Seconds until an attempt may begin; 0: now."""
        if self.state == "closed":
            return 0
        return _PROBE_SECONDS if self.state == "half_open" else max(0, self._until - self._clock())

    def admit(self) -> int:
        """Let an attempt begin, while it is not `resting`; the first one after a rest is the probe."""
        if self.state == "open":
            self._enter("half_open")
        return self._period

    def settle(self, period: int, succeeded: bool | None) -> None:
        """Say how an attempt ended; None: it was given up, and says nothing."""
        if period != self._period:
            return
        if self.state == "half_open":
            if succeeded:
                self._rest = self._first_rest
                self._seconds.clear()
                self._enter("closed")
            else:
                if succeeded is not None:
                    self._rest = min(2 * self._rest, self._longest_rest)
                    self._until = self._clock() + self._rest
                self._enter("open")
        elif succeeded is not None and self._too_many(failed=not succeeded):
            self._until = self._clock() + self._rest
            self._enter("open")

    def _too_many(self, *, failed: bool) -> bool:
        second = int(self._clock())
        while self._seconds and self._seconds[0][0] <= second - self._window:
            self._seconds.popleft()
        if not self._seconds or self._seconds[-1][0] != second:
            self._seconds.append([second, 0, 0])
        self._seconds[-1][1] += 1
        self._seconds[-1][2] += failed
        attempts, failures = (sum(each[n] for each in self._seconds) for n in (1, 2))
        return failed and attempts >= self._least and failures >= self._rate * attempts

    def _enter(self, state: State) -> None:
        self.state = state
        self._period += 1
        self._on_change(state)


class RetryBudget:
    """Lets retries be a share of the calls, and a few a second more: clients that all retry would triple an outage."""

    def __init__(self, clock: Callable[[], float], *, share: float, per_second: float, reserve: float) -> None:
        """
        Args:
            clock: in seconds.
            share: of the calls.
            per_second: for a service that is seldom called.
            reserve: what can be saved up.
        """
        self._clock = clock
        self._share = share
        self._per_second = per_second
        self._most = self._left = reserve
        self._counted = clock()

    def earn(self) -> None:
        """A call begins."""
        now = self._clock()
        self._left = min(self._most, self._left + self._share + (now - self._counted) * self._per_second)
        self._counted = now

    def can_spend(self) -> bool:
        """Whether one retry is left."""
        return self._left >= 1

    def spend(self) -> None:
        """A retry begins."""
        self._left -= 1
