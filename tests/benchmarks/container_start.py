"""Measure how long a generated server takes to be ready in its container, next to the same outside of it.

`.venv/bin/python tests/benchmarks/container_start.py [rounds]`, in the environment that `tests/run.py` has made, with a
container engine on a machine that does nothing else; two minutes. Rounds alternate; the ratio is the median of theirs.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bootstrap import BIN, environment
from containers import find_engine
from installed import SLUG
from rendering import render, run

LOCKED_DOWN = ("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
STARTS = 5  # in a round

# Run inside and outside: seconds from the start of the process until `/readyz` answers 200, once for each start.
SCRIPT = """
import json, subprocess, sys, time
from http.client import HTTPConnection
from urllib.parse import urlsplit
found = []
for _ in range(int(sys.argv[1])):
    begun = time.perf_counter()
    with subprocess.Popen([*sys.argv[2:], "--host", "127.0.0.1", "--port", "0"], stderr=subprocess.PIPE) as server:
        events = map(json.loads, server.stderr)
        connection = HTTPConnection(urlsplit(next(e["url"] for e in events if e["event"] == "listening")).netloc)
        connection.request("GET", "/readyz")
        assert connection.getresponse().status == 200
        found.append(time.perf_counter() - begun)
        server.kill()
print(json.dumps(found))
"""


def main(rounds: int) -> None:
    """Print the medians, in milliseconds, and their ratio."""
    engine = find_engine()
    with tempfile.TemporaryDirectory() as folder:
        project = render(Path(folder), project_name="Spare Parts")
        # As in the image: nothing but what serving needs, with bytecode for all of it.
        run(project, "uv sync --no-dev --all-extras --no-editable --compile-bytecode")
        image = engine.build(project, "--quiet").stdout.split()[-1]
        settings = {"MCP_ENVIRONMENT": "production", "MCP_TRANSPORT": "http"}
        outside: list[str | Path] = [
            project / ".venv" / BIN / "python",
            "-c",
            SCRIPT,
            str(STARTS),
            project / ".venv" / BIN / SLUG,
        ]
        inside: list[str | Path] = [
            engine.program,
            "run",
            "--rm",
            "--network",
            "none",
            *LOCKED_DOWN,
            "--entrypoint",
            "python",
            image,
        ]
        inside += ["-c", SCRIPT, str(STARTS), SLUG]
        seconds: list[tuple[float, float]] = []
        try:
            for _ in range(rounds):
                a, b = (
                    subprocess.run(line, env=environment() | settings, capture_output=True, check=True)
                    for line in (outside, inside)
                )
                seconds.append((statistics.median(json.loads(a.stdout)), statistics.median(json.loads(b.stdout))))
        finally:
            engine("rmi", image)
    for name, values in zip(("outside", "in the container"), zip(*seconds, strict=True), strict=True):
        print(f"start until ready, {name}: {statistics.median(values) * 1000:.0f} ms")
    print(f"ratio: {statistics.median(b / a for a, b in seconds):.2f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 9)
