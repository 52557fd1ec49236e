"""When calls outward are repeated: without a network, and without waiting."""

import math
import random
import statistics
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import anyio
import httpx2
import pytest

from {{ cookiecutter.package_name }}.errors import CallError, UpstreamRejected, UpstreamUnavailable
from {{ cookiecutter.package_name }}.outbound.bulkhead import Bulkhead
from {{ cookiecutter.package_name }}.outbound.client import Limits, Outbound
from {{ cookiecutter.package_name }}.outbound.exchange import NoAnswer
from {{ cookiecutter.package_name }}.outbound.retries import retry_after

Answer = Callable[[httpx2.Request], httpx2.Response]


class Bench:
    """An `Outbound` whose service is a function, and whose waits are written down instead of waited for."""

    def __init__(self, answer: Answer, limits: Limits = Limits()) -> None:  # noqa: B008 - frozen
        self.asked: list[httpx2.Request] = []
        self.waits: list[float] = []

        def handle(request: httpx2.Request) -> httpx2.Response:
            self.asked.append(request)
            return answer(request)

        client = httpx2.AsyncClient(transport=httpx2.MockTransport(handle), base_url="http://rates.test/v1")
        self.outbound = Outbound("rates", client, limits, 64, "MCP_UPSTREAM_BASE_URL", sleep=self._wait)

    async def _wait(self, seconds: float) -> None:
        self.waits.append(seconds)

    async def fail(self, method: str = "GET", **options: str) -> CallError:
        """The error that one call ends in."""
        with pytest.raises(CallError) as caught:
            await self.outbound.request(method, "/latest", **options)  # type: ignore[arg-type]
        return caught.value


def status(code: int, **headers: str) -> Answer:
    """A service that always answers so."""
    return lambda request: httpx2.Response(code, headers=headers)


def raises(error: type[httpx2.TransportError]) -> Answer:
    """A service whose connection always fails so."""

    def fail(request: httpx2.Request) -> httpx2.Response:
        raise error("at https://user:hunter22@rates.test")

    return fail


NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


def http_date(seconds: float) -> str:
    """So long after NOW."""
    return format_datetime(NOW + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("3", 3),
        (" 120 ", 120),
        ("0", None),
        ("-5", None),
        ("1.5", None),
        ("+3", None),
        ("soon", None),
        ("", None),
        ("١٢", None),
        ("9" * 400, 86400),
        ("86401", 86400),
        (http_date(7), 7),
        (http_date(-7), None),
        (http_date(400 * 86400), 86400),
        ("Sunday, 31-Jan-26 12:00:07 GMT", 7),
        ("Sat, 31 Jan 99999 12:00:00 GMT", None),
        ("Sat, 99 Jan 2026 12:00:00 GMT", None),
    ],
)
def test_retry_after(value: str, seconds: float | None) -> None:
    """Seconds or a date; what makes no sense counts as not there."""
    headers = httpx2.Headers([(b"Retry-After", value.encode()), (b"Date", http_date(0).encode())])
    assert retry_after(headers) == seconds


def test_retry_after_without_a_clock_of_its_own() -> None:
    """A service that sends no `Date` is counted from here."""
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    found = retry_after(httpx2.Headers({"Retry-After": later}))
    assert found is not None
    assert 55 < found <= 60


@pytest.mark.parametrize("code", [408, 425, 429, 500, 502, 503, 504])
async def test_statuses_that_pass_are_retried(code: int) -> None:
    """As often as the limits allow, and not more."""
    bench = Bench(status(code))
    error = await bench.fail()
    assert isinstance(error, UpstreamUnavailable)
    assert (len(bench.asked), error.can_retry) == (3, True)


@pytest.mark.parametrize("code", [400, 401, 403, 404, 409, 410, 422, 451, 304, 101])
async def test_statuses_that_do_not_pass_are_not(code: int) -> None:
    """They are the service's last word."""
    bench = Bench(status(code))
    error = await bench.fail()
    assert isinstance(error, UpstreamRejected)
    assert (len(bench.asked), error.can_retry) == (1, False)


async def test_other_server_errors_are_not_retried() -> None:
    """501 and its like are an outage, and a retry does not end it."""
    bench = Bench(status(501))
    assert isinstance(await bench.fail(), UpstreamUnavailable)
    assert len(bench.asked) == 1


@pytest.mark.parametrize(
    "error",
    [
        *(httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ReadError, httpx2.ReadTimeout, httpx2.WriteError),
        *(httpx2.WriteTimeout, httpx2.RemoteProtocolError, httpx2.PoolTimeout),
    ],
)
async def test_broken_connections_are_retried(error: type[httpx2.TransportError]) -> None:
    """Whatever breaks; and nothing of the exception is told."""
    bench = Bench(raises(error))
    found = await bench.fail()
    assert isinstance(found, UpstreamUnavailable)
    assert len(bench.asked) == 3
    assert "hunter22" not in str(found)
    assert found.__cause__ is None


