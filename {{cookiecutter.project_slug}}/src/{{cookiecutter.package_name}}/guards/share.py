"""Whose share of what is few a request counts in."""

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any

from ..auth.principal import ANONYMOUS, SCOPE_KEY, Principal
from ..settings import Settings
from .rate_limit import address_key


def caller_of(scope: Mapping[str, Any], settings: Settings) -> str | None:
    """Who sent the HTTP request of this ASGI scope, as `key_of` says it."""
    address = client[0] if (client := scope.get("client")) else None
    return key_of(scope.get(SCOPE_KEY, ANONYMOUS), address, is_open=settings.auth_mode == "none")


def key_of(principal: Principal, address: str | None, *, is_open: bool) -> str | None:
    """The principal; without a credential the address.

    `is_open`: whether nobody over HTTP has to say who they are. Whatever calls from this machine is then the same user's,
    and has no share: None.
    """
    if principal.kind != "anonymous":
        return principal.name
    return None if is_open and _is_of_this_machine(address) else address_key(address)


def _is_of_this_machine(address: str | None) -> bool:
    try:
        found = ip_address(address or "")
    except ValueError:
        return False
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback
