"""See a generated server answer real calls, with nothing but Python: `python3 tests/demo.py`.

Renders the template with the default answers into a temporary folder, installs it, calls its tools over stdio and over
HTTP with hand-written protocol messages (revision 2026-07-28), and stops everything.
"""

import json
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

from bootstrap import BIN, ROOT, configuration, environment, uv

PACKAGE = "my_mcp_server"
CALLS = [("search_parts", {"query": "tapered"}), ("get_part", {"sku": "BRG-6204"})]
REVISION = "2026-07-28"


def main() -> int:
    """Run the demonstration; 0 when every call was answered."""
    with tempfile.TemporaryDirectory(prefix="plinth-") as folder:
        print("1. Render the template with its default answers and install the project")
        python = install(Path(folder))
        print("\n2. Call its tools over stdio")
        stdio(python, Path(folder))
        print("\n3. Call its tools over HTTP")
        http(python, Path(folder))
    print("\nBoth servers have stopped; the project is removed.")
    return 0


def install(folder: Path, *answers: str) -> Path:
    """Render and install a project in the folder; return its Python. `answers`: as in `kubernetes=yes`."""
    project = rendered(folder, *answers)
    show("$ uv sync")
    run([uv(), "sync", "--directory", project])
    return project / ".venv" / BIN / "python"


def rendered(folder: Path, *answers: str, is_quiet: bool = False) -> Path:
    """Render a project in the folder; return where it is. `answers`: as in `kubernetes=yes`."""
    cookiecutter = [uv(), "tool", "run", "--quiet", "--from", "cookiecutter>=2.7.1,<3", "cookiecutter"]
    if not is_quiet:
        show("$ cookiecutter --no-input .")
    run([*cookiecutter, "--no-input", "--config-file", configuration(folder), "--output-dir", folder, ROOT, *answers])
    (project,) = (path.parent for path in folder.glob("*/pyproject.toml"))
    return project


def run(line: list[str | Path]) -> None:
    """Run a command; end with its output if it fails."""
    # uv warns when its cache is on another file system and it has to copy; told to copy, it does not.
    variables = environment() | {"UV_LINK_MODE": "copy"}
    done = subprocess.run(line, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        sys.exit(done.stdout)


def stdio(python: Path, folder: Path) -> None:
    """Call the tools over a pipe, one JSON message a line, then close it: the server ends by itself."""
    show(f"$ python -m {PACKAGE}")
    with subprocess.Popen(
        [python, "-m", PACKAGE],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
    ) as server:
        assert server.stdin
        assert server.stdout
        try:
            for number, (tool, arguments) in enumerate(CALLS, start=1):
                message = json.dumps(request(number, tool, arguments))
                show(f"> {message}")
                server.stdin.write(message + "\n")
                server.stdin.flush()
                answered(server.stdout.readline())
            server.stdin.close()
            stopped(server)
        finally:
            server.kill()


def http(python: Path, folder: Path) -> None:
    """Call the tools over HTTP, on a port the server chooses and logs, then ask it to stop."""
    show(f"$ python -m {PACKAGE} serve --transport http --port 0")
    with subprocess.Popen(
        [python, "-m", PACKAGE, "serve", "--transport", "http", "--port", "0"],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    ) as server:
        assert server.stderr
        try:
            events = (json.loads(line) for line in server.stderr)
            url = next((event["url"] for event in events if event["event"] == "listening"), None)
            if url is None:
                sys.exit("The server ended before it listened.")
            for number, (tool, arguments) in enumerate(CALLS, start=1):
                message = json.dumps(request(number, tool, arguments))
                headers = {"MCP-Protocol-Version": REVISION, "Mcp-Method": "tools/call", "Mcp-Name": tool}
                show(f"> POST {url}  " + "  ".join(": ".join(header) for header in headers.items()))
                show(f"> {message}")
                headers |= {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
                post = urllib.request.Request(url, message.encode(), headers)
                with urllib.request.urlopen(post, timeout=30) as answer:
                    answered(answer.read().decode())
            server.terminate()
            server.stderr.read()
            stopped(server)
        finally:
            server.kill()


def request(number: int, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Build a `tools/call` request: no handshake, each request carries what the server needs to know."""
    meta = {
        "io.modelcontextprotocol/protocolVersion": REVISION,
        "io.modelcontextprotocol/clientInfo": {"name": "demo", "version": "0"},
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    params = {"name": tool, "arguments": arguments, "_meta": meta}
    return {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}


def answered(text: str) -> None:
    """Show an answer; end if it is none, or an error."""
    show(f"< {text.strip()}")
    result = json.loads(text or "{}").get("result", {})
    if result.get("isError") or "structuredContent" not in result:
        sys.exit("That is not a result.")


def stopped(server: subprocess.Popen[str]) -> None:
    """Show how the server ended; end if it was not cleanly."""
    code = server.wait(timeout=30)
    show(f"The server has ended, exit code {code}.")
    # Windows has no SIGTERM: asking a process to end there ends it, with code 1.
    if code != 0 and sys.platform != "win32":
        sys.exit("It should have been 0.")


def show(text: str) -> None:
    """Print a line, indented, at once."""
    print(f"   {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
