"""The steps printed after generation work, in that order, as they are printed."""

import json
import os
import shlex
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from bootstrap import ROOT, environment
from hooks.post_gen_project import NEXT_STEPS
from rendering import command

pytestmark = [pytest.mark.install, pytest.mark.timeout(600)]


@pytest.mark.skipif(os.name == "nt", reason="runs the steps in a POSIX shell")
def test_printed_steps_work(tmp_path: Path) -> None:
    """They are the last thing printed; the last of them serves until it is told to stop."""
    generated = command(tmp_path / "here")
    assert generated.returncode == 0, generated.stderr
    printed = generated.stdout.rpartition("Next steps:\n\n")[2]
    steps = [line.removeprefix("    ") for line in printed.splitlines()]
    assert steps == [step.format(slug="my-mcp-server") for step in NEXT_STEPS]

    # Port 8000 may be taken on this machine. tests/test_planted_faults.py runs all the tests.
    variables = environment() | {"MCP_PORT": "0", "PYTEST_ADDOPTS": "tests/test_contract.py"}
    *first, last = steps
    done = subprocess.run(
        ["sh", "-e"],
        input="\n".join(first),
        cwd=tmp_path / "here",
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout

    server = subprocess.Popen(
        shlex.split(last), cwd=tmp_path / "here" / "my-mcp-server", env=variables, stderr=subprocess.PIPE, text=True
    )
    assert server.stderr
    try:
        events = (json.loads(line) for line in server.stderr if line.startswith("{"))
        url = next(event["url"] for event in events if event["event"] == "listening")
        with urllib.request.urlopen(url.removesuffix("/mcp") + "/livez", timeout=10) as answer:
            assert answer.status == 200
        server.send_signal(signal.SIGTERM)
        server.stderr.read()
        assert server.wait(timeout=30) == 0
    finally:
        server.kill()
        server.wait()
        server.stderr.close()


def test_demonstration_shows_every_call_answered() -> None:
    """`python3 tests/demo.py` calls each tool over stdio and over HTTP, and leaves no server behind."""
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "demo.py"], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.strip() for line in done.stdout.splitlines()]
    answers = [json.loads(line.removeprefix("< ")) for line in lines if line.startswith("< ")]
    assert [answer["result"]["isError"] for answer in answers] == [False] * 4
    assert lines.count("The server has ended, exit code 0.") == 2
