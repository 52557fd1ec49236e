"""README.md's five minutes: every line is run as it stands there, and prints what stands there."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from bootstrap import BIN, ROOT, configuration, environment, free_port

pytestmark = [
    pytest.mark.install,
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.name == "nt", reason="runs the lines in a POSIX shell"),
]


class Step(NamedTuple):
    """A command, and what it prints; `...` stands for whatever there is."""

    command: str
    printed: str


def steps(markdown: str) -> Iterator[Step]:
    """The commands of the console blocks, and a file for each Python block, which is named before it."""
    text, *blocks = re.split(r"^```", markdown, flags=re.MULTILINE)
    for block, after in zip(blocks[::2], blocks[1::2], strict=True):
        language, _, body = block.partition("\n")
        if language == "python":
            file = re.findall(r"`((?:src|tests)/\S+\.py)`", text)[-1]
            yield Step(f"cat >{file} <<'PYTHON'\n{body}PYTHON", "")
        elif language == "console":
            for command in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
                lines = command.splitlines()
                typed = [lines[0], *(line[2:] for line in lines[1:] if line.startswith("> "))]
                yield Step("\n".join(typed), "\n".join(line for line in lines[1:] if not line.startswith("> ")))
        text = after


def test_five_minutes(tmp_path: Path) -> None:
    """They are what a new user does first."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Five minutes\n")[2].partition("\n## ")[0]
    wanted = list(steps(section))
    assert len(wanted) >= 10
    mark = "----- next step"
    script = f"\necho '{mark}'\n".join(step.command for step in wanted)
    # The template of this checkout, and a port that is free here.
    script = script.replace("gh:org/plinth-mcp", str(ROOT)).replace("8000", str(free_port()))
    variables = environment() | {"COOKIECUTTER_CONFIG": str(configuration(tmp_path / ".cookiecutter"))}
    variables |= {"PATH": f"{ROOT / '.venv' / BIN}{os.pathsep}{variables['PATH']}", "UV_LINK_MODE": "copy"}
    variables["PYTEST_ADDOPTS"] = "--color=no"
    done = subprocess.run(
        ["bash", "-c", f"trap 'kill $server 2>/dev/null' EXIT\n{script}"],
        cwd=tmp_path,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    printed = done.stdout.split(f"{mark}\n")
    assert len(printed) == len(wanted), done.stdout
    for step, found in zip(wanted, printed, strict=True):
        pattern = re.escape(step.printed).replace(re.escape("..."), ".*")
        assert re.fullmatch(pattern, found.strip("\n"), re.DOTALL), f"$ {step.command}\n{found}"
