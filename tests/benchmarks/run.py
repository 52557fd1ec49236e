"""Measure the generated server next to its rivals: `python3 tests/benchmarks/run.py [--quick] [--only PART[,PART]]`.

Needs nothing but Python, and a machine that does nothing else; takes eleven minutes, two with `--quick`, and more the first
time. Installs what it needs in this folder. The servers run on the Python at hand, or on that of UV_PYTHON.
"""

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bootstrap import BIN, ROOT, environment, uv


def main() -> int:
    """Run compare.py where cookiecutter and Node are; its exit status."""
    python = ROOT / ".venv" / BIN / "python"
    if not python.exists():
        subprocess.run([uv(), "sync", "--quiet"], cwd=ROOT, env=environment(), check=True)
    line = [str(python), str(Path(__file__).with_name("compare.py")), *sys.argv[1:]]
    return subprocess.run(line, env=environment(), check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
