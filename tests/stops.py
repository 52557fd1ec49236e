"""What the tests of stopping share: the calls that are in flight, and what is true of every end."""

import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from installed import PACKAGE, Installed, install
from raw import Json, Server
from rendering import render, run

NOISE = 0.5  # seconds that a busy machine may add to a bound
LONG = 30.0  # seconds of a call that no stop waits for
CUT = "shutting_down"

PROBES = '''"""Calls that are in flight when the server stops, and a dependency that is opened and closed as it is told."""

import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import anyio
import structlog

from ..settings import Settings
from ..tooling import Context, Depends, tool

if seconds := os.environ.get("PROBE_IMPORTS"):
    print("importing", file=sys.stderr, flush=True)
    time.sleep(float(seconds))


def tell(event: str) -> None:
    """Log it."""
    structlog.get_logger().info(event)


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[str]:
    """Something that takes its time."""
    tell("opening")
    await anyio.sleep(float(os.environ.get("PROBE_OPENS", "0")))
    try:
        yield "done"
    finally:
        tell("closing")
        await anyio.sleep(float(os.environ.get("PROBE_CLOSES", "0.01")))
        if "PROBE_FAILS" in os.environ:
            raise OSError
        tell("closed")


@tool()
async def wait(seconds: float, kept: Annotated[str, Depends(opened)]) -> str:
    """Wait."""
    tell("begun")
    await anyio.sleep(seconds)
    return kept


@tool()
def block(seconds: float) -> str:
    """Block a thread."""
    tell("begun")
    time.sleep(seconds)
    return "done"


@tool()
async def hold(seconds: float) -> str:
    """Block the event loop."""
    tell("begun")
    time.sleep(seconds)
    return "done"


@tool()
async def step(seconds: float, ctx: Context) -> str:
    """Report progress ten times."""
    tell("begun")
    for done in range(1, 11):
        await ctx.report_progress(done, 10)
        await anyio.sleep(seconds / 10)
    return "done"


@tool()
async def fill(size: int) -> str:
    """Answer at length."""
    tell("begun")
    return "x" * size
'''

# Each takes out what makes calls outlive a signal; the first in both transports at once.
SABOTAGE = {
    "calls are not cut": [("server.py", "        drain,\n", "")],
    "calls are not waited for": [
        ("serving/http.py", "_wait(settings.drain_timeout_seconds,", "_wait(0,"),
        ("serving/stdio.py", "first_of(_DRAIN_SECONDS,", "first_of(0,"),
    ],
}


def install_probes(folder: Path) -> Installed:
    """The default project with the probes dropped in, installed."""
    path = render(folder, project_name="Spare Parts")
    (path / "src" / PACKAGE / "tools" / "probes.py").write_text(PROBES, encoding="utf-8")
    run(path, "uv sync --compile-bytecode")  # halves the time of each of some hundred starts
    return install(path)


def sabotaged(installed: Installed, folder: Path, what: str) -> dict[str, str]:
    """The settings that make it run a copy of its source without its drain."""
    copy = shutil.copytree(installed.path / "src", folder / "src")
    for name, right, wrong in SABOTAGE[what]:
        path = copy / PACKAGE / name
        text = path.read_text(encoding="utf-8")
        assert right in text, f"{name} has changed: what is there to take out now?"
        path.write_text(text.replace(right, wrong), encoding="utf-8")
    return {"PYTHONPATH": str(copy)}


def outcome(answer: Json) -> str:
    """How a request ended: `ok` or the error's code."""
    if "error" in answer:
        return str(answer["error"]["data"]["code"])
    error = answer["result"].get("_meta", {}).get("plinth/error", {"code": "ok"})
    assert answer["result"].get("isError", False) is (error["code"] != "ok"), answer
    return str(error["code"])


def code_at_end(server: Server, since: float, seconds: float) -> int:
    """The exit code of a process that ends within so many seconds of a moment; its output is read to the end."""
    left = since + seconds + NOISE - monotonic()  # none, if the answers came too late already
    with suppress(subprocess.TimeoutExpired):
        server.process.wait(max(left, 0))
    assert left > 0 and server.process.returncode is not None, f"not gone after {seconds} s: {server.stderr[-5:]}"
    return server.wait()


def summary(server: Server) -> Json:
    """The `stopped` line of a server that has ended in order: all closed, nothing raised, no stray output."""
    events = server.events()
    names = [event["event"] for event in events]
    odd = [event for event in events if "exception" in event or event["event"].endswith("_noise")]
    assert not odd, odd
    assert [name for name in names if name in ("closed", "stopped", "stop_overdue")] == ["closed", "stopped"], names
    found: Json = events[names.index("stopped")]
    return found


@contextmanager
def as_process_1(
    command: Sequence[str | Path], settings: Mapping[str, str], event: str
) -> Iterator[tuple[Server, int]]:
    """A server that is the first process of a PID namespace, once it has logged an event; and its id outside of it."""
    unshare = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("this machine does not let a test make a PID namespace")
    with Server([*unshare, *command], settings) as server:
        server.wait_for(event)
        pid = server.process.pid
        yield server, int(Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii"))


@contextmanager
def side_by_side(request: pytest.FixtureRequest, run: Callable[[Any], None]) -> Iterator[Callable[[Any], None]]:
    """Run the chosen cells of a module three at a time, as most of a cell is waiting; yields what waits for one."""
    items = [item for item in request.session.items if isinstance(item, pytest.Function) and item.path == request.path]
    cells = [item.callspec.params["cell"] for item in items if "cells" in item.fixturenames]
    with ThreadPoolExecutor(3) as pool:
        running = {cell: pool.submit(run, cell) for cell in cells}
        try:
            yield lambda cell: running[cell].result()
        finally:
            pool.shutdown(cancel_futures=True)
