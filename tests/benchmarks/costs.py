"""What authentication, the rate limit and the log cost each call: `costs.py '{"rounds": 9, ...}'` prints it as JSON.

Runs on a generated project's Python, with its settings. A call is all that lies between uvicorn and the tool, and goes
through the server's own loop: without sockets nothing hides a few microseconds. Servers take turns. What waits for nobody is
measured in processor time, the rest by the clock.
"""

import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

from my_mcp_server import wire

WIRE = wire.claim()  # as the server does; what was stderr gets the log

import anyio
from load import call, check
from my_mcp_server import logs
from my_mcp_server import server as composition
from my_mcp_server.guards.rate_limit import RateLimit
from my_mcp_server.limits.store import StoreDown, make_store
from my_mcp_server.serving.edge import Edge
from my_mcp_server.serving.readiness import Readiness
from my_mcp_server.settings import load_settings
from redis.asyncio import Redis

TURNS, CALLS = 24, 40  # in a round; of each server in a turn: about as many as have their lines written at once
WRITES: list[Callable[[], None]] = []  # of the log, which a server would do a few milliseconds later
HEADERS = {
    "host": "127.0.0.1",
    "content-type": "application/json",
    "accept": "application/json, text/event-stream",
    "mcp-protocol-version": "2026-07-28",
    "mcp-method": "tools/call",
    "mcp-name": "add",
}
BARE = {"MCP_AUTH_MODE": "none", "MCP_RATE_LIMIT_PER_MINUTE": "0", "MCP_LOG_LEVEL": "ERROR"}
PARTS = {
    "key": {"MCP_AUTH_MODE": "api_key"},
    "limiter": {"MCP_RATE_LIMIT_PER_MINUTE": "1000000000"},
    "log": {"MCP_LOG_LEVEL": "INFO"},
}

One = Callable[[], Awaitable[object]]

_install = composition.install


def install(server: Any, guards: list[Any], *more: Any) -> None:
    """The server's own, without the guard of a limit that is off: it would stand there, and let everybody pass."""
    is_off = os.environ["MCP_RATE_LIMIT_PER_MINUTE"] == "0"
    _install(server, [guard for guard in guards if not (is_off and isinstance(guard, RateLimit))], *more)


composition.install = install


async def server(stack: AsyncExitStack, settings: dict[str, str], authorization: str) -> One:
    """What makes one call of a server with these settings, which is open while the stack is."""
    os.environ.update(settings)
    read = load_settings({"transport": "http"})
    logs.configure(WIRE, level=read.log_level, form="json")  # the server that is built now keeps to it
    app = composition.build_server(read)
    await stack.enter_async_context(app.open())
    readiness = Readiness(app.dependencies)
    readiness.ready()
    edge = Edge(app, readiness, None)

    sent = HEADERS | ({"authorization": authorization} if read.auth_mode == "api_key" else {})
    scope = {"type": "http", "scheme": "http", "method": "POST", "path": "/mcp", "query_string": b""}
    scope |= {"client": ("127.0.0.1", 1), "headers": [(name.encode(), value.encode()) for name, value in sent.items()]}
    received = {"type": "http.request", "body": call(1, "modern")}
    answer: dict[str, Any] = {}

    async def receive() -> dict[str, Any]:
        return received

    async def send(message: dict[str, Any]) -> None:
        answer.update(message)

    async def one() -> None:
        await edge(dict(scope), receive, send)

    await one()
    check(answer["body"])
    return one


async def limit(stack: AsyncExitStack, redis: str) -> One:
    """What charges one call in Redis."""
    os.environ.update(PARTS["limiter"] | {"MCP_RATE_LIMIT_STORE": redis})
    read = load_settings({})
    store, (wanted,) = make_store(read)
    await stack.enter_async_context(wanted.open(read))

    async def one() -> None:
        while True:
            try:
                await store.take("api_key:0123456789ab", 1)
            except StoreDown:  # a busy machine keeps an answer for 50 ms: that turn counts as slow, not as quick
                await anyio.sleep(0.1)
            else:
                return

    await one()
    return one


async def measure(rounds: int, authorization: str, redis: str | None) -> dict[str, list[float]]:
    """Microseconds, a figure a round: of a bare call, of what each part adds to it, of a limit in Redis, and of a PING."""
    parts = PARTS | {"all": {name: value for part in PARTS.values() for name, value in part.items()}}
    async with AsyncExitStack() as stack:
        stack.enter_context(WIRE.gathering(WRITES.append))
        calls = {"bare": await server(stack, BARE, authorization)}
        for name, settings in parts.items():
            calls[name] = await server(stack, BARE | settings, authorization)
        gc.freeze()
        found = [
            [{name: took - (turn["bare"] if name in parts else 0) for name, took in turn.items()} for turn in turns]
            for turns in await interleaved(calls, rounds, time.process_time)
        ]
        if redis is not None:
            waiting = {
                "redis": await limit(stack, redis),
                "ping": (await stack.enter_async_context(Redis.from_url(redis))).ping,
            }
            other = await interleaved(waiting, rounds, time.perf_counter)
            found = [[one | two for one, two in zip(*both, strict=True)] for both in zip(found, other, strict=True)]
    return {name: [statistics.median(turn[name] for turn in turns) for turns in found] for name in found[0][0]}


async def interleaved(calls: dict[str, One], rounds: int, clock: Callable[[], float]) -> list[list[dict[str, float]]]:
    """Microseconds of each call, in each turn of each round; every other turn goes backwards."""
    found = []
    for _ in range(rounds):
        turns = [
            {name: await took(calls[name], clock) for name in list(calls)[:: -1 if number % 2 else 1]}
            for number in range(TURNS)
        ]
        found.append(turns)
    return found


async def took(one: One, clock: Callable[[], float]) -> float:
    """Microseconds of one call, the mean of some."""
    began = clock()
    for _ in range(CALLS):
        await one()
    while WRITES:
        WRITES.pop()()
    return (clock() - began) / CALLS * 1_000_000


if __name__ == "__main__":
    asked = partial(measure, **json.loads(sys.argv[1]))
    WIRE.write_output(json.dumps(anyio.run(asked, backend_options={"use_uvloop": True})))
