"""The generated server next to its rivals; run by `run.py`.

Everything is interleaved: a round asks every server, one after the other. A ratio is the median, over the rounds, of the
ratio within a round: other work on the machine then slows both sides of it.

Servers run on one core, the load and the readers of their logs on another. Traffic is on loopback only.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from load import PATIENCE, pinned
from servers import (
    BARE,
    FASTMCP,
    FLOOR,
    OURS,
    READER,
    TUNED,
    TYPESCRIPT,
    Problem,
    Server,
    ours,
    redis,
    rivals,
    running,
    without,
)

from bootstrap import environment

# Many and short: less happens on the machine between two servers.
ROUNDS = {"http": 8, "stdio": 7, "start": 9, "features": 9, "costs": 9, "hang": 15, "processes": 7}
SECONDS = 0.4  # a measurement, after a fifth of a second that does not count

CORES: list[int | None] = [*sorted(os.sched_getaffinity(0))] if hasattr(os, "sched_getaffinity") else [None]
SERVER, LOAD = CORES[0], CORES[-1]
LOAD_SCRIPT, COSTS_SCRIPT = (str(Path(__file__).with_name(name)) for name in ("load.py", "costs.py"))

# What is measured, and how much of a rival's figure ours is to be: at least (calls), or at most. None: no target.
BUSY: dict[str, float | None] = {BARE: 2.5, FASTMCP: 5, TYPESCRIPT: 2.2, FLOOR: 0.17}
PIPELINED: dict[str, float | None] = {BARE: 3, FASTMCP: 4, TYPESCRIPT: None}
LATENCY: dict[str, float | None] = {BARE: 0.4, FASTMCP: 0.3, TYPESCRIPT: None}
MEASURES: list[tuple[str, str, dict[str, float | None]]] = [
    ("http modern 1 rate", "HTTP modern, 1 connection (calls/s)", {}),
    ("http modern 16 rate", "HTTP modern, 16 connections (calls/s)", BUSY),
    ("http modern 64 rate", "HTTP modern, 64 connections (calls/s)", BUSY),
    ("http modern 16 p50", "HTTP modern, 16 connections, p50 (ms)", {BARE: 0.4}),
    ("http legacy 16 rate", "HTTP legacy stateless, 16 connections (calls/s)", {BARE: 5, FASTMCP: 7, TYPESCRIPT: 2.5}),
    ("stdio modern rate", "stdio modern, pipelined (calls/s)", PIPELINED),
    ("stdio legacy rate", "stdio legacy, pipelined (calls/s)", PIPELINED),
    ("stdio modern p50", "stdio modern, one at a time, p50 (ms)", LATENCY),
    ("stdio legacy p50", "stdio legacy, one at a time, p50 (ms)", LATENCY),
    ("start start", "start to first answer, stdio (ms)", {BARE: 1.15, FASTMCP: 0.75, TYPESCRIPT: None}),
    ("start memory", "resident memory after it (MB)", {BARE: 1.15, FASTMCP: 1}),
]

# What can be left out of the generated server: by settings, and by lines of its server.py.
Left = tuple[dict[str, str], tuple[str, ...]]
PARTS: dict[str, Left] = {
    "authentication by key": ({"MCP_AUTH_MODE": "none"}, ()),
    "rate limit": ({"MCP_RATE_LIMIT_PER_MINUTE": "0"}, ("RateLimit(",)),
    "log line": ({"MCP_LOG_LEVEL": "ERROR"}, ()),
}
GUARDS: dict[str, Left] = {
    "request log": ({}, ("RequestLog(),",)),
    "drain": ({}, ("drain,",)),
    "authorize": ({}, ("Authorize(",)),
    "capacity": ({}, ("Capacity(",)),
    "deadline": ({}, ("Deadline(",)),
}


def together(*left: Left) -> Left:
    """All of these left out."""
    settings = {name: value for each, _ in left for name, value in each.items()}
    return settings, tuple(line for _, lines in left for line in lines)


THREE, ALL = "these three", "all of them"
FEATURES: dict[str, Left] = {
    **PARTS,
    THREE: together(*PARTS.values()),
    **GUARDS,
    ALL: together(*PARTS.values(), *GUARDS.values()),
}
FEATURES_KEY = "features modern 16 rate"

# Microseconds: the name of a figure, its title, the name of what it is divided by, how much of that it may be.
Cost = tuple[str, str, str, float | None]
BARE_CALL, TEN = "a call without these three", "10 µs"
HTTP_COSTS: list[Cost] = [
    ("bare", BARE_CALL, "", None),
    ("tuned", f"a call of {TUNED}", "", None),
    ("all", "authentication, rate limit and log line add", "bare", 0.25),
    ("all", "the same", "tuned", 0.25),
]
COSTS: list[Cost] = [
    ("bare", BARE_CALL, "", None),
    ("key", "authentication by key adds", "bare", None),
    ("limiter", "rate limit in memory adds", TEN, 1),
    ("log", "log line adds", "bare", None),
    ("all", "these three add", "bare", None),
    ("ping", "PING by redis-py", "", None),
    ("redis", "rate limit in Redis, alone", "ping", 1.2),
]


class Comparison:
    """Measures, and keeps a figure for each server, measure and round, or the problem."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.figures: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
        self.problems: dict[tuple[str, str], str] = {}

    def median(self, server: str, measure: str) -> float | None:
        """The median over the rounds."""
        values = self.figures[server, measure].values()
        return statistics.median(values) if values else None

    def failed(self, server: str, measure: str) -> bool:
        """Whether there is a problem with this, or with all that it is part of."""
        return any(name == server and measure.startswith(what) for name, what in self.problems)

    def http(self, servers: list[Server], rounds: int, plans: Sequence[tuple[str, int]], name: str = "http") -> None:
        """Calls a second and latency; each plan is an era and a number of connections."""
        with ExitStack() as stack:
            up = []
            for server in filter(lambda each: each.http, servers):
                try:
                    up.append((server, stack.enter_context(running(server, SERVER, LOAD))))
                except Problem as problem:
                    self.problems[server.name, name] = str(problem)
            for number, (era, connections), (server, port) in turns(rounds, plans, up):
                asked = {"transport": "http", "port": port, "era": era, "connections": connections}
                asked |= {"authorization": server.authorization}
                self._keep(server, f"{name} {era} {connections}", number, asked)

    def stdio(self, servers: list[Server], rounds: int) -> None:
        """Calls a second and latency."""
        for number, era, server in turns(rounds, ["modern", "legacy"], servers):
            self._pipes(server, f"stdio {era}", number, era=era)

    def start(self, servers: list[Server], rounds: int) -> None:
        """The time to the first answer over stdio, and the memory then."""
        for number, server in turns(rounds, servers):
            self._pipes(server, "start", number, era="modern", seconds=0)

    def processes(self, server: Server, rounds: int) -> None:
        """Calls a second of one process and of two, as the figures of "1" and "2".

        A server shares its core with its own load and the reader of its log, as two cores do not hold two of each. What
        is left to see is whether two processes hinder each other.
        """
        asked = {"transport": "http", "era": "modern", "connections": 16, "seconds": self.seconds}
        asked |= {"authorization": server.authorization}
        try:
            with ExitStack() as stack:
                pool = stack.enter_context(ThreadPoolExecutor())
                pairs = [(core, stack.enter_context(running(server, core, core))) for core in (SERVER, LOAD)]
                for number, used in turns(rounds, [pairs[:1], pairs]):
                    loads = [pool.submit(load, core, asked | {"port": port}) for core, port in used]
                    self.figures[str(len(used)), "processes"][number] = sum(each.result()["rate"] for each in loads)
        except Problem as problem:
            self.problems[server.name, "processes"] = str(problem)

    def costs(self, server: Server, rounds: int) -> None:
        """What parts of a call cost, in microseconds, as the figures of those parts."""
        try:
            with redis(LOAD) as address:
                asked = {"rounds": rounds, "authorization": server.authorization, "redis": address}
                found = measured(SERVER, [server.stdio[0], COSTS_SCRIPT, json.dumps(asked)], server.settings)
        except Problem as problem:
            self.problems[server.name, "costs"] = str(problem)
        else:
            for name, values in {**found, TEN: [10.0] * rounds}.items():
                self.figures[name, "costs"] = dict(enumerate(values))

    def http_costs(self) -> None:
        """What three features cost, in microseconds, from the rates with and without them."""
        names = {OURS: "own", THREE: "bare", TUNED: "tuned"}
        for server, name in names.items():
            rates = self.figures[server, FEATURES_KEY]
            self.figures[name, "http costs"] = {number: 1_000_000 / rate for number, rate in rates.items()}
        own, bare = self.figures["own", "http costs"], self.figures["bare", "http costs"]
        self.figures["all", "http costs"] = {number: own[number] - bare[number] for number in own.keys() & bare.keys()}

    def hang(self, server: Server, rounds: int) -> None:
        """The slowest of a hundred calls of a local tool, alone and while a service that other calls need hangs.

        As the figures of "alone" and "beside". Who hangs are as many callers as the server takes calls at once.
        """
        with socket.create_server(("127.0.0.1", 0), backlog=256) as upstream:  # it takes connections, and answers none
            settings = server.settings | {"MCP_UPSTREAM_BASE_URL": f"http://127.0.0.1:{upstream.getsockname()[1]}"}
            try:
                with running(replace(server, settings=settings), SERVER, LOAD) as port:
                    asked = {"port": port, "authorization": server.authorization}
                    one = asked | {"transport": "http", "era": "modern", "connections": 1, "seconds": 2 * self.seconds}
                    for number, name in turns(rounds, ["alone", "beside"]):
                        with callers(asked | {"connections": 64}) if name == "beside" else nullcontext():
                            self.figures[name, "hang p99"][number] = load(LOAD, one)["p99"]
            except Problem as problem:
                self.problems[server.name, "hang"] = str(problem)

    def _pipes(self, server: Server, name: str, number: int, **asked: Any) -> None:
        if server.stdio:
            asked |= {"transport": "stdio", "command": server.stdio, "server_core": SERVER}
            self._keep(server, name, number, asked)

    def _keep(self, server: Server, name: str, number: int, asked: dict[str, Any]) -> None:
        if (server.name, name) in self.problems:
            return  # one that hangs would hang in each round
        try:
            found = load(LOAD, {"seconds": self.seconds} | asked, server.settings)
        except Problem as problem:
            self.problems[server.name, name] = str(problem)
        else:
            for what, value in found.items():
                self.figures[server.name, f"{name} {what}"][number] = value


