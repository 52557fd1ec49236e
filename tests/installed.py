"""A rendered and installed project, and its own command as a process."""

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from bootstrap import BIN, ROOT, environment, server_environment
from rendering import render, run

SLUG, PACKAGE = "spare-parts", "spare_parts"  # of a project named Spare Parts


class Installed(NamedTuple):
    """An installed project and its own command."""

    path: Path
    command: Path

    def stdio(self, *messages: dict[str, Any], **settings: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Every answer and every log event of a server that is sent these messages and then the end of input."""
        done = subprocess.run(
            [self.command],
            input="".join(json.dumps(message) + "\n" for message in messages),
            capture_output=True,
            encoding="utf-8",
            env=server_environment(settings),
            timeout=60,
            check=True,
        )
        return [json.loads(line) for line in done.stdout.splitlines()], [
            json.loads(line) for line in done.stderr.splitlines()
        ]

    def new_key(self, file: Path, *scopes: str) -> str:
        """A new API key that grants these scopes, whose hash is added to the file."""
        line = [self.command, "keys", "new", "--name", "tests", "--scopes", ",".join(scopes)]
        return subprocess.check_output(line, env=environment() | {"MCP_API_KEYS_FILE": str(file)}, text=True).strip()

    @contextmanager
    def http(self, **settings: str) -> Iterator[str]:
        """The address of a server that is stopped at the end."""
        command = [self.command, "serve", "--transport", "http", "--port", "0"]
        variables = server_environment(settings)
        with subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, encoding="utf-8") as server:
            assert server.stderr
            try:
                events = (json.loads(line) for line in server.stderr)
                url = next(event["url"] for event in events if event["event"] == "listening")
                # A pipe that nobody reads fills up, and the server would wait for it.
                threading.Thread(target=server.stderr.read).start()
                yield url
            finally:
                server.kill()


def install(path: Path) -> Installed:
    """Install a rendered project named Spare Parts."""
    sync = run(path, "uv sync")
    assert sync.returncode == 0, sync.stderr
    return Installed(path, path / ".venv" / BIN / SLUG)


def install_edge(folder: Path) -> Installed:
    """The default project with what is in `tests/edge/fixtures/` dropped in, installed."""
    path = render(folder, project_name="Spare Parts")
    shutil.copytree(ROOT / "tests" / "edge" / "fixtures", path / "src" / PACKAGE, dirs_exist_ok=True)
    return install(path)


def modern(rpc_id: int, method: str, **params: Any) -> dict[str, Any]:
    """A request of revision 2026-07-28."""
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    return {
        "jsonrpc": "2.0",
        "id": rpc_id,
        "method": method,
        "params": params | {"_meta": meta | params.get("_meta", {})},
    }
