"""The checks. A new one is a function here and a line in `CHECKS`; its name is the item, its docstring's first line the
title.

No finding holds a setting's value that could be secret, or a path: it names settings, tools, counts and modes.
"""

import os
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib import metadata
from ipaddress import ip_network
from typing import NamedTuple
from urllib.parse import urlsplit

from ..auth.api_keys import ApiKeys
from ..auth.credentials import Rejected
from ..registry import Registry
from ..settings import Settings, dotenv_file, in_kubernetes, is_loopback, secret_paths
from .bounds import unbounded

_LONGEST_TIMEOUT = 600  # seconds
_CLEANUP_SECONDS = 10  # serving/http.py: so long after the drain the process ends itself
_EXPIRES_SOON = timedelta(days=14)
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[\w.-]+)(:\d+)?", re.IGNORECASE)
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#*\s]+", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Deployment:
    """What is judged: the settings, and what is served."""

    settings: Settings
    registry: Registry


class Finding(NamedTuple):
    """What was found, and what to change. Without a remedy it has passed."""

    found: str
    remedy: str | None = None


class Check(NamedTuple):
    """One row, and where it means anything."""

    judge: Callable[[Deployment], Finding]
    only_http: bool = False
    only_production: bool = False


def authentication(at: Deployment) -> Finding:
    """Who can reach the server proves who they are.

    Else anybody on the network calls every tool that declares no scopes.
    """
    settings = at.settings
    if settings.auth_mode != "none":
        anonymous = "; callers without a credential may use what declares no scopes"
        return Finding(settings.auth_mode + (anonymous if settings.auth_allow_anonymous else ""))
    if not (reached_by := _reached_by(settings)):
        return Finding("none, and only this machine reaches the server")
    return Finding(
        f"none, and other machines reach the server, by {_listed(reached_by)}",
        "set MCP_AUTH_MODE to api_key (`keys new` makes keys) or jwt, or let only this machine reach it",
    )


def allowed_hosts(at: Deployment) -> Finding:
    """The names that clients send in the Host header are allowed.

    A request for another name is answered 421, so that no web page can reach the server by rebinding its own name.
    """
    names = at.settings.allowed_hosts
    remedy = "set MCP_ALLOWED_HOSTS to what clients, or the proxy before them, send as Host"
    if wrong := sum(not _HOST.fullmatch(name) for name in names):
        return Finding(f"{wrong} of {len(names)} match no Host header", f"{remedy}: a name, or a name and a port")
    if not names:
        return Finding("none", remedy)
    if "allowed_hosts" not in at.settings.model_fields_set and (reached_by := _reached_by(at.settings)):
        return Finding(f"only loopback names, and other machines reach the server, by {_listed(reached_by)}", remedy)
    return Finding(_counted(len(names), "name"))


def allowed_origins(at: Deployment) -> Finding:
    """The web pages that may call are named by their origin.

    An origin that is misspelt shuts its pages out; `null` lets in every page that hides its own.
    """
    origins = at.settings.allowed_origins
    if wrong := sum(not _ORIGIN.fullmatch(origin) for origin in origins):
        return Finding(
            f"{wrong} of {len(origins)} are not a page's origin",
            "set MCP_ALLOWED_ORIGINS to origins as in https://app.example.com, without a path",
        )
    return Finding(_counted(len(origins), "origin"))


def trusted_proxies(at: Deployment) -> Finding:
    """X-Forwarded-For is believed of the own proxies, and of nobody else.

    Limits and the log would else go by an address that each caller chooses, or by one that all callers share: failed
    credentials of one then keep the others out.
    """
    networks = [ip_network(each) for each in at.settings.trusted_proxies]
    if wide := sum(each.prefixlen < (8 if each.version == 4 else 7) for each in networks):
        return Finding(
            f"{wide} of {len(networks)} networks are so wide that callers are in them",
            "set MCP_TRUSTED_PROXIES to the addresses of the proxies themselves",
        )
    if networks:
        return Finding(_counted(len(networks), "network"))
    if "trusted_proxies" in at.settings.model_fields_set:
        return Finding("none, as is set")
    if _reached_by(at.settings) and (told := _behind_a_proxy(at.settings)):
        return Finding(
            f"none, and there seems to be one, by {_listed(told)}",
            "set MCP_TRUSTED_PROXIES to the addresses of the proxies, or all their callers count as one; or to none, "
            "where callers connect directly",
        )
    return Finding("none")


