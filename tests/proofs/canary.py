"""Tomorrow's dependencies: `python3 tests/proofs/canary.py [tests of a generated project]`, a quarter of an hour.

Renders the default project three times and runs its own checks: with the versions that were last known to be good
(`locked.txt`), with the newest that its bounds allow, and with the newest of everything, its upper bounds taken off and
pre-releases let in. Writes `report.md` and its first lines into README.md; what was green with the newest versions is the
next `locked.txt`. Exits 1 if one of the first two is red; the third looks ahead. With tests named, nothing is written.
Standard library only.
"""

import json
import platform
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

from bootstrap import BIN, ROOT, environment, uv
from demo import rendered

HERE = Path(__file__).resolve().parent
LOCKED, REPORT, README = HERE / "locked.txt", HERE / "report.md", ROOT / "README.md"
BEGIN, END = "<!-- made by `python3 tests/proofs/canary.py` -->\n", "<!-- to here -->\n"
CHECKS = {
    "lint": ["ruff", "check"],
    "format": ["ruff", "format", "--check"],
    "types": ["mypy"],
    "tests": ["pytest", "-q", "--tb=line"],
}
SETS = ("locked", "newest allowed", "newest of everything")


@dataclass
class Outcome:
    """What a project's checks said: for each its last line, and whether it was good; `versions` of what was installed."""

    versions: dict[str, str] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)
    red: dict[str, list[str]] = field(default_factory=dict)
    """The checks that failed, with the lines that say why."""

    @property
    def is_green(self) -> bool:
        """Whether it was installed and every check passed."""
        return bool(self.said) and not self.red


def main(tests: list[str]) -> int:
    """Run the three, print and keep the report."""
    outcomes: dict[str, Outcome] = {}
    for name in SETS:
        print(f"{name}:", flush=True)
        outcomes[name] = outcome(name, tests, outcomes)
    report = page(outcomes)
    print(f"\n{report}")
    if not tests:
        REPORT.write_text(report, encoding="utf-8")
        README.write_text(written(README.read_text(encoding="utf-8"), report), encoding="utf-8")
        if outcomes["newest allowed"].is_green:
            LOCKED.write_text(
                "".join(f"{name}=={each}\n" for name, each in outcomes["newest allowed"].versions.items())
            )
    return 0 if all(outcomes[name].is_green for name in SETS[:2]) else 1


def outcome(name: str, tests: list[str], earlier: dict[str, Outcome]) -> Outcome:
    """Render, install and check a project with one set of versions; the same versions are not tried twice."""
    with tempfile.TemporaryDirectory(prefix="plinth-") as folder:
        project = rendered(Path(folder))
        pyproject = project / "pyproject.toml"
        text = pyproject.read_text(encoding="utf-8")
        if name == "locked":
            text = pinned(text, LOCKED.read_text(encoding="utf-8").split())
        if name == "newest of everything":
            text = unbounded(text)
        pyproject.write_text(text, encoding="utf-8")
        found = installed(project)
        if found.red:
            return found
        for named, each in earlier.items():
            if each.versions == found.versions:
                print("   the same versions as before", flush=True)
                return Outcome(found.versions, {"versions": f"the same as {named}"}, each.red)
        return checked(project, found, tests)


def pinned(pyproject: str, versions: list[str]) -> str:
    """A project's `pyproject.toml` that allows these versions (`name==1.0`) only."""
    return f"{pyproject}\n[tool.uv]\nconstraint-dependencies = {json.dumps(versions)}\n"


def unbounded(pyproject: str) -> str:
    """A project's `pyproject.toml` without upper bounds, that lets pre-releases in."""
    return re.sub(r',<[\d.]+(?=[";])', "", pyproject) + '\n[tool.uv]\nprerelease = "allow"\n'


def installed(project: Path) -> Outcome:
    """Install a project; `red` if that fails."""
    done = run(project, "sync", "--upgrade")
    if done.returncode:
        return Outcome(said={"install": "failed"}, red={"install": done.stderr.strip().splitlines()[-12:]})
    python = project / ".venv" / BIN / "python"  # or uv lists what UV_PYTHON names
    listed = json.loads(run(project, "pip", "list", "--python", str(python), "--format", "json").stdout)
    return Outcome(
        versions={each["name"]: each["version"] for each in listed if "editable_project_location" not in each}
    )


def checked(project: Path, found: Outcome, tests: list[str]) -> Outcome:
    """Run the checks of an installed project."""
    for check, line in CHECKS.items():
        done = run(project, "run", "--no-sync", *line, *(tests if check == "tests" else []))
        lines = [line for line in done.stdout.splitlines() if line.strip()] or ["nothing"]
        found.said[check] = re.sub(r" in [\d.]+s.*", "", lines[-1]) if check == "tests" else "passed"
        if done.returncode:
            failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
            found.red[check] = failed or lines[-5:]
            found.said[check] = found.said[check] if check == "tests" else "failed"
        print(f"   {check}: {found.said[check]}", flush=True)
    return found


def run(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run uv in a project, as its user would."""
    # uv warns when its cache is on another file system and it has to copy; told to copy, it does not.
    variables = environment() | {"UV_LINK_MODE": "copy"}
    return subprocess.run([uv(), *arguments], cwd=project, env=variables, capture_output=True, text=True, check=False)


def page(outcomes: dict[str, Outcome]) -> str:
    """The report, in Markdown."""
    day, python = datetime.now(UTC).date(), platform.python_version()
    said = "; ".join(f"{name} {'green' if each.is_green else 'red'}" for name, each in outcomes.items())
    lines = ["# Canary", "", f"{day}, Python {python}: {said}.", "", "| versions | result |", "| --- | --- |"]
    lines += [
        f"| {name} | {', '.join(f'{check} {said}' for check, said in each.said.items())} |"
        for name, each in outcomes.items()
    ]
    known = outcomes["locked"].versions
    for name, each in outcomes.items():
        moved = [
            f"{package} {known.get(package, '(new)')} → {each.versions.get(package, '(gone)')}"
            for package in sorted(known.keys() | each.versions.keys())
            if known.get(package) != each.versions.get(package)
        ]
        if moved and each.versions:
            lines += ["", f"{name[0].upper()}{name[1:]}, other than locked: {', '.join(moved)}."]
        for check, why in each.red.items():
            # A path of this machine says nothing to others.
            shown = [re.sub(r"(/[\w.-]+)+/(?=[\w.-]+)", "", line) for line in why]
            lines += ["", f"{name[0].upper()}{name[1:]}, {check}:", "", "```", *shown, "```"]
    return "\n".join(lines) + "\n"


def summary(report: str) -> str:
    """Its first line after the title: the date, and how each set was."""
    return report.splitlines()[2]


def written(readme: str, report: str) -> str:
    """README.md with the last report's first line."""
    head, begin, rest = readme.partition(BEGIN)
    _, end, tail = rest.partition(END)
    assert begin and end, "README.md has lost the comments that the canary's line stands between"
    return f"{head}{begin}{summary(report)}\n{end}{tail}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