def load(core: int | None, asked: dict[str, Any], settings: dict[str, str] | None = None) -> dict[str, float]:
    """Run the load generator; a server that it starts has these settings.

    Raises:
        Problem: an answer is missing or wrong.
    """
    return measured(core, [sys.executable, LOAD_SCRIPT, json.dumps(asked)], settings or {})


@contextmanager
def callers(asked: dict[str, Any]) -> Iterator[None]:
    """Others who call all the time.

    Raises:
        Problem: none of them is refused because the service hangs.
    """
    line = [sys.executable, LOAD_SCRIPT, json.dumps(asked | {"transport": "callers"})]
    with pinned(LOAD), subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            if (said := process.stdout.readline()) != "upstream_unavailable\n":
                raise Problem(f"callers were told: {said.strip()}")
            yield
        finally:
            process.kill()


def measured(core: int | None, line: list[str], settings: dict[str, str]) -> dict[str, Any]:
    """Run what prints figures as JSON; its log goes to a reader on the same core.

    Raises:
        Problem: there are none.
    """
    variables = environment() | settings
    with (
        pinned(core),
        subprocess.Popen(READER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader,
        subprocess.Popen(line, env=variables, stdout=subprocess.PIPE, stderr=reader.stdin, text=True) as process,
    ):
        try:
            answer, _ = process.communicate(timeout=3 * PATIENCE)
            last, _ = reader.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            reader.kill()
            raise Problem(f"{Path(line[1]).name} does not end") from None
    found: dict[str, Any] = json.loads(answer or json.dumps({"problem": f"{Path(line[1]).name} fails"}))
    if "problem" in found:
        raise Problem("; its log ends: ".join(filter(None, [found["problem"], last.strip()])))
    return found


def turns(rounds: int, *axes: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    """The number of the round and one of each axis; every other round goes backwards, so that no place is the best."""
    for number in range(rounds):
        for turn in list(product(*axes))[:: -1 if number % 2 else 1]:
            yield number, *turn


# --- tables -----------------------------------------------------------------------------------------------------------


def table(*rows: Sequence[str]) -> None:
    """Print a table in Markdown."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    print("\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")


def shown(value: float | None, title: str, *, failed: bool = False) -> str:
    """A figure with the digits that mean something."""
    if value is None:
        return "failed" if failed else "-"
    return f"{value * 1000:.{2 if value < 0.01 else 0}f}" if "(ms)" in title else f"{value:,.0f}"


VERDICT = ["ratio", "in the rounds", "best by best", "target", "holds"]


def verdict(found: Comparison, one: str, other: str, key: str, target: float | None) -> list[str]:
    """The cells for one's figure by the other's. What the best rounds say is what a machine at rest would."""
    at_least = not key.endswith(("p50", "p99", "start", "memory", "costs"))
    wanted = "" if target is None else f"{'≥' if at_least else '≤'} {target:g}"
    ones, others = found.figures[one, key], found.figures[other, key]
    ratios = sorted(ones[number] / others[number] for number in ones.keys() & others.keys())
    if not ratios:
        return ["-", "-", "-", wanted, "not measured"]
    ratio, best = statistics.median(ratios), max if at_least else min
    holds = target is None or (ratio >= target if at_least else ratio <= target)
    said = "" if target is None else "yes" if holds else "**no**"
    bests = best(ones.values()) / best(others.values())
    return [f"{ratio:.2f}", f"{ratios[0]:.2f} to {ratios[-1]:.2f}", f"{bests:.2f}", wanted, said]


def table_of_costs(found: Comparison, head: str, key: str, costs: list[Cost]) -> None:
    """Print microseconds and what they are of others."""
    titles = {name: title for name, title, _, _ in costs}
    rows = []
    for name, title, other, target in costs:
        figure = found.median(name, key)
        ratio, rounds, _, *judged = verdict(found, name, other, key, target) if other else [""] * len(VERDICT)
        against = titles.get(other, other)
        rows.append([title, "-" if figure is None else f"{figure:.1f}", against, ratio, rounds, *judged])
    ratio, rounds, _, *judged = VERDICT  # no best: the best of differences is noise
    table([head, "µs", "by", ratio, rounds, *judged], *rows)


def report(found: Comparison, servers: list[Server]) -> None:
    """Print what was measured."""
    names = [server.name for server in servers]
    if measured := [row for row in MEASURES if any(found.figures[name, row[0]] for name in names)]:
        figures = [
            [title, *(shown(found.median(name, key), title, failed=found.failed(name, key)) for name in names)]
            for key, title, _ in measured
        ]
        table(["", *names], *figures)
        verdicts = [
            [title, name, *verdict(found, OURS, name, key, target)]
            for key, title, targets in measured
            for name, target in targets.items()
        ]
        table(["measure", "against", *VERDICT], *verdicts)
    if load_share := [max(values.values()) for (_, key), values in found.figures.items() if key.endswith("busy")]:
        print(f"The load generator computed for {max(load_share):.0%} of its time at most.\n")
    if found.median(OURS, FEATURES_KEY) is not None:
        rows = [
            [name, shown(found.median(name, FEATURES_KEY), ""), *verdict(found, OURS, name, FEATURES_KEY, target)]
            for name, target in (dict.fromkeys(FEATURES) | {ALL: 0.7}).items()
        ]
        everything = ["nothing", shown(found.median(OURS, FEATURES_KEY), ""), *[""] * len(VERDICT)]
        table(["left out", "calls/s", "with it, by without it: ratio", *VERDICT[1:]], everything, *rows)
        table_of_costs(found, "over HTTP, 16 connections", "http costs", HTTP_COSTS)
    if found.median("bare", "costs"):
        table_of_costs(found, "in one process, without sockets", "costs", COSTS)
    if alone := found.median("alone", "hang p99"):
        figures = [f"{(value or 0) * 1000:.2f}" for value in (alone, found.median("beside", "hang p99"))]
        judged = verdict(found, "beside", "alone", "hang p99", 1.1)
        table(
            ["a local tool's p99, alone (ms)", "while 64 callers wait for a service that hangs", *VERDICT],
            [*figures, *judged],
        )
    if one := found.median("1", "processes"):
        rates = [shown(one, ""), shown(found.median("2", "processes"), "")]
        table(["one process (calls/s)", "two", *VERDICT], [*rates, *verdict(found, "2", "1", "processes", 1.6)])
    for (name, what), problem in found.problems.items():
        print(f"- {name}, {what or 'everything'}: {problem}")


def main() -> None:
    """Set up, measure, report."""
    parser = argparse.ArgumentParser(prog="run.py")
    parser.add_argument("--quick", action="store_true", help="one short round: shows that it works, not how fast it is")
    parser.add_argument("--only", metavar="PART[,PART]", default=",".join(ROUNDS), help=f"of {', '.join(ROUNDS)}")
    options = parser.parse_args()
    parts = options.only.split(",")
    if not set(parts) <= ROUNDS.keys():
        parser.error(f"--only takes {', '.join(ROUNDS)}")
    found = Comparison(seconds=SECONDS / 2 if options.quick else SECONDS)
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="plinth-") as folder:
        own, project, rendering = ours(Path(folder))
        servers = [own, *(rivals() if {"http", "stdio", "start"} & set(parts) else [])]
        found.problems.update({(server.name, ""): server.problem for server in servers if server.problem})
        for part in parts:
            rounds = 1 if options.quick else ROUNDS[part]
            print(f"{part}, {rounds} rounds", file=sys.stderr)
            match part:
                case "http":
                    found.http(servers, rounds, [("modern", 1), ("modern", 16), ("modern", 64), ("legacy", 16)])
                case "stdio":
                    found.stdio(servers, rounds)
                case "start":
                    found.start(servers, rounds)
                case "features":
                    variants = [without(name, own, project, *what) for name, what in FEATURES.items()]
                    found.problems.update({(each.name, part): each.problem for each in variants if each.problem})
                    found.http([own, *variants, *rivals(TUNED)], rounds, [("modern", 16)], part)
                    found.http_costs()
                case "costs":
                    found.costs(own, rounds)
                case "hang":
                    found.hang(own, rounds)
                case "processes":
                    found.processes(own, rounds)
        version = subprocess.check_output([own.stdio[0], "--version"], text=True).strip()
    print(f"{version}, {len(CORES)} cores, load average before: {before:.1f}. Medians of interleaved rounds.")
    print(f"Rendering with the default answers: {rendering * 1000:.0f} ms.\n")
    report(found, servers)


if __name__ == "__main__":
    main()