@pytest.mark.parametrize(("method", "key", "attempts"), [("POST", None, 1), ("PATCH", None, 1), ("POST", "k-1", 3)])
async def test_writes_are_repeated_with_a_key_only(method: str, key: str | None, attempts: int) -> None:
    """The same key each time; without one it is said that nobody knows."""
    bench = Bench(raises(httpx2.ReadTimeout))
    error = await bench.fail(method, **({"idempotency_key": key} if key else {}))
    assert len(bench.asked) == attempts
    assert [request.headers.get("Idempotency-Key") for request in bench.asked] == [key] * attempts
    assert error.can_retry == (key is not None)
    assert ("not known whether it took effect" in error.message) == (key is None)


async def test_write_that_was_not_sent_has_no_effect() -> None:
    """Nobody answered the connection: it can be tried again."""
    error = await Bench(raises(httpx2.ConnectError)).fail("POST")
    assert error.can_retry
    assert "effect" not in error.message


@pytest.mark.parametrize("key", ["", " ", "a b", "k\n", "k\x7f", "ключ", "k" * 256])
async def test_key_that_fits_no_header(key: str) -> None:
    """It is an argument's value most times, and no crash; a service that reads none of it would do a write three times."""
    bench = Bench(status(200))
    assert (await bench.fail("POST", idempotency_key=key)).code == "invalid_arguments"
    assert bench.asked == []


async def silent(request: httpx2.Request) -> httpx2.Response:
    """A service that takes what it is sent, and never answers."""
    await anyio.sleep_forever()
    raise AssertionError


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_what_is_not_the_services_failure(method: str) -> None:
    """A caller's time that is up, a caller that goes: the breaker stays closed. It opens when the service
    has not answered within its own time."""
    bench = Bench(silent, Limits(attempts=1, breaker_least=2, attempt_seconds=60))  # type: ignore[arg-type]
    for _ in range(3):
        with anyio.fail_after(0.5):
            assert "did not answer in time" in (await bench.fail(method)).message
    for _ in range(3):
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(bench.outbound.request, method, "/latest")
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
    await bench.outbound.check()
    assert len(bench.asked) == 6
    bench = Bench(silent, Limits(attempts=1, breaker_least=2, attempt_seconds=0.02))  # type: ignore[arg-type]
    for _ in range(2):
        await bench.fail(method)
    with pytest.raises(ConnectionError):
        await bench.outbound.check()


async def test_jitter_spreads_the_waits() -> None:
    """200 callers do not come back at once: each wait is anything up to its bound, as likely as the next."""
    random.seed(20260131)
    limits = Limits(breaker_least=1_000_000)
    benches = [Bench(status(503), limits) for _ in range(200)]
    for bench in benches:
        await bench.fail()
    for retry, bound in enumerate((0.2, 0.4)):
        waits = [bench.waits[retry] for bench in benches]
        assert 0 <= min(waits) < 0.05 * bound
        assert 0.95 * bound < max(waits) <= bound
        assert statistics.mean(waits) == pytest.approx(bound / 2, rel=0.1)
        tenths = [sum(int(10 * wait / bound) == tenth for wait in waits) for tenth in range(10)]
        assert sum((found - 20) ** 2 / 20 for found in tenths) < 21.67  # chi-squared, 9 degrees of freedom, 1 %


async def test_wait_that_is_asked_for_is_kept_to_exactly() -> None:
    """`Retry-After` wins over the backoff."""
    bench = Bench(status(429, **{"Retry-After": "3"}))
    error = await bench.fail()
    assert bench.waits == [3, 3]
    assert error.retry_after == 3


async def test_wait_beyond_the_deadline_fails_at_once() -> None:
    """There is no use in waiting for what comes too late; the caller is told when."""
    bench = Bench(status(503, **{"Retry-After": "3600"}))
    with anyio.fail_after(30):
        error = await bench.fail()
    assert (bench.waits, len(bench.asked)) == ([], 1)
    assert error.retry_after == 3600
    assert "Retry after 3600 s." in error.message


async def test_wait_that_leaves_no_time_to_ask() -> None:
    """It is not waited either."""
    bench = Bench(status(503, **{"Retry-After": "3"}))
    with anyio.fail_after(3.27):  # a quarter of a second is kept to say in what went wrong
        await bench.fail()
    assert bench.waits == []


