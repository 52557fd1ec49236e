"""Bytes over time: an input in pieces, each of which the server has read before the next is written, and its judgement."""

import json
import re
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import NamedTuple, Self

from fronts import Relay, front
from installed import Installed
from judge import DECOY, HONEST, KEY, Answer, Verdict, answers, call, disagreements, judge, request
from raw import SERVE_HTTP, Connection, Server

SENDER, OTHER, INVENTED = "127.0.0.2", "127.0.0.3", "203.0.113.66"
"""Where inputs come from, where the honest client calls from, and an address that only bodies and senders claim."""
PATIENCE = 60.0  # seconds for a start on a busy machine
ANSWER = 20.0  # seconds for an answer that is owed
DIRECT = "direct"
SETTINGS = {
    "MCP_AUTH_MODE": "api_key",
    "MCP_AUTH_FAILURES_PER_MINUTE": "1000000",
    "MCP_RATE_LIMIT_PER_MINUTE": "0",
    "MCP_TRUSTED_PROXIES": "127.0.0.1",
}


class Played(NamedTuple):
    """What became of an input. `end`: of its connection; `kinds`: of disagreements."""

    verdict: Verdict
    found: list[Answer]
    end: str
    kinds: list[str]

    @property
    def signature(self) -> str:
        """What the server did, in short; equal answers in a row count once."""
        row: list[str] = []
        for each in (str(answer.status) + ("" if answer.whole else "~") for answer in self.found):
            if not row or row[-1] != each:
                row.append(each)
        asked = min(len(self.verdict.asked), 3)
        return f"{' '.join(row) or 'nothing'} | {asked}{'+' if asked == 3 else ''} {self.verdict.end} | {self.end}"


class Judged(Server):
    """A server whose log is looked through as it comes, and not kept."""

    def __init__(self, command: Sequence[str | Path], settings: Mapping[str, str]) -> None:
        self.clients: Counter[str] = Counter()
        self.crashes: Counter[str] = Counter()
        self.is_up = threading.Event()
        super().__init__(command, settings, patience=PATIENCE)

    def _log(self, line: bytes | None) -> None:
        if line is None or not self.is_up.is_set():
            super()._log(line)
        elif found := re.search(rb'"client":"([^"]*)"', line):
            self.clients[found[1].decode()] += 1
        if line is not None and (b'"event":"crash"' in line or b'"exception"' in line):
            self.crashes[line.decode()[:400]] += 1


class Other:
    """Another client, who calls without a pause, and has to get the answers to what it asked."""

    def __init__(self, port: int) -> None:
        self.seen: Counter[str] = Counter()
        self._port, self._over, self._turn = port, threading.Event(), threading.Condition()
        self._serial, self._served = count(), 0
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def settle(self) -> None:
        """Wait until two more of its calls are answered: what others had written before the first was read, or never is."""
        with self._turn:
            wanted = self._served + 2
            assert self._turn.wait_for(lambda: self._served >= wanted, PATIENCE), (
                "another client is not served any more"
            )

    def _run(self) -> None:
        connection: Connection | None = None
        while not self._over.is_set():
            mark = f"other-{next(self._serial)}"
            try:
                connection = connection or connect(self._port, OTHER)
                connection.send(request(call(mark, mark)))
                response = connection.receive()
                if response is None:
                    raise EOFError
                said = self._judge(mark, response.status, response.body)
                leaves = response.headers.get("connection") == "close"
            except (OSError, EOFError, ValueError) as error:
                said, leaves = f"no answer ({type(error).__name__})", True
            if leaves and connection is not None:
                connection.close()
                connection = None
            with self._turn:
                self.seen[said] += 1
                self._served += 1
                self._turn.notify_all()
        if connection is not None:
            connection.close()

    @staticmethod
    def _judge(mark: str, status: int, body: bytes) -> str:
        if status != 200:
            return f"status {status}"
        answer = json.loads(body)
        said = f"{mark} {len(mark)} {sha256(mark.encode()).hexdigest()}"
        is_own = answer.get("id") == mark and answer.get("result", {}).get("structuredContent") == {"result": said}
        return "own" if is_own else "another's"


