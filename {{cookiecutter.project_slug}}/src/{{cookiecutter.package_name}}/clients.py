"""Configuration snippets for the programs that people use MCP servers with."""

import json
import sys
from typing import Any

from . import NAME
from .settings import Settings


def snippet(client: str, settings: Settings) -> str:
    """The JSON to merge into the client's file, for the transport that is configured.

    `claude-desktop`: `claude_desktop_config.json`; `claude-code`: `.mcp.json` in the project; `cursor`:
    `.cursor/mcp.json`; `vscode`: `.vscode/mcp.json`.
    """
    url = f"http://{settings.reachable_host}:{settings.port}/mcp"
    entry: dict[str, Any]
    if settings.transport == "stdio":
        # The interpreter's full path: clients start servers with a short PATH and in a folder of their own.
        entry = {"command": sys.executable, "args": ["-m", __package__]}
    elif client == "claude-desktop":  # its file knows local commands only
        entry = {"command": "npx", "args": ["-y", "mcp-remote", url, "--transport", "http-only"]}
    else:
        entry = {"url": url}
    if client in ("claude-code", "vscode"):
        entry = {"type": "http" if "url" in entry else "stdio", **entry}
    return json.dumps({"servers" if client == "vscode" else "mcpServers": {NAME: entry}}, indent=2) + "\n"
