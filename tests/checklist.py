"""The production checklist of `checklist.toml`, as README.md shows it: `python3 tests/checklist.py` writes it there.

Standard library only.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bootstrap import ROOT

BEGIN, END = "<!-- made by `python3 tests/checklist.py` -->\n", "<!-- until here -->\n"


@dataclass(frozen=True)
class Sabotage:
    """A feature taken away: `right` becomes `wrong` in a file, and `test` (`file::name`) has to notice."""

    name: str
    file: str
    right: str
    wrong: str
    test: str

    def path(self, project: Path) -> Path:
        """The file in a rendered project: of its package, or beside it."""
        return place(project, self.file)

    def applied(self, text: str) -> str:
        """The file's text without the feature.

        Raises:
            ValueError: what there is to take away is not there any more.
        """
        if self.right not in text:
            raise ValueError(f"{self.name}: {self.file} has changed: what is there to take out now?")
        return text.replace(self.right, self.wrong)


@dataclass(frozen=True)
class Row:
    """One item. `where`: files of a project; `tests`: of a project, or with a folder of this repository."""

    item: str
    means: str
    settings: tuple[str, ...]
    where: tuple[str, ...]
    tests: tuple[str, ...]
    sabotages: tuple[Sabotage, ...]


def place(project: Path, name: str) -> Path:
    """Where a file of the checklist is in a rendered project."""
    (package,) = (project / "src").iterdir()
    return package / name if (package / name).is_file() else project / name


def rows() -> list[Row]:
    """The checklist."""
    found: list[dict[str, Any]] = tomllib.loads((ROOT / "tests" / "checklist.toml").read_text(encoding="utf-8"))["row"]
    return [
        Row(
            row["item"],
            row["means"],
            tuple(row["settings"]),
            tuple(row["where"]),
            tuple(row["tests"]),
            tuple(Sabotage(**each) for each in row["sabotage"]),
        )
        for row in found
    ]


def page() -> str:
    """The checklist in Markdown."""
    lines = [
        "| item | what it means | settings | where | proof | what is noticed when it is taken away |",
        "| --- " * 6 + "|",
    ]
    for row in rows():
        taken = "; ".join(each.name for each in row.sabotages)
        cells = [row.item, row.means, _code(row.settings), _code(row.where), _code(row.tests), taken]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _code(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def written(readme: str) -> str:
    """README.md with the checklist of today."""
    head, begin, rest = readme.partition(BEGIN)
    _, end, tail = rest.partition(END)
    assert begin and end, "README.md has lost the comments that the checklist stands between"
    return f"{head}{begin}\n{page()}\n{end}{tail}"


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(written(path.read_text(encoding="utf-8")), encoding="utf-8")
