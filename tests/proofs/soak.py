"""A server under full load that is stopped: whatever it accepted is answered, once and completely.

On a pipe the client can tell what was accepted: what is left in the pipe was not read. Over HTTP it cannot, as a server
may close a kept connection while a request is on its way (RFC 9112, section 9.5), so the server's log decides: a
request in the log has to be answered; one that is not, was lost on the way, and is counted by where.
"""

import json
import os
import threading
import time
from collections import Counter
from itertools import count
from pathlib import Path
from select import select

from raw import HELLO, INITIALIZED, LEGACY, MODERN, SERVE_HTTP, Connection, Server, headers_of, message, post

SECONDS, CONNECTIONS = 60, 16
CALL = {"name": "wait", "arguments": {"seconds": 0}}


def prove(command: list[str | Path]) -> bool:
    """Load and stop servers, over HTTP and in each era of the pipe; print what became of the calls."""
    print(f"\n{SECONDS} s of load, then SIGTERM in the midst of it")
    kept = [over_http([*command, *SERVE_HTTP])]
    kept += [over_stdio(command, era) for era in (MODERN, LEGACY)]
    return all(kept)


def over_http(command: list[str | Path]) -> bool:
    """Load by kept connections of both eras, until the server takes no more."""
    with Server(command) as server:
        stopping = threading.Event()
        clients = [Client(server.port, n, (MODERN, LEGACY)[n % 2], stopping) for n in range(CONNECTIONS)]
        for client in clients:
            client.start()
        time.sleep(SECONDS)
        stopping.set()
        server.process.terminate()
        for client in clients:
            client.join()
        code = server.wait()
        accepted = Counter(event["rpc_id"] for event in server.events() if event["event"] == "request")
    answered = Counter(rpc_id for client in clients for rpc_id in client.answered)
    lost = {rpc_id: how for client in clients for rpc_id, how in client.lost.items()}
    print(f"\nHTTP, {CONNECTIONS} connections: {accepted.total()} accepted, {answered.total()} answered, exit {code}")
    for how, times in Counter(lost.get(rpc_id, "no answer of its own") for rpc_id in accepted - answered).items():
        print(f"  {times} in the log and lost: {how}")
    for how, times in Counter(how for rpc_id, how in lost.items() if rpc_id not in accepted).items():
        print(f"  {times} not in the log: {how}")
    return code == 0 and accepted == answered and all(client.is_orderly for client in clients)


class Client(threading.Thread):
    """Calls without a pause, on one connection for as long as the server keeps it."""

    def __init__(self, port: int, number: int, era: str, stopping: threading.Event) -> None:
        super().__init__(daemon=True)
        self._port, self._number, self._era, self._stopping = port, number, era, stopping
        self._serial = count()
        self.answered: list[str] = []
        self.lost: dict[str, str] = {}
        self.is_orderly = False

    def run(self) -> None:
        """Ends in order when the server, which is stopping, takes no new connection."""
        while True:
            try:
                connection = Connection(self._port)
            except ConnectionError:
                self.is_orderly = self._stopping.is_set() and not any("cut" in how for how in self.lost.values())
                return
            with connection:
                kind = "new"
                while self._call(connection, kind):
                    kind = "kept"

    def _call(self, connection: Connection, kind: str) -> bool:
        """Make one call; returns whether the connection serves another."""
        call = message(self._era, f"{self._number}-{next(self._serial)}", "tools/call", CALL)
        how = f"on a {kind} connection, closed without a byte of an answer"
        try:
            connection.send(post(headers_of(call, self._era), call))
            response = connection.receive()
        except ConnectionError:
            response = None
        except EOFError:
            response, how = None, "cut in the middle of the answer"
        if response is None:
            self.lost[call["id"]] = how if self._stopping.is_set() else f"{how}, cut before SIGTERM"
            return False
        (answer,) = response.messages
        assert answer["result"]["structuredContent"] == {"result": "done"}, answer
        self.answered.append(answer["id"])
        return response.headers.get("connection") != "close"


def over_stdio(command: list[str | Path], era: str) -> bool:
    """Load by a pipe that is kept full, and whose rest is read when the server has ended."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with Server(command, stdin=reading) as server:
        feeder = Feeder(writing, era)
        feeder.start()
        time.sleep(SECONDS)
        server.process.terminate()
        code = server.wait()
        feeder.stopped.set()
        feeder.join()
        os.close(writing)
        with os.fdopen(reading, "rb") as rest:
            taken = feeder.sent - len(rest.read())
        answered = Counter(json.loads(line)["id"] for line in iter(server.lines.get, None))
    accepted = Counter(feeder.ids(taken))
    print(f"\nstdio, {era}: {accepted.total()} accepted, {answered.total()} answered, exit {code}")
    if lost := accepted - answered:
        print(f"  {lost.total()} read and lost")
    return code == 0 and accepted == answered


class Feeder(threading.Thread):
    """Writes calls, all of one length, as fast as the pipe takes them. `sent`: bytes."""

    def __init__(self, descriptor: int, era: str) -> None:
        super().__init__(daemon=True)
        self._descriptor, self._era = descriptor, era
        hello = [message(era, "hello", "initialize", HELLO), INITIALIZED] if era == LEGACY else []
        self._opening = b"".join(json.dumps(each).encode() + b"\n" for each in hello)
        self.stopped = threading.Event()
        self.sent = 0

    def run(self) -> None:
        """Until it is stopped."""
        serial, unsent = count(), self._opening
        while not self.stopped.is_set():
            unsent = unsent or b"".join(self._line(next(serial)) for _ in range(100))
            if select([], [self._descriptor], [], 0.1)[1]:
                written = os.write(self._descriptor, unsent)
                self.sent, unsent = self.sent + written, unsent[written:]

    def ids(self, taken: int) -> list[str]:
        """Those of the requests that are whole in so many bytes."""
        whole = (taken - len(self._opening)) // len(self._line(0))
        return ["hello"] * bool(self._opening) + [f"{n:09}" for n in range(whole)]

    def _line(self, number: int) -> bytes:
        return json.dumps(message(self._era, f"{number:09}", "tools/call", CALL)).encode() + b"\n"
