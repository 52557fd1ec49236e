"""The command line: argv and settings in, an exit code out. The only reader of argv."""

import argparse
import contextlib
import io
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING, Any, NoReturn

import structlog

from . import NAME, logs
from .errors import StartError
from .settings import Settings, load_settings, secret_values, wants_colour, wants_traces
from .wire import Wire

if TYPE_CHECKING:
    from .measures import Histogram
    from .server import Application
    from .serving.lifecycle import Serving
    from .tracing import Traces

_FLUSH_SECONDS = 1.0  # for the last spans
_LEAVE_SECONDS = 0.1  # to be left of the stop after them
_LOG_SECONDS = 0.005  # how long lines are gathered: a write for each would cost as much as a tenth of a call


def main(argv: Sequence[str], wire: Wire) -> int:
    """Run one command.

    Returns:
        0, or 1 if what was asked for failed, or 2 if it was not asked for rightly; then stderr has a line for each
        problem.
    """
    logs.configure(wire, level="INFO", form="auto")
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            arguments = vars(_parser().parse_args(argv))
        command = arguments.pop("run", _serve)
        return int(command(wire, **arguments))
    except StartError as error:
        return _report(wire, error)
    except SystemExit:  # --help and --version
        return _print(wire, printed.getvalue())
    except KeyboardInterrupt:
        return 130


def _report(wire: Wire, error: StartError) -> int:
    for problem in dict.fromkeys(error.problems):
        wire.report("error", problem, {})
    return 2


def _print(wire: Wire, text: str) -> int:
    try:
        wire.write_output(text)
    except OSError as error:
        _report(wire, StartError([f"the result cannot be written ({error.strerror})"]))
        return 1
    return 0


class _Parser(argparse.ArgumentParser):
    """argparse, with its complaints as problems like every other."""

    def error(self, message: str) -> NoReturn:
        raise StartError([f"{message}; see {NAME} --help"])


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog=NAME, description=metadata.metadata(NAME)["Summary"].replace("%", "%%"), allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"{NAME} {metadata.version(NAME)}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=_Parser)

    def command(name: str, run: Any, help_text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help_text, description=help_text, allow_abbrev=False)
        added.set_defaults(run=run)
        return added

    for each in (parser, command("serve", _serve, "serve MCP (the default)")):
        each.add_argument("--transport", choices=("stdio", "http"), default=argparse.SUPPRESS)
        each.add_argument("--host", default=argparse.SUPPRESS, help="HTTP: the address to listen on")
        each.add_argument("--port", default=argparse.SUPPRESS, help="HTTP: the port; 0 picks a free one")
    checklist = command("doctor", _doctor, "run the production checklist against this configuration")
    checklist.add_argument("--production", action="store_true", help="judge as if in production")
    checklist.add_argument("--json", action="store_true", dest="as_json", help="as JSON")
    command("healthcheck", _healthcheck, "exit 0 if this server is healthy, else 1")
    listing = command("tools", _tools, "show the tools that are served")
    listing.add_argument("--json", action="store_true", dest="as_json", help="as JSON")
    snippet = command("client-config", _client_config, "print the configuration for a client")
    snippet.add_argument("client", choices=("claude-desktop", "claude-code", "cursor", "vscode"))
    keys = command("keys", _keys, "make API keys")
    keys.add_argument("action", choices=("new",), help="make a key, print it once, and keep its hash")
    keys.add_argument("--name", required=True, help="whose key it is")
    keys.add_argument("--scopes", default="", help="what it grants (comma list)")
    keys.add_argument("--expires-days", type=float, help="how long it is valid; without it, until it is removed")
    lock = command("surface", _surface, "compare what is served with the files in surface/; exit 1 if callers break")
    lock.add_argument("--accept", action="store_true", help="write what is served now into the files")
    packing = command("bundle", _bundle, "make the .mcpb bundle for desktop clients, in dist/")
    packing.add_argument("--registry", action="store_true", help="and server.json, for the MCP registry")
    new = command("new-tool", _new_tool, "write a tool file and its test")
    new.add_argument("name", help="the tool's name, as in find_invoice")
    return parser


