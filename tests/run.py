"""Run the template's tests with nothing but Python: `python3 tests/run.py [pytest arguments]`.

Makes a virtual environment in `.venv/` with the versions that pyproject.toml allows, and runs pytest in it on all cores.
`-m "not install"` leaves out the slow tier, which installs generated projects.
"""

import subprocess
import sys

from bootstrap import BIN, ROOT, environment, uv


def main() -> int:
    """Install, run, and return pytest's exit status."""
    variables = environment()
    subprocess.run([uv(), "sync", "--quiet"], cwd=ROOT, env=variables, check=True)
    # A worker takes a whole module or class at a time, so that each project is rendered and installed once. In the order
    # of the files: the longest are not at the end. (`loadgroup` of pytest-xdist 3.8.0 groups nothing on pytest 9.2.)
    workers = ["-n", "auto", "--dist", "loadscope", "--no-loadscope-reorder"]
    pytest = [ROOT / ".venv" / BIN / "python", "-m", "pytest", *workers, *sys.argv[1:]]
    return subprocess.run(pytest, cwd=ROOT, env=variables, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
