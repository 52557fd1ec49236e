"""A real Redis for the tests: on a free loopback port, in memory alone, with all that can happen to it."""

import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from .harness import PATIENCE


class RedisServer:
    """One Redis, on one port. Killed and started again, it has forgotten everything."""

    def __init__(self, folder: Path, options: Mapping[str, str]) -> None:
        """`options`: of its configuration, as `requirepass`."""
        with socket.create_server(("127.0.0.1", 0)) as found:
            self.port: int = found.getsockname()[1]
        kept = {"port": str(self.port), "bind": "127.0.0.1", "save": "", "appendonly": "no", "dir": str(folder)}
        self._arguments = [word for name, value in (kept | dict(options)).items() for word in (f"--{name}", value)]
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        """For `MCP_RATE_LIMIT_STORE`."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._process = subprocess.Popen(["redis-server", *self._arguments], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        log = []
        for line in self._process.stdout:
            log.append(line)
            if "Ready to accept connections" in line:
                return
        raise AssertionError(log)

    def command(self, *words: str) -> str:
        """The first line of what it answers."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE) as connection:
            connection.sendall(f"{' '.join(words)}\r\n".encode())
            return connection.makefile().readline().strip()

    def hang(self) -> None:
        """It keeps its connections, takes new ones, and answers nothing."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Answer what has been asked."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it at once, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE)
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._process = None

    def _signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)


@contextmanager
def running_redis(folder: Path, **options: str) -> Iterator[RedisServer]:
    """One that is ended with the block; without the program the test is skipped."""
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not on PATH; `apt-get install redis-server` installs it")
    server = RedisServer(folder, options)
    try:
        server.start()
        yield server
    finally:
        server.kill()
