"""What stands between callers and the server: nginx, HAProxy as compose.yaml has it, and a relay that cuts what they send."""

import asyncio
import random
import re
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from socket import create_connection
from typing import Self

import pytest
import yaml

from bootstrap import free_port
from judge import Verdict, answers, disagreements, judge
from raw import PATIENCE

WAY = 0.0015  # seconds that the relay takes one way
_MOST_KEPT = 1 << 20  # bytes of one connection that are judged together

NGINX = """daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log crit;
events {{ worker_connections 256; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  upstream server {{ server 127.0.0.1:{server}; keepalive 4; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://server;
      proxy_http_version 1.1;
      proxy_request_buffering {buffering};
      proxy_next_upstream off;
      proxy_set_header Connection "";
      proxy_set_header Host $http_host;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header X-Forwarded-Proto $scheme;
    }}
  }}
}}
"""
FRONTS = ("nginx", "nginx, unbuffered", "haproxy")


class Relay:
    """Passes on what comes on its port, a few milliseconds later and in pieces, and judges both directions.

    A proxy keeps its connections: whose answer is whose shows here, however it got mixed up.
    """

    def __init__(self, server: int, seed: int) -> None:
        self.port = free_port()
        self.found: list[tuple[str, bytes]] = []
        """Kinds of disagreements, and what had come on the connection."""
        self.judged: Counter[str] = Counter()
        self._server, self._drawn = server, random.Random(seed)
        self._last: dict[int, bytes] = {}
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_up = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._is_up.wait(PATIENCE)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            listener = runner.run(asyncio.start_server(self._pass_on, "127.0.0.1", self.port))
            self._is_up.set()
            self._loop.run_forever()
            listener.close()
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                runner.run(asyncio.wait(self._tasks))

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        to_server, from_server = bytearray(), bytearray()
        ways: list[asyncio.Task[None]] = []
        end = "open"
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._server)
            ways = [
                asyncio.create_task(self._way(reader, back, to_server.extend, self._cuts)),
                asyncio.create_task(self._way(there, writer, lambda data: self._came(data, to_server, from_server))),
            ]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            end = "closed" if ways[1].done() and ways[1].exception() is None else "reset"
        except (OSError, asyncio.CancelledError):
            end = "reset"  # by nobody: the test is over, or the server
        finally:
            for way in ways:
                way.cancel()
            if ways:
                await asyncio.wait(ways)
                back.close()
            writer.close()
            self._judge(to_server, from_server, end)
            self._last.pop(id(to_server), None)
            self._tasks.discard(task)

    async def _way(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        came: Callable[[bytes], None],
        cuts: "Callable[[bytes], list[bytes]] | None" = None,
    ) -> None:
        while data := await reader.read(65536):
            for piece in cuts(data) if cuts is not None else [data]:
                await asyncio.sleep(WAY)
                came(piece)
                writer.write(piece)
                await writer.drain()

    def _cuts(self, data: bytes) -> list[bytes]:
        """Where the server's reads are to end: most of all inside what ends a head."""
        at = data.find(b"\r\n\r\n")
        kind = self._drawn.choice(["whole", "head", "head", "body", "few"])
        if kind == "head" and at >= 0:
            places = [at + self._drawn.choice([1, 2, 3, 3, 3])]
        elif kind == "body" and at >= 0:
            places = [at + 4, at + 4 + self._drawn.randint(0, 40)]
        elif kind == "few":
            places = [self._drawn.randint(0, len(data)) for _ in range(self._drawn.randint(1, 4))]
        else:
            places = []
        return pieces_of(data, places)

    def _came(self, data: bytes, to_server: bytearray, from_server: bytearray) -> None:
        from_server += data
        verdict = judge(bytes(to_server))
        found, _ = answers(bytes(from_server), verdict.asked, is_over=False)
        is_settled = verdict.end == "whole" and len(found) == len(verdict.asked) and all(each.whole for each in found)
        if is_settled or len(from_server) + len(to_server) > _MOST_KEPT:
            self._judge(to_server, from_server, "reset")
            self._last[id(to_server)] = bytes(to_server)
            to_server.clear()
            from_server.clear()

    def _judge(self, to_server: bytearray, from_server: bytearray, end: str) -> None:
        verdict: Verdict = judge(bytes(to_server))
        found, is_http = answers(bytes(from_server), verdict.asked, is_over=True)
        self.judged["requests"] += len(verdict.asked)
        self.judged["answers"] += len(found)
        kinds = disagreements(verdict, found, end) + ([] if is_http else ["an answer that is no HTTP"])
        # An answer too many may come when all is answered: then what came before led to it.
        led = bytes(to_server) or self._last.get(id(to_server), b"")
        self.found += [(kind, led) for kind in kinds]


def pieces_of(data: bytes, places: list[int]) -> list[bytes]:
    """The data, cut there."""
    ends = sorted({0, len(data), *(each for each in places if 0 < each < len(data))})
    return [data[a:b] for a, b in pairwise(ends)]


@contextmanager
def front(kind: str, server: int, folder: Path, compose: Path) -> Iterator[int]:
    """The port of a proxy in front of what listens on a port. `compose`: the compose.yaml whose HAProxy it is."""
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "haproxy":
        text = yaml.safe_load(compose.read_text(encoding="utf-8"))["services"]["balancer"]["environment"][
            "CONFIGURATION"
        ]
        for right, here in (
            (r"bind :8000", f"bind 127.0.0.1:{port}"),
            (r"server-template replica .*", f"server replica 127.0.0.1:{server}"),
        ):
            text, times = re.subn(right, here, text)
            assert times == 1, f"compose.yaml has changed: {right}"
        file = folder / "haproxy.cfg"
        line = [program("haproxy"), "-db", "-f", str(file)]
    else:
        buffering = "off" if "unbuffered" in kind else "on"
        text = NGINX.format(folder=folder, port=port, server=server, buffering=buffering)
        file = folder / "nginx.conf"
        line = [program("nginx"), "-p", str(folder), "-c", str(file), "-e", str(folder / "nginx.log")]
    file.write_text(text, encoding="ascii")
    with ExitStack() as stack, (folder / "said").open("wb") as said:
        process = subprocess.Popen(line, stdout=said, stderr=said)
        stack.callback(process.wait)
        stack.callback(process.terminate)
        _until_it_serves(port, process, folder)
        yield port


def program(name: str) -> str:
    """Where it is; skips the test that has no use without."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin")
    if found is None:
        package = "nginx-light" if name == "nginx" else name
        pytest.skip(f"{name} is not on PATH; `apt-get install {package}` installs it")
    return found


def _until_it_serves(port: int, process: "subprocess.Popen[bytes]", folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError), create_connection(("127.0.0.1", port), 5) as probe:
            probe.sendall(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            if b" 200 " in probe.makefile("rb").readline():
                return
        time.sleep(0.05)  # it tells nobody by itself
    raise AssertionError((folder / "said").read_text(encoding="utf-8"))
