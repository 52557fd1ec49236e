"""The suite has teeth: `python3 tests/proofs/teeth.py [words]` takes each feature of the checklist away, one at a time.

In a rendered project the named test has to go red: of its own suite, or of this repository's `tests/edge/`. With words, only sabotages that have one of them in
their name, file or test. Prints the table; exits 1 if one survives. Standard library only.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

sys.path.append(str(Path(__file__).resolve().parent.parent))

from bootstrap import ROOT, environment, uv
from checklist import Sabotage, rows
from demo import install

_SECONDS = 240  # for one test in all its ways, while another runs beside it


def main(words: list[str]) -> int:
    """Run the sabotages; returns how many survived, or 1."""
    named = [
        (row.item, sabotage)
        for row in rows()
        for sabotage in row.sabotages
        if not words or any(word in f"{sabotage.name} {sabotage.file} {sabotage.test}" for word in words)
    ]
    jobs = 2 * (os.cpu_count() or 1)  # as many as the suite itself has workers: it mostly waits
    with tempfile.TemporaryDirectory(prefix="plinth-") as name, ThreadPoolExecutor(jobs) as pool:
        pythons: SimpleQueue[Path] = SimpleQueue()
        for n in range(jobs):
            pythons.put(install(Path(name, str(n)), "kubernetes=yes"))

        def noticed(sabotage: Sabotage | None, tests: Iterable[str]) -> str:
            python = pythons.get()
            try:
                return tried(python, sabotage, tests)
            finally:
                pythons.put(python)

        tests = sorted({sabotage.test for _, sabotage in named})
        before = list(pool.map(lambda test: noticed(None, [test]), tests))
        if red := [f"{test}: {said}" for test, said in zip(tests, before, strict=True) if said != "green"]:
            print("Nothing can be said while a test is red that nothing was taken from:", *red, sep="\n")
            return 1
        print("| item | taken away | noticed by |\n| --- | --- | --- |", flush=True)
        survived = 0
        for (item, sabotage), said in zip(
            named, pool.map(lambda each: noticed(each[1], [each[1].test]), named), strict=True
        ):
            survived += said != "red"
            shown = f"`{sabotage.test}`" if said == "red" else f"**nothing**: {said}"
            print(f"| {item} | {sabotage.name} | {shown} |", flush=True)
    print(f"\n{len(named)} sabotages: {len(named) - survived} noticed, {survived} not")
    return survived


def tried(python: Path, sabotage: Sabotage | None, tests: Iterable[str]) -> str:
    """What tests of a project say of a sabotage: `green`, `red` (they failed, and were not just broken), or what else."""
    project = python.parent.parent.parent
    if all("/" in test for test in tests):
        return judged([uv(), "run", "--quiet", "python"], ROOT, tests, sabotage)
    if sabotage is None:
        return judged([python], project, tests)
    path = sabotage.path(project)
    text = path.read_text(encoding="utf-8")
    path.write_text(sabotage.applied(text), encoding="utf-8")
    try:
        return judged([python], project, tests)
    finally:
        path.write_text(text, encoding="utf-8")


def judged(python: list[str | Path], folder: Path, tests: Iterable[str], sabotage: Sabotage | None = None) -> str:
    """Run tests of a project, or of this repository, to the first that fails. `sabotage`: for tests that do it themselves."""
    named = [f"tests/{test}" for test in tests]
    pytest = [*python, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider", "--tb=line", *named]
    variables = environment() | ({"SABOTAGE": sabotage.name} if sabotage is not None else {})
    try:
        done = subprocess.run(
            pytest, cwd=folder, env=variables, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return "did not end"
    if done.returncode == 0:
        return "green"
    lines = done.stdout.splitlines()
    failed = any(line.startswith(f"FAILED {test}") for line in lines for test in named)
    return "red" if failed else " / ".join(lines[-3:] or done.stderr.splitlines()[-3:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
