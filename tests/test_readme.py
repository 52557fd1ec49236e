"""What the README says is there."""

import re

from bootstrap import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PROOFS = (ROOT / "tests" / "proofs" / "README.md").read_text(encoding="utf-8")


def test_commands_are_files_of_this_repository() -> None:
    """The commands that the README and the page of proofs tell a reader to run."""
    named = re.findall(r"`(?:python3|uv run) (tests/\S+\.py)", README + PROOFS)
    assert {"tests/demo.py", "tests/run.py", "tests/proofs/teeth.py", "tests/proofs/mutation.py"} <= set(named)
    for script in named:
        assert (ROOT / script).is_file()
