"""Settings: one frozen model, and the only reader of the environment."""

import os
import re
from collections.abc import Iterator, Mapping
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, LiteralString
from urllib.parse import unquote, urlsplit

from dotenv import dotenv_values
from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from .errors import StartError
from .validation import SETTING, problems_of

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
        "development", description="`production` does not read `.env`, and does not start while a row of `doctor` fails"
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
        (),
        description="HTTP: addresses or networks of proxies whose `X-Forwarded-For` is believed (comma list); or `none`",
    )
    http_sessions: Literal["stateless", "stateful"] = Field(
        "stateless", description="HTTP: `stateful` for legacy clients that need server-to-client requests"
    )
    auth_mode: Literal["none", "api_key", "jwt"] = Field(
        "none", description="HTTP: how callers prove who they are; `none`, `api_key` or `jwt`"
    )
    auth_failures_per_minute: int = Field(
        30, ge=1, description="HTTP: per address; after more failed credentials than this none is checked for a while"
    )
    auth_allow_anonymous: bool = Field(
        False, description="HTTP: callers without a credential may use what declares no scopes"
    )
    api_keys_file: Path | None = Field(None, description="hashed API keys, as `keys new` writes them")
    api_key: SecretStr | None = Field(None, description="stdio: the caller's API key")
    local_scopes: CommaList = Field(
        (), description="stdio without a key: scopes granted to the local user (comma list)"
    )
    jwt_issuer: str | None = Field(None, description="who issues access tokens, as their `iss` says it")
    jwt_audience: str | None = Field(None, description="the `aud` of tokens for this server; else MCP_PUBLIC_URL")
    jwt_jwks_url: str | None = Field(None, description="the issuer's public keys; else found from the issuer")
    public_url: str | None = Field(
        None, description="HTTP: the full address clients use, as in https://tools.example.com/mcp"
    )
    rate_limit_per_minute: int = Field(120, ge=0, description="per client: what calls may cost in a minute; 0 = off")
    rate_limit_burst: int = Field(20, ge=1, description="per client: what calls may cost at once")
    rate_limit_store: SecretStr = Field(
        SecretStr("memory://"), description="`memory://`, or `redis://host:port/0`, which replicas share"
    )
    rate_limit_on_store_error: Literal["allow", "deny"] = Field(
        "allow", description="what happens to calls while the store cannot be reached; `allow` or `deny`"
    )
    tool_timeout_seconds: float = Field(30, gt=0, le=86400, description="default per call; a tool can set its own")
    max_concurrent_calls: int = Field(64, ge=1, description="calls in flight; one more is refused as `overloaded`")
    caller_share: float = Field(
        0.25,
        gt=0,
        le=1,
        description="the part of the calls in flight, listen streams and sessions that one caller may take",
    )
    upstream_base_url: str | None = Field(
        None,
        description="the address of the service that tools call, http or https, as in https://rates.example.com/v1",
    )
    upstream_token: SecretStr | None = Field(None, description="this server's own credential there")
    drain_delay_seconds: float = Field(
        0, ge=0, le=600, description="HTTP: how long to go on serving after readiness turned off"
    )
    drain_timeout_seconds: float = Field(
        20, ge=0, le=3600, description="HTTP: how long calls in flight may finish when the server stops"
    )
    max_request_bytes: int = Field(1048576, ge=1024, description="HTTP body, stdio line")
    max_result_bytes: int = Field(1048576, ge=1024, description="a larger result becomes an error")
    replicas: int = Field(1, ge=1, description="how many of this server share its clients; the doctor needs to know")
    grace_period_seconds: float = Field(
        30, gt=0, description="how long the platform waits between SIGTERM and SIGKILL; the doctor needs to know"
    )
    metrics_port: int | None = Field(
        None, ge=0, le=65535, description="Prometheus metrics, on a port of their own, 0 to 65535; 0 picks a free one"
    )
    metrics_host: str = Field("127.0.0.1", min_length=1, description="metrics: the address to listen on")
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
        if value == ("none",):  # says that there is none, where leaving it out says nothing
            return ()
        try:
            return tuple(str(ip_network(each)) for each in value)
        except ValueError:
            raise _wrong("must be IP addresses, or networks as in 10.0.0.0/8, separated by commas, or none") from None

    @field_validator("jwt_issuer", "jwt_jwks_url", "public_url")
    @classmethod
    def _is_url(cls, value: str | None) -> str | None:
        if value is not None and not is_safe_url(value):
            raise _wrong("must be an https address (http on this machine) without user, query and fragment")
        if value is not None and not re.fullmatch(r"[!#-;=?-\[\]_a-z~]+", value):  # it stands in headers, in quotes
            raise _wrong("must be ASCII, without quotes and angle brackets; others are written in percent-encoding")
        return value

    @field_validator("upstream_base_url")
    @classmethod
    def _is_address(cls, value: str | None) -> str | None:
        if value is not None and not is_address(value):
            raise _wrong("must be an http or https address without user, query and fragment")
        return value

    @field_validator("upstream_token")
    @classmethod
    def _fits_a_header(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not re.fullmatch("[!-~]+", value.get_secret_value()):
            raise _wrong("must be visible ASCII characters, without spaces")
        return value

    @field_validator("rate_limit_store")
    @classmethod
    def _is_store(cls, value: SecretStr) -> SecretStr:
        try:
            is_known = urlsplit(value.get_secret_value()).scheme in ("memory", "redis", "rediss", "unix")
        except ValueError:
            is_known = False
        if not is_known:
            raise _wrong("must be memory://, or an address that starts with redis://, rediss:// or unix://")
        return value

    @field_validator("request_state_keys")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and min(map(len, _parts(value)), default=0) < 32:
            raise _wrong("must be keys of at least 32 characters each, separated by commas")
        return value

    @property
    def reachable_host(self) -> str:
        """The host to reach this server at from this machine, as it stands in a URL."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"[{host}]" if ":" in host else host

    @property
    def audience(self) -> str | None:
        """The `aud` that tokens for this server carry."""
        return self.jwt_audience or self.public_url

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
    problems += _missing(settings)
    if problems:
        raise StartError(problems)
    for name in [*(f"{PREFIX}{field.upper()}" for field in _secrets()), f"{PREFIX}LOCAL_SCOPES"]:
        os.environ.pop(name, None)  # neither tools nor the processes they start are to find it
    return settings


def _wrong(text: LiteralString) -> PydanticCustomError:
    return PydanticCustomError(SETTING, text)


def _missing(settings: Settings) -> Iterator[str]:
    """What a setting needs beside it."""
    if settings.auth_mode == "api_key" and settings.api_keys_file is None:
        yield f"{PREFIX}API_KEYS_FILE: must be set, as MCP_AUTH_MODE is api_key; `keys new` makes the file"
    if settings.api_key is not None and settings.api_keys_file is None:
        yield f"{PREFIX}API_KEYS_FILE: must be set, as MCP_API_KEY is; it holds the hashes of valid keys"
    if settings.auth_mode == "jwt" and settings.jwt_issuer is None:
        yield f"{PREFIX}JWT_ISSUER: must be set, as MCP_AUTH_MODE is jwt; it is the `iss` of the tokens"
    if settings.auth_mode == "jwt" and settings.audience is None:
        yield f"{PREFIX}JWT_AUDIENCE: must be set, or MCP_PUBLIC_URL, as MCP_AUTH_MODE is jwt"


def is_safe_url(value: str) -> bool:
    """Whether what is fetched there comes from whom it says: https, or http on this machine."""
    return is_address(value) and (value[:6].lower() == "https:" or is_loopback(urlsplit(value).hostname or ""))


def is_address(value: str) -> bool:
    """Whether it is an http or https URL with nothing secret in it, and no query."""
    try:
        found = urlsplit(value)
        port_is_valid = found.port is None or found.port > 0
    except ValueError:
        return False
    if not port_is_valid or not found.hostname or found.username or found.query or found.fragment:
        return False
    return found.scheme in ("http", "https") and not re.search(r"[\s\\]", value)


def spellings(value: str) -> list[str]:
    """All that equals this identifier if it is a web address (RFC 3986, section 6.2): clients name what they connect to
    with the host in small letters, without the default port, and as `https://host/` or `https://host` as they please."""
    if not is_address(value):
        return [value]
    parts = urlsplit(value)
    host = parts.netloc.lower().removesuffix({"http": ":80", "https": ":443"}[parts.scheme])
    usual = f"{parts.scheme}://{host}{parts.path}"
    equal = [usual] if parts.path.strip("/") else [usual.rstrip("/"), usual.rstrip("/") + "/"]
    return list(dict.fromkeys([value, *equal]))


def is_loopback(host: str) -> bool:
    """Whether a name or address is this machine's own."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def unproxied(*urls: str | None) -> dict[str, None]:
    """For httpx2: what of these, and what else, is this machine's own is reached through no proxy of the environment's.

    By host, as a mount for a scheme, which is what an environment's proxy has, goes before one for all of them.
    """
    hosts = {"localhost", "127.0.0.1", "::1"} | {urlsplit(url).hostname or "" for url in urls if url is not None}
    return {f"all://[{host}]" if ":" in host else f"all://{host}": None for host in hosts if is_loopback(host)}


_ROOT = Path(__file__).parents[2]


def _in_source_tree() -> bool:
    """Whether this is a checkout. Its `.env` is read, not the current folder's: clients start servers in the folder that
    is open in them, which anybody may have written."""
    return (_ROOT / "pyproject.toml").is_file()


def secret_values(settings: Settings) -> set[str]:
    """Values the log must never show: secret settings, and environment variables that are named like secrets."""
    named = {value for name, value in os.environ.items() if _SECRET_NAME.search(name) and not name.endswith("_FILE")}
    held = [value for field in _secrets() if (value := getattr(settings, field)) is not None]
    headers = [pair.partition("=")[2] for name in _EXPORTER_HEADERS for pair in os.environ.get(name, "").split(",")]
    named |= {word for header in headers for word in (*header.split(), *unquote(header).split())}  # without `Bearer`
    found = {value for value in named if len(value) >= 8} | {part for value in held for part in _parts(value)}
    return found - {"memory://"}


_SECRET_NAME = re.compile(r"SECRET|TOKEN|PASSW|CREDENTIAL|PRIVATE|(API|ACCESS|_)KEY", re.IGNORECASE)


def _meaning(line: str) -> str | None:
    return Settings.model_fields[line.partition(":")[0].partition(".")[0].removeprefix(PREFIX).lower()].description


def _parts(value: SecretStr) -> list[str]:
    return [part.strip() for part in value.get_secret_value().split(",") if part.strip()]


def _secrets() -> list[str]:
    """The fields that hold secrets."""
    return [
        field
        for field, info in Settings.model_fields.items()
        if SecretStr in (info.annotation, *getattr(info.annotation, "__args__", ()))
    ]


def _secret_files(known: Mapping[str, str | None], problems: list[str]) -> Iterator[tuple[str, str]]:
    """The secrets given as files: the usual way of container platforms, as an environment is seen by every child."""
    for field in _secrets():
        variable = f"{PREFIX}{field.upper()}"
        path = known.get(f"{variable}_FILE")
        if not path:
            continue
        if known.get(variable):
            problems.append(f"{variable}, {variable}_FILE: both are set; keep one")
            continue
        try:
            yield field, Path(path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8 text"
            problems.append(f"{variable}_FILE: the file it names cannot be read ({reason})")


def dotenv_file() -> Path | None:
    """The project's `.env`, if there is one."""
    path = _ROOT / ".env"
    return path if _in_source_tree() and path.is_file() else None


def secret_paths(settings: Settings) -> dict[str, Path]:
    """The files with secrets in them, by the variable that names each, and `.env` where it is read and holds one."""
    dotenv = dotenv_file() if settings.environment == "development" else None
    held = {name: value for name, value in (dotenv_values(dotenv) if dotenv else {}).items() if value}
    secrets = [f"{PREFIX}{field.upper()}" for field in _secrets()]
    known = {**held, **os.environ}
    found = {f"{name}_FILE": Path(path) for name in secrets if (path := known.get(f"{name}_FILE"))}
    if settings.api_keys_file is not None:
        found[f"{PREFIX}API_KEYS_FILE"] = settings.api_keys_file
    if dotenv and any(name in secrets or (_SECRET_NAME.search(name) and name not in found) for name in held):
        found[".env"] = dotenv
    return found


def in_kubernetes() -> bool:
    """Whether this runs in a pod, as Kubernetes tells every container."""
    return bool(os.environ.get("KUBERNETES_SERVICE_HOST"))


def wants_traces() -> bool:
    """Whether OpenTelemetry's own variables ask for traces.

    Raises:
        StartError: they ask for what this server does not do.
    """
    endpoints = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    exporter, asked = _otel("OTEL_TRACES_EXPORTER"), [name for name in endpoints if _otel(name)]
    if _otel("OTEL_SDK_DISABLED").lower() == "true" or exporter == "none" or not (exporter or asked):
        return False
    problems = [f"{name}: must be an http or https address" for name in asked if not is_address(_otel(name))]
    if exporter not in ("", "otlp"):
        problems.append("OTEL_TRACES_EXPORTER: must be otlp, or none")
    protocols = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    name = next((name for name in protocols if _otel(name)), None)
    if name is not None and _otel(name) != "http/protobuf":
        problems.append(f"{name}: must be http/protobuf")
    if problems:
        raise StartError(problems)
    return True


def _otel(name: str) -> str:
    """Other than this server's own, these variables may hold spaces around what they say."""
    return os.environ.get(name, "").strip()


_EXPORTER_HEADERS = ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS")  # most hold a credential


def forget_exporter_headers() -> None:
    """Take them out of the environment: neither tools nor the processes they start are to find them."""
    for name in _EXPORTER_HEADERS:
        os.environ.pop(name, None)


def wants_colour() -> bool:
    """What the terminal's user has said of colours (no-color.org)."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
