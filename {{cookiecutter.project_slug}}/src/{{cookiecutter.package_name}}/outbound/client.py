"""A service as tools call it: every call bounded, repeated where that may help, and spared where it may not."""

import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any
from urllib.parse import quote

import anyio
import httpx2
import structlog

from ..calls import current_target
from ..errors import CallError, InvalidArguments, UpstreamRejected, UpstreamUnavailable
from ..measures import HTTP_BUCKETS, Histogram, Measure
from ..spans import begin_attempt, end_attempt
from ..text import in_words
from .breaker import Breaker, RetryBudget, State
from .bulkhead import Bulkhead
from .exchange import RETRIED_STATUSES, NoAnswer, Response, exchange
from .retries import IDEMPOTENT_METHODS, SAFE_METHODS, Failed, Retry, retry_after, with_retries
from .sharing import Shared

_MOST_REDIRECTS = 5
_KEY = re.compile(r"[!-~]{1,255}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one service may cost this server.

    attempts: of one call, the first included.
    attempt_seconds: for one attempt, from the connection to the end of the answer.
    connect_seconds: of that, for the connection.
    first_wait_seconds, longest_wait_seconds: the n-th retry waits for a random part of first * 2^(n - 1), at most longest.
    retry_share, retries_per_second, retry_reserve: retries are at most this share of the calls, and so many a second
        more, which can be saved up to the reserve.
    concurrent: attempts at once, in at most twice as many calls; None: a quarter of MCP_MAX_CONCURRENT_CALLS.
    largest_answer: bytes, decompressed.
    breaker_least, breaker_rate, breaker_window_seconds: it opens when so many attempts, and this part of them, failed
        within the window.
    breaker_rest_seconds: until it lets a first one try again.
    """

    attempts: int = 3
    attempt_seconds: float = 10
    connect_seconds: float = 3
    first_wait_seconds: float = 0.2
    longest_wait_seconds: float = 5
    retry_share: float = 0.2
    retries_per_second: float = 1
    retry_reserve: float = 20
    concurrent: int | None = None
    largest_answer: int = 1 << 20
    breaker_least: int = 20
    breaker_rate: float = 0.5
    breaker_window_seconds: float = 30
    breaker_rest_seconds: float = 5


class Outbound:
    """A service, as tools call it."""

    def __init__(
        self,
        name: str,
        client: httpx2.AsyncClient | None,
        limits: Limits,
        most_calls: int,
        variable: str,
        *,
        clock: Callable[[], float] = anyio.current_time,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        """
        Args:
            client: with the service's address and credential; None: it is not configured.
            most_calls: that this server runs at once.
            variable: that configures it.
            clock, sleep: in seconds.
        """
        self.name = name
        self._client = client
        self._limits = limits
        self._variable = variable
        self._clock = clock
        self._sleep = sleep
        self._log = structlog.get_logger()
        self._breaker = Breaker(
            clock,
            self._changed,
            least=limits.breaker_least,
            rate=limits.breaker_rate,
            window=limits.breaker_window_seconds,
            rest=limits.breaker_rest_seconds,
        )
        self._budget = RetryBudget(
            clock, share=limits.retry_share, per_second=limits.retries_per_second, reserve=limits.retry_reserve
        )
        self._bulkhead = Bulkhead(limits.concurrent or max(1, most_calls // 4))
        self._shared: Shared[Response] = Shared()
        self._durations: dict[str, Histogram] = {}
        self._retries = 0

    async def get(
        self,
        path: str,
        *segments: str,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        accept: Iterable[int] = (),
        share: bool = False,
    ) -> Response:
        """Read something; arguments and errors as for `request`.

        `share`: let identical reads that run at the same time be one. Only for what is the same for every caller.
        """
        request = self._built("GET", path, segments, params=params, headers=headers)
        accepted = frozenset(accept)

        async def read() -> Response:
            return await self._call(request, accepted, None)

        with self._held("GET"):
            if not share:
                return await read()
            try:
                key = repr((str(request.url), request.headers.raw, sorted(accepted)))
                return await self._shared.get(key, read, self._left())
            except TimeoutError:
                raise self._error(NoAnswer("timeout", "did not answer in time"), "GET", None) from None

    async def request(
        self,
        method: str,
        path: str,
        *segments: str,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        json: Any = None,
        idempotency_key: str | None = None,
        accept: Iterable[int] = (),
    ) -> Response:
        """Ask the service, again if that may help, within the time that the tool has left.

        GET, HEAD and OPTIONS are repeated; so are PUT and DELETE in a tool that is `idempotent`, and everything that has
        an `idempotency_key`. Anything else has one attempt.

        Args:
            path: under the base address, as it stands in the code of the tool.
            segments: appended to it, each percent-encoded: the place for arguments.
            json: the body.
            idempotency_key: sent as `Idempotency-Key`, the same with each attempt; 1 to 255 visible ASCII characters.
            accept: statuses outside 200 to 299 that are an answer, and no error.

        Raises:
            UpstreamUnavailable: no attempt succeeded, or none was made as the service is failing. It says when to retry
                if the service does, and of a write whether it may have taken effect.
            UpstreamRejected: it refused, and would again.
        """
        request = self._built(method, path, segments, params=params, headers=headers, json=json, key=idempotency_key)
        with self._held(method):
            return await self._call(request, frozenset(accept), idempotency_key)

    def _built(
        self,
        method: str,
        path: str,
        segments: Iterable[str],
        *,
        params: Mapping[str, Any] | None,
        headers: Mapping[str, str] | None,
        json: Any = None,
        key: str | None = None,
    ) -> httpx2.Request:
        if self._client is None:
            text = f"{self.name} is not configured. The operator of this server can set {self._variable}."
            raise UpstreamUnavailable(text, retryable=False)
        sent = dict(headers or {})
        if key is not None:
            if not _KEY.fullmatch(key):
                raise InvalidArguments(["idempotency_key: must be 1 to 255 visible ASCII characters"])
            sent["Idempotency-Key"] = key
        request = self._client.build_request(method, _joined(path, segments), params=params, headers=sent, json=json)
        if _origin(request.url) != _origin(self._client.base_url):
            raise ValueError("path: is a part of the service's address, and no address of its own")
        return request

    @contextmanager
    def _held(self, method: str) -> Iterator[None]:
        """A call's part of this server."""
        try:
            with self._bulkhead.call():
                yield
        except NoAnswer as error:
            raise self._error(error, method, None) from None

    async def _call(self, request: httpx2.Request, accepted: frozenset[int], key: str | None) -> Response:
        deadline, numbers = self._clock() + self._left(), count()

        async def attempt() -> Response:
            return await self._attempt(request, accepted, deadline, next(numbers))

        try:
            return await with_retries(
                attempt,
                attempts=self._limits.attempts if _may_repeat(request.method, key) else 1,
                first_wait=self._limits.first_wait_seconds,
                longest_wait=self._limits.longest_wait_seconds,
                budget=self._budget,
                left=lambda: deadline - self._clock(),
                sleep=self._sleep,
                on_retry=self._retried,
            )
        except Failed as error:
            failure = error.failure
            self._log.warning(
                "upstream_failed",
                upstream=self.name,
                reason=failure.label,
                attempts=error.attempts,
                stopped_by=error.stopped_by,
            )
            raise self._error(failure, request.method, key) from None

    async def check(self) -> None:
        """Raises ConnectionError while calls are refused: the server is degraded then."""
        if self._breaker.state != "closed":
            raise ConnectionError

    def measures(self) -> Iterable[Measure]:
        """For the metrics: attempts by result, retries, the breaker, and what runs."""
        mine = {"upstream": self.name}
        for result, durations in self._durations.items():
            yield Measure(
                "mcp_upstream_request_duration_seconds",
                "How long attempts took, by what came of them.",
                "histogram",
                mine | {"result": result},
                durations,
            )
        yield Measure("mcp_upstream_retries_total", "Attempts after the first.", "counter", mine, self._retries)
        is_open = float(self._breaker.state != "closed")
        yield Measure("mcp_upstream_breaker_open", "1 while calls are refused.", "gauge", mine, is_open)
        running = self._bulkhead.running
        yield Measure("mcp_upstream_requests_in_flight", "Attempts that run now.", "gauge", mine, running)

    def _left(self) -> float:
        """Seconds for a call that begins now: what its tool has, less a margin to say in what went wrong."""
        left = max(0.0, anyio.current_effective_deadline() - anyio.current_time())
        return left - min(0.25, left / 10)

    async def _attempt(
        self, request: httpx2.Request, accepted: frozenset[int], deadline: float, number: int
    ) -> Response:
        self._look_at_breaker()
        async with self._bulkhead.place(deadline - self._clock()):
            self._look_at_breaker()
            period = self._breaker.admit()
            span, status = begin_attempt(self.name, request, number), None
            began, succeeded, result = self._clock(), None, "cancelled"
            try:
                response = await self._follow(request, min(deadline, began + self._limits.attempt_seconds))
                status = response.status
                _judge(response, accepted)
                succeeded, result = True, "ok"
                return response
            except NoAnswer as error:
                if error.reason != "timeout" or began + self._limits.attempt_seconds <= deadline:
                    succeeded = not error.is_outage  # else it was the caller's time that was up
                result = error.label
                raise
            finally:
                end_attempt(span, result, status)
                self._breaker.settle(period, succeeded)
                self._durations.setdefault(result, Histogram(HTTP_BUCKETS)).observe(self._clock() - began)

    def _look_at_breaker(self) -> None:
        if (wait := self._breaker.resting) > 0:
            raise NoAnswer("open", "is failing, and is not asked for a while", was_sent=False, wait=wait)

    async def _follow(self, request: httpx2.Request, until: float) -> Response:
        """The answer after redirects within the same origin: to another one the credential must not go."""
        assert self._client is not None
        method, origin = request.method, _origin(request.url)
        for _ in range(_MOST_REDIRECTS + 1):
            seconds, largest = max(0, until - self._clock()), self._limits.largest_answer
            response = await exchange(self._client, request, self.name, seconds=seconds, largest=largest)
            if response.next_request is None:
                return response
            if method not in SAFE_METHODS or _origin(response.next_request.url) != origin:
                raise NoAnswer("redirected", "redirects elsewhere", passes=False)
            request = response.next_request
        raise NoAnswer("redirected", "redirects without an end", passes=False)

    def _error(self, failure: NoAnswer, method: str, key: str | None) -> CallError:
        effect, is_repeatable = _effect_of(failure, method, key)
        said = f"{self.name} {failure.said}."
        if not failure.passes:
            return UpstreamRejected(f"{said} {effect or 'Retrying does not help.'}")
        remedy = "Retry later." if failure.wait is None else f"Retry after {in_words(failure.wait)}."
        return UpstreamUnavailable(f"{said} {effect or remedy}", retryable=is_repeatable, retry_after=failure.wait)

    def _retried(self, retry: Retry) -> None:
        self._retries += 1
        self._log.warning(
            "upstream_retry",
            upstream=self.name,
            attempt=retry.attempt,
            wait_ms=round(retry.wait * 1000, 3),
            reason=retry.failure.label,
        )

    def _changed(self, state: State) -> None:
        write = self._log.warning if state == "open" else self._log.info
        write("breaker_changed", upstream=self.name, state=state)


def _judge(response: Response, accepted: frozenset[int]) -> None:
    """Raise NoAnswer for a status that is an error."""
    status = response.status
    if 200 <= status < 300 or status in accepted:
        return
    if status in RETRIED_STATUSES or status >= 500:
        raise NoAnswer("status", f"answered with status {status}", wait=retry_after(response.headers), status=status)
    raise NoAnswer("status", f"refused the request with status {status}", passes=False, status=status)


def _effect_of(failure: NoAnswer, method: str, key: str | None) -> tuple[str, bool]:
    """What to say of a write that may have been done, and whether to repeat it."""
    was_refused = failure.status is not None and failure.status < 500
    if method in SAFE_METHODS or not failure.was_sent or was_refused:
        return "", True
    target = current_target.get()
    if key is not None or (target is not None and target.idempotent):
        return "It may have taken effect; repeating the same call is safe.", True
    return "It is not known whether it took effect: check before you repeat it.", False


def _may_repeat(method: str, key: str | None) -> bool:
    if method in SAFE_METHODS or key is not None:
        return True
    target = current_target.get()
    return method in IDEMPOTENT_METHODS and (target is None or target.idempotent)


def _joined(path: str, segments: Iterable[str]) -> str:
    """Raises InvalidArguments: a segment that would lead elsewhere."""
    for segment in segments:
        if segment in ("", ".", ".."):
            raise InvalidArguments(["a part of an address must not be empty, . or .."])
        path = f"{path.rstrip('/')}/{quote(segment, safe='')}"
    return path


def _origin(url: httpx2.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port
