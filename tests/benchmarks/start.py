"""How long the template takes to render, and a server to start, next to a bare SDK server in the same run.

`.venv/bin/python tests/benchmarks/start.py [RUNS]`, after `python3 tests/run.py` has made `.venv`, prints medians of interleaved runs, and their ratio. Absolute times belong to
the machine; the ratio is what is promised (1.15 at most).
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bootstrap import BIN, environment, uv
from rendering import render

BARE = '''
from mcp.server import MCPServer

server = MCPServer("bare")


@server.tool()
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


server.run("stdio")
'''
META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
}
REQUEST = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": META}}) + "\n"


def first_answer(command: list[str], folder: Path) -> float:
    """Seconds from the start of a process to its first answer over stdio."""
    began = time.perf_counter()
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=folder, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(REQUEST)
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["id"] == 1
        took = time.perf_counter() - began
        process.stdin.close()
    return took


@contextmanager
def quiet() -> Iterator[None]:
    """Without what the hooks print: they are processes of their own, and write to the descriptor."""
    sys.stdout.flush()
    kept, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(null)


def main(runs: int) -> None:
    """Render, install, measure, print."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rendering = []
        for run in range(7):
            began = time.perf_counter()
            with quiet():
                project = render(folder / str(run))
            rendering.append(time.perf_counter() - began)
        print(f"rendering with the default answers: {statistics.median(rendering) * 1000:.0f} ms (median of 7)")
        sync = [uv(), "sync", "--quiet", "--no-dev", "--compile-bytecode"]
        subprocess.run(sync, cwd=project, env=environment(), check=True)
        python = str(project / ".venv" / BIN / "python")
        (folder / "bare.py").write_text(BARE, encoding="utf-8")
        commands = {"generated": [python, "-m", "my_mcp_server"], "bare SDK": [python, str(folder / "bare.py")]}
        times: dict[str, list[float]] = {who: [] for who in commands}
        for _ in range(runs):
            for who, command in commands.items():
                times[who].append(first_answer(command, folder))
    medians = {who: statistics.median(values) for who, values in times.items()}
    for who, median in medians.items():
        print(f"start to first stdio answer, {who}: {median * 1000:.0f} ms (median of {runs})")
    print(f"ratio: {medians['generated'] / medians['bare SDK']:.2f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 21)
