"""Whether a call is repeated, and after how long."""

import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal

import httpx2

from .breaker import RetryBudget
from .exchange import NoAnswer, Response

if TYPE_CHECKING:
    from tenacity import RetryCallState

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})  # RFC 9110, section 9.2.1
IDEMPOTENT_METHODS = SAFE_METHODS | {"PUT", "DELETE"}  # section 9.2.2
_SHORTEST_ATTEMPT = 0.05  # seconds; with less left none is begun
_LONGEST_RETRY_AFTER = 86400.0  # seconds; more is told as this

StoppedBy = Literal["attempts", "deadline", "budget", "failure"]


@dataclass(frozen=True, slots=True)
class Retry:
    """One retry that is about to be waited for."""

    attempt: int
    wait: float
    """Seconds."""
    failure: NoAnswer


class Failed(Exception):
    """No attempt gave an answer to use.

    `failure`: of the last one; `stopped_by`: why there was no other.
    """

    def __init__(self, failure: NoAnswer, attempts: int, stopped_by: StoppedBy) -> None:
        super().__init__()
        self.failure = failure
        self.attempts = attempts
        self.stopped_by: StoppedBy = stopped_by


async def with_retries(
    attempt: Callable[[], Awaitable[Response]],
    *,
    attempts: int,
    first_wait: float,
    longest_wait: float,
    budget: RetryBudget,
    left: Callable[[], float],
    sleep: Callable[[float], Awaitable[None]],
    on_retry: Callable[[Retry], None],
) -> Response:
    """Repeat `attempt` while that may help: exponential backoff with full jitter, or exactly what the service asks for.

    Args:
        attempt: an `async def`, as tenacity tells them; raises NoAnswer.
        attempts: at most so many.
        first_wait, longest_wait: seconds; bounds of the backoff.
        left: the seconds until the call has to be over. A wait that would exceed it is not begun.

    Raises:
        Failed: none of them gave an answer to use.
    """
    from tenacity import AsyncRetrying, retry_if_exception, wait_random_exponential  # 20 ms of a start

    backoff = wait_random_exponential(multiplier=first_wait, max=longest_wait)
    stopped_by: StoppedBy = "failure"

    def wait(state: "RetryCallState") -> float:
        return _failure_of(state).wait or backoff(state)

    def is_over(state: "RetryCallState") -> bool:
        nonlocal stopped_by
        if state.attempt_number >= attempts:
            stopped_by = "attempts"
        elif state.upcoming_sleep + _SHORTEST_ATTEMPT > left():
            stopped_by = "deadline"
        elif not budget.can_spend():
            stopped_by = "budget"
        else:
            return False
        return True

    def before_sleep(state: "RetryCallState") -> None:
        budget.spend()
        on_retry(Retry(state.attempt_number, state.upcoming_sleep, _failure_of(state)))

    retrying = AsyncRetrying(
        retry=retry_if_exception(lambda error: isinstance(error, NoAnswer) and error.can_repeat),
        wait=wait,
        stop=is_over,
        sleep=sleep,
        before_sleep=before_sleep,
        reraise=True,
    )
    budget.earn()
    try:
        return await retrying(attempt)
    except NoAnswer as error:
        raise Failed(error, retrying.statistics["attempt_number"], stopped_by) from None


def _failure_of(state: "RetryCallState") -> NoAnswer:
    assert state.outcome is not None
    failure: Any = state.outcome.exception()
    assert isinstance(failure, NoAnswer)
    return failure


def retry_after(headers: httpx2.Headers) -> float | None:
    """The seconds that an answer asks to wait (RFC 9110, section 10.2.3); None if it does not say, or nothing of use.

    A date is counted from the answer's own `Date`, as the service's clock need not be right.
    """
    value = headers.get("retry-after", "").strip()
    if re.fullmatch("[0-9]+", value):
        seconds = float(value)
    else:
        now = _date(headers.get("date", "")) or time.time()
        if (until := _date(value)) is None:
            return None
        seconds = until - now
    return min(seconds, _LONGEST_RETRY_AFTER) if seconds > 0 else None


def _date(text: str) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError, OSError):
        return None