def _configure(wire: Wire, **overrides: Any) -> Settings:
    settings = load_settings(overrides)
    logs.configure(wire, level=settings.log_level, form=settings.log_format, secrets=secret_values(settings))
    return settings


# Each command imports what it needs, so that serving does not wait for the others' imports.


def _serve(wire: Wire, **overrides: Any) -> int:
    settings = _configure(wire, **overrides)
    for number in _stop_signals():  # until it serves, nobody is owed an answer
        signal.signal(number, lambda *_: os._exit(0))
    import asyncio
    import gc

    import anyio

    traces = _traces()  # first, as it takes a credential out of the environment before tools are imported
    from .measures import LAG_BUCKETS, Histogram
    from .server import build_server
    from .serving.lifecycle import Serving, attended, end_leftovers

    app = build_server(settings)
    if settings.environment == "production":
        from .doctor.checkup import Checkup

        if problems := Checkup(settings, app.registry).problems:
            raise StartError(problems)
    gc.freeze()  # what was imported stays: the first collection would cost a tenth of the start to find that out
    gc.enable()
    options = {"use_uvloop": _has_uvloop()}

    async def serve() -> NoReturn:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(logs.log_loop_error)
        serving: Serving
        if settings.transport == "stdio":
            from .serving.stdio import Stdio

            serving = Stdio(app, wire)
        else:
            from .serving.http import Http

            serving = Http(app)
        lag = Histogram(LAG_BUCKETS)
        gathering = wire.gathering(partial(loop.call_later, _LOG_SECONDS))
        async with _metrics(app, serving, lag):
            with (
                gathering,
                attended(serving, _stop_signals(), app.registry.code, partial(os._exit, 1), lag) as watchdog,
            ):
                try:
                    code = await serving.serve(watchdog.limit)
                except StartError as error:
                    code = _report(wire, error)
                await end_leftovers()
                if traces is not None:
                    await traces.flush(min(_FLUSH_SECONDS, watchdog.left - _LEAVE_SECONDS))
                wire.leave(code)  # the loop's own end would wait for threads and tasks without limit

    return anyio.run(serve, backend_options=options)


def _stop_signals() -> list[signal.Signals]:
    """A terminal that closes sends SIGHUP, unless `nohup` has it ignored."""
    found = [signal.SIGTERM, signal.SIGINT]
    if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        found.append(signal.SIGHUP)
    return found


def _metrics(app: "Application", serving: "Serving", lag: "Histogram") -> AbstractAsyncContextManager[None]:
    """What serves the metrics, if they are wanted. Their library is no part of other starts: its import takes 60 ms."""
    if app.settings.metrics_port is None:
        return contextlib.nullcontext()
    try:
        from .metrics import Metrics
    except ModuleNotFoundError:
        problem = "the client for Prometheus is not installed; `uv sync --extra metrics` installs it"
        raise StartError([f"MCP_METRICS_PORT: {problem}"]) from None
    return Metrics(app, serving, lag).serve()


def _traces() -> "Traces | None":
    """What exports traces, if they are wanted. The variables are not for this server alone: none stops its start."""
    try:
        if not wants_traces():
            return None
        from .tracing import Traces

        return Traces()
    except StartError as error:
        problems = error.problems
    except ModuleNotFoundError:
        problems = ["OpenTelemetry's SDK is not installed; `uv sync --extra otel` installs it"]
    structlog.get_logger().warning("traces_off", problems=problems)
    return None


def _doctor(wire: Wire, *, production: bool, as_json: bool, **overrides: Any) -> int:
    settings = _configure(wire, **overrides)
    from .doctor.checkup import Checkup
    from .server import build_server

    checkup = Checkup(settings, build_server(settings).registry, as_production=production)
    if as_json:
        shown = checkup.json()
    else:
        is_terminal = os.isatty(wire.stdout) and sys.platform != "win32"  # whose consoles take bytes in other codes
        shown = checkup.table(symbols=is_terminal, colour=is_terminal and wants_colour())
    return _print(wire, shown) or (0 if checkup.passed else 1)


