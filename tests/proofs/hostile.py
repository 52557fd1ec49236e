"""An hour under hostile load, for `faults.py --hostile`: 16 honest clients, first alone, then beside those who mean harm.

One server with 1,024 descriptors. The hostile ones come from other addresses of this machine than the honest ones: some
are idle, some send a byte a second, some pipeline, some send much or lie about how much, some guess keys, and some have a
key of their own and want everything, or ask for much and never read it. No honest call may be refused for what they do, and
the slowest hundredth of the honest calls may take three times as long as without them.
"""

import asyncio
import json
import multiprocessing
import os
import random
import statistics
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any, cast

from installed import install_edge
from raw import LEGACY, MODERN, SERVE_HTTP, Connection, Forgetful, Json, headers_of, message, post, resident
from stops import outcome

HONEST = 16
DESCRIPTORS = 1024
PACE = 20  # calls a second of one honest client
TIMES = 3  # as slow as alone
MOST_MB = 256  # more memory than before
LEFT_OPEN = 4  # descriptors more than before, once the hostile ones have gone
SETTINGS = {"MCP_AUTH_MODE": "api_key", "MCP_RATE_LIMIT_PER_MINUTE": "1800", "MCP_RATE_LIMIT_BURST": "200"}
CALLS: list[tuple[str, Json]] = [
    ("get_part", {"sku": "BRG-6204"}),
    ("search_parts", {"query": "bearing", "limit": 3}),
    ("wait", {"seconds": 0.02}),
]


def key(number: int) -> str:
    """Of a client."""
    return f"mcp_{number:012x}_" + f"{number:02d}".ljust(43, "k")


def write_keys(path: Path, number: int) -> None:
    """The file in which the hashes of so many keys are."""
    keys = [
        {"id": f"{n:012x}", "name": f"client-{n}", "sha256": sha256(key(n).encode()).hexdigest(), "scopes": []}
        | {"created": "2026-01-01T00:00:00Z"}
        for n in range(number)
    ]
    path.write_text(json.dumps({"keys": keys}), encoding="utf-8")


class Seen:
    """What the honest clients saw: how long each kind of call took, and what was not as it should be."""

    def __init__(self) -> None:
        self.took: dict[str, list[float]] = {name: [] for name, _ in CALLS}
        self.wrong: Counter[str] = Counter()
        self.lock = threading.Lock()

    @property
    def all(self) -> list[float]:
        """Seconds of every call."""
        return [each for took in self.took.values() for each in took]


def p99(took: list[float]) -> float:
    """Milliseconds."""
    return statistics.quantiles(took, n=100)[98] * 1000 if len(took) > 1 else 0.0


def honest(port: int, number: int, seen: Seen, over: threading.Event) -> None:
    """Call at a steady pace, in both eras; every fourth connects anew for each call."""
    drawn, serial = random.Random(number), count()
    connection: Connection | None = None
    while not over.wait(drawn.expovariate(PACE)):
        name, arguments = drawn.choice(CALLS)
        era = drawn.choice([MODERN, LEGACY])
        sent = message(era, f"{number}-{next(serial)}", "tools/call", {"name": name, "arguments": arguments})
        began = time.monotonic()
        try:
            connection = connection or Connection(port, 20, f"127.0.0.{2 + number % 8}")
            connection.send(post(headers_of(sent, era) | {"Authorization": f"Bearer {key(number)}"}, sent))
            response = connection.receive()
            if response is None:
                raise EOFError
            said = outcome(response.messages[-1]) if response.status == 200 else f"HTTP {response.status}"
            leaves = response.headers.get("connection") == "close" or number % 4 == 0
        except (OSError, EOFError) as error:
            said, leaves = f"no answer ({type(error).__name__})", True
        took = time.monotonic() - began
        if leaves and connection is not None:
            connection.close()
            connection = None
        with seen.lock:
            seen.took[name].append(took)
            if said != "ok":
                seen.wrong[f"{name}: {said}"] += 1
    if connection is not None:
        connection.close()


def probe(port: int, seen: Seen, over: threading.Event) -> None:
    """Ask once a second whether it lives, as an orchestrator does."""
    while not over.wait(1):
        try:
            with Connection(port, 5) as connection:
                connection.send(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
                response = connection.receive("GET")
                said = "nothing" if response is None else str(response.status)
        except (OSError, EOFError) as error:
            said = type(error).__name__
        if said != "200":
            with seen.lock:
                seen.wrong[f"probe: {said}"] += 1


# --- who means harm

Act = Callable[[asyncio.StreamReader, asyncio.StreamWriter, random.Random], Awaitable[None]]


def call(tool: str, credential: str | None, era: str = MODERN, /, **arguments: Any) -> bytes:
    """One call."""
    sent = message(era, 1, "tools/call", {"name": tool, "arguments": arguments})
    given = {"Authorization": f"Bearer {credential}"} if credential is not None else {}
    return post(headers_of(sent, era) | given, sent)


async def idle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, drawn: random.Random) -> None:
    """One request, and then nothing."""
    writer.write(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" + drawn.choice([b"", b"\r\n", b"G"]))
    while await reader.read(4096):
        pass


async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, drawn: random.Random) -> None:
    """A byte a second."""
    for each in call("get_part", None, sku="BRG-6204"):
        writer.write(bytes([each]))
        await writer.drain()
        await asyncio.sleep(1)


