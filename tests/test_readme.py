"""What the README says is there."""

import re

from bootstrap import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_commands_are_files_of_this_repository() -> None:
    """The commands that the README tells a reader to run."""
    named = re.findall(r"`(?:python3|\.venv/bin/python) (tests/\S+\.py)", README)
    assert {"tests/demo.py", "tests/run.py"} <= set(named)
    for script in named:
        assert (ROOT / script).is_file()
