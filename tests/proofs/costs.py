"""What each kind of input costs, without a clock: `uv run tests/proofs/costs.py [--brief] [KIND ...]`.

Prints, for each kind of input by each way, before and after authentication, the server's processor time as a multiple of a
plain valid call's: for each byte, and against a plain call as large; then what it keeps of inputs that are held, for each
byte sent, and how much memory a flood of them takes. Exits 1 if one is beyond its bound. Linux.
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

from costing import MOST, MOST_KEPT, MOST_MB, held, rows
from installed import install_edge


def main() -> int:
    """Run it; returns 1 if a bound is broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--brief", action="store_true", help="as the tests do: fewer ways, smaller inputs")
    parser.add_argument(
        "only", nargs="*", help="kinds whose names hold one of these, by what they keep or by what they take"
    )
    chosen = parser.parse_args()
    is_brief, only = chosen.brief, chosen.only
    broken = 0
    with tempfile.TemporaryDirectory(prefix="plinth-") as name:
        folder = Path(name)
        installed = install_edge(folder / "project")
        print(f"\nProcessor time: at most {MOST} times a plain call's.\n")
        print("| kind | way | bytes | µs | for each byte | against a call as large | |\n" + "| --- " * 7 + "|")
        times, size = (8, 100_000) if is_brief else (100, 900_000)
        for row in rows(installed, folder, times, size, is_brief=is_brief, only=only):
            cells = [row.kind, row.way, row.each, f"{row.micros:.0f}", f"{row.by_byte:.2f}", f"{row.by_size:.1f}"]
            print(f"| {' | '.join(map(str, cells))} | {'' if row.holds else '**too dear**'} |", flush=True)
            broken += not row.holds
        print(f"\nMemory: at most {MOST_KEPT} bytes for each byte held, and {MOST_MB} MiB in all.\n")
        print("| kind | inputs | MiB sent | MiB grown | bytes for each byte | |\n" + "| --- " * 6 + "|")
        for kept in held(installed, folder, is_brief=is_brief, only=only):
            shown = "" if kept.is_flood else f"{kept.multiple:.1f}"
            cells = [kept.kind, kept.inputs, f"{kept.sent / 2**20:.1f}", f"{kept.grown / 2**20:.1f}", shown]
            print(f"| {' | '.join(map(str, cells))} | {'' if kept.holds else '**too much**'} |", flush=True)
            broken += not kept.holds
    print(f"\n{broken} beyond their bounds." if broken else "\nAll within their bounds.")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
