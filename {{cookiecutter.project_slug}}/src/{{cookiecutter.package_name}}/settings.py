"""Settings: one frozen model, and the only reader of the environment."""

import os
import re
from collections.abc import Iterator, Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

from dotenv import dotenv_values
from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from .errors import StartError
from .validation import problems_of

PREFIX = "MCP_"

CommaList = Annotated[tuple[str, ...], NoDecode]


class Settings(BaseSettings):
    """What can be set, each as `MCP_<NAME>` in the environment, or in `.env` during development.

    A secret is also read from the file that `MCP_<NAME>_FILE` names. An empty variable counts as not set.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, extra="ignore", frozen=True, hide_input_in_errors=True
    )

    environment: Literal["development", "production"] = Field(
        "development", description="`production` does not read `.env`"
    )
    transport: Literal["stdio", "http"] = Field("stdio", description="`stdio` or `http`")
    host: str = Field("127.0.0.1", min_length=1, description="HTTP: the address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="HTTP: the port, 0 to 65535; 0 picks a free one and logs it")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="the least level that is logged"
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="`auto` is JSON unless stderr is a terminal; `json`; `console`"
    )
    allowed_hosts: CommaList = Field(
        ("127.0.0.1", "localhost", "[::1]"),
        description="HTTP: names this server is reached by (comma list); a name without a port allows every port",
    )
    allowed_origins: CommaList = Field(
        ("http://127.0.0.1", "http://localhost", "http://[::1]"),
        description="HTTP: browser origins that may call (comma list); an origin without a port allows every port",
    )
    trusted_proxies: CommaList = Field(
        (), description="HTTP: addresses or networks of proxies whose `X-Forwarded-For` is believed (comma list)"
    )
    http_sessions: Literal["stateless", "stateful"] = Field(
        "stateless", description="HTTP: `stateful` for legacy clients that need server-to-client requests"
    )
    local_scopes: CommaList = Field((), description="stdio: scopes granted to the local user (comma list)")
    tool_timeout_seconds: float = Field(30, gt=0, le=86400, description="default per call; a tool can set its own")
    max_concurrent_calls: int = Field(64, ge=1, description="calls in flight; one more is refused as `overloaded`")
    drain_delay_seconds: float = Field(
        0, ge=0, le=600, description="HTTP: how long to go on serving after readiness turned off"
    )
    drain_timeout_seconds: float = Field(
        20, ge=0, le=3600, description="HTTP: how long calls in flight may finish when the server stops"
    )
    max_request_bytes: int = Field(1048576, ge=1024, description="HTTP body, stdio line")
    max_result_bytes: int = Field(1048576, ge=1024, description="a larger result becomes an error")
    request_state_keys: SecretStr | None = Field(
        None,
        description="seal `requestState` (comma list; the first seals, all open); shared by replicas, else per process",
    )

    @field_validator("allowed_hosts", "allowed_origins", "trusted_proxies", "local_scopes", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("trusted_proxies")
    @classmethod
    def _are_addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return tuple(str(ip_network(each)) for each in value)
        except ValueError:
            raise PydanticCustomError("no_address", "each: an IP address, or a network as in 10.0.0.0/8") from None

    @field_validator("request_state_keys")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and min(map(len, _parts(value)), default=0) < 32:
            raise PydanticCustomError("key_too_short", "each key: 32 characters or more")
        return value

    @property
    def reachable_host(self) -> str:
        """The host to reach this server at from this machine, as it stands in a URL."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"[{host}]" if ":" in host else host

    @property
    def sealing_keys(self) -> list[str]:
        """`request_state_keys` as a list; empty when each process makes its own key."""
        return [] if self.request_state_keys is None else _parts(self.request_state_keys)


def load_settings(overrides: Mapping[str, Any]) -> Settings:
    """Read the settings from the environment; `overrides`, by field name, win over it.

    Raises:
        StartError: a line for each bad setting: the variable and what it accepts, never its value.
    """
    in_production = os.environ.get(f"{PREFIX}ENVIRONMENT") == "production"
    dotenv = None if in_production or not _in_source_tree() else _ROOT / ".env"
    problems: list[str] = []
    try:
        known = {**(dotenv_values(dotenv) if dotenv else {}), **os.environ}
        source = {"_env_file": dotenv, **dict(_secret_files(known, problems))}
        settings = Settings(**(source | dict(overrides)))
    except ValidationError as error:
        lines = problems_of(error, name=lambda field: f"{PREFIX}{field.upper()}")
        raise StartError(problems + [f"{line} ({_meaning(line)})" for line in lines]) from None
    except UnicodeDecodeError:
        raise StartError([".env: must be UTF-8 text"]) from None
    if settings.environment == "production" and dotenv is not None:
        problems.append(f"{PREFIX}ENVIRONMENT: production is set in the environment; it does not read .env")
    if problems:
        raise StartError(problems)
    return settings


_ROOT = Path(__file__).parents[2]


def _in_source_tree() -> bool:
    """Whether this is a checkout. Its `.env` is read, not the current folder's: clients start servers in the folder that
    is open in them, which anybody may have written."""
    return (_ROOT / "pyproject.toml").is_file()


def secret_values(settings: Settings) -> set[str]:
    """Values the log must never show: secret settings, and environment variables that are named like secrets."""
    named = {value for name, value in os.environ.items() if _SECRET_NAME.search(name)}
    held = {getattr(settings, field) for field in Settings.model_fields}
    return {value for value in named if len(value) >= 8} | {
        part for value in held if isinstance(value, SecretStr) for part in _parts(value)
    }


_SECRET_NAME = re.compile(r"SECRET|TOKEN|PASSW|CREDENTIAL|PRIVATE|(API|ACCESS|_)KEY", re.IGNORECASE)


def _meaning(line: str) -> str | None:
    return Settings.model_fields[line.partition(":")[0].partition(".")[0].removeprefix(PREFIX).lower()].description


def _parts(value: SecretStr) -> list[str]:
    return [part.strip() for part in value.get_secret_value().split(",") if part.strip()]


def _secret_files(known: Mapping[str, str | None], problems: list[str]) -> Iterator[tuple[str, str]]:
    """The secrets given as files: the usual way of container platforms, as an environment is seen by every child."""
    for field, info in Settings.model_fields.items():
        variable = f"{PREFIX}{field.upper()}"
        path = known.get(f"{variable}_FILE")
        if SecretStr not in getattr(info.annotation, "__args__", ()) or not path:
            continue
        if known.get(variable):
            problems.append(f"{variable}, {variable}_FILE: both are set; keep one")
            continue
        try:
            yield field, Path(path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8 text"
            problems.append(f"{variable}_FILE: the file it names cannot be read ({reason})")
