"""Configuration snippets for the programs that people use MCP servers with."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from . import NAME
from .settings import PREFIX, Settings

# What concerns HTTP, or a server that is run for others: no part of one that a client starts over stdio.
NOT_LOCAL = {
    *("environment", "transport", "host", "port", "public_url", "http_sessions", "allowed_hosts", "allowed_origins"),
    *("trusted_proxies", "request_state_keys", "replicas", "grace_period_seconds", "metrics_port", "metrics_host"),
    *("auth_mode", "auth_failures_per_minute", "auth_allow_anonymous", "jwt_issuer", "jwt_audience", "jwt_jwks_url"),
    *("rate_limit_store", "rate_limit_on_store_error", "drain_delay_seconds", "drain_timeout_seconds"),
}
# What a person who starts one has no need to be asked. All else is asked, a setting of your own too.
NOT_ASKED = {
    *("log_format", "rate_limit_per_minute", "rate_limit_burst"),
    *("max_concurrent_calls", "max_request_bytes", "max_result_bytes"),
}

# Exact: npx would run whatever was published last, on the user's machine and at each start of the client. Before 0.1.16 the
# server it was pointed at could run commands there (CVE-2025-6514); this one was tried.
_MCP_REMOTE = "mcp-remote@0.15.1"

# What stands for the API key: each client fills it in from its environment, or asks for it.
_KEY = {"claude-code": "${MCP_API_KEY}", "cursor": "${env:MCP_API_KEY}", "vscode": "${input:api-key}"}
_INPUT = {"type": "promptString", "id": "api-key", "description": f"API key for {NAME}", "password": True}


class Question(NamedTuple):
    """A setting, as a client asks a person for it."""

    field: str
    variable: str
    kind: Literal["string", "number", "boolean", "file"]
    description: str
    default: str | float | bool | None
    choices: tuple[str, ...]
    minimum: float | None
    maximum: float | None
    is_secret: bool
    is_required: bool


def questions() -> Iterator[Question]:
    """The settings of a server that is started over stdio, as `Settings` declares them."""
    schema = Settings.model_json_schema()
    for field, declared in schema["properties"].items():
        if field in NOT_LOCAL | NOT_ASKED:
            continue
        facts = {**declared, **next((each for each in declared.get("anyOf", ()) if each["type"] != "null"), {})}
        default = facts.get("default")
        yield Question(
            field=field,
            variable=f"{PREFIX}{field.upper()}",
            kind=_KINDS.get(facts["type"]) or ("file" if facts.get("format") in ("path", "file-path") else "string"),
            description=facts.get("description", ""),
            default=",".join(default) if isinstance(default, list) else default,
            choices=tuple(facts.get("enum", ())),
            minimum=facts.get("minimum"),
            maximum=facts.get("maximum"),
            is_secret=facts.get("format") == "password",
            is_required=field in schema.get("required", ()),
        )


_KINDS: dict[str, Literal["number", "boolean"]] = {"integer": "number", "number": "number", "boolean": "boolean"}


def _environment(settings: Settings) -> dict[str, str]:
    """What is configured here, for a server that is started elsewhere. A secret stays where it is."""
    secret = {each.field for each in questions() if each.is_secret}
    return {
        f"{PREFIX}{field.upper()}": _text(value)
        for field, declared in Settings.model_fields.items()
        if field not in NOT_LOCAL | secret and (value := getattr(settings, field)) != declared.default
    }


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(value)
    return str(value.resolve() if isinstance(value, Path) else value)


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
        if variables := _environment(settings):
            entry["env"] = variables
    elif client == "claude-desktop":  # its file knows local commands only
        entry = {"command": "npx", "args": ["-y", _MCP_REMOTE, url, "--transport", "http-only"]}
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
