"""What takes minutes to prove: `python3 tests/proofs/run.py [stops|soak|memory]`, or all of it without a name.

Renders and installs the default project with a tool that waits, prints what was measured, and exits 1 if a promise is
broken. Linux or macOS; `memory` reads Linux's /proc. Standard library only.
"""

import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

import in_flight
import memory
import soak

from demo import PACKAGE, install

TOOL = '''"""A tool that waits."""

from typing import Annotated

import anyio
import structlog
from pydantic import Field

from ..tooling import tool


@tool(title="Wait", read_only=True)
async def wait(seconds: Annotated[float, Field(ge=0, le=10)]) -> str:
    """Wait, and log when it begins."""
    if seconds:
        structlog.get_logger().info("waiting")
        await anyio.sleep(seconds)
    return "done"
'''
PROOFS = {"stops": in_flight.prove, "soak": soak.prove, "memory": memory.prove}


def main(names: list[str]) -> int:
    """Run the proofs of these names; returns how many failed."""
    if unknown := set(names) - PROOFS.keys():
        sys.exit(f"There is no proof named {', '.join(unknown)}. There are {', '.join(PROOFS)}.")
    with tempfile.TemporaryDirectory(prefix="plinth-") as name:
        python = install(Path(name))
        (tool,) = Path(name).glob(f"*/src/{PACKAGE}/tools/get_part.py")
        tool.with_name("wait.py").write_text(TOOL, encoding="utf-8")
        broken = [each for each in names or PROOFS if not PROOFS[each]([python, "-m", PACKAGE])]
    print(f"\nBroken: {', '.join(broken)}" if broken else "\nAll promises hold.")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
