"""What trusted proxies say of their callers: the address (`X-Forwarded-For`), and HTTP or HTTPS (`X-Forwarded-Proto`).

uvicorn's middleware for it takes the scheme for one word, of the last header, a WebSocket's too, and the address for
whatever text stands there; and finds an IPv4 proxy trusted by its plain address only, while a socket of both families has
another one for it.
"""

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any

from .exchange import Receive, Scope, Send

BELIEVED = "plinth.forwarded"
"""Is in the ASGI scope of a request that a trusted proxy has sent."""

_MOST_HOPS = 20  # that are looked at
_SCHEMES = {"http": "http", "https": "https", "ws": "http", "wss": "https"}


class Proxies:
    """The ASGI application behind them: what anybody else says is as if they had not said it."""

    def __init__(self, app: Any, trusted: Iterable[str]) -> None:
        """`trusted`: addresses and networks."""
        self._app = app
        self._networks = [ip_network(each) for each in trusted]
        self._trusts = lru_cache(maxsize=1024)(self._is_in_a_network)  # of addresses only, which are short

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = scope.get("client")
        if client is not None and self._trusts(proxy := _address(client[0])):
            scope[BELIEVED] = True
            scope["client"] = (self._caller(_said(scope, b"x-forwarded-for"), proxy), 0)
            # The outermost proxy stands first: each adds its own at the end.
            scheme = _said(scope, b"x-forwarded-proto").partition(",")[0].strip().lower()
            scope["scheme"] = _SCHEMES.get(scheme, scope["scheme"])
        await self._app(scope, receive, send)

    def _caller(self, said: str, proxy: str) -> str:
        """The last address that is no trusted proxy's. What stands before it, or before what is no address, is a caller's
        own word."""
        found = proxy
        for each in reversed(said.rsplit(",", _MOST_HOPS)[-_MOST_HOPS:]):
            if not (address := _address(each)):
                break
            found = address
            if not self._trusts(address):
                break
        return found

    def _is_in_a_network(self, address: str) -> bool:
        return bool(address) and any(ip_address(address) in network for network in self._networks)


def _said(scope: Scope, name: bytes) -> str:
    """The values of a header, as if they stood in one (RFC 9110, section 5.3)."""
    return b",".join(value for key, value in scope["headers"] if key == name).decode("latin-1")


def _address(text: str) -> str:
    """As `192.0.2.1`, `192.0.2.1:443`, `2001:db8::1` or `[2001:db8::1]:443` names it; empty: it is none."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        found = ip_address(text)
    except ValueError:
        return ""
    if isinstance(found, IPv6Address):
        if found.scope_id is not None:
            return ""  # it means something on the proxy's machine alone, and can be any text
        found = found.ipv4_mapped or found
    return str(found)