def public_url(at: Deployment) -> Finding:
    """Clients are told the address that they use, and where to get a token for it (RFC 9728).

    They refuse metadata that names another address.
    """
    settings = at.settings
    if settings.auth_mode != "jwt":
        return Finding("not needed without jwt")
    remedy = "set MCP_PUBLIC_URL to the full address clients use, as in https://tools.example.com/mcp"
    if settings.public_url is None:
        return Finding("not set, with jwt", remedy)
    if is_loopback(_hostname(settings.public_url)) and "MCP_ALLOWED_HOSTS" in _reached_by(settings):
        return Finding("this machine's own address, while other names are allowed", remedy)
    return Finding("set")


def request_state_keys(at: Deployment) -> Finding:
    """Each replica opens what another has sealed.

    A call of several rounds else fails whenever the next round comes to another replica.
    """
    if at.settings.replicas > 1 and not at.settings.sealing_keys:
        return Finding(
            f"each of {at.settings.replicas} replicas makes its own",
            "set MCP_REQUEST_STATE_KEYS, or MCP_REQUEST_STATE_KEYS_FILE, to one random key for all replicas",
        )
    return Finding("shared" if at.settings.sealing_keys else "made by the one replica")


def shared_rate_limit(at: Deployment) -> Finding:
    """All replicas count in one place.

    Each client else gets its limit once more with every replica.
    """
    settings = at.settings
    if settings.rate_limit_per_minute == 0:
        return Finding("there is no limit to share")
    is_shared = not settings.rate_limit_store.get_secret_value().startswith("memory:")
    if settings.replicas > 1 and not is_shared:
        return Finding(
            f"each of {settings.replicas} replicas counts for itself",
            "set MCP_RATE_LIMIT_STORE to redis://host:port/0",
        )
    return Finding("shared" if is_shared else "counted by the one replica")


def sessions(at: Deployment) -> Finding:
    """Any replica can answer any request.

    A session lives in one replica; the others answer 404.
    """
    if at.settings.http_sessions == "stateful" and at.settings.replicas > 1:
        return Finding(
            f"stateful, with {at.settings.replicas} replicas",
            "set MCP_HTTP_SESSIONS=stateless, or MCP_REPLICAS=1",
        )
    return Finding(at.settings.http_sessions)


def rate_limit(at: Deployment) -> Finding:
    """No client can take all there is.

    One that loops would else be served at the others' cost.
    """
    if (per_minute := at.settings.rate_limit_per_minute) == 0:
        return Finding("off", "set MCP_RATE_LIMIT_PER_MINUTE to what one client may ask for")
    return Finding(f"{per_minute} a minute, {at.settings.rate_limit_burst} at once, per client")


def stop_time(at: Deployment) -> Finding:
    """A stop is over before the platform kills the process.

    Calls that are still being answered would else be lost.
    """
    settings = at.settings
    needed = settings.drain_delay_seconds + settings.drain_timeout_seconds + _CLEANUP_SECONDS
    found = f"takes up to {needed:g} s of {settings.grace_period_seconds:g} s"
    if needed <= settings.grace_period_seconds:
        return Finding(found)
    return Finding(
        found,
        f"lower MCP_DRAIN_DELAY_SECONDS or MCP_DRAIN_TIMEOUT_SECONDS, or let the platform wait {needed:g} s and set "
        "MCP_GRACE_PERIOD_SECONDS to that",
    )


def log_format(at: Deployment) -> Finding:
    """The log is one JSON object a line.

    What collects logs cannot read lines that are made for people.
    """
    if at.settings.log_format == "console":
        return Finding("console", "set MCP_LOG_FORMAT to json, or auto")
    return Finding(at.settings.log_format)


def log_level(at: Deployment) -> Finding:
    """The log holds what operators need.

    DEBUG costs time with each call, and hides the rest.
    """
    if at.settings.log_level == "DEBUG":
        return Finding("DEBUG", "set MCP_LOG_LEVEL to INFO")
    return Finding(at.settings.log_level)


