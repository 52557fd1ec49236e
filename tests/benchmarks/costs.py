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
from my_mcp_server.server import build_server
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
LIMITER = {"MCP_RATE_LIMIT_PER_MINUTE": "1000000000"}
PARTS = {"key": {"MCP_AUTH_MODE": "api_key"}, "limiter": LIMITER, "log": {"MCP_LOG_LEVEL": "INFO"}}

One = Callable[[], Awaitable[object]]


async def server(stack: AsyncExitStack, settings: dict[str, str], authorization: str) -> One:
    """What makes one call of a server with these settings, which is open while the stack is."""
    os.environ.update(settings)
    read = load_settings({"transport": "http"})
    logs.configure(WIRE, level=read.log_level, form="json")  # the server that is built now keeps to it
    app = build_server(read)
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


async def measure(rounds: int, authorization: str, redis: str | None) -> dict[str, list[float]]:
    """Microseconds, a figure a round: of a bare call, of what each part adds to it, and of a round trip to Redis."""
    parts = PARTS | {"all": {name: value for part in PARTS.values() for name, value in part.items()}}
    if redis is not None:
        parts |= {"redis": LIMITER | {"MCP_RATE_LIMIT_STORE": redis}}
    async with AsyncExitStack() as stack:
        stack.enter_context(WIRE.gathering(WRITES.append))
        calls = {"bare": await server(stack, BARE, authorization)}
        for name, settings in parts.items():
            calls[name] = await server(stack, BARE | settings, authorization)
        if redis is not None:
            calls["ping"] = (await stack.enter_async_context(Redis.from_url(redis))).ping
        gc.freeze()
        found: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(rounds):
            turns = []
            for number in range(TURNS):
                order = list(calls)[:: -1 if number % 2 else 1]
                turns.append({name: await took(calls[name]) for name in order})
            for name, figures in found.items():
                clock = name in ("redis", "ping")
                figures.append(
                    statistics.median(turn[name][clock] - (turn["bare"][clock] if name in parts else 0) for turn in turns)
                )
    return found


async def took(one: One) -> tuple[float, float]:
    """Microseconds of one call, the mean of some: of the processor, and by the clock."""
    began = time.process_time(), time.perf_counter()
    for _ in range(CALLS):
        await one()
    while WRITES:
        WRITES.pop()()
    ended = time.process_time(), time.perf_counter()
    processor, clock = ((end - begin) / CALLS * 1_000_000 for begin, end in zip(began, ended, strict=True))
    return processor, clock


if __name__ == "__main__":
    asked = partial(measure, **json.loads(sys.argv[1]))
    WIRE.write_output(json.dumps(anyio.run(asked, backend_options={"use_uvloop": True})))
