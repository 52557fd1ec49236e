"""The canary's report is what the README says of it, and it would say so if a version broke a project."""

import re
import sys
from pathlib import Path

import pytest

from bootstrap import ROOT
from rendering import render

sys.path.append(str(ROOT / "tests" / "proofs"))
import canary

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_readme_shows_the_last_report() -> None:
    """Its date, and which versions were green."""
    report = canary.REPORT.read_text(encoding="utf-8")
    assert canary.written(README, report) == README
    assert re.match(r"\d{4}-\d\d-\d\d, Python 3\.\d+\.\d+: locked (green|red); newest allowed ", canary.summary(report))


def test_report_says_what_moved_and_what_broke() -> None:
    """With its name and the failing tests, without a path of the machine."""
    known = canary.Outcome({"mcp": "2.3.0", "anyio": "4.16.0"}, {"lint": "passed", "tests": "9 passed"})
    broken = canary.Outcome(
        {"mcp": "3.0.0", "anyio": "4.16.0"},
        {"tests": "1 failed"},
        {"tests": ["FAILED /home/x/tests/test_a.py::test_b"]},
    )
    report = canary.page({"locked": known, "newest allowed": known, "newest of everything": broken})
    assert "locked green; newest allowed green; newest of everything red" in canary.summary(report)
    assert "Newest of everything, other than locked: mcp 2.3.0 → 3.0.0." in report
    assert "FAILED test_a.py::test_b" in report
    assert "Newest allowed, other" not in report


@pytest.mark.install
def test_versions_are_those_of_the_project(tmp_path: Path) -> None:
    """Which are compared; and an older one that is locked is installed."""
    project = render(tmp_path)
    newest = canary.installed(project)
    assert newest.red == {}
    assert {"mcp", "pydantic", "pytest"} <= newest.versions.keys()
    assert project.name not in newest.versions
    pyproject = project / "pyproject.toml"
    pyproject.write_text(canary.pinned(pyproject.read_text(encoding="utf-8"), ["anyio==4.14.0"]), encoding="utf-8")
    older = canary.installed(project)
    assert older.versions["anyio"] == "4.14.0" != newest.versions["anyio"]


@pytest.mark.install
def test_version_that_does_not_fit_is_red(rendered: Path, tmp_path: Path) -> None:
    """The reason is kept."""
    text = (rendered / "pyproject.toml").read_text(encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text(canary.pinned(text, ["mcp==1.0.0"]), encoding="utf-8")
    found = canary.installed(tmp_path)
    assert not found.is_green
    assert "mcp==1.0.0" in " ".join(found.red["install"])


def test_bounds_are_taken_off(rendered: Path) -> None:
    """All of them, those with a marker too."""
    text = canary.unbounded((rendered / "pyproject.toml").read_text(encoding="utf-8"))
    assert re.findall(r'^ +"[^"]+,<', text, re.MULTILINE) == []
    assert '"mcp>=' in text


def test_locked_versions_name_nothing_else() -> None:
    """One a line, and no address."""
    lines = canary.LOCKED.read_text(encoding="utf-8").splitlines()
    assert len(lines) > 30
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[\w.]+", line)] == []
