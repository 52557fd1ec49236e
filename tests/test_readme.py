"""What the README says is there."""

import re
from pathlib import Path

from bootstrap import ROOT

TEMPLATE = ROOT / "{{cookiecutter.project_slug}}"
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_checklist_names_files_that_exist(rendered: Path) -> None:
    """Each row of the checklist says where an item lives and which tests prove it."""
    section = README.partition("## The checklist")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")][2:]
    assert len(rows) >= 8
    for _, _, places, proofs in rows:
        for place in re.findall(r"`([^`]+)`", places):
            assert any((folder / place).is_file() for folder in (rendered / "src" / "my_mcp_server", TEMPLATE)), place
        for proof in re.findall(r"`([^`]+)`", proofs):
            file = ROOT / proof if "/" in proof else rendered / "tests" / proof
            assert "def test_" in file.read_text(encoding="utf-8"), proof


def test_commands_are_files_of_this_repository() -> None:
    """The commands that the README tells a reader to run."""
    named = re.findall(r"`(?:python3|\.venv/bin/python) (tests/\S+\.py)", README)
    assert {"tests/demo.py", "tests/run.py"} <= set(named)
    for script in named:
        assert (ROOT / script).is_file()