async def lying(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, drawn: random.Random) -> None:
    """Never the last byte, or another length than was told."""
    whole = call("cost_take", drawn.choice([None, "wrong"]), text="x" * drawn.choice([100, 100_000, 900_000]))
    sent = drawn.choice([whole[:-1], whole[: len(whole) // 2], whole + whole[: len(whole) // 3]])
    writer.write(drawn.choice([sent, sent.replace(b"Content-Length: ", b"Content-Length: 1")]))
    await writer.drain()
    while await reader.read(65536):
        pass


async def pipelining(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, drawn: random.Random) -> None:
    """Thousands of requests in one write; the answers are read, or not."""
    many = [b"GET / HTTP/1.1\r\n\r\n" * 5000, b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 3000]
    writer.write(drawn.choice([*many, call("get_part", "wrong", sku="BRG-6204") * 300]))
    if drawn.random() < 0.5:
        await asyncio.sleep(5)
    while await reader.read(65536):
        pass


async def huge(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, drawn: random.Random) -> None:
    """Much, and all of it wrong; with a key of its own, or without."""
    credential = drawn.choice([None, "wrong", key(HONEST)])
    bodies: list[Json] = [
        {f"k{n}": 0 for n in range(50_000)},
        {"choice": [{"": 0}] * 100_000},
        {"entries": [{"name": "A", "count": "x"}] * 20_000},
    ]
    tool = "cost_take"
    writer.write(drawn.choice([call(tool, credential, **body) for body in bodies]))
    await writer.drain()
    await reader.read(65536)
    await asyncio.sleep(drawn.expovariate(1))


async def guessing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, drawn: random.Random) -> None:
    """One wrong key after the other."""
    while True:
        guess = f"mcp_{drawn.randrange(HONEST):012x}_{drawn.randrange(10**9):043d}"
        writer.write(call("get_part", guess, sku="BRG-6204"))
        if not await reader.read(65536):
            return
        await asyncio.sleep(drawn.expovariate(10))


async def greedy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, drawn: random.Random) -> None:
    """Everything that one key can get: long calls, left in the handshake revisions at once, and streams."""
    own = key(HONEST + 1)
    if drawn.random() < 0.5:
        writer.write(call("cost_hold", own, LEGACY, seconds=30))
        await writer.drain()
        await asyncio.sleep(0.2)
        return
    sent = message(MODERN, 1, "subscriptions/listen", {"notifications": {"toolsListChanged": True}})
    writer.write(post(headers_of(sent, MODERN) | {"Authorization": f"Bearer {own}"}, sent))
    while await reader.read(65536):
        pass


async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, drawn: random.Random) -> None:
    """A small request, a large answer, and nobody who reads it."""
    cast("asyncio.Transport", writer.transport).pause_reading()
    writer.write(call("wait", key(HONEST + 2), seconds=0, size=900_000))
    await writer.drain()
    await asyncio.sleep(40)


HOSTILE: list[tuple[Act, int, str]] = [
    (idle, 550, "127.0.0.20"),
    (idle, 550, "127.0.0.21"),
    (slow, 100, "127.0.0.22"),
    (lying, 100, "127.0.0.23"),
    (pipelining, 8, "127.0.0.24"),
    (huge, 8, "127.0.0.25"),
    (guessing, 8, "127.0.0.26"),
    (greedy, 40, "127.0.0.27"),
    (deaf, 40, "127.0.0.28"),
]
"""What they do, how many of them at once, and from where."""


def harm(which: int, port: int, seed: int, ready: Any, over: Any, reports: Any) -> None:
    """One kind of them, in a process of its own, until it is over. Whoever is thrown out comes back."""
    os.nice(19)  # elsewhere they have machines of their own; on this one, what the server leaves
    act, number, address = HOSTILE[which]
    done: Counter[str] = Counter()
    ended = asyncio.Event()  # before Python 3.12 `wait_for` may swallow a cancellation

    async def one(drawn: random.Random) -> None:
        while not ended.is_set():
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))
            except OSError as error:
                done[f"not connected ({type(error).__name__})"] += 1
                await asyncio.sleep(0.5 + drawn.random())
                continue
            done["connected"] += 1
            try:
                with suppress(OSError):
                    await asyncio.wait_for(act(reader, writer, drawn), 300)
            except TimeoutError:
                done["not thrown out in 300 s"] += 1
            finally:
                writer.transport.abort()
            await asyncio.sleep(drawn.random())

    async def all_of_them() -> None:
        drawn = [random.Random(seed * 1000 + which * 100_000 + n) for n in range(number)]
        tasks = [asyncio.create_task(one(each)) for each in drawn]
        ready.release()
        await asyncio.to_thread(over.wait)
        ended.set()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    asyncio.run(all_of_them())
    reports.put((which, done))


