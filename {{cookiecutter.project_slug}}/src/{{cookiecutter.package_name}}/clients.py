"""Configuration snippets for the programs that people use MCP servers with."""

import json
import sys
from typing import Any

from . import NAME
from .settings import Settings

# What stands for the API key: each client fills it in from its environment, or asks for it.
_KEY = {"claude-code": "${MCP_API_KEY}", "cursor": "${env:MCP_API_KEY}", "vscode": "${input:api-key}"}
_INPUT = {"type": "promptString", "id": "api-key", "description": f"API key for {NAME}", "password": True}


def snippet(client: str, settings: Settings) -> str:
    """The JSON to merge into the client's file, for the transport and the authentication that are configured.

    `claude-desktop`: `claude_desktop_config.json`; `claude-code`: `.mcp.json` in the project; `cursor`:
    `.cursor/mcp.json`; `vscode`: `.vscode/mcp.json`. In `jwt` mode clients find out by themselves where to get a token.
    """
    url = settings.public_url or f"http://{settings.reachable_host}:{settings.port}/mcp"
    takes_key = settings.transport == "http" and settings.auth_mode == "api_key"
    entry: dict[str, Any]
    if settings.transport == "stdio":
        # The interpreter's full path: clients start servers with a short PATH and in a folder of their own.
        entry = {"command": sys.executable, "args": ["-m", __package__]}
        if settings.local_scopes:
            entry["env"] = {"MCP_LOCAL_SCOPES": ",".join(settings.local_scopes)}
    elif client == "claude-desktop":  # its file knows local commands only
        entry = {"command": "npx", "args": ["-y", "mcp-remote", url, "--transport", "http-only"]}
        if takes_key:  # no space in the argument: on Windows it would be cut there
            entry["args"] += ["--header", "Authorization:${AUTHORIZATION}"]
            entry["env"] = {"AUTHORIZATION": "Bearer <API key>"}
    else:
        entry = {"url": url}
        if takes_key:
            entry["headers"] = {"Authorization": f"Bearer {_KEY[client]}"}
    if client in ("claude-code", "vscode"):
        entry = {"type": "http" if "url" in entry else "stdio", **entry}
    whole: dict[str, Any] = {"servers" if client == "vscode" else "mcpServers": {NAME: entry}}
    if client == "vscode" and takes_key:
        whole["inputs"] = [_INPUT]
    return json.dumps(whole, indent=2) + "\n"
