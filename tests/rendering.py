"""Render the template the way cookiecutter's users do, and find what the tests need on this machine."""

import ast
import itertools
import json
import os
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from cookiecutter.main import cookiecutter

from bootstrap import ROOT, configuration, environment, uv

QUESTIONS = {
    name: value
    for name, value in json.loads((ROOT / "cookiecutter.json").read_text(encoding="utf-8")).items()
    if not name.startswith("_")
}
CHECKS = ["uv run ruff check", "uv run ruff format --check", "uv run mypy", "uv run pytest"]
CHOICES = {name: value for name, value in QUESTIONS.items() if isinstance(value, list)}


def render(folder: Path, *, overwrite: bool = False, **answers: str) -> Path:
    """Render the template below the folder and return the project's path."""
    # cookiecutter ignores keys it does not know: a misspelt option would test the default.
    assert answers.keys() <= QUESTIONS.keys()
    settings = configuration(folder / ".cookiecutter")
    project = cookiecutter(
        str(ROOT),
        no_input=True,
        extra_context=answers,
        overwrite_if_exists=overwrite,
        output_dir=str(folder),
        config_file=str(settings),
    )
    return Path(project)


def command(
    folder: Path, *arguments: str, typed: str | None = None, template: str = str(ROOT), checkout: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run the real `cookiecutter` command on the template, in the folder, with answers typed or given as arguments."""
    settings = configuration(folder.parent / f".{folder.name}")
    folder.mkdir(exist_ok=True)
    mode = [] if typed is not None or "--replay-file" in arguments else ["--no-input"]
    mode += ["--checkout", checkout] if checkout else []
    return subprocess.run(
        [sys.executable, "-m", "cookiecutter", "--config-file", settings, *mode, template, *arguments],
        cwd=folder,
        input=typed or "",
        capture_output=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONUTF8": "1", "COLUMNS": "200"},
        check=False,
    )


def combinations() -> Iterator[dict[str, str]]:
    """Yield every combination of the options."""
    for values in itertools.product(*CHOICES.values()):
        yield dict(zip(CHOICES, values, strict=True))


def parse(path: Path) -> None:
    """Check that a file is what its name says; raises the parser's own error."""
    text = path.read_text(encoding="utf-8")
    match path.suffix:
        case ".py":
            ast.parse(text)
        case ".toml":
            tomllib.loads(text)
        case ".json":
            json.loads(text)
        case ".yaml" | ".yml":
            list(yaml.safe_load_all(text))


def metadata(project: Path) -> dict[str, Any]:
    """Read the project's table of its pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return table


def run(project: Path, line: str, python: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command line in a project as its user would, with the given interpreter or the one at hand."""
    program, *arguments = shlex.split(line)
    assert program == "uv"
    # uv warns when its cache is on another file system and it has to copy; told to copy, it does not.
    variables = environment() | {"UV_LINK_MODE": "copy"} | ({"UV_PYTHON": python} if python else {})
    variables["PYTEST_XDIST_AUTO_NUM_WORKERS"] = str(os.cpu_count() or 1)  # other tests run beside a project's own
    return subprocess.run([uv(), *arguments], cwd=project, env=variables, capture_output=True, text=True, check=False)


def files(folder: Path) -> list[Path]:
    """List the files below the folder, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file())
