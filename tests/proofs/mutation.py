# /// script
# requires-python = ">=3.11"
# dependencies = ["cosmic-ray>=8.7,<9"] # makes the mutants; 8.7: its operators were looked at
# ///
"""How much of a change the suite notices: `uv run tests/proofs/mutation.py [--sample N] [--seed N] [module …]`.

Makes small changes to the guards, the serving and the outbound code of a rendered project, one at a time, and runs the
tests that go with the module. A change that no test notices survives, and is printed: it is a gap, or it changes nothing
(then it belongs into `equivalent.toml`, with the reason). There are some 1,600 of them, a minute each: without
`--sample 0`, which means all, 200 are drawn, and the score is printed with its 95 % interval (Wilson). What was found is
kept in `--results` (a file), so that a run goes on where it was ended.
"""

import argparse
import ast
import difflib
import hashlib
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Lock

from cosmic_ray.mutating import mutate_code  # type: ignore[import-not-found]
from cosmic_ray.plugins import get_operator  # type: ignore[import-not-found]

sys.path.append(str(Path(__file__).resolve().parent.parent))

from bootstrap import environment
from demo import install

# Of each family those that say something different; what is left out is noticed wherever these are.
OPERATORS = [
    *("AddNot", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr", "ReplaceOrWithAnd"),
    *("ReplaceBreakWithContinue", "ReplaceContinueWithBreak", "NumberReplacer"),
    *("ZeroIterationForLoop", "ReplaceUnaryOperator_Delete_Not"),
    *(f"ReplaceComparisonOperator_{pair}" for pair in ("Eq_NotEq", "NotEq_Eq", "Lt_LtE", "LtE_Lt", "Gt_GtE", "GtE_Gt")),
    *(f"ReplaceComparisonOperator_{pair}" for pair in ("Is_IsNot", "IsNot_Is")),
    *(f"ReplaceBinaryOperator_{pair}" for pair in ("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "BitOr_BitAnd")),
]
# Which tests go with a module, those that notice soonest first.
TESTS = {
    "guards/authorize": "outcomes auth",
    "guards/capacity": "load stdio outcomes metrics",
    "guards/deadline": "outcomes load stdio",
    "guards/drain": "drain stdio listen outcomes",
    "guards/rate_limit": "limits auth",
    "guards/request_log": "outcomes logs metrics tracing",
    "outbound/breaker": "breaker retries outbound",
    "outbound/bulkhead": "outbound metrics",
    "outbound/public": "public",
    "outbound/retries": "retries outbound",
    "outbound": "outbound retries public breaker metrics tracing",
    "serving/admission": "auth http oauth jwt api_keys",
    "serving/conversation": "stdio logs conformance outcomes listen load",
    "serving/edge": "http outcomes auth jwt drain listen",
    "serving/exchange": "http listen outcomes load drain logs",
    "serving/headers": "http conformance auth outcomes",
    "serving/http": "drain http listen load",
    "serving/lifecycle": "drain stdio http load",
    "serving/listener": "http drain",
    "serving/messages": "load stdio http",
    "serving/output": "stdio logs load",
    "serving/protocol": "http load drain",
    "serving/readiness": "http metrics drain limits",
    "serving/refusals": "http auth limits",
    "serving/sessions": "http listen auth drain logs",
    "serving/stdio": "stdio logs drain load",
    "serving/watchdog": "load stdio drain",
    "serving": "http stdio outcomes",
}
HERE = Path(__file__).resolve().parent
_SECONDS = 300  # for the tests of one mutant: three times what the slowest take


@dataclass(frozen=True)
class Mutant:
    """A changed module: `name`, as in `guards/drain`; the function it is in, and its text before and after."""

    module: str
    function: str
    before: str
    after: str
    text: str
    place: int
    """Which it is of the same changes to the same lines of a function, from 1."""

    @property
    def key(self) -> str:
        """What tells it from others, wherever its lines are."""
        place = f" ({self.place})" if self.place > 1 else ""
        return f"{self.module}::{self.function}: {self.before.strip()} => {self.after.strip()}{place}"


def mutants(module: str, source: str) -> Iterator[Mutant]:
    """All that change one line of a module and may change what it does."""
    tree = ast.parse(source)
    still = set(_without_effect(tree))
    texts = [text for operator in OPERATORS for text in _mutated(source, operator)]
    texts += [_without(source, call) for call in _calls(tree)]
    seen, places = set(), Counter[tuple[str, str, str]]()
    lines = source.splitlines()
    for text in texts:
        changed = [
            (number, before, after)
            for number, (before, after) in enumerate(zip(lines, text.splitlines(), strict=False), 1)
            if before != after
        ]
        if not changed or text in seen:
            continue
        number, before, after = changed[0]
        column = len(os.path.commonprefix([before, after]))
        if any(start <= (number, column) < end for start, end in still) or not _is_python(text):
            continue
        if _is_fine_tuning(before, after) or before.replace("*,", "/,") == after:  # `*` in a signature is no product
            continue
        seen.add(text)
        function = _function(tree, number)
        places[function, before, after] += 1
        yield Mutant(module, function, before, after, text, places[function, before, after])


def _is_python(text: str) -> bool:
    """Not every operator knows `:=`."""
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True


def _is_fine_tuning(before: str, after: str) -> bool:
    """Whether a constant is changed by a tenth or less: a limit of 1,001 for 1,000 is no other promise."""
    was, now = (_CONSTANT.fullmatch(line) for line in (before, after))
    if was is None or now is None:
        return False
    old, new = (eval(each["value"] or each["size"]) for each in (was, now))  # digits and arithmetic, as matched
    return bool(abs(new - old) <= 0.1 * abs(old))


_CONSTANT = re.compile(
    r"\s*\w+(: \w+)? = (?P<value>[\d_.]+(( [-+*]| <<) +[\d_.]+)*),?\s*(#.*)?"
    r"|.*\b(maxsize|backlog|max_keepalive_connections)=\s*(?P<size>\d+)\).*"
)


def _mutated(source: str, operator: str) -> Iterator[str]:
    made = get_operator(f"core/{operator}")()
    for occurrence in range(10_000):
        text = mutate_code(source, made, occurrence)
        if text is None:
            return
        yield text


def _calls(tree: ast.Module) -> Iterator[ast.Expr]:
    """Statements that are nothing but a call."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call | ast.Await):
            yield node


def _without(source: str, statement: ast.Expr) -> str:
    lines = source.splitlines(keepends=True)
    end = statement.end_lineno or statement.lineno
    indent = lines[statement.lineno - 1][: statement.col_offset]
    rest = "\n" * (end - statement.lineno)
    return "".join([*lines[: statement.lineno - 1], f"{indent}pass\n{rest}", *lines[end:]])


Place = tuple[int, int]


def _without_effect(tree: ast.Module) -> Iterator[tuple[Place, Place]]:
    """Where a change changes nothing that runs: annotations, types that have a name, how a class keeps its fields."""
    for node in ast.walk(tree):
        parts: list[ast.AST | None] = []
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            parts = [node.returns]
        elif isinstance(node, ast.arg | ast.AnnAssign):
            parts = [node.annotation]
        elif isinstance(node, ast.ClassDef):
            parts = [*node.decorator_list]
        elif isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            parts = [node]
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.BinOp | ast.Subscript):
            names = {each.id for each in ast.walk(node.value) if isinstance(each, ast.Name)}
            parts = [node] if names & {"Callable", "Awaitable", "dict", "Literal", "Mapping"} else []
        for part in parts:
            if part is not None:
                start, end = (part.lineno, part.col_offset), (part.end_lineno or 0, part.end_col_offset or 0)
                yield start, end


def _function(tree: ast.Module, line: int) -> str:
    """The innermost function around a line."""
    around = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and node.lineno <= line <= (node.end_lineno or 0)
    ]
    return ".".join(node.name for node in sorted(around, key=lambda node: node.lineno)) or "(module)"


def tests_of(module: str) -> list[str]:
    """The files."""
    names = TESTS.get(module) or TESTS[module.partition("/")[0]]
    return [f"tests/test_{name}.py" for name in names.split()]


def failed(project: Path, python: Path, test: str) -> bool:
    """Run a file of tests, to the first failure."""
    line = [python, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider", "--timeout", "30", test]
    done = subprocess.run(line, cwd=project, env=environment(), capture_output=True, timeout=_SECONDS, check=False)
    return done.returncode != 0


def judged(project: Path, python: Path, mutant: Mutant) -> str:
    """`killed`, `timeout` or `survived`."""
    (package,) = (project / "src").iterdir()
    path = package / f"{mutant.module}.py"
    text = path.read_text(encoding="utf-8")
    path.write_text(mutant.text, encoding="utf-8")
    try:
        if any(failed(project, python, test) for test in tests_of(mutant.module)):
            return "killed"
    except subprocess.TimeoutExpired:
        return "timeout"
    finally:
        path.write_text(text, encoding="utf-8")
    return "survived"


def main() -> int:
    """Run it; returns 1 if the score is below 85 %, 2 if the tests are red as they are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=int, default=200, help="0: all of them")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--results", type=Path, default=None)
    parser.add_argument("modules", nargs="*", help="as in guards/drain; without, all")
    chosen = parser.parse_args()
    reviewed = tomllib.loads((HERE / "equivalent.toml").read_text(encoding="utf-8"))["equivalent"]
    known = {each["change"] for each in reviewed}
    with tempfile.TemporaryDirectory(prefix="plinth-") as name:
        jobs = 2 * (os.cpu_count() or 1)  # as many as the suite itself has workers: it mostly waits
        pythons: SimpleQueue[Path] = SimpleQueue()
        for n in range(jobs):
            pythons.put(python := install(Path(name, str(n))))
        (package,) = (python.parent.parent.parent / "src").iterdir()
        every = [
            mutant
            for folder in ("guards", "serving", "outbound")
            for path in sorted((package / folder).glob("*.py"))
            if path.stem != "__init__" and (not chosen.modules or f"{folder}/{path.stem}" in chosen.modules)
            for mutant in mutants(f"{folder}/{path.stem}", path.read_text(encoding="utf-8"))
        ]
        # By a hash: a larger sample holds a smaller one, and a change of the code changes no more of it than it must.
        every.sort(key=lambda mutant: hashlib.sha256(f"{chosen.seed} {mutant.key}".encode()).digest())
        sample = every[: chosen.sample or None]
        drawn = [mutant for mutant in sample if mutant.key not in known]
        still = len(sample) - len(drawn)
        print(
            f"{len(every)} changes, {len(sample)} drawn: {still} known to change nothing, {len(drawn)} tried",
            flush=True,
        )
        done: dict[str, str] = {}
        if chosen.results is not None and chosen.results.exists():
            done = dict(json.loads(line) for line in chosen.results.read_text(encoding="utf-8").splitlines())
        lock = Lock()

        def red(test: str) -> bool:
            python = pythons.get()
            try:
                return failed(python.parent.parent.parent, python, test)
            finally:
                pythons.put(python)

        def judge(mutant: Mutant) -> str:
            said = done.get(mutant.key)
            if said is None:
                python = pythons.get()
                try:
                    said = judged(python.parent.parent.parent, python, mutant)
                finally:
                    pythons.put(python)
                with lock:
                    done[mutant.key] = said
                    if chosen.results is not None:
                        with chosen.results.open("a", encoding="utf-8") as file:
                            file.write(json.dumps([mutant.key, said]) + "\n")
            if said == "survived":
                print(f"\n{mutant.module}, {mutant.function}", *_diff(mutant), sep="\n", flush=True)
            return said

        with ThreadPoolExecutor(jobs) as pool:
            tests = sorted({test for mutant in drawn if mutant.key not in done for test in tests_of(mutant.module)})
            if wrong := [test for test, is_red in zip(tests, pool.map(red, tests), strict=True) if is_red]:
                print(f"Red without any change: {', '.join(wrong)}")
                return 2
            results = list(pool.map(judge, drawn))
    return told(drawn, results)


def _diff(mutant: Mutant) -> list[str]:
    return [line for line in difflib.ndiff([mutant.before], [mutant.after]) if line[0] in "+-"]


def told(drawn: list[Mutant], results: list[str]) -> int:
    """Print the table; returns 1 if the score is below 85 %."""
    print("\n| module | changes | killed | by timeout | survived |\n| --- | --- | --- | --- | --- |")
    for module in sorted({mutant.module for mutant in drawn}):
        counts = Counter(said for mutant, said in zip(drawn, results, strict=True) if mutant.module == module)
        cells = [module, counts.total(), counts["killed"], counts["timeout"], counts["survived"]]
        print(f"| {' | '.join(map(str, cells))} |")
    killed, total = sum(said != "survived" for said in results), len(results)
    low, high = interval(killed, total)
    print(f"\n{killed} of {total} noticed: {killed / total:.1%} (95 %: {low:.1%} to {high:.1%})")
    return 0 if killed >= 0.85 * total else 1


def interval(hits: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """Where the share really is, with 95 % confidence (Wilson score)."""
    share, around = hits / total, z * z / total
    middle = (share + around / 2) / (1 + around)
    width = z * math.sqrt(share * (1 - share) / total + around / total / 4) / (1 + around)
    return middle - width, middle + width


if __name__ == "__main__":
    sys.exit(main())
