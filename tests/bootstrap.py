"""What runs before anything is installed: finds uv or fetches it, and ports. Standard library only."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

_HOLDERS: list[socket.socket] = []  # of the ports that were given

ROOT = Path(__file__).resolve().parent.parent

# The version that the generated Dockerfile pins too.
UV_VERSION = "0.13.9"

BIN = "Scripts" if os.name == "nt" else "bin"


def uv() -> str:
    """Return the path of uv: the one on PATH, or one of our own in `.uv/`, installed with pip when it is missing."""
    found = shutil.which("uv")
    if found:
        return found
    folder = ROOT / ".uv"
    own = folder / BIN / ("uv.exe" if os.name == "nt" else "uv")
    if not own.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        pip = [folder / BIN / "python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        subprocess.run([*pip, f"uv=={UV_VERSION}"], check=True)
    return str(own)


def environment() -> dict[str, str]:
    """Return this process's environment for uv and servers: the interpreter at hand, and nobody's settings."""
    unwanted = {"VIRTUAL_ENV", "PYTHONPATH"}
    variables = {
        name: value for name, value in os.environ.items() if name not in unwanted and not name.startswith("MCP_")
    }
    variables.setdefault("UV_PYTHON", getattr(sys, "_base_executable", sys.executable))
    variables["UV_PYTHON_DOWNLOADS"] = "never"
    variables["PATH"] = os.pathsep.join([str(Path(uv()).parent), variables.get("PATH", os.defpath)])
    return variables


def server_environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a server under test. Tests call more often than a client may: its limit is wide."""
    return environment() | {"MCP_RATE_LIMIT_BURST": "1000000"} | dict(settings)


def free_port() -> int:
    """Return a port of this machine that nobody uses, and nobody else is given until this process ends.

    It is held by a socket that does not listen: on Linux whoever sets SO_REUSEADDR, as servers do, may listen beside it.
    """
    holder = socket.socket()
    holder.bind(("127.0.0.1", 0))
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    port: int = holder.getsockname()[1]
    if sys.platform == "linux":
        _HOLDERS.append(holder)
    else:
        holder.close()
    return port


def configuration(folder: Path) -> Path:
    """Write a cookiecutter configuration that keeps the user's own, and replay files, out of it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.yaml"
    folders = {"cookiecutters_dir": str(folder / "templates"), "replay_dir": str(folder / "replay")}
    path.write_text(json.dumps(folders | {"default_context": {}}), encoding="utf-8")  # JSON is YAML
    return path


def interpreter(version: str) -> str | None:
    """Find a Python of this version, as `3.13`: on PATH, or one that pyenv has."""
    candidates = [
        *filter(None, [shutil.which(f"python{version}")]),
        *map(str, sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python"))),
    ]
    return next(filter(None, (_executable(path, version) for path in candidates)), None)


def _executable(path: str, version: str) -> str | None:
    # Asked rather than believed: pyenv puts a shim for every version on PATH, which fails unless the version is active.
    script = "import sys; print('%d.%d' % sys.version_info[:2], sys._base_executable)"
    answer = subprocess.run([path, "-c", script], capture_output=True, text=True, check=False)
    found, _, executable = answer.stdout.strip().partition(" ")
    return executable if answer.returncode == 0 and found == version else None