class Bench:
    """A server, the proxies before it, and another client for the way that is tried now."""

    def __init__(self, installed: Installed, folder: Path, ways: Sequence[str], seed: int = 1) -> None:
        keys = folder / "keys.json"
        keys.parent.mkdir(parents=True, exist_ok=True)
        known = {"id": KEY[4:16], "name": "judged", "sha256": sha256(KEY.encode()).hexdigest(), "scopes": []}
        keys.write_text(json.dumps({"keys": [known | {"created": "2026-01-01T00:00:00Z"}]}), encoding="utf-8")
        self._installed, self._folder, self._ways, self._seed = installed, folder, ways, seed
        self._stack = ExitStack()
        self.relays: dict[str, Relay] = {}
        self.others: dict[str, Counter[str]] = {way: Counter() for way in ways}
        self._ports: dict[str, int] = {}
        self._other: Other | None = None
        self._settings = SETTINGS | {"MCP_API_KEYS_FILE": str(keys)}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.server = stack.enter_context(Judged([self._installed.command, *SERVE_HTTP], self._settings))
            port = self.server.port
            self.server.is_up.set()
            for number, way in enumerate(self._ways):
                if way == DIRECT:
                    self._ports[way] = port
                    continue
                self.relays[way] = stack.enter_context(Relay(port, self._seed + number))
                compose = self._installed.path / "compose.yaml"
                folder = self._folder / f"front-{number}"
                self._ports[way] = stack.enter_context(front(way, self.relays[way].port, folder, compose))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextmanager
    def by(self, way: str) -> Iterator[Other]:
        """Another client calls by this way meanwhile."""
        with Other(self._ports[way]) as other:
            self._other = other
            try:
                yield other
            finally:
                self._other = None
                self.others[way] += other.seen

    def play(self, way: str, pieces: Sequence[bytes]) -> Played:
        """Send an input by the way that another client uses, and judge what came back."""
        assert self._other is not None
        verdict = judge(b"".join(pieces))
        got, end = bytearray(), "open"
        with connect(self._ports[way], SENDER) as connection:
            link = connection.socket
            try:
                for number, piece in enumerate(pieces, 1):
                    link.sendall(piece)
                    if number < len(pieces):
                        self._other.settle()
                end = self._read(link, got, verdict)
            except (BrokenPipeError, ConnectionResetError):
                end = "reset"
                with suppress(OSError):
                    while data := link.recv(65536):
                        got += data
        found, is_http = answers(bytes(got), verdict.asked, is_over=end != "open")
        if way == DIRECT:
            kinds = disagreements(verdict, found, end) + ([] if is_http else ["an answer that is no HTTP"])
        else:  # what the proxy takes for a message is its own business, and what it sends on is judged behind it
            kinds = ["another client's answer"] * any(str(each.rpc_id).startswith("other-") for each in found)
        return Played(verdict, found, end, kinds)

    def _read(self, link: socket.socket, got: bytearray, verdict: Verdict) -> str:
        """Read until all that is owed has come and the server has had its time for more; returns how it ended."""
        assert self._other is not None
        until = time.monotonic() + ANSWER
        while time.monotonic() < until:
            found, _ = answers(bytes(got), verdict.asked, is_over=False)
            whole = sum(each.whole for each in found)
            is_stream = bool(found) and not found[-1].whole and found[-1].is_stream
            if whole >= len(verdict.asked) or is_stream or not self._may_come(link):
                break
            if not (data := link.recv(65536)):
                return "closed"
            got += data
        self._other.settle()
        while select.select([link], [], [], 0)[0]:
            if not (data := link.recv(65536)):
                return "closed"
            got += data
        return "open"

    @staticmethod
    def _may_come(link: socket.socket) -> bool:
        return bool(select.select([link], [], [], ANSWER)[0])

    def rest(self) -> list[str]:
        """What else went wrong: others' answers, addresses that were believed, crashes."""
        wrong = [f"another's answer: {way}" for way, seen in self.others.items() if seen["another's"]]
        strange = self.server.clients.keys() - {"127.0.0.1", SENDER, OTHER}
        wrong += [f"an address of the sender's own making was believed: {each}" for each in sorted(strange)]
        return wrong + [f"crash: {each}" for each in self.server.crashes]


def connect(port: int, address: str) -> Connection:
    """A connection from this address of this machine."""
    return Connection(port, PATIENCE, address)


def decoy(name: str) -> bytes:
    """A request that looks as if it came, and lies in a body. It claims to be another's, too."""
    whole = request(call(f"{DECOY}{name}"))
    return whole.replace(b"\r\n", f"\r\nX-Forwarded-For: {INVENTED}\r\n".encode(), 1)


def honest(name: str, note: str = "") -> bytes:
    """A request that has to be served."""
    return request(call(f"{HONEST}{name}", note))
