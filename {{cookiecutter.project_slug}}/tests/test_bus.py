"""Changes that one replica tells, heard by clients that listen to another: over a real Redis."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import pytest
from redis import Redis

from {{ cookiecutter.package_name }} import NAME

from .conftest import StartPeer
from .harness import HTTP, Json, Peer
from .redis_server import RedisServer, running_redis
from .test_listen import FILTER, SENT, events, read


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of the test's own."""
    with running_redis(tmp_path) as server:
        yield server


@pytest.fixture
def replicas(start_peer: StartPeer, redis: RedisServer) -> tuple[Peer, Peer]:
    """Two servers on one Redis."""
    one, other = (start_peer(HTTP[0], rate_limit_store=redis.url, replicas="2") for _ in range(2))
    return one, other


@contextmanager
def listening(peer: Peer) -> Iterator[tuple[object, Iterator[Json]]]:
    """A stream that is open, the id of its request, and what comes on it."""
    listen = peer.message("subscriptions/listen", FILTER)
    with peer.http.stream("POST", peer.url, json=listen, headers=peer.headers(listen)) as response:
        stream = events(response)
        first = next(stream)
        assert first["method"] == SENT[0]
        yield listen["id"], chain([first], stream)


def checks(peer: Peer) -> Json:
    """What `/readyz` says of the dependencies."""
    found: Json = peer.http.get(peer.url.replace("/mcp", "/readyz")).json()
    return found


def test_change_is_heard_by_every_replica(replicas: tuple[Peer, Peer]) -> None:
    """Once by each listener, wherever it listens: the replica that tells it hears nothing twice."""
    one, other = replicas
    with listening(one) as (first_id, first), listening(other) as (second_id, second):
        for _ in range(2):
            one.call("probe_changes", uri="probe://text")
        for rpc_id, stream in ((first_id, first), (second_id, second)):
            assert read(stream, rpc_id) == SENT
            told = [next(stream)["method"] for _ in range(2)]
            assert told == SENT[1:]


def test_only_what_is_subscribed_to_is_heard(replicas: tuple[Peer, Peer]) -> None:
    """A resource that nobody asked about is not told."""
    one, other = replicas
    with listening(other) as (_, stream):
        one.call("probe_changes", uri="probe://other")
        one.call("probe_changes", uri="probe://text")
        assert [next(stream)["method"] for _ in range(4)] == [SENT[0], SENT[1], SENT[1], SENT[2]]


def test_outage_ends_the_streams(replicas: tuple[Peer, Peer], redis: RedisServer) -> None:
    """What was told meanwhile is lost: clients listen anew, and fetch. Then everything is as before."""
    one, other = replicas
    with listening(other) as (rpc_id, stream):
        redis.kill()
        for peer in replicas:
            assert peer.server.wait_for("event_bus_down")["level"] == "error"
        assert one.call("probe_changes", uri="probe://text")["result"]["isError"] is False
        redis.start()
        *_, last = stream
    assert (last["id"], last["result"]["resultType"]) == (rpc_id, "complete")
    for peer in replicas:
        peer.server.wait_for("event_bus_up")
        assert [line["event"] for line in peer.server.log if line["event"].startswith("event_bus")] == [
            *("event_bus_down", "event_bus_up"),
        ]
    time.sleep(1)  # each tells the other of its gap, which ends the streams once more
    with listening(other) as (rpc_id, stream):
        one.call("probe_changes", uri="probe://text")
        assert read(stream, rpc_id) == SENT


def test_redis_that_hangs_is_an_outage(replicas: tuple[Peer, Peer], redis: RedisServer) -> None:
    """It is asked whether it is there when it has said nothing for some seconds."""
    redis.hang()
    try:
        for peer in replicas:
            peer.server.wait_for("event_bus_down")
    finally:
        redis.go_on()
    for peer in replicas:
        peer.server.wait_for("event_bus_up")


def test_redis_that_is_not_there_stops_no_start(start_peer: StartPeer, redis: RedisServer) -> None:
    """The server is degraded, and its own listeners hear what it tells."""
    redis.kill()
    peer = start_peer(HTTP[0], rate_limit_store=redis.url)
    with listening(peer) as (rpc_id, stream):
        peer.call("probe_changes", uri="probe://text")
        assert read(stream, rpc_id) == SENT
    found = checks(peer)
    assert (found["status"], found["checks"]["event_bus"]) == ("degraded", "failed")


@pytest.mark.parametrize("message", [b"", b"[]", b"{}", b'["x", {"method": 1}]', b'["x", 7]', b'["x", null]', b"\xff"])
def test_message_of_nobody(replicas: tuple[Peer, Peer], redis: RedisServer, message: bytes) -> None:
    """What others write on the channel is let pass, with a line in the log where it is nothing at all."""
    one, other = replicas
    with listening(other) as (rpc_id, stream):
        with Redis.from_url(redis.url) as somebody:
            assert somebody.publish(f"{NAME}:events", message) == 2
        one.call("probe_changes", uri="probe://text")
        assert read(stream, rpc_id) == SENT
