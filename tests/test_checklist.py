"""The checklist names what is there, README.md shows it, and every sabotage still takes something away."""

import ast
import json
import re
from pathlib import Path

import pytest
import yaml

from bootstrap import ROOT
from checklist import Row, Sabotage, place, rows, written
from rendering import render

ROWS = rows()
SABOTAGES = [sabotage for row in ROWS for sabotage in row.sabotages]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with everything that can be had."""
    return render(tmp_path_factory.mktemp("checklist"), kubernetes="yes")


def test_readme_shows_the_checklist() -> None:
    """`python3 tests/checklist.py` writes it again."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme == written(readme)


def test_page_of_proofs_has_every_sabotage() -> None:
    """And no other, each with the test that noticed it: what `python3 tests/proofs/teeth.py` printed is of today."""
    page = (ROOT / "tests" / "proofs" / "README.md").read_text(encoding="utf-8")
    printed = page.partition("| item | taken away | noticed by |\n| --- | --- | --- |\n")[2].partition("\n\n")[0]
    wanted = [f"| {row.item} | {each.name} | `{each.test}` |" for row in ROWS for each in row.sabotages]
    assert printed.splitlines() == wanted


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.item)
def test_row_names_what_is_there(project: Path, row: Row) -> None:
    """Its files, its settings, the tests that prove it, and three ways at least to notice that it is gone."""
    for name in row.where:
        assert place(project, name).is_file(), name
    for name in row.tests:
        file = ROOT / name if "/" in name else project / "tests" / name
        assert "def test_" in file.read_text(encoding="utf-8"), name
    readme = (project / "README.md").read_text(encoding="utf-8")
    assert [name for name in row.settings if name not in readme] == []
    assert len(row.sabotages) >= 3
    assert len({sabotage.name for sabotage in row.sabotages}) == len(row.sabotages)


@pytest.mark.parametrize("sabotage", SABOTAGES, ids=lambda each: f"{each.file}-{each.name}")
def test_sabotage_can_be_done(project: Path, sabotage: Sabotage) -> None:
    """What it takes away is there, what is left can be read, and the test that has to notice exists."""
    path = sabotage.path(project)
    left = sabotage.applied(path.read_text(encoding="utf-8"))
    match path.suffix:
        case ".py":
            ast.parse(left)
        case ".yaml" | ".yml":
            list(yaml.safe_load_all(left))
        case ".json":
            json.loads(left)
    file, _, name = sabotage.test.partition("::")
    folder = ROOT if "/" in file else project
    assert re.search(rf"def {name}\(", (folder / "tests" / file).read_text(encoding="utf-8"))
