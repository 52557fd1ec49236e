"""A generated project's own checks go red when something is wrong: planted faults are found."""

from pathlib import Path

import pytest

from bootstrap import BIN
from checklist import rows
from proofs.teeth import tried
from rendering import CHECKS, render, run

pytestmark = [pytest.mark.install, pytest.mark.timeout(600)]

# The part of `uv run pytest` that a tool's file is held to; the other tests would each say the same of it.
CONTRACT = "uv run pytest -x -n 0 tests/test_contract.py"

UNUSED_IMPORT = '''"""A module with a fault."""

import os
'''

STRAY_PRINT = '''"""A module with a fault."""


def greet() -> None:
    """Write where the protocol does."""
    print("hello")
'''

UNFORMATTED = '''"""A module with a fault."""

ANSWER = { 'a':1 }
'''

WRONG_TYPE = '''"""A module with a fault."""


def total(prices: list[int]) -> int:
    """Add up the prices."""
    return str(sum(prices))
'''

TOOL_WITHOUT_DESCRIPTION = '''"""A tool that no model would know how to use."""

from ..tooling import tool


@tool(title="Planted", read_only=True)
async def planted() -> str:
    return "fault"
'''

TOOL_THAT_FAILS_TO_IMPORT = '''"""A tool whose file fails."""

raise RuntimeError("planted")
'''


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default project with a user's tools, by command and by hand as the README tells, installed."""
    project = render(tmp_path_factory.mktemp("faults"), project_name="Spare Parts")
    blocks = (project / "README.md").read_text(encoding="utf-8").split("```python\n")[1:]
    by_hand, calls_out, its_test = (block.partition("```")[0] for block in blocks)
    tools = project / "src" / "spare_parts" / "tools"
    (tools / "show_invoice.py").write_text(by_hand.replace("find_invoice", "show_invoice"), encoding="utf-8")
    (tools / "find_parcel.py").write_text(calls_out, encoding="utf-8")
    (project / "tests" / "test_find_parcel.py").write_text(its_test, encoding="utf-8")
    for line in ("uv sync", "uv run spare-parts new-tool find_invoice"):
        done = run(project, line)
        assert done.returncode == 0, done.stdout + done.stderr
    return project


@pytest.mark.timeout(2400)
@pytest.mark.parametrize("check", CHECKS)
def test_project_with_a_users_tools_passes_its_checks(project: Path, check: str) -> None:
    """What the README tells a user to do leaves everything green; and the faults below are what is found, not more."""
    done = run(project, check)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("fault", "place", "check", "message"),
    [
        pytest.param(UNUSED_IMPORT, "planted.py", "uv run ruff check", "F401", id="unused import"),
        pytest.param(STRAY_PRINT, "planted.py", "uv run ruff check", "T201", id="print"),
        pytest.param(UNFORMATTED, "planted.py", "uv run ruff format --check", "planted.py", id="format"),
        pytest.param(WRONG_TYPE, "planted.py", "uv run mypy", "Incompatible return value", id="type"),
        pytest.param(TOOL_WITHOUT_DESCRIPTION, "tools/planted.py", CONTRACT, "planted.py", id="docstring"),
        pytest.param(TOOL_THAT_FAILS_TO_IMPORT, "tools/planted.py", CONTRACT, "planted", id="import"),
    ],
)
def test_planted_fault_is_found(project: Path, fault: str, place: str, check: str, message: str) -> None:
    """The check that is meant to find a fault fails because of it."""
    file = project / "src" / "spare_parts" / place
    file.write_text(fault, encoding="utf-8")
    try:
        found = run(project, check)
    finally:
        file.unlink()
    assert found.returncode != 0, found.stdout + found.stderr  # pytest has several codes for red
    assert message in found.stdout + found.stderr


@pytest.mark.parametrize("name", ["every scope is granted", "root user in the Dockerfile"])
def test_sabotage_is_noticed(project: Path, name: str) -> None:
    """A feature that is gone turns its test red, and the test is green with it; tests/proofs/teeth.py does all of them."""
    (sabotage,) = (each for row in rows() for each in row.sabotages if each.name == name)
    python = project / ".venv" / BIN / "python"
    assert [tried(python, each, [sabotage.test]) for each in (None, sabotage)] == ["green", "red"]