# --- the proof


def prove(folder: Path, seconds: float, seed: int) -> int:
    """Run it; returns 1 if a promise is broken."""
    installed = install_edge(folder / "project")
    keys = folder / "keys.json"
    write_keys(keys, HONEST + 3)
    command = ["sh", "-c", f'ulimit -n {DESCRIPTORS} && exec "$@"', "sh", str(installed.command), *SERVE_HTTP]
    with Forgetful(command, SETTINGS | {"MCP_API_KEYS_FILE": str(keys)}, patience=120) as server:
        port, pid = server.port, server.process.pid
        server.forgets.set()
        alone, _ = measured(port, pid, max(10.0, min(60.0, seconds / 10)))
        before = resident(pid), opened(pid)
        print(f"Alone: {len(alone.all)} calls, p99 {p99(alone.all):.1f} ms.", flush=True)
        spawn = multiprocessing.get_context("spawn")
        ready, over, reports = spawn.Semaphore(0), spawn.Event(), spawn.Queue()
        given = (port, seed, ready, over, reports)
        processes = [spawn.Process(target=harm, args=(n, *given)) for n in range(len(HOSTILE))]
        for process in processes:
            process.start()
        try:
            assert all(ready.acquire(timeout=120) for _ in processes)
            beside, most = measured(port, pid, seconds, told=True)
        finally:
            over.set()
            done = dict(reports.get(timeout=60) for _ in processes)
            for process in processes:
                process.join()
        deadline = time.monotonic() + 60
        while opened(pid) > before[1] + LEFT_OPEN and time.monotonic() < deadline:  # it hears of each that has left
            time.sleep(0.2)
        after = resident(pid), opened(pid)
    return tell(alone, beside, done, before, most, after)


def measured(port: int, pid: int, seconds: float, *, told: bool = False) -> tuple[Seen, tuple[int, int]]:
    """What the honest clients see for so long, and the most memory (KiB) and descriptors meanwhile."""
    seen, over = Seen(), threading.Event()
    with ExitStack() as stack:
        for target, args in [(honest, (port, n, seen, over)) for n in range(HONEST)] + [(probe, (port, seen, over))]:
            thread = threading.Thread(target=target, args=args)
            thread.start()
            stack.callback(thread.join)
        stack.callback(over.set)
        begun, most, minute = time.monotonic(), (0, 0), 0
        while (passed := time.monotonic() - begun) < seconds:
            time.sleep(min(1.0, seconds - passed))
            most = max(most[0], resident(pid)), max(most[1], opened(pid))
            if told and passed // 60 > minute:
                minute = int(passed // 60)
                print(
                    f"{minute} min: {resident(pid)} KiB, {opened(pid)} descriptors, wrong: {seen.wrong.total()}",
                    flush=True,
                )
    return seen, most


def tell(
    alone: Seen,
    beside: Seen,
    done: dict[int, Counter[str]],
    before: tuple[int, int],
    most: tuple[int, int],
    after: tuple[int, int],
) -> int:
    """Print the tables; returns 1 if a promise is broken."""
    print(
        "\n| honest calls | alone | p50, ms | p99, ms | beside hostile ones | p50, ms | p99, ms |\n"
        + "| --- " * 7
        + "|"
    )
    for name in [*(name for name, _ in CALLS), "all"]:
        cells: list[object] = [name]
        for seen in (alone, beside):
            took = seen.all if name == "all" else seen.took[name]
            cells += [len(took), f"{statistics.median(took or [0]) * 1000:.1f}", f"{p99(took):.1f}"]
        print(f"| {' | '.join(map(str, cells))} |")
    print("\n| hostile | at once | what became of them |\n| --- | --- | --- |")
    for which, (act, number, _) in enumerate(HOSTILE):
        said = ", ".join(f"{times} {what}" for what, times in done.get(which, Counter()).most_common())
        print(f"| {act.__name__} | {number} | {said} |")
    print(f"\nMemory: {before[0]} KiB before, {most[0]} at most, {after[0]} after.", end=" ")
    print(f"Descriptors: {before[1]} before, {most[1]} at most, {after[1]} after.")
    broken = [f"{times} x {what}" for seen in (alone, beside) for what, times in seen.wrong.most_common(20)]
    if (slow := p99(beside.all)) > TIMES * p99(alone.all):
        broken.append(f"p99 is {slow / p99(alone.all):.1f} times what it is alone")
    if most[0] - before[0] > MOST_MB << 10:
        broken.append(f"memory grew by {most[0] - before[0]} KiB")
    if after[1] > before[1] + LEFT_OPEN:
        broken.append(f"{after[1] - before[1]} descriptors more than before")
    print(f"Broken: {'; '.join(broken)}" if broken else "All promises hold.")
    return 1 if broken else 0


def opened(pid: int) -> int:
    """How many descriptors it has."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
