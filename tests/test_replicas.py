"""Two replicas behind a load balancer behave as one, and a rolling restart under full load loses no call."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from installed import Installed
from raw import LEGACY, MODERN
from replicas import Replicas, Seen, ask
from stops import install_probes, sabotaged

pytestmark = [
    pytest.mark.install,
    pytest.mark.timeout(300),
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals"),
]

CLIENTS = 16
ASKS = '''"""A tool that asks its caller something, and keeps what it knows in sealed state."""

from mcp_types import ElicitRequest, ElicitRequestFormParams, InputRequiredResult

from ..tooling import Context, tool


@tool()
async def ask_back(ctx: Context) -> str | InputRequiredResult:
    """Ask once."""
    if ctx.request_state is None:
        form = ElicitRequestFormParams(message="What?", requested_schema={"type": "object", "properties": {}})
        return InputRequiredResult(input_requests={"what": ElicitRequest(params=form)}, request_state="known")
    return ctx.request_state
'''


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The default project, with calls that take their time."""
    return install_probes(tmp_path_factory.mktemp("replicas"))


@pytest.fixture
def replicas(installed: Installed, tmp_path: Path) -> Iterator[Replicas]:
    """Two of them."""
    with Replicas(installed, tmp_path, {}) as both:
        yield both


def roll(replicas: Replicas, what: str = "rolling restart", settle: float = 0.5) -> Seen:
    """Restart both in turn, under full load; what the clients saw. `settle`: seconds of load before and after."""
    with replicas.load(CLIENTS) as seen:
        time.sleep(settle)
        codes = [replicas.restart(number) for number in (0, 1)]
        time.sleep(settle)
    seen.exit_codes = codes
    show(what, seen)
    return seen


def show(what: str, seen: Seen) -> None:
    """Print what the clients saw, for whoever asks for it with `-s`."""
    said = ", ".join(f"{number} {outcome}" for outcome, number in sorted(seen.outcomes.items()))
    print(f"\n{what}, {CLIENTS} clients: {said}; the slowest {seen.slowest * 1000:.0f} ms")


def test_rolling_restart_loses_no_call(replicas: Replicas) -> None:
    """Each replica in turn is stopped in order and started again: every call of every client succeeds, in both eras."""
    seen = roll(replicas)
    assert seen.failures == []
    assert seen.outcomes["ok"] > 200
    assert seen.exit_codes == [0, 0]


def test_without_the_drain_calls_are_lost(installed: Installed, tmp_path: Path) -> None:
    """That is what the test above would see."""
    settings = sabotaged(installed, tmp_path, "calls are not waited for") | {"MCP_DRAIN_DELAY_SECONDS": "0"}
    with Replicas(installed, tmp_path, settings) as replicas:
        assert roll(replicas, "rolling restart, without the drain").failures != []


def test_replica_that_is_killed(replicas: Replicas) -> None:
    """Only calls in flight on it fail, each by an error of the balancer's; the other one takes over within a second."""
    with replicas.load(CLIENTS) as seen:
        time.sleep(0.5)
        killed = time.monotonic()
        replicas.servers[0].process.kill()
        time.sleep(3)
    show("one replica killed", seen)
    assert seen.failures
    assert len(seen.failures) <= CLIENTS
    # On a connection that was used before, HAProxy closes instead, as if the client had been too late.
    assert {said for _, said in seen.failures} <= {"status 502", "status 503", "no answer: EOFError"}
    assert max(when for when, _ in seen.failures) - killed < 1
    assert seen.outcomes["ok"] > 100
    assert seen.slowest < 5


@pytest.mark.parametrize(("on_error", "codes"), [("allow", set()), ("deny", {"unavailable"})])
def test_redis_that_goes_and_comes_back(installed: Installed, tmp_path: Path, on_error: str, codes: set[str]) -> None:
    """Under load: calls go on, or are refused, as it is set; none hangs, and all is well 2 s after it is back."""
    with (
        Replicas(installed, tmp_path, {"MCP_RATE_LIMIT_ON_STORE_ERROR": on_error}) as replicas,
        replicas.load(CLIENTS) as seen,
    ):
        time.sleep(0.5)
        replicas.kill_redis()
        time.sleep(1)
        replicas.start_redis()
        back = time.monotonic()
        time.sleep(3)
    show(f"Redis killed and brought back, {on_error}", seen)
    assert {said for _, said in seen.failures} == codes
    assert not [when for when, _ in seen.failures if when > back + 2]
    assert seen.slowest < 2


def test_state_that_one_has_sealed_opens_on_the_other(installed: Installed, tmp_path: Path) -> None:
    """A call of several rounds needs no sticky sessions, and each of its states is used once, whichever replica it comes to."""
    tools = installed.path / "src" / "spare_parts" / "tools"
    (tools / "ask_back.py").write_text(ASKS, encoding="utf-8")
    with Replicas(installed, tmp_path, {}) as replicas:
        one, other = replicas.ports
        call = {"name": "ask_back", "arguments": {}}
        asked = ask(one, "tools/call", call)["result"]
        assert asked["resultType"] == "input_required"
        answered = ask(other, "tools/call", call | {"requestState": asked["requestState"]})["result"]
        assert answered["structuredContent"] == {"result": "known"}
        again = ask(one, "tools/call", call | {"requestState": asked["requestState"]})
        assert again["error"]["data"]["reason"] == "invalid_request_state"


@pytest.mark.parametrize("era", [MODERN, LEGACY])
def test_limit_is_one_for_both(installed: Installed, tmp_path: Path, era: str) -> None:
    """What one client may do at once is counted over both replicas."""
    settings = {"MCP_RATE_LIMIT_PER_MINUTE": "1", "MCP_RATE_LIMIT_BURST": "10"}
    with Replicas(installed, tmp_path, settings) as replicas:
        call = {"name": "get_part", "arguments": {"sku": "BRG-6204"}}
        refused = [ask(replicas.port, "tools/call", call, era)["result"]["isError"] for _ in range(15)]
    assert refused == [False] * 10 + [True] * 5
