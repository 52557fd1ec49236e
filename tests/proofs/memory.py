"""What a server keeps of the calls it has answered, and of the clients that have left."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

from raw import HELLO, INITIALIZED, LEGACY, MODERN, SERVE_HTTP, Connection, Server, headers_of, message, post

CALLS, CLIENTS = 100_000, 10_000
MOST_KB, MOST_GROWTH = 3 * 1024, 0.05  # after a fifth of it, and after all
BATCH, THREADS = 100, 4
CALL = {"name": "wait", "arguments": {"seconds": 0}}


def prove(command: list[str | Path]) -> bool:
    """Measure each kind of server; print a row for each."""
    columns = f"{'warm':>10}{'a fifth':>10}{'all':>10}{'growth':>9}"
    print(f"\nResident memory in kB: warm, after a fifth of it, after all of it\n\n{'':42}{columns}")
    kept = []
    for era in (MODERN, LEGACY):
        with Server(command) as server:
            if era == LEGACY:
                server.send(message(era, "hello", "initialize", HELLO), INITIALIZED)
                server.receive()
            kept.append(measure(f"stdio, {era}: {CALLS} calls", server, pipelined(server, era), CALLS))
    for sessions in ("stateless", "stateful"):
        with Server([*command, *SERVE_HTTP], {"MCP_HTTP_SESSIONS": sessions}) as server:
            kept.append(measure(f"HTTP, {sessions}: {CALLS} calls", server, calls(server.port, sessions), CALLS))
            kept.append(measure(f"HTTP, {sessions}: {CLIENTS} clients", server, clients(server.port), CLIENTS))
    return all(kept)


def measure(name: str, server: Server, work: Callable[[int], None], total: int) -> bool:
    """Do so much of this work; whether the memory stays as it is after a tenth of it."""
    sizes = []
    for share in (total // 10, total // 5, total - total // 5):
        work(share)
        status = Path(f"/proc/{server.process.pid}/status").read_text(encoding="ascii")
        sizes.append(int(status.partition("VmRSS:")[2].split()[0]))
    warm, first, last = sizes
    print(f"{name:42}{warm:>10}{first:>10}{last:>10}{(last - warm) / warm:>9.1%}", flush=True)
    return first - warm <= MOST_KB and last - warm < MOST_GROWTH * warm


def pipelined(server: Server, era: str) -> Callable[[int], None]:
    """Calls on a pipe, some at a time."""

    def work(amount: int) -> None:
        for start in range(0, amount, BATCH):
            server.send(*(message(era, f"{start}-{n}", "tools/call", CALL) for n in range(BATCH)))
            for _ in range(BATCH):
                assert json.loads(server.receive())["result"]["isError"] is False

    return work


def calls(port: int, sessions: str) -> Callable[[int], None]:
    """Calls over HTTP of both eras, on a few connections; legacy ones in a session where there are any."""

    def client(number: int, amount: int) -> None:
        era = (MODERN, LEGACY)[number % 2]
        with Connection(port) as connection:
            session = connection.shake_hands() if era == LEGACY else {}
            assert bool(session) == (era == LEGACY and sessions == "stateful")
            for _ in range(amount // THREADS):
                call(connection, era, session)

    return threaded(client)


def clients(port: int) -> Callable[[int], None]:
    """Legacy clients that connect, shake hands, call and leave, and end their session if they were given one."""

    def client(number: int, amount: int) -> None:
        for _ in range(amount // THREADS):
            with Connection(port) as connection:
                session = connection.shake_hands()
                call(connection, LEGACY, session)
                if session:
                    assert connection.ask(post(headers_of({}, LEGACY) | session, b"", "DELETE")).status == 200

    return threaded(client)


def call(connection: Connection, era: str, session: dict[str, str]) -> None:
    """One call and its answer."""
    sent = message(era, 1, "tools/call", CALL)
    response = connection.ask(post(headers_of(sent, era) | session, sent))
    assert response.messages[-1]["result"]["isError"] is False


def threaded(client: Callable[[int, int], None]) -> Callable[[int], None]:
    """Work that a few clients share."""

    def work(amount: int) -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(client, range(THREADS), repeat(amount)))

    return work
