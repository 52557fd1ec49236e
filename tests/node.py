"""Node of the dev group, and npm packages to run on it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from bootstrap import environment

# First on PATH. It trusts what the machine trusts, which may stand behind a proxy.
_PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


class Node(NamedTuple):
    """A folder with npm packages, and the program that runs them."""

    program: str
    folder: Path

    def command(self, script: str, *arguments: str | Path) -> list[str | Path]:
        """The command line of a script, whose path is relative to `node_modules`."""
        return [self.program, self.folder / "node_modules" / script, *arguments]

    def environment(self) -> dict[str, str]:
        """Node on PATH, and a home folder of its own: these packages write to it."""
        return _environment() | {"HOME": str(self.folder), "USERPROFILE": str(self.folder)}

    def run(self, command: list[str | Path]) -> subprocess.CompletedProcess[str]:
        """Run a command line to its end."""
        return subprocess.run(
            command, env=self.environment(), capture_output=True, encoding="utf-8", timeout=60, check=False
        )


def install_packages(folder: Path, *packages: str) -> Node:
    """Install npm packages, each as `name@version`; skips the test where there is no Node."""
    npm, node = shutil.which("npm", path=_PATH), shutil.which("node", path=_PATH)
    if npm is None or node is None:
        pytest.skip("there is no Node for this platform in the dev group, and none on PATH")
    install = [npm, "install", "--no-audit", "--no-fund", "--save-exact", "--prefix", folder, *packages]
    done = subprocess.run(install, env=_environment(), capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return Node(node, folder)


def _environment() -> dict[str, str]:
    return environment() | {"PATH": _PATH, "NODE_OPTIONS": "--use-system-ca"}