async def test_backoff_grows_to_its_bound() -> None:
    """The n-th wait is at most first * 2^(n - 1), and at most the longest."""
    random.seed(1)
    limits = Limits(attempts=8, first_wait_seconds=1, longest_wait_seconds=5, breaker_least=1_000_000)
    benches = [Bench(status(503), limits) for _ in range(50)]
    for bench in benches:
        await bench.fail()
    most = [max(bench.waits[retry] for bench in benches) for retry in range(7)]
    for found, bound in zip(most, (1, 2, 4, 5, 5, 5, 5), strict=True):
        assert 0.8 * bound < found <= bound


async def test_budget_bounds_the_retries() -> None:
    """In an outage a fifth of the calls is repeated, and what was saved up; not each of them twice."""
    bench = Bench(status(503), Limits(breaker_least=1_000_000, retry_reserve=10, retries_per_second=0))
    for _ in range(100):
        await bench.fail()
    assert 100 + 20 <= len(bench.asked) <= 100 + 30


async def test_breaker_spares_the_service() -> None:
    """After twenty failures it is asked no more, and calls are told when to come back."""
    bench = Bench(status(500))
    for _ in range(20):
        error = await bench.fail()
    assert len(bench.asked) == 20
    assert error.retry_after == pytest.approx(5, abs=1)
    with pytest.raises(ConnectionError):
        await bench.outbound.check()


async def test_call_ends_when_the_breaker_opens() -> None:
    """What it refuses is not tried again within the call."""
    bench = Bench(status(500), Limits(attempts=5, breaker_least=2))
    assert "not asked for a while" in (await bench.fail()).message
    assert (len(bench.asked), len(bench.waits)) == (2, 2)


