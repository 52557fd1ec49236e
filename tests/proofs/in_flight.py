"""Calls in flight when SIGTERM arrives: each is answered, and the process exits 0."""

import json
from pathlib import Path

from raw import HELLO, INITIALIZED, LEGACY, MODERN, SERVE_HTTP, Connection, Json, Server, headers_of, message, post

CALLS, TIMES, SECONDS = 8, 50, 0.3
WAYS: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "stdio": ((), {}),
    "HTTP stateless": (SERVE_HTTP, {}),
    "HTTP stateful": (SERVE_HTTP, {"MCP_HTTP_SESSIONS": "stateful"}),
}


def prove(command: list[str | Path]) -> bool:
    """Stop every kind of server many times; print a row for each."""
    print(f"\n{CALLS} calls in flight at SIGTERM, {TIMES} times\n\n{'':24}{'answered':>12}{'exit 0':>9}")
    kept = True
    for way, (arguments, settings) in WAYS.items():
        for era in (MODERN, LEGACY):
            stops = [stop([*command, *arguments], settings, era) for _ in range(TIMES)]
            answered, clean = sum(count for count, _ in stops), sum(code == 0 for _, code in stops)
            print(f"{f'{way}, {era}':26}{answered:>6}/{CALLS * TIMES}{clean:>6}/{TIMES}", flush=True)
            kept = kept and answered == CALLS * TIMES and clean == TIMES
    return kept


def stop(command: list[str | Path], settings: dict[str, str], era: str) -> tuple[int, int]:
    """One server's life: how many calls were answered, and the exit code."""
    calls = [message(era, n, "tools/call", {"name": "wait", "arguments": {"seconds": SECONDS}}) for n in range(CALLS)]
    with Server(command, settings) as server:
        answers = over_http(server, era, calls) if "http" in command else over_stdio(server, era, calls)
        right = {a["id"] for a in answers if a.get("result", {}).get("structuredContent") == {"result": "done"}}
        return len(right), server.wait()


def over_stdio(server: Server, era: str, calls: list[Json]) -> list[Json]:
    """The answers that a pipe brings until it ends."""
    if era == LEGACY:
        server.send(message(era, "hello", "initialize", HELLO), INITIALIZED)
        server.receive()
    server.send(*calls)
    server.wait_for("waiting", CALLS)
    server.process.terminate()
    return [json.loads(line) for line in iter(server.lines.get, None)]


def over_http(server: Server, era: str, calls: list[Json]) -> list[Json]:
    """The answers that connections bring, each with a call of its own."""
    session: dict[str, str] = {}
    if era == LEGACY:
        with Connection(server.port) as connection:
            session = connection.shake_hands()
    connections = [Connection(server.port) for _ in calls]
    for connection, call in zip(connections, calls, strict=True):
        connection.send(post(headers_of(call, era) | session, call))
    server.wait_for("waiting", CALLS)
    server.process.terminate()
    answers = []
    for connection in connections:
        with connection:
            try:
                response = connection.receive()
            except (EOFError, ConnectionError):
                continue
            answers += response.messages[-1:] if response is not None else []
    return answers
