"""A clock that jumps: by an operator's hand, or as a virtual machine wakes up. It judges keys, and nothing else."""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from {{ cookiecutter.package_name }}.auth.api_keys import new_key

from .conftest import StartPeer
from .harness import Peer, Way

LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
DAY = 24 * 60 * 60

pytestmark = pytest.mark.skipif(LIBRARY is None, reason="libfaketime is not installed")


@pytest.fixture
def jump(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """`jump(3600)`: from now on the clock of servers that the test starts is an hour ahead."""
    file = tmp_path / "offset"

    def set_offset(seconds: int) -> None:
        moved = tmp_path / "moved"
        moved.write_text(f"{seconds:+d}")
        moved.replace(file)

    set_offset(0)
    monkeypatch.setenv("LD_PRELOAD", str(LIBRARY))
    monkeypatch.setenv("FAKETIME_TIMESTAMP_FILE", str(file))
    monkeypatch.setenv("FAKETIME_NO_CACHE", "1")
    monkeypatch.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
    monkeypatch.setenv("DONT_FAKE_MONOTONIC", "1")
    yield set_offset


def logged_now(peer: Peer) -> datetime:
    """The time that its log has."""
    answer = peer.call("probe_list")
    line = peer.server.wait_for("request", rpc_id=answer["id"], tool="probe_list")
    return datetime.fromisoformat(line["timestamp"])


@pytest.mark.parametrize("seconds", [DAY, -DAY], ids=["forward", "back"])
def test_calls_and_limits_do_not_notice(
    start_peer: StartPeer, jump: Callable[[int], None], way: Way, seconds: int
) -> None:
    """A call in flight ends when it should, a timeout takes its time, what is spent stays spent, the stop is in order."""
    peer = start_peer(way, rate_limit_per_minute="1", rate_limit_burst="1010")
    assert peer.call("probe_dear")["result"]["isError"] is False  # 1000 of them, which are back in 17 hours
    message = peer.message("tools/call", {"name": "probe_waits", "arguments": {"seconds": 0.5}})
    began = time.monotonic()
    if way.transport == "stdio":
        peer.server.send(message)
        peer.server.wait_for("waiting")
        jump(seconds)
        assert peer.server.receive()["result"]["isError"] is False
    else:
        jump(seconds)
        assert peer.post(message).status_code == 200
    assert 0.5 <= time.monotonic() - began < 10
    assert peer.server.wait_for("request", rpc_id=message["id"], tool="probe_waits")["duration_ms"] < 10_000

    assert abs(logged_now(peer) - datetime.now(UTC) - timedelta(seconds=seconds)) < timedelta(minutes=5), "no jump"
    slow = peer.error("probe_slow")
    assert slow["code"] == "timeout"
    assert peer.logged(slow["request_id"])["duration_ms"] < 10_000
    refused = peer.error("probe_dear")
    assert refused["code"] == "rate_limited"
    assert 0 < refused["retry_after_ms"] <= 1000 * 60_000
    jump(0)
    assert peer.error("probe_dear")["code"] == "rate_limited"
    if way.transport == "stdio":
        assert peer.server.finish() == (0, [])


def test_keys_are_judged_by_the_new_time(
    start_peer: StartPeer, jump: Callable[[int], None], way: Way, tmp_path: Path
) -> None:
    """One that expires in an hour is refused a day later, and is good again when the clock is right again."""
    file = tmp_path / "keys.json"
    key = new_key(file, "tests", [], 1 / 24)
    peer = start_peer(
        way, auth_mode="api_key", api_keys_file=str(file), **({"api_key": key} if way.transport == "stdio" else {})
    )
    if way.transport == "http":
        peer.http.headers["Authorization"] = f"Bearer {key}"

    def status() -> str:
        message = peer.message("tools/call", {"name": "probe_list", "arguments": {}})
        if way.transport == "http":
            return {200: "ok", 401: "unauthenticated"}[peer.post(message).status_code]
        peer.server.send(message)
        result = peer.server.receive()["result"]
        return str(result["_meta"]["plinth/error"]["code"]) if result["isError"] else "ok"

    assert status() == "ok"
    jump(DAY)
    assert status() == "unauthenticated"
    jump(0)
    assert status() == "ok"
