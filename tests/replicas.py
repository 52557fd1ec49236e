"""Two replicas of a server behind a real load balancer, with a real Redis, and clients that never pause."""

import csv
import shutil
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any, Self

import pytest

from bootstrap import free_port
from installed import Installed
from raw import LEGACY, MODERN, PATIENCE, Connection, Json, Server, headers_of, message, post
from stops import outcome

KEY = "replicas-share-this-key-of-their-own"
DRAIN_DELAY = 1  # seconds: five times what the balancer takes to notice

# Two health checks take a replica out, and one brings it back; a busy machine's slow answer is no failure. Where no
# connection can be made the other is tried; nothing is sent twice.
CONFIGURATION = """
global
  stats socket {folder}/admin.sock
defaults
  mode http
  timeout connect 1s
  timeout client 60s
  timeout server 60s
  timeout queue 5s
  timeout check 2s
frontend public
  bind 127.0.0.1:{port}
  default_backend replicas
backend replicas
  balance roundrobin
  option redispatch 1
  option httpchk GET /readyz
  http-check expect status 200
  default-server check inter 100ms fall 2 rise 1
  server one 127.0.0.1:{one}
  server two 127.0.0.1:{two}
"""


@dataclass
class Seen:
    """What clients saw: how often each outcome, and what was no answer at all, with the time of each."""

    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[float, str]] = field(default_factory=list)
    slowest: float = 0
    """Seconds."""
    exit_codes: list[int] = field(default_factory=list)
    """Of the replicas that were stopped."""


class Replicas:
    """Two servers, a balancer and a Redis; entered, all of them are up."""

    def __init__(self, installed: Installed, folder: Path, settings: Mapping[str, str]) -> None:
        for program, package in (("haproxy", "haproxy"), ("redis-server", "redis-server")):
            if shutil.which(program) is None and not Path("/usr/sbin", program).exists():
                pytest.skip(f"{program} is not on PATH; `apt-get install {package}` installs it")
        self.port, self.redis_port = free_port(), free_port()
        self._folder, self._installed = folder, installed
        self.ports = [free_port(), free_port()]
        self._settings = {
            "MCP_REPLICAS": "2",
            "MCP_RATE_LIMIT_STORE": f"redis://127.0.0.1:{self.redis_port}/0",
            "MCP_RATE_LIMIT_PER_MINUTE": "60000000",
            "MCP_REQUEST_STATE_KEYS": KEY,
            "MCP_TRUSTED_PROXIES": "127.0.0.1",
            "MCP_DRAIN_DELAY_SECONDS": str(DRAIN_DELAY),
            **settings,
        }
        self._stack = ExitStack()
        self.servers: list[Server] = []
        self._redis: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._stack = stack
            self.start_redis()
            stack.callback(self.kill_redis)
            self.servers = [self._start(port) for port in self.ports]
            stack.callback(lambda: [server.__exit__(None, None, None) for server in self.servers])
            self._balance()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def restart(self, number: int) -> int:
        """Stop one in order and start it again; returns the exit code once the balancer uses it again."""
        self.servers[number].process.terminate()
        code = self.servers[number].process.wait(PATIENCE + DRAIN_DELAY)
        self.bring_back(number)
        return code

    def bring_back(self, number: int) -> None:
        """Start one that has ended, and wait until the balancer uses it."""
        self.servers[number].__exit__(None, None, None)
        self.servers[number] = self._start(self.ports[number])
        self._until_up()

    def start_redis(self) -> None:
        """Start it and wait until it answers; it has forgotten everything."""
        line = [
            "redis-server",
            "--port",
            str(self.redis_port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
        ]
        self._redis = subprocess.Popen(line, stdout=subprocess.PIPE, text=True, cwd=self._folder)
        assert self._redis.stdout
        assert any("Ready to accept connections" in said for said in self._redis.stdout)

    def kill_redis(self) -> None:
        """End it at once, if it runs."""
        if self._redis is not None:
            with self._redis as redis:
                redis.kill()
            self._redis = None

    @contextmanager
    def load(self, clients: int) -> Iterator[Seen]:
        """Clients of both eras, each of which makes one call after the other, through the balancer."""
        seen, over, lock = Seen(), threading.Event(), threading.Lock()

        def call(number: int) -> None:
            eras = cycle([MODERN, LEGACY] if number % 2 else [LEGACY, MODERN])
            sent = cycle([("wait", {"seconds": 0.05}), ("get_part", {"sku": "BRG-6204"}), ("wait", {"seconds": 0.3})])
            connection: Connection | None = None
            while not over.is_set():
                name, arguments = next(sent)
                began = time.monotonic()
                try:
                    connection = connection or Connection(self.port)
                    response = connection.ask(request("tools/call", {"name": name, "arguments": arguments}, next(eras)))
                    said = outcome(response.messages[0]) if response.status == 200 else f"status {response.status}"
                    if response.headers.get("connection", "") == "close":
                        connection.close()
                        connection = None
                except (OSError, EOFError, ValueError) as error:
                    said = f"no answer: {type(error).__name__}"
                    if connection is not None:
                        connection.close()
                        connection = None
                with lock:
                    seen.outcomes[said] += 1
                    seen.slowest = max(seen.slowest, time.monotonic() - began)
                    if said != "ok":
                        seen.failures.append((time.monotonic(), said))
            if connection is not None:
                connection.close()

        threads = [threading.Thread(target=call, args=(number,)) for number in range(clients)]
        for thread in threads:
            thread.start()
        try:
            yield seen
        finally:
            over.set()
            for thread in threads:
                thread.join()

    def _start(self, port: int) -> Server:
        settings = self._settings | {"MCP_PORT": str(port)}
        server = Server([self._installed.command, "serve", "--transport", "http"], settings)
        server.wait_for("listening")
        return server

    def _balance(self) -> None:
        one, two = self.ports
        file = self._folder / "haproxy.cfg"
        file.write_text(CONFIGURATION.format(folder=self._folder, port=self.port, one=one, two=two), encoding="ascii")
        program = shutil.which("haproxy") or "/usr/sbin/haproxy"
        balancer = subprocess.Popen([program, "-f", str(file)], stderr=subprocess.DEVNULL)
        self._stack.callback(balancer.wait)
        self._stack.callback(balancer.kill)
        self._until_up()

    def _until_up(self) -> None:
        """Wait until the balancer sends requests to both."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            with suppress(OSError):
                states = {row["svname"]: row["status"] for row in self._stats() if row["# pxname"] == "replicas"}
                if states.get("one") == states.get("two") == "UP":
                    return
            time.sleep(0.05)  # the balancer tells nobody by itself
        raise AssertionError("the balancer has not taken both replicas in")

    def _stats(self) -> list[dict[str, Any]]:
        with socket.socket(socket.AF_UNIX) as admin:
            admin.connect(str(self._folder / "admin.sock"))
            admin.sendall(b"show stat\n")
            return list(csv.DictReader(admin.makefile()))


def request(method: str, params: Json, era: str = MODERN) -> bytes:
    """One request of this era."""
    sent = message(era, 1, method, params)
    return post(headers_of(sent, era), sent)


def ask(port: int, method: str, params: Json, era: str = MODERN) -> Json:
    """The answer to one request of one replica, or of the balancer."""
    with Connection(port) as connection:
        answer: Json = connection.ask(request(method, params, era)).messages[0]
    return answer
