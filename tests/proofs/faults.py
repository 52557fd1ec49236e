"""Ten minutes of faults: `uv run tests/proofs/faults.py [--hostile] [--seconds N] [--seed N]`.

Two replicas with everything on (API keys, a limit they share in a real Redis, metrics, calls to another service) behind a
real load balancer, under load without a pause, while faults drawn from the seed strike one after the other. Prints what
became of the calls, fault by fault, and what memory and descriptors did in the replica that lives throughout; exits 1 if a
graceful stop lost a call, a call had no end where it must have one, or the replica grew. `--hostile`: an hour of callers
who mean harm instead (`hostile.py`). Linux, as it reads /proc.
"""

import argparse
import os
import random
import resource
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

import hostile
from hostile import opened, resident

from bootstrap import free_port
from installed import Installed
from raw import LEGACY, MODERN, Connection, Json, Server, headers_of, message, post
from replicas import Replicas
from stops import install_probes, outcome

CLIENTS = 16
SETTLE = 1.0  # seconds of load without a fault after each
MOST_KB, MOST_GROWTH = 3072, 0.05  # whichever is more, from when it was warm
MOST_DESCRIPTORS = 4  # more than when it was warm, once nobody is connected
MAY_CUT = {"kill", "descriptors"}
"""Faults in which a call may end without an answer: the process is gone, or can take no connection."""


class Log(Server):
    """A replica whose log can be left unread for a while."""

    def __init__(self, command: list[str | Path], settings: Mapping[str, str]) -> None:
        self.is_read = threading.Event()
        self.is_read.set()
        super().__init__(command, settings)

    def _log(self, line: bytes | None) -> None:
        self.is_read.wait()
        super()._log(line)


class Guarded(Replicas):
    """Replicas with everything on."""

    def __init__(self, installed: Installed, folder: Path, upstream: str) -> None:
        keys = folder / "keys.json"
        self.key = installed.new_key(keys, "orders:write", "datasheets:check")
        settings = {
            "MCP_AUTH_MODE": "api_key",
            "MCP_API_KEYS_FILE": str(keys),
            "MCP_AUTH_FAILURES_PER_MINUTE": "1000000",
            "MCP_UPSTREAM_BASE_URL": upstream,
            "MCP_DRAIN_TIMEOUT_SECONDS": "15",
        }
        super().__init__(installed, folder, settings)

        self.accepted: Counter[str] = Counter()
        """Requests in the logs of replicas that have ended: by their ids."""
        self.unlogged = 0
        """Lines that replicas had no room for while nobody read them."""
        self.exit_codes: list[int] = []

    def bring_back(self, number: int) -> None:
        """Keep what its log says, too."""
        self.exit_codes.append(self.servers[number].wait())
        for event in self.servers[number].events():
            if event["event"] == "request" and event["outcome"] != "cancelled" and event["rpc_id"] != "slow":
                self.accepted[str(event["rpc_id"])] += 1
            if event["event"] == "log_lines_dropped":
                self.unlogged += event["count"]
        super().bring_back(number)

    def _start(self, port: int) -> Server:
        own = {"MCP_PORT": str(port), "MCP_METRICS_PORT": str(free_port())}
        command: list[str | Path] = [self._installed.command, "serve", "--transport", "http"]
        server = Log(command, self._settings | own)
        server.wait_for("listening")
        return server