def secret_files(at: Deployment) -> Finding:
    """Files with secrets cannot be read or changed by other users of the machine.

    A container of its own has no others; platforms mount secrets there that all may read.
    """
    files = secret_paths(at.settings)
    if sys.platform == "win32" or _in_own_container():
        return Finding(f"{_counted(len(files), 'file')}, not judged here")
    modes = {name: path.stat().st_mode & 0o777 for name, path in files.items()}
    if wrong := [f"{name} ({mode:04o})" for name, mode in modes.items() if mode & 0o006]:
        return Finding(f"others can read or change {_listed(wrong)}", "take the rights of others away: chmod o= FILE")
    return Finding(_counted(len(files), "file"))


def api_keys(at: Deployment) -> Finding:
    """There is a key to call with.

    When the last one has expired, nobody can.
    """
    settings = at.settings
    is_used = settings.auth_mode == "api_key" if settings.transport == "http" else settings.api_key is not None
    if settings.api_keys_file is None or not is_used:
        return Finding("not used")
    keys = ApiKeys(settings.api_keys_file)
    remedy = "make one: `keys new --name NAME`"
    if not (live := keys.live):
        return Finding("none is valid", remedy)
    if settings.transport == "stdio" and settings.api_key is not None:
        try:
            keys.check(settings.api_key.get_secret_value())
        except Rejected as rejected:
            return Finding(f"MCP_API_KEY: {rejected.reason}", f"{remedy}, and set MCP_API_KEY to it")
    soon = sorted(key.expires for key in live if key.expires and key.expires < datetime.now(UTC) + _EXPIRES_SOON)
    first = f"; {_counted(len(soon), 'expires', 'expire')} soon, the first on {soon[0]:%Y-%m-%d}" if soon else ""
    return Finding(f"{len(live)} valid{first}")


def root_file_system(at: Deployment) -> Finding:
    """The container's root file system is read-only.

    Who breaks into the process can then leave nothing behind.
    """
    if sys.platform == "win32" or not _in_own_container():
        return Finding(_NOT_A_CONTAINER)
    if os.statvfs("/").f_flag & os.ST_RDONLY:
        return Finding("read-only")
    return Finding(
        "writable", "docker: --read-only --tmpfs /tmp; Kubernetes: readOnlyRootFilesystem, and an emptyDir at /tmp"
    )


def unprivileged_user(at: Deployment) -> Finding:
    """The container's process is not root.

    Root in a container is root over all that is mounted into it.
    """
    if sys.platform == "win32" or not _in_own_container():
        return Finding(_NOT_A_CONTAINER)
    if os.geteuid() == 0:
        return Finding("root", "run it as another user, by number: USER 65532:65532, or runAsUser")
    return Finding("not root")


def dependencies(at: Deployment) -> Finding:
    """No dependency has a fault whose remedy is out.

    Locks grow old; what is listed concerns a server of this kind.
    """
    wrong = []
    for name, fixed_in, faults in FAULTS:
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        if _order(installed) < _order(fixed_in):
            wrong.append((name, f"{name} {installed} ({faults})"))
    if wrong:
        upgrades = " ".join(f"--upgrade-package {name}" for name, _ in wrong)
        return Finding(_listed(text for _, text in wrong), f"uv lock {upgrades}, then uv sync")
    return Finding(f"none of the known faults of {_listed(fault[0] for fault in FAULTS)}")


def tool_scopes(at: Deployment) -> Finding:
    """Tools that change something declare who may use them.

    Without scopes every caller may.
    """
    writing = [tool for tool in at.registry.tools.values() if not tool.read_only]
    if without := [tool.name for tool in writing if not tool.scopes]:
        return Finding(
            f"without scopes: {_listed(without)}",
            "give @tool(scopes={...}), or read_only=True where nothing is changed",
        )
    return Finding(f"{_counted(len(writing), 'tool')} with scopes" if writing else "no tool changes anything")


def timeouts(at: Deployment) -> Finding:
    """Each call ends.

    One that hangs keeps its place among the calls that may run.
    """
    default = at.settings.tool_timeout_seconds
    limits = {each.name: each.timeout_seconds or default for each in at.registry.served}
    if slow := [name for name, seconds in limits.items() if seconds > _LONGEST_TIMEOUT]:
        return Finding(
            f"more than {_LONGEST_TIMEOUT} s: {_listed(slow)}",
            "give timeout_seconds in the decorator, or lower MCP_TOOL_TIMEOUT_SECONDS",
        )
    return Finding(f"at most {max(limits.values(), default=default):g} s")


