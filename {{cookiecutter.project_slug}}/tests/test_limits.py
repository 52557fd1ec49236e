"""How much a client may do in a time: the algorithm, its two stores, and what a client of the server sees of it."""

import asyncio
import random
import socket
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from structlog.testing import capture_logs

from {{ cookiecutter.package_name }} import NAME
from {{ cookiecutter.package_name }}.auth.api_keys import new_key
from {{ cookiecutter.package_name }}.limits.gcra import Gcra
from {{ cookiecutter.package_name }}.limits.redis import RedisStore
from {{ cookiecutter.package_name }}.limits.store import StoreDown
from {{ cookiecutter.package_name }}.settings import Settings

from .conftest import StartPeer
from .harness import ERROR, HTTP, MODERN, PATIENCE, STDIO, Json, Peer, Way, answer_of, run_command, until
from .redis_server import RedisServer, running_redis

MINUTE = 60_000_000  # microseconds
BOTH = [STDIO[1], HTTP[0]]  # each transport, each era


class Clock:
    """Time that stands still unless it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """As time.monotonic."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    """The time of a test's limits."""
    return Clock()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of the test's own."""
    with running_redis(tmp_path) as server:
        yield server


def opened(redis: RedisServer | str, per_minute: int, burst: int) -> AbstractAsyncContextManager[RedisStore]:
    """A store in this Redis."""
    url = redis if isinstance(redis, str) else redis.url
    return RedisStore(url, per_minute, burst).open(Settings.model_construct())


async def until_up(store: RedisStore) -> None:
    """Wait until the store's check passes."""
    async with asyncio.timeout(PATIENCE):
        while True:
            with suppress(StoreDown):
                return await store.check()
            await asyncio.sleep(0.01)


# The algorithm


def test_burst_then_one_refusal_for_the_time_it_says(clock: Clock) -> None:
    """A call that waits as long as it was told is let through; one a hair earlier is not."""
    limits = Gcra(60, 3, clock=clock)
    assert [limits.take("a") for _ in range(4)] == [0, 0, 0, 1]
    clock.now += 0.999
    assert limits.take("a") == pytest.approx(0.001)
    clock.now += 0.001
    assert [limits.take("a"), limits.take("a")] == [0, 1]


def test_a_refused_call_costs_nothing(clock: Clock) -> None:
    """However often a client is refused, the wait does not grow."""
    limits = Gcra(60, 1, clock=clock)
    assert [limits.take("a"), *(limits.take("a") for _ in range(100))] == [0] + [1] * 100


def test_a_call_takes_what_it_costs(clock: Clock) -> None:
    """A dear call waits longer than a cheap one, and leaves less."""
    limits = Gcra(60, 5, clock=clock)
    assert [limits.take("a", 4), limits.take("a", 4), limits.take("a", 1), limits.take("a", 1)] == [0, 3, 0, 1]


def test_asking_for_the_wait_charges_nothing(clock: Clock) -> None:
    """`wait` tells what `take` would."""
    limits = Gcra(60, 1, clock=clock)
    assert [limits.wait("a"), limits.wait("a"), limits.take("a"), limits.wait("a")] == [0, 0, 0, 1]


def test_one_client_does_not_use_up_anothers_limit(clock: Clock) -> None:
    """Each has its own burst."""
    limits = Gcra(60, 1, clock=clock)
    assert [limits.take("a"), limits.take("a"), limits.take("b"), limits.take("b")] == [0, 1, 0, 1]


def test_no_more_is_let_through_than_the_limit_in_any_time(clock: Clock) -> None:
    """A client that calls as often as it can for an hour gets its burst, and then its rate."""
    limits, let_through = Gcra(7, 5, clock=clock), 0
    for _ in range(36_000):
        let_through += limits.take("a") == 0
        clock.now += 0.1
    assert let_through == 5 + 7 * 60 - 1