class Upstream(BaseHTTPRequestHandler):
    """The other service. `mode`: what it does with requests now."""

    protocol_version = "HTTP/1.1"
    mode = "well"

    def do_GET(self) -> None:
        """Answer with a rate, or as the fault has it."""
        mode = type(self).mode
        if mode in ("slow", "hanging"):
            time.sleep({"slow": 0.7, "hanging": 4}[mode])
        if mode == "resetting":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.close_connection = True
            return
        body = b'{"rate": 1.25}'
        self.send_response(503 if mode == "unavailable" else 200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        with suppress(OSError):  # the client has given up
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


class Calls:
    """What became of the calls: by the fault that was at work, then by how they ended."""

    def __init__(self) -> None:
        self.fault = "none"
        self.ends: dict[str, Counter[str]] = {}
        self.sent: Counter[str] = Counter()
        self.slowest: Counter[str] = Counter()
        self.unanswered: dict[str, str] = {}
        """Those without an answer: id and fault."""
        self._lock = threading.Lock()

    def add(self, rpc_id: str, fault: str, end: str, seconds: float) -> None:
        """One call has ended."""
        with self._lock:
            if end.startswith(NONE):
                self.unanswered[rpc_id] = fault
            self.sent[fault] += 1
            self.ends.setdefault(fault, Counter())[end] += 1
            self.slowest[fault] = max(self.slowest[fault], round(seconds * 1000))


NONE = ("no answer", "HTTP 502", "HTTP 503", "HTTP 504")
"""Ends of a call that no replica has answered: the balancer's errors too."""
KINDS: list[tuple[int, str, Json]] = [
    (6, "get_part", {"sku": "BRG-6204"}),
    (3, "wait", {"seconds": 0.3}),
    (3, "convert_price", {"sku": "BRG-6204", "currency": "USD"}),
    (2, "place_order", {"sku": "BRG-6204", "quantity": 1, "idempotency_key": ""}),
    (1, "get_part", {"sku": "?", "more": True}),
]


def client(port: int, key: str, number: int, seed: int, calls: Calls, over: threading.Event) -> None:
    """Call without a pause, in both eras; some with a wrong key, and some leave before the answer."""
    drawn, serial = random.Random(seed * 1000 + number), count()
    connection: Connection | None = None
    while not over.is_set():
        _, name, arguments = drawn.choices(KINDS, [weight for weight, *_ in KINDS])[0]
        era, credential = drawn.choice([MODERN, LEGACY]), key if drawn.random() > 0.03 else "nobody"
        leaves = era == MODERN and drawn.random() < 0.03
        rpc_id = f"{number}-{next(serial)}"
        if "idempotency_key" in arguments:
            arguments = arguments | {"idempotency_key": f"order {rpc_id}"}
        sent = message(era, rpc_id, "tools/call", {"name": name, "arguments": arguments})
        fault, began = calls.fault, time.monotonic()
        try:
            connection = connection or Connection(port, 40)
            connection.send(post(headers_of(sent, era) | {"Authorization": f"Bearer {credential}"}, sent))
            if leaves:
                connection.close()
                connection = None
                calls.add(rpc_id, fault, "left", time.monotonic() - began)
                continue
            response = connection.receive()
            if response is None:
                raise EOFError
            end = outcome(response.messages[-1]) if response.status == 200 else f"HTTP {response.status}"
            if response.headers.get("connection") == "close":
                connection.close()
                connection = None
        except (OSError, EOFError) as error:
            end = f"no answer ({type(error).__name__})"
            if connection is not None:
                connection.close()
                connection = None
        # A call belongs to the fault that began while it ran; one without an answer to the one that ended it.
        now = calls.fault
        is_now = fault == "none" or (end.startswith(NONE) and now != "none")
        calls.add(rpc_id, now if is_now else fault, end, time.monotonic() - began)


Fault = Callable[[Guarded, int, random.Random], None]


def stop(replicas: Guarded, number: int, drawn: random.Random) -> None:
    """Stop it in order, and start it again."""
    replicas.restart(number)


def kill(replicas: Guarded, number: int, drawn: random.Random) -> None:
    """End it at once, and start it again."""
    replicas.servers[number].process.kill()
    replicas.bring_back(number)


def freeze(replicas: Guarded, number: int, drawn: random.Random) -> None:
    """Stand still for a while."""
    pid = replicas.servers[number].process.pid
    os.kill(pid, signal.SIGSTOP)
    time.sleep(drawn.uniform(0.2, 1.5))
    os.kill(pid, signal.SIGCONT)


def redis(replicas: Guarded, number: int, drawn: random.Random) -> None:
    """Take the Redis away, and bring it back."""
    replicas.kill_redis()
    time.sleep(drawn.uniform(0.5, 3))
    replicas.start_redis()


def upstream(replicas: Guarded, number: int, drawn: random.Random) -> None:
    """The other service fails, in one way or another."""
    Upstream.mode = drawn.choice(["unavailable", "resetting", "slow", "hanging"])
    time.sleep(drawn.uniform(1, 3))
    Upstream.mode = "well"


def slow_clients(replicas: Guarded, number: int, drawn: random.Random) -> None:
    """Others send half a request, or read nothing of their answers."""
    sent = message(MODERN, "slow", "tools/list", {})
    whole = post(headers_of(sent, MODERN) | {"Authorization": f"Bearer {replicas.key}"}, sent)
    with ExitStack() as stack:
        for each in range(30):
            connection = stack.enter_context(Connection(replicas.ports[number]))
            connection.send(whole * 20 if each % 2 else whole[: len(whole) // 2])
        time.sleep(drawn.uniform(1, 3))


def unread_log(replicas: Guarded, number: int, drawn: random.Random) -> None:
    """Nobody reads its log, and the pipe is full."""
    server = replicas.servers[number]
    assert isinstance(server, Log)
    server.is_read.clear()
    time.sleep(drawn.uniform(2, 4))
    server.is_read.set()


def descriptors(replicas: Guarded, number: int, drawn: random.Random) -> None:
    """It may open no more files, and has many callers."""
    pid = replicas.servers[number].process.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (opened(pid) + 4, before[1]))
    with ExitStack() as stack:
        for _ in range(60):
            with suppress(OSError):
                stack.enter_context(Connection(replicas.ports[number], 1))
        time.sleep(drawn.uniform(1, 2))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


FAULTS: dict[str, Fault] = {
    "stop": stop,
    "kill": kill,
    "freeze": freeze,
    "redis": redis,
    "upstream": upstream,
    "slow clients": slow_clients,
    "unread log": unread_log,
    "descriptors": descriptors,
}
ENDS_A_PROCESS = {"stop", "kill"}
"""These strike the first replica, so that the second lives from the first minute to the last."""


def main() -> int:
    """Run it; returns 1 if a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hostile", action="store_true")
    parser.add_argument("--seconds", type=float, help="600, or 3600 of hostile load")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    chosen = parser.parse_args()
    seconds = chosen.seconds or (3600 if chosen.hostile else 600)
    print(f"{seconds:.0f} s, seed {chosen.seed}, {CLIENTS} clients", flush=True)
    if chosen.hostile:
        with tempfile.TemporaryDirectory(prefix="plinth-") as name:
            return hostile.prove(Path(name), seconds, chosen.seed)
    with tempfile.TemporaryDirectory(prefix="plinth-") as name, service() as address:
        folder = Path(name)
        installed = install_probes(folder / "project")
        with Guarded(installed, folder, address) as replicas:
            return run(replicas, seconds, chosen.seed)


def run(replicas: Guarded, seconds: float, seed: int) -> int:
    """Load and faults; then the tables."""
    drawn, calls, over = random.Random(seed), Calls(), threading.Event()
    lives = replicas.servers[1].process.pid
    before = opened(lives)
    work = (replicas.port, replicas.key)
    clients = [threading.Thread(target=client, args=(*work, n, seed, calls, over)) for n in range(CLIENTS)]
    for each in clients:
        each.start()
    struck: Counter[str] = Counter()
    begun, warm = time.monotonic(), 0
    while (passed := time.monotonic() - begun) < seconds:
        # All of them once before one comes again.
        left = [each for each in FAULTS if struck[each] == min(struck[name] for name in FAULTS)]
        fault = drawn.choice(left)
        calls.fault = fault
        FAULTS[fault](replicas, 0 if fault in ENDS_A_PROCESS else drawn.randrange(2), drawn)
        time.sleep(0.2)
        calls.fault = "none"
        struck[fault] += 1
        time.sleep(SETTLE)
        if not warm and passed > seconds / 5:
            warm = resident(lives)
    over.set()
    for each in clients:
        each.join()
    last, deadline = resident(lives), time.monotonic() + 30
    while opened(lives) > before and time.monotonic() < deadline:  # the balancer keeps connections for some seconds
        time.sleep(0.2)
    after = opened(lives)
    replicas.restart(0)
    replicas.restart(1)
    return told(replicas, calls, struck, (warm, last), (before, after))


def told(replicas: Guarded, calls: Calls, struck: Counter[str], memory: tuple[int, int], files: tuple[int, int]) -> int:
    """Print the tables; returns 1 if a promise is broken."""
    print("\n| fault | times | sent | ok | error answers | refused | client left | no answer | lost | slowest, ms |")
    print("| --- " * 10 + "|")
    broken = []
    lost = Counter(fault for rpc_id, fault in calls.unanswered.items() if rpc_id in replicas.accepted)
    for fault in ["none", *FAULTS]:
        ends = calls.ends.get(fault, Counter())
        errors = {end: times for end, times in ends.items() if not end.startswith(("ok", "left", "HTTP", "no "))}
        refused = {end: times for end, times in ends.items() if end.startswith("HTTP") and not end.startswith(NONE)}
        cut = sum(times for end, times in ends.items() if end.startswith(NONE))
        shown = [
            ", ".join(f"{times} {end}" for end, times in sorted(each.items())) or "0" for each in (errors, refused)
        ]
        cells = [fault, struck[fault] or "", calls.sent[fault], ends["ok"], *shown, ends["left"], cut, lost[fault]]
        print(f"| {' | '.join(map(str, cells))} | {calls.slowest[fault]} |")
        if cut and fault not in MAY_CUT:
            broken.append(f"{cut} calls without an answer: {fault}")
        if lost[fault]:
            broken.append(f"{lost[fault]} calls lost: {fault}")
        if fault == "stop" and "shutting_down" in errors:
            broken.append(f"{errors['shutting_down']} calls cut by a stop")
    if twice := sum(times > 1 for times in replicas.accepted.values()):
        broken.append(f"{twice} calls accepted twice")
    accepted, sent = replicas.accepted.total(), calls.sent.total()
    print(
        f"\nAccepted: {accepted} in the logs, of {sent} sent; {replicas.unlogged} lines of logs dropped while unread."
    )
    warm, last = memory
    print(f"The replica that lived throughout: {warm} KiB when warm, {last} KiB at the end;", end=" ")
    print(f"{files[0]} descriptors before the load, {files[1]} after it.")
    stops = Counter(code for code in replicas.exit_codes if code != -signal.SIGKILL)
    print(f"Exit codes of stops: {', '.join(f'{times} x {code}' for code, times in stops.items())}.")
    if last - warm > max(MOST_KB, MOST_GROWTH * warm):
        broken.append(f"memory grew by {last - warm} KiB")
    if files[1] > files[0] + MOST_DESCRIPTORS:
        broken.append(f"{files[1] - files[0]} descriptors more than before")
    if set(stops) != {0}:
        broken.append("a stop did not exit with 0")
    print(f"Broken: {'; '.join(broken)}" if broken else "All promises hold.")
    return 1 if broken else 0


class Service(ThreadingHTTPServer):
    """Quiet about clients that have gone."""

    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def service() -> Iterator[str]:
    """The address of the other service."""
    with Service(("127.0.0.1", 0), Upstream) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.05,))
        serving.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            serving.join()


if __name__ == "__main__":
    sys.exit(main())