def _healthcheck(wire: Wire, **overrides: Any) -> int:
    try:
        return 0 if _is_healthy(_configure(wire, **overrides)) else 1
    except StartError as error:  # 2 is not a container's word for unhealthy
        _report(wire, error)
        return 1


def _is_healthy(settings: Settings) -> bool:
    if settings.transport == "stdio":
        # The pipe belongs to the client: what can be known from outside is that this configuration starts.
        from .server import build_server

        build_server(settings)
        return True
    from http.client import HTTPConnection, HTTPException

    connection = HTTPConnection(settings.reachable_host, settings.port, timeout=3)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def _tools(wire: Wire, *, as_json: bool, **overrides: Any) -> int:
    settings = _configure(wire, **overrides)
    from pydantic_core import to_json

    from .server import build_server

    served = build_server(settings).registry.tools.values()
    rows: list[dict[str, Any]] = [
        {
            "name": tool.name,
            "scopes": sorted(tool.scopes),
            "cost": tool.declaration.cost,
            "timeout_seconds": tool.timeout_seconds or settings.tool_timeout_seconds,
            "read_only": tool.read_only,
        }
        for tool in served
    ]
    if as_json:
        return _print(wire, to_json(rows, indent=2).decode() + "\n")
    table = [("TOOL", "SCOPES", "COST", "TIMEOUT", "READ ONLY")]
    for row in rows:
        scopes, read_only = " ".join(row["scopes"]) or "-", "yes" if row["read_only"] else "no"
        table.append((row["name"], scopes, str(row["cost"]), f"{row['timeout_seconds']:g} s", read_only))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return _print(wire, "".join("  ".join(map(str.ljust, line, widths)).rstrip() + "\n" for line in table))


def _client_config(wire: Wire, *, client: str, **overrides: Any) -> int:
    from .clients import snippet

    return _print(wire, snippet(client, _configure(wire, **overrides)))


def _keys(wire: Wire, *, action: str, name: str, scopes: str, expires_days: float | None, **overrides: Any) -> int:
    settings = _configure(wire, **overrides)
    from .auth.api_keys import new_key

    if settings.api_keys_file is None:
        raise StartError(["MCP_API_KEYS_FILE: must be set; it names the file that holds the hashes of keys"])
    listed = [scope.strip() for scope in scopes.split(",") if scope.strip()]
    return _print(wire, new_key(settings.api_keys_file, name, listed, expires_days) + "\n")


def _surface(wire: Wire, *, accept: bool, **overrides: Any) -> int:
    settings = _configure(wire, **overrides)
    from . import surface
    from .server import build_server

    root, now = surface.source_root(), surface.published(build_server(settings).registry)
    if accept:
        return _print(wire, "".join(f"wrote {path.as_posix()}\n" for path in surface.write(root, now)))
    locked = surface.read(root)
    broken = surface.breaks(locked, now)
    lines = [f"breaks: {line}" for line in broken] + [f"accept: {line}" for line in surface.additions(locked, now)]
    return _print(wire, "".join(f"{line}\n" for line in lines)) or (1 if broken else 0)


def _bundle(wire: Wire, *, registry: bool, **overrides: Any) -> int:
    settings = _configure(wire, **overrides)
    from .distribution import bundle
    from .server import build_server

    made = bundle(settings, build_server(settings).registry, with_server_json=registry)
    lines = [f"wrote {path.as_posix()}" for path in made.written]
    lines += [f"left out {path.as_posix()}: named as secrets are, or a link" for path in made.left_out]
    return _print(wire, "".join(f"{line}\n" for line in lines))


def _new_tool(wire: Wire, *, name: str, **_: Any) -> int:
    from .scaffold import new_tool

    return _print(wire, "".join(f"wrote {path}\n" for path in new_tool(name)))


def _has_uvloop() -> bool:
    from importlib.util import find_spec

    return find_spec("uvloop") is not None