def argument_bounds(at: Deployment) -> Finding:
    """Each argument has a bound, which its schema tells.

    What has none is bounded only by MCP_MAX_REQUEST_BYTES.
    """
    if wide := [f"{each.name}.{name}" for each in at.registry.served for name in unbounded(each.signature.schema)]:
        return Finding(
            f"without a bound: {_listed(wide)}",
            "give it a type that has one, as in Annotated[..., Field(max_length=100)], instead of Any or a bare dict",
        )
    return Finding("all")


def dotenv(at: Deployment) -> Finding:
    """No `.env` lies in the project.

    Production does not read it, so its settings are not the server's; and it often holds secrets.
    """
    if dotenv_file() is None:
        return Finding("none")
    return Finding("there is one beside pyproject.toml", "move its settings to the environment, and remove it")


CHECKS = (
    Check(authentication, only_http=True),
    Check(allowed_hosts, only_http=True),
    Check(allowed_origins, only_http=True),
    Check(trusted_proxies, only_http=True),
    Check(public_url, only_http=True),
    Check(request_state_keys, only_http=True),
    Check(shared_rate_limit, only_http=True),
    Check(sessions, only_http=True),
    Check(rate_limit, only_http=True, only_production=True),
    Check(stop_time, only_http=True, only_production=True),
    Check(log_format, only_production=True),
    Check(log_level, only_production=True),
    Check(secret_files),
    Check(api_keys),
    Check(root_file_system, only_production=True),
    Check(unprivileged_user, only_production=True),
    Check(dependencies),
    Check(tool_scopes),
    Check(timeouts),
    Check(argument_bounds),
    Check(dotenv, only_production=True),
)

FAULTS = (
    ("mcp", "2.2.0", "CVE-2026-116685, CVE-2026-116686"),
    ("pyjwt", "2.14.0", "CVE-2026-32597, CVE-2026-48522, CVE-2026-48526, CVE-2026-102274"),
    ("cryptography", "46.0.7", "CVE-2026-26007, CVE-2026-39892"),
    ("starlette", "1.0.1", "CVE-2026-48710"),
)
"""Distributions, the first version without the faults, and the faults."""

_NOT_A_CONTAINER = "not judged: not a container of its own"


def _reached_by(settings: Settings) -> list[str]:
    """The settings that tell that other machines reach the server."""
    told = {
        "MCP_HOST": not is_loopback(settings.host),
        "MCP_ALLOWED_HOSTS": not all(is_loopback(_hostname(f"//{name}")) for name in settings.allowed_hosts),
        "MCP_TRUSTED_PROXIES": bool(settings.trusted_proxies),
        "MCP_PUBLIC_URL": settings.public_url is not None and not is_loopback(_hostname(settings.public_url)),
    }
    return [name for name, is_so in told.items() if is_so]


def _behind_a_proxy(settings: Settings) -> list[str]:
    """What tells that a proxy, a load balancer or an ingress stands before a server that other machines reach."""
    is_named = not {"MCP_ALLOWED_HOSTS", "MCP_PUBLIC_URL"}.isdisjoint(_reached_by(settings))
    told = {
        "MCP_REPLICAS": settings.replicas > 1,
        "MCP_PUBLIC_URL": "MCP_PUBLIC_URL" in _reached_by(settings),  # it is https, and the server ends no TLS
        "MCP_HOST": is_named and is_loopback(settings.host),
        "a container with a name": is_named and _in_own_container(),
        "a pod": in_kubernetes(),
    }
    return [name for name, is_so in told.items() if is_so]


def _hostname(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # brackets that hold no address
        return ""


def _in_own_container() -> bool:
    """Whether this is process 1, or was started beside it from outside, as by `docker exec`."""
    return os.getpid() == 1 or os.getppid() == 0


def _order(version: str) -> tuple[list[int], bool]:
    """What versions are compared by: the release, and whether it is final (PEP 440)."""
    match = re.match(r"(?:\d+!)?(\d+(?:\.\d+)*)(.*)", version)
    if match is None:
        return [], False
    release = [int(part) for part in match[1].split(".")]
    while release and release[-1] == 0:
        release.pop()
    return release, re.match(r"[._-]?(a|b|c|rc|dev|alpha|beta|pre)", match[2], re.IGNORECASE) is None


def _listed(names: Iterable[str], most: int = 8) -> str:
    shown = list(names)
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")


def _counted(count: int, one: str, several: str | None = None) -> str:
    return f"{count} {one if count == 1 else several or one + 's'}"