def test_clients_that_have_their_whole_burst_are_forgotten(clock: Clock) -> None:
    """The table holds those who called lately, and no more of them than it may."""
    limits = Gcra(60, 2, clock=clock, most_clients=10)
    for client in range(100):
        assert limits.take(f"{client}") == 0
    assert len(limits) == 10
    assert [limits.take("99", 2), limits.take("0", 2)] == [1, 0], "those that called last are those that are kept"
    clock.now += 3
    for client in range(10):
        limits.take(f"later {client}")
    assert len(limits) == 10, "those that are idle make room first"
    clock.now += 3
    limits.take("a")
    limits.take("a")
    assert len(limits) < 10


def test_many_clients_take_little_memory() -> None:
    """100,000 of them stay under 50 MB, and there are never more."""
    limits = Gcra(1, 20)
    tracemalloc.start()
    try:
        for client in range(110_000):
            limits.take(f"jwt:{client:016x}")
        assert len(limits) == 100_000
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()


# Redis


def key(client: str) -> str:
    """How a client's limit is called in Redis."""
    return f"{NAME}:limit:{client}"


@pytest.mark.parametrize("seed", range(5))
async def test_redis_decides_as_memory_does(redis: RedisServer, clock: Clock, seed: int) -> None:
    """The same calls are let through, and the same waits told, whatever the limit, the costs and the times between."""
    chance, began = random.Random(seed), time.monotonic()
    per_minute, burst = chance.randint(1, 2), chance.randint(1, 20)
    limits = Gcra(per_minute, burst, clock=clock)
    refused = 0
    async with opened(redis, per_minute, burst) as store:
        for _ in range(300):
            client, cost = chance.choice("abc"), chance.randint(1, 5)
            if chance.random() < 0.3:  # time goes by: here for the clock, there for what is kept
                halves = chance.randint(1, 6)
                clock.now += halves * 15
                for each in "abc":
                    if redis.command("EXISTS", key(each)) == ":1":
                        redis.command("DECRBY", key(each), str(halves * MINUTE // 4))
            expected, found = limits.take(client, cost), await store.take(client, cost)
            assert (expected == 0) == (found == 0)
            assert 0 <= expected - found <= time.monotonic() - began
            refused += found > 0
    assert 50 < refused < 250


async def test_redis_lets_a_call_through_at_the_time_it_says(redis: RedisServer) -> None:
    """And not before."""
    async with opened(redis, 1, 3) as store:
        assert [await store.take("a", 1) for _ in range(3)] == [0, 0, 0]
        wait = await store.take("a", 1)
        assert 50 < wait <= 60
        redis.command("DECRBY", key("a"), str(round((wait - 5) * 1_000_000)))
        left = await store.take("a", 1)
        assert 0 < left <= 5
        redis.command("DECRBY", key("a"), str(round(left * 1_000_000)))
        assert await store.take("a", 1) == 0
        assert await store.take("b", 1) == 0, "another client's is another limit"


async def test_redis_forgets_a_client_that_has_its_whole_burst(redis: RedisServer) -> None:
    """Keys expire by themselves, when they say nothing any more."""
    async with opened(redis, 6000, 10) as store:
        assert await store.take("a", 10) == 0
        assert 0 < int(redis.command("PTTL", key("a"))[1:]) <= 100
        async with asyncio.timeout(PATIENCE):
            while redis.command("EXISTS", key("a")) != ":0":
                await asyncio.sleep(0.01)


async def test_clock_of_redis_that_is_set_back(redis: RedisServer) -> None:
    """It makes nobody wait longer than for a whole burst."""
    async with opened(redis, 1, 3) as store:
        redis.command("SET", key("a"), str(round(time.time() * 1_000_000) + 100 * MINUTE))
        assert 50 < await store.take("a", 1) <= 60


async def test_servers_share_one_limit(redis: RedisServer) -> None:
    """What one has let through counts for the other."""
    async with opened(redis, 1, 200) as one, opened(redis, 1, 200) as other:
        waits = await asyncio.gather(*(store.take("a", 1) for _ in range(200) for store in (one, other)))
    assert waits.count(0) == 200


async def test_cancelled_call_leaves_no_reply_to_the_next(redis: RedisServer) -> None:
    """Whoever is cancelled in whatever moment, everyone else gets the answer to their own question."""
    chance = random.Random(0)
    async with opened(redis, 1, 1) as store:

        async def ask(minutes: int) -> None:
            assert await store.take("a", minutes + 1) == minutes * 60

        for _ in range(20):
            calls = [asyncio.create_task(ask(minutes)) for minutes in range(1, 51)]
            for call in chance.sample(calls, 25):
                for _ in range(chance.randint(0, 2)):
                    await asyncio.sleep(0)
                call.cancel()
            ended = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(each) for each in ended} <= {type(None), asyncio.CancelledError}
        assert store.failures == 0
        assert redis.command("GET", key("a")) == "$-1"


async def test_emptied_scripts_are_sent_again(redis: RedisServer) -> None:
    """A script that Redis has forgotten costs a round trip, not the limit."""
    async with opened(redis, 1, 2) as store:
        assert await store.take("a", 1) == 0
        redis.command("SCRIPT", "FLUSH")
        waits = await asyncio.gather(*(store.take("a", 1) for _ in range(10)))
        assert (waits.count(0), store.failures) == (1, 0)


async def test_closed_connection_is_no_outage(redis: RedisServer) -> None:
    """Servers and proxies close idle connections: another is made, and whoever asked in that moment is answered."""
    async with opened(redis, 1, 1000) as store:
        for _ in range(10):
            redis.command("CLIENT", "KILL", "TYPE", "normal")
            with suppress(StoreDown):
                assert await store.take("a", 1) == 0
        assert store.failures < 3  # none, unless this machine is so busy that connecting takes 50 ms


async def test_event_loop_that_is_held_up_is_no_outage(redis: RedisServer) -> None:
    """A tool that blocks the loop for longer than Redis may take is not Redis' fault."""

    async def block() -> None:
        time.sleep(0.2)  # noqa: ASYNC251 - that is what is tested

    async with opened(redis, 1, 1000) as store:
        for _ in range(3):
            for held_up in ([store.take("a", 1), block()], [block(), store.take("a", 1)]):
                await asyncio.gather(*held_up)
        assert store.failures == 0


async def test_hanging_redis_holds_nobody_up(redis: RedisServer) -> None:
    """Of many calls none waits longer than 50 ms, and later ones not at all; each outage is logged once, with its calls."""
    async with opened(redis, 1, 1000) as store:

        async def seconds() -> float:
            began = time.monotonic()
            with pytest.raises(StoreDown):
                await store.take("a", 1)
            return time.monotonic() - began

        first, later = [], []
        with capture_logs() as log:
            for _ in range(5):  # the best of them: other processes hold this one up too
                redis.hang()
                first.append(max(await asyncio.gather(*(seconds() for _ in range(200)))))
                later.append(sum([await seconds() for _ in range(100)]))
                redis.go_on()
                await until_up(store)
                assert 0 <= await store.take("b", 1) < 60
        assert 0.04 < min(first) < 0.1
        assert min(later) < 0.1
        assert store.failures == 5 * 300
        down, up = log[0], log[1]
        assert (down["event"], down["log_level"], down["error"]) == ("rate_limit_store_down", "error", "TimeoutError")
        assert (up["event"], up["log_level"], up["failures"]) == ("rate_limit_store_up", "info", 300)
        assert log == [down, up] * 5


async def test_redis_that_comes_and_goes(redis: RedisServer) -> None:
    """It may be away at the start and later; each time it is found again without a restart."""
    redis.kill()
    with capture_logs() as log:
        async with opened(redis, 1, 2) as store:
            for outage in range(1, 4):
                with pytest.raises(StoreDown):
                    await store.check()
                with pytest.raises(StoreDown):
                    await store.take("a", 1)
                redis.start()
                await until_up(store)
                assert [await store.take("a", 1), await store.take("a", 1), store.failures] == [0, 0, outage]
                assert await store.take("a", 1) > 0
                redis.kill()
                with suppress(StoreDown):  # it is in the middle of finding out
                    await store.check()
    assert [event["event"] for event in log] == ["rate_limit_store_down", "rate_limit_store_up"] * 3 + [
        "rate_limit_store_down"
    ]


async def test_address_where_nothing_answers_delays_a_start_by_a_second() -> None:
    """A port that takes connections is no Redis yet."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        async with opened(f"redis://127.0.0.1:{silent.getsockname()[1]}", 1, 1) as store:
            assert time.monotonic() - began < 2
            with pytest.raises(StoreDown):
                await store.take("a", 1)


async def test_long_outage_is_logged_once() -> None:
    """However often it is tried to connect."""
    tries = asyncio.Semaphore(0)

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()
        tries.release()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        with capture_logs() as log:
            async with opened(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}", 1, 1):
                for _ in range(3):
                    await tries.acquire()
    assert [event["event"] for event in log] == ["rate_limit_store_down"]


async def test_redis_that_cannot_be_written_is_down(redis: RedisServer) -> None:
    """A replica answers, but keeps no limit."""
    async with opened(redis, 1, 1) as store:
        redis.command("REPLICAOF", "127.0.0.1", "1")
        with capture_logs() as log:
            for _ in range(20):
                with pytest.raises(StoreDown):
                    await store.take("a", 1)
                await asyncio.sleep(0.01)  # time to connect again, which is no recovery
        assert [event.get("error") for event in log] == ["ReadOnlyError"]
        redis.command("REPLICAOF", "NO", "ONE")
        await until_up(store)
        assert await store.take("a", 1) == 0


async def test_password_database_and_socket() -> None:
    """Whatever a URL can say is honoured; a wrong password is an outage."""
    with (
        TemporaryDirectory() as folder,
        running_redis(  # the path of a socket is short
            Path(folder), requirepass="hunter22", unixsocket=f"{folder}/socket"
        ) as redis,
    ):
        for url in (
            f"redis://:hunter22@127.0.0.1:{redis.port}/3",
            f"redis://default:hunter22@localhost:{redis.port}?socket_timeout=1",
            f"unix://{folder}/socket?password=hunter22&db=1",
        ):
            async with opened(url, 1, 1) as store:
                assert await store.take("a", 1) == 0, "each is a database of its own"
                assert await store.take("a", 1) > 0
        for url in (redis.url, f"redis://:wrong@127.0.0.1:{redis.port}/3"):
            with capture_logs() as log:
                async with opened(url, 1, 1) as store:
                    with pytest.raises(StoreDown):
                        await store.take("a", 1)
            assert [event["error"] for event in log] == ["AuthenticationError"]


# What a client sees


def limited(start_peer: StartPeer, way: Way, **settings: str) -> Peer:
    """A peer that may call `probe_dear` three times, and the next time in seventeen hours."""
    burst = "3001" if way == STDIO[1] else "3000"  # its handshake costs 1
    return start_peer(way, **{"rate_limit_burst": burst, "rate_limit_per_minute": "1", **settings})


def code_of(answer: Json) -> str | None:
    """The code of the error that a tool call ended in, if it did."""
    result = answer["result"]
    return str(result["_meta"][ERROR]["code"]) if result["isError"] else None


def use_up(peer: Peer) -> Json:
    """Call until it is refused, which is at the fourth time: the refusal."""
    assert [code_of(peer.call("probe_dear")) for _ in range(3)] == [None] * 3
    return peer.error("probe_dear")


def test_burst_then_a_refusal_that_says_when_to_come_back(start_peer: StartPeer, way: Way) -> None:
    """Refused calls reach no tool and are logged; a client that waits as long as it is told succeeds."""
    peer = limited(start_peer, way, rate_limit_per_minute="30000")  # one call in two seconds
    error = use_up(peer)
    assert (error["code"], error["retryable"]) == ("rate_limited", True)
    assert 0 < error["retry_after_ms"] <= 2000
    assert "Retry after" in error["message"]
    line = peer.logged(error["request_id"])
    assert (line["outcome"], line["level"]) == ("rate_limited", "warning")
    time.sleep(error["retry_after_ms"] / 1000)
    assert peer.call("probe_dear")["result"]["structuredContent"] == {"result": 4}
    assert peer.error("probe_dear")["code"] == "rate_limited"


def test_every_request_is_charged(start_peer: StartPeer, way: Way) -> None:
    """Lists and the handshake too; a refusal that is no tool result is a JSON-RPC error with the same members."""
    peer = limited(start_peer, way)
    use_up(peer)
    size = {"ref": {"type": "ref/prompt", "name": "probe_choice"}, "argument": {"name": "size", "value": "s"}}
    hello: Json = {"protocolVersion": way.version, "capabilities": {}, "clientInfo": {"name": "raw", "version": "0"}}
    eras = (
        [("server/discover", {}), ("subscriptions/listen", {"notifications": {"toolsListChanged": True}})]
        if way.version == MODERN
        else [("ping", {}), ("initialize", hello)]
    )
    lists = ["tools/list", "resources/list", "resources/templates/list", "prompts/list"]
    for method, params in (
        *((method, {}) for method in lists),
        *eras,
        ("resources/read", {"uri": "probe://text"}),
        ("resources/read", {"uri": "probe://nowhere"}),
        ("prompts/get", {"name": "probe_prompt", "arguments": {"count": "1"}}),
        ("completion/complete", size),
        ("tools/call", {"name": "no_such_tool", "arguments": {}}),
    ):
        answer = peer.request(method, params)
        error = answer["result"]["_meta"][ERROR] if method == "tools/call" else answer["error"]["data"]
        assert "result" in answer or answer["error"]["code"] == 429
        assert (error["code"], error["retryable"]) == ("rate_limited", True)
        assert 30_000 < error["retry_after_ms"] <= 60_000, "the wait is for what this call costs"


@pytest.mark.parametrize("way", BOTH, ids=str)
def test_large_message_costs_more(start_peer: StartPeer, way: Way) -> None:
    """Each started 64 kB after the first is 1 more."""
    peer = limited(start_peer, way)
    large = {"name": "probe_reached", "arguments": {"x": "y" * 200_000}}
    assert code_of(peer.request("tools/call", large)) == "invalid_arguments"
    assert [code_of(peer.call("probe_dear")) for _ in range(2)] == [None] * 2
    assert 180_000 < peer.error("probe_dear")["retry_after_ms"] <= 240_000, "four are missing, at one a minute"


@pytest.mark.parametrize("way", BOTH, ids=str)
def test_no_limit(start_peer: StartPeer, way: Way) -> None:
    """Zero a minute turns it off."""
    peer = start_peer(way, rate_limit_burst="1", rate_limit_per_minute="0")
    assert {code_of(peer.call("probe_dear")) for _ in range(10)} == {None}


def call_as(peer: Peer, **headers: str) -> str | None:
    """The code of the error, if it is one, that a call with these headers ends in."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return code_of(answer_of(peer.post(peer.message("tools/call", {"name": "probe_dear", "arguments": {}}), named)))


@pytest.mark.parametrize("way", HTTP[1:], ids=str)
def test_forged_address_buys_no_limit(start_peer: StartPeer, way: Way) -> None:
    """`X-Forwarded-For` is believed from trusted proxies alone, and then tells clients apart."""
    peer = limited(start_peer, way)
    assert [call_as(peer, X_Forwarded_For=f"203.0.113.{n}") for n in range(4)] == [None] * 3 + ["rate_limited"]
    peer = limited(start_peer, way, trusted_proxies="127.0.0.1")
    for address in ("203.0.113.1", "203.0.113.2"):
        assert [call_as(peer, X_Forwarded_For=address) for _ in range(4)] == [None] * 3 + ["rate_limited"]
    assert call_as(peer, X_Forwarded_For="198.51.100.1, 203.0.113.1") == "rate_limited", (
        "what a client adds is in front"
    )


@pytest.mark.parametrize("way", HTTP[:1], ids=str)
def test_each_key_has_its_own_limit(start_peer: StartPeer, way: Way, tmp_path: Path) -> None:
    """Two principals at one address do not use up each other's."""
    file = tmp_path / "keys.json"
    keys = [f"Bearer {new_key(file, name, (), None)}" for name in ("one", "other")]
    peer = limited(start_peer, way, auth_mode="api_key", api_keys_file=str(file))
    for presented in keys:
        assert [call_as(peer, Authorization=presented) for _ in range(4)] == [None] * 3 + ["rate_limited"]


# What one caller may take of the calls in flight


@pytest.mark.parametrize("way", HTTP, ids=str)
def test_one_caller_takes_no_more_than_its_share(start_peer: StartPeer, way: Way, tmp_path: Path) -> None:
    """Calls that it has hung up on count, and threads that its calls have left; other callers find their places."""
    file = tmp_path / "keys.json"
    one, other = ({"Authorization": f"Bearer {new_key(file, name, (), None)}"} for name in ("one", "other"))
    limits = {"max_concurrent_calls": "4", "tool_timeout_seconds": "2"}
    peer = start_peer(way, auth_mode="api_key", api_keys_file=str(file), **limits)

    def error_of(headers: dict[str, str], tool: str, **arguments: object) -> Json:
        message = peer.message("tools/call", {"name": tool, "arguments": arguments})
        result = answer_of(peer.post(message, headers))["result"]
        found: Json = result["_meta"][ERROR] if result["isError"] else {}
        return found

    assert error_of(one, "probe_waits_in_a_thread", seconds=60)["code"] == "timeout"
    left = error_of(one, "probe_waits_in_a_thread", seconds=0)
    assert (left["code"], left["retryable"]) == ("overloaded", True)
    assert "your earlier calls" in left["message"]
    assert not error_of(other, "probe_waits_in_a_thread", seconds=0)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(error_of, one, "probe_waits", seconds=60)
        until(lambda: error_of(one, "probe_reached"))
        refused = error_of(one, "probe_reached")
        assert not error_of(other, "probe_reached")
    assert (refused["code"], refused["retry_after_ms"]) == ("overloaded", 1000)
    assert "calls of yours" in refused["message"]


# What a client sees while the limits are in Redis


def readiness(peer: Peer) -> tuple[int, str]:
    """The status and the word of `/readyz`."""
    answer = peer.http.get(peer.url.replace("/mcp", "/readyz"))
    return answer.status_code, answer.json()["status"]


def assert_outage(peer: Peer, policy: str) -> None:
    """Calls end as the policy says, none of them for long, and the server stays ready."""
    for _ in range(5):
        answer = peer.call("probe_dear")
        assert code_of(answer) == (None if policy == "allow" else "unavailable")
        if policy == "deny":
            error = answer["result"]["_meta"][ERROR]
            assert (error["retryable"], error["retry_after_ms"]) == (True, 1000)
        assert peer.server.wait_for("request", rpc_id=answer["id"])["duration_ms"] < 1000
    peer.server.wait_for("rate_limit_store_down")
    if peer.way.transport == "http":
        until(lambda: readiness(peer) == (200, "degraded"))


def assert_over(peer: Peer, failures: list[int]) -> None:
    """Limits are kept, and the server is as ready, as before; the log has two lines for each outage."""
    until(lambda: logged(peer, "rate_limit_store_up", "failures") == failures)
    assert code_of([peer.call("probe_dear") for _ in range(4)][-1]) == "rate_limited"
    if peer.way.transport == "http":
        until(lambda: readiness(peer) == (200, "ok"))
    assert len(logged(peer, "rate_limit_store_down", "error")) == len(failures)


def logged(peer: Peer, event: str, field: str) -> list[object]:
    """A field of each event of this name."""
    return [each[field] for each in peer.server.log if each["event"] == event]


@pytest.mark.parametrize("way", BOTH, ids=str)
@pytest.mark.parametrize("policy", ["allow", "deny"])
def test_outage_of_redis(start_peer: StartPeer, way: Way, policy: str, redis: RedisServer) -> None:
    """Redis is killed and brought back, and hangs for a while: calls go on or not, as is set, and the end is noticed."""
    peer = limited(start_peer, way, rate_limit_store=redis.url, rate_limit_on_store_error=policy)
    assert use_up(peer)["code"] == "rate_limited"
    redis.kill()
    peer.server.wait_for("rate_limit_store_down")
    assert_outage(peer, policy)
    redis.start()
    assert_over(peer, failures=[5])
    redis.hang()
    assert_outage(peer, policy)
    redis.go_on()
    assert_over(peer, failures=[5, 5])
    redis.hang()
    peer.server.process.terminate()
    assert peer.server.finish()[0] == 0
    assert f":{redis.port}" not in str(peer.server.log)


@pytest.mark.parametrize("way", BOTH, ids=str)
def test_redis_that_is_away_at_the_start(start_peer: StartPeer, way: Way, redis: RedisServer) -> None:
    """The server starts, says so, and keeps limits as soon as it can."""
    redis.kill()
    peer = limited(start_peer, way, rate_limit_store=redis.url)
    assert_outage(peer, "allow")
    redis.start()
    assert_over(peer, failures=[6 if way == STDIO[1] else 5])  # a handshake is charged too


@pytest.mark.parametrize("way", HTTP[:1], ids=str)
def test_two_servers_share_one_limit(start_peer: StartPeer, way: Way, redis: RedisServer) -> None:
    """As many calls are let through as by one, though both are called at once."""
    peers = [limited(start_peer, way, rate_limit_burst="100000", rate_limit_store=redis.url) for _ in range(2)]
    with ThreadPoolExecutor(8) as pool:
        codes = list(pool.map(lambda number: call_as(peers[number % 2]), range(150)))
    assert (codes.count(None), codes.count("rate_limited")) == (100, 50)


@pytest.mark.parametrize(
    "url", ["redis://:hunter22@host:port", "redis://host?hunter22=1", "redis://?password=hunter22"]
)
def test_address_that_cannot_be_read(url: str) -> None:
    """The start is refused with a line that names the variable, and nothing of its value."""
    done = run_command("serve", settings={"MCP_RATE_LIMIT_STORE": url})
    assert done.returncode == 2
    assert "MCP_RATE_LIMIT_STORE: " in done.stderr
    assert "rediss://" in done.stderr
    assert "hunter22" not in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def test_extra_that_is_not_installed(tmp_path: Path) -> None:
    """The start is refused with the command that installs it."""
    (tmp_path / "redis.py").write_text("raise ModuleNotFoundError(\"No module named 'redis'\", name='redis')")
    done = run_command("serve", source=tmp_path, settings={"MCP_RATE_LIMIT_STORE": "redis://localhost"})
    assert done.returncode == 2
    assert "MCP_RATE_LIMIT_STORE: " in done.stderr
    assert "uv sync --extra redis" in done.stderr
    assert "Traceback" not in done.stderr