async def test_nobody_waits_behind_the_probe() -> None:
    """While the one call that tries is under way, others are refused at once, and do not wait for its place."""
    probing = anyio.Event()

    async def handle(request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/fails":
            return httpx2.Response(500)
        probing.set()
        await anyio.sleep(math.inf)
        raise AssertionError

    client = httpx2.AsyncClient(transport=httpx2.MockTransport(handle), base_url="http://rates.test")
    limits = Limits(attempts=1, concurrent=1, breaker_least=1, breaker_rest_seconds=0.001)
    outbound = Outbound("rates", client, limits, 64, "MCP_UPSTREAM_BASE_URL")
    with pytest.raises(UpstreamUnavailable):
        await outbound.get("/fails")
    await anyio.sleep(0.01)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(outbound.get, "/hangs")
        await probing.wait()
        with anyio.fail_after(5), pytest.raises(UpstreamUnavailable, match="not asked for a while"):
            await outbound.get("/hangs")
        tasks.cancel_scope.cancel()


def test_calls_at_once_are_bounded() -> None:
    """They are twice as many as the attempts, however many have ended; one more is told when to come back."""
    bulkhead = Bulkhead(1)
    for _ in range(3):
        with bulkhead.call():
            pass
    with bulkhead.call(), bulkhead.call():
        with pytest.raises(NoAnswer) as refused, bulkhead.call():
            pass
        assert (refused.value.reason, refused.value.wait, refused.value.was_sent) == ("full", 1, False)
    with bulkhead.call():
        pass


async def test_refusals_are_no_outage() -> None:
    """A service that refuses, or asks for patience, is alive."""
    for code in (404, 429):
        bench = Bench(status(code))
        for _ in range(20):
            await bench.fail()
        await bench.outbound.check()


async def test_identical_reads_share_one_call() -> None:
    """The one who asks first asks for all; other reads are asked for themselves."""
    begun, may_end = anyio.Event(), anyio.Event()
    asked: list[str] = []

    async def handle(request: httpx2.Request) -> httpx2.Response:
        asked.append(request.url.path)
        begun.set()
        await may_end.wait()
        return httpx2.Response(200, json={"rate": 2})

    client = httpx2.AsyncClient(transport=httpx2.MockTransport(handle), base_url="http://rates.test/v1")
    outbound = Outbound("rates", client, Limits(), 64, "MCP_UPSTREAM_BASE_URL")
    answers: list[object] = []

    async def read(currency: str) -> None:
        answers.append((await outbound.get("/latest", currency, share=True)).json())

    async with anyio.create_task_group() as tasks:
        for currency in ("USD", "USD", "USD", "CHF"):
            tasks.start_soon(read, currency)
        await begun.wait()
        await anyio.wait_all_tasks_blocked()
        may_end.set()
    assert sorted(asked) == ["/v1/latest/CHF", "/v1/latest/USD"]
    assert answers == [{"rate": 2}] * 4


async def test_failure_is_shared_too() -> None:
    """A service that refuses is not asked again by each who waited."""
    begun, may_end = anyio.Event(), anyio.Event()
    asked, told = [], list[str]()

    async def handle(request: httpx2.Request) -> httpx2.Response:
        asked.append(request)
        begun.set()
        await may_end.wait()
        return httpx2.Response(403)

    client = httpx2.AsyncClient(transport=httpx2.MockTransport(handle), base_url="http://rates.test")
    outbound = Outbound("rates", client, Limits(), 64, "MCP_UPSTREAM_BASE_URL")

    async def read() -> None:
        with pytest.raises(UpstreamRejected) as caught:
            await outbound.get("/latest", share=True)
        told.append(caught.value.message)

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(read)
        await begun.wait()
        await anyio.wait_all_tasks_blocked()
        may_end.set()
    assert (len(asked), len(told), len(set(told))) == (1, 3, 1)


async def test_shared_read_that_takes_too_long_is_an_outage() -> None:
    """The breaker hears of it as of any other."""

    async def handle(request: httpx2.Request) -> httpx2.Response:
        await anyio.sleep(math.inf)
        raise AssertionError

    client = httpx2.AsyncClient(transport=httpx2.MockTransport(handle), base_url="http://rates.test")
    limits = Limits(breaker_least=1, attempts=1, attempt_seconds=0.05)
    outbound = Outbound("rates", client, limits, 64, "MCP_UPSTREAM_BASE_URL")
    with anyio.fail_after(20), pytest.raises(UpstreamUnavailable, match="did not answer in time"):
        await outbound.get("/latest", share=True)
    with pytest.raises(ConnectionError):
        await outbound.check()


async def test_shared_read_survives_the_caller_who_began_it() -> None:
    """When that one is cancelled, the next does the asking."""
    may_end = anyio.Event()
    asked: list[str] = []

    async def handle(request: httpx2.Request) -> httpx2.Response:
        asked.append(request.url.path)
        await may_end.wait()
        return httpx2.Response(200, json=1)

    client = httpx2.AsyncClient(transport=httpx2.MockTransport(handle), base_url="http://rates.test")
    outbound = Outbound("rates", client, Limits(), 64, "MCP_UPSTREAM_BASE_URL")
    answers: list[int] = []

    async def read() -> None:
        answers.append((await outbound.get("/latest", share=True)).json())

    async with anyio.create_task_group() as tasks:
        first = anyio.CancelScope()

        async def begin() -> None:
            with first:
                await read()

        tasks.start_soon(begin)
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(read)
        await anyio.wait_all_tasks_blocked()
        first.cancel()
        await anyio.wait_all_tasks_blocked()
        may_end.set()
    assert (answers, len(asked)) == ([1], 2)


@pytest.mark.parametrize("share", [False, True])
async def test_slow_service_holds_its_share_of_the_server(share: bool) -> None:
    """16 attempts of 64 calls, 16 that wait, and the others are refused at once."""
    running, most = 0, 0

    async def handle(request: httpx2.Request) -> httpx2.Response:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            await anyio.sleep(math.inf)
        finally:
            running -= 1
        raise AssertionError

    client = httpx2.AsyncClient(transport=httpx2.MockTransport(handle), base_url="http://rates.test")
    outbound = Outbound("rates", client, Limits(), 64, "MCP_UPSTREAM_BASE_URL")
    refused: list[UpstreamUnavailable] = []

    async def read() -> None:
        try:
            await outbound.get("/latest", share=share)
        except UpstreamUnavailable as error:
            refused.append(error)

    async with anyio.create_task_group() as tasks:
        for _ in range(64):
            tasks.start_soon(read)
        await anyio.wait_all_tasks_blocked()
        assert (most, len(refused)) == (1 if share else 16, 32)
        assert all(error.retry_after == 1 for error in refused)
        tasks.cancel_scope.cancel()
    assert running == 0


@pytest.mark.parametrize(
    ("segments", "path"),
    [(("a/b",), "/v1/latest/a%2Fb"), (("ä?x=1#",), "/v1/latest/%C3%A4%3Fx%3D1%23"), (("a", "b"), "/v1/latest/a/b")],
)
async def test_arguments_stay_in_their_part_of_the_address(segments: tuple[str, ...], path: str) -> None:
    """An argument cannot lead to another address of the service."""
    bench = Bench(status(200))
    await bench.outbound.get("/latest", *segments)
    assert bench.asked[0].url.raw_path.decode() == path


@pytest.mark.parametrize("segment", ["", ".", ".."])
async def test_segments_that_lead_elsewhere(segment: str) -> None:
    """They are refused."""
    with pytest.raises(CallError) as caught:
        await Bench(status(200)).outbound.get("/latest", segment)
    assert caught.value.code == "invalid_arguments"


@pytest.mark.parametrize("path", ["http://other.test/x", "https://rates.test/x", "http://rates.test:81/x"])
async def test_path_is_no_address(path: str) -> None:
    """A tool that builds one of an argument would send the credential there."""
    bench = Bench(status(200))
    with pytest.raises(ValueError, match="part of the service's address"):
        await bench.outbound.get(path)
    assert bench.asked == []
