"""Every option on every Python: `python3 tests/proofs/matrix.py [--seed N] [tests of a generated project]`, 45 minutes.

Renders a covering set: each pair of a Python that is here (3.11 to 3.14), an answer about CI, one about Kubernetes and one
about the examples, with licences and image versions in turn, and names, descriptions and authors drawn at random from
what breaks templates. Builds the wheel of each, installs that, moves the source away, and runs the project's own suite
and checks. Prints the table; exits 1 if something is red. (All combinations are rendered by tests/test_render.py.)
Standard library only.
"""

import argparse
import itertools
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

from bootstrap import BIN, environment, interpreter, uv
from demo import rendered

OPTIONS = {"ci": ("github", "none"), "kubernetes": ("no", "yes"), "examples": ("yes", "no")}
LICENCES, IMAGES = ("MIT", "Apache-2.0", "Proprietary"), ("3.13", "3.12", "3.11", "3.14")
PIECES = (
    *(
        '"',
        "'",
        '"""',
        "'''",
        "\\",
        "`",
        "$HOME",
        "%s",
        "%",
        "%(x)d",
        "&amp;",
        "<b>",
        "#",
        "{",
        "}",
        "{{ 7 * 7 }}",
        "{% raw %}",
        "{#",
    ),
    *(
        "日本",
        "🔩",
        "\u05d0\u05d1",
        "\u202e",
        "\u200f",
        "é",
        "$(id)",
        "; rm -r x",
        "\N{NO-BREAK SPACE}",
        "__import__('os')",
    ),
    *("A", "b", "7", " ", " and ", "- ", ": ", "[x]", "|", "*/", "-->", "\\n", "\\u0041"),
)
# What works in the source tree only says so in an installed package; these tests are about that, or need it.
SOURCE_ONLY = ("test_surface.py", "test_distribution.py", "test_cli.py::test_new_tool")
CHECKS = (["ruff", "check"], ["ruff", "format", "--check"])


def main() -> int:
    """Run the matrix; returns how many rows are red, or 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("tests", nargs="*")
    chosen = parser.parse_args()
    drawn = random.Random(chosen.seed)
    pythons = {version: path for version in ("3.11", "3.12", "3.13", "3.14") if (path := interpreter(version))}
    print(
        f"Seed {chosen.seed}; Python {', '.join(pythons)}\n\n| Python | answers | installed wheel |\n| --- | --- | --- |"
    )
    red = 0
    for number, row in enumerate(covering({"python": tuple(pythons), **OPTIONS})):
        python = row.pop("python")
        options = row | {"license": LICENCES[number % 3], "python_version": IMAGES[number % 4]}
        texts = {name: text(drawn, longest) for name, longest in (("project_name", 60), ("author_name", 60))}
        texts["description"] = text(drawn, 200)
        with tempfile.TemporaryDirectory(prefix="plinth-") as folder:
            said, is_green = tried(Path(folder), pythons[python], options | texts, chosen.tests)
        red += not is_green
        print(f"| {python} | {', '.join(options.values())} | {said} |", flush=True)
        if not is_green:
            print(f"\n   {texts}\n", flush=True)
    print(f"\n{number + 1} projects: {number + 1 - red} green, {red} red")
    return red


def covering(factors: dict[str, tuple[str, ...]]) -> Iterator[dict[str, str]]:
    """Rows that have every pair of values of two factors, each time the one with most that are new."""
    every = [dict(zip(factors, values, strict=True)) for values in itertools.product(*factors.values())]
    left = {pair for row in every for pair in itertools.combinations(row.items(), 2)}
    while left:
        best = max(every, key=lambda row: len(left.intersection(itertools.combinations(row.items(), 2))))
        left -= {*itertools.combinations(best.items(), 2)}
        yield {**best}


def text(drawn: random.Random, longest: int) -> str:
    """An answer nobody would give, and that is accepted."""
    while True:
        found = "".join(drawn.choice(PIECES) for _ in range(drawn.randrange(1, 12)))[:longest].strip()
        if found:
            return found


def tried(folder: Path, python: str, answers: dict[str, str], tests: list[str]) -> tuple[str, bool]:
    """Render, build, install the wheel, and run the suite against that; what it said, and whether it was good."""
    project = rendered(folder, *(f"{name}={answer}" for name, answer in answers.items()), is_quiet=True)
    wanted = [*map("tests/{}".format, tests)] if tests else []
    (package,) = (path.name for path in (project / "src").iterdir())

    def run(*line: str) -> subprocess.CompletedProcess[str]:
        variables = environment() | {"UV_LINK_MODE": "copy", "UV_PYTHON": python}
        return subprocess.run(line, cwd=project, env=variables, capture_output=True, text=True, check=False)

    ours = str(project / ".venv" / BIN / "python")
    steps = [
        [uv(), "sync", "--no-install-project"],
        [uv(), "build", "--quiet", "--wheel", "--out-dir", "dist"],
        *([uv(), "run", "--no-sync", *check] for check in CHECKS),
    ]
    for step in steps:
        if (done := run(*step)).returncode:
            return f"{step[1]}: {(done.stderr or done.stdout).strip().splitlines()[-1]}", False
    (wheel,) = (project / "dist").glob("*.whl")
    if (done := run(uv(), "pip", "install", "--quiet", "--no-deps", "--python", ours, str(wheel))).returncode:
        return done.stderr.strip().splitlines()[-1], False
    shutil.rmtree(project / "src")
    where = run(ours, "-c", f"import {package}; print({package}.__file__)")
    if "site-packages" not in where.stdout:
        return f"not the wheel is tested, but {where.stdout or where.stderr}", False
    left_out = [option for name in SOURCE_ONLY for option in ("--deselect", f"tests/{name}")]
    done = run(ours, "-m", "pytest", "-q", "--tb=line", "-p", "no:cacheprovider", *left_out, *wanted)
    lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines()
    failed = [line.partition(" - ")[0] for line in lines if line.startswith(("FAILED", "ERROR"))]
    said = re.sub(r" in [\d.]+s.*", "", lines[-1]).strip("= ")
    return "; ".join([said, *failed[:10]]), done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
