"""Addresses that a caller gives, fetched only where they lead to the public internet.

Without this guard whoever calls a tool could look through it into the network around the server (SSRF). What a library
cannot know is left to the operator's network policy, the second wall: which public addresses lead inside, as this
machine's own do, or those behind a translator's own prefix.
"""

import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Container
from contextlib import asynccontextmanager
from functools import cached_property, partial
from http.cookiejar import CookieJar, DefaultCookiePolicy
from importlib import metadata
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Annotated, Any, Literal

import anyio
import httpx2
import structlog

from .. import NAME
from ..calls import current_caller
from ..errors import CallError, Failed, UpstreamRejected, UpstreamUnavailable
from ..limits.shares import Shares
from ..settings import Settings
from ..spans import begin_fetch, end_attempt
from ..threads import Threads
from ..tooling import Depends
from .exchange import NoAnswer, Response, exchange

PORTS = frozenset({80, 443, 8080, 8443})
"""Where web servers are; with more of them a server could be made to look for open ones."""

_REFUSAL = "Only http and https addresses on the public internet, on ports 80, 443, 8080 and 8443, can be fetched."
_MOST_AT_ONCE = 16
_MOST_ADDRESSES = 3  # that are tried for one name
_MOST_REDIRECTS = 5
_LARGEST_ANSWER = 1 << 20  # bytes, decompressed
_LONGEST_URL = 2048  # characters
_DEFAULT_PORTS = {"http": 80, "https": 443}
_REDIRECT = ":location"  # no header that is received has a colon in its name

Address = IPv4Address | IPv6Address
Rule = Literal["url", "scheme", "user", "port", "name", "unknown", "address"]


class Refused(Exception):
    """An address that is not fetched. `rule`: which one forbids it, for the log: a caller is told all of them."""

    def __init__(self, rule: Rule) -> None:
        super().__init__()
        self.rule: Rule = rule


# Names: of two labels or more, as one alone is of the local network, and none that could be read as a number.
_LABEL = "[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(r"(?=.{1,253}$)" + rf"(?:{_LABEL}\.)+(?=[a-z]){_LABEL}")
_LOCAL = {"localhost", "local", "internal", "arpa", "onion", "alt", "test", "invalid"}
"""What is never looked up in the public DNS: RFC 6761, 6762, 7686, 8375, 9476, and ICANN's `internal`."""

_UNICAST = ip_network("2000::/3")  # all global addresses of IPv6 so far (RFC 4291, section 2.4)
_NAT64 = ip_network("64:ff9b::/96")  # IPv4 for networks without it (RFC 6052); 64:ff9b:1::/48 leads anywhere (RFC 8215)
_NOT_PUBLIC = [  # what `is_global` of some Python from 3.11 on, or of all, lets pass
    ip_network("168.63.129.16"),  # Azure's host, which gives its guests their secrets
    ip_network("192.0.0.0/24"),  # protocol assignments; Oracle's cloud has its metadata there
    ip_network("192.88.99.0/24"),  # 6to4 relays (RFC 7526)
    ip_network("224.0.0.0/4"),  # multicast
    ip_network("2001::/23"),  # protocol assignments; Teredo, which leads to any IPv4 address (RFC 4380)
    ip_network("2002::/16"),  # 6to4, which does too (RFC 3056)
    ip_network("3fff::/20"),  # documentation (RFC 9637)
]


def is_public(address: Address) -> bool:
    """Whether an address is of the public internet, and so is the IPv4 address inside it, if there is one."""
    if isinstance(address, IPv6Address):
        inner = IPv4Address(int(address) & 0xFFFFFFFF)
        if address.ipv4_mapped is not None or address in _NAT64:
            return address.scope_id is None and is_public(inner)
        is_isatap = (int(address) >> 32) & 0xFCFFFFFF == 0x5EFE  # RFC 5214, section 6.1
        if address.scope_id is not None or address not in _UNICAST or (is_isatap and not is_public(inner)):
            return False
    return address.is_global and not any(address in network for network in _NOT_PUBLIC)


class Resolver:
    """Asks the system for the addresses of a name.

    In threads of its own: asyncio's are few, and whoever runs a name server that does not answer could hold them all.
    """

    def __init__(self, ask: Callable[..., list[Any]] = socket.getaddrinfo, share: float = 1) -> None:
        """`share`: of the threads, for one caller."""
        self._ask = ask
        self._threads = Threads(_MOST_AT_ONCE, share)

    async def __call__(self, name: str) -> list[Address]:
        """
        Raises:
            OSError: there are none, or they cannot be found now.
            Overloaded: too many names are being looked up.
        """
        absolute = f"{name}."  # the local search list is not to make another name of it
        found = await self._threads.run("resolve", partial(self._ask, absolute, None, type=socket.SOCK_STREAM))
        return [ip_address(each[4][0]) for each in found]


class PublicWeb:
    """Fetches what callers name, with nothing of this server's or of another call's: no credential, cookie or proxy.

    A name is looked up once, must have public addresses only, and is connected to at one of those that were judged; so
    is every redirect. One answer may take 10 s, of the time that the tool has left, and 1 MiB.
    """

    def __init__(
        self,
        *,
        resolve: Callable[[str], Awaitable[list[Address]]] | None = None,
        is_allowed: Callable[[Address], bool] = is_public,
        ports: Container[int] = PORTS,
        verify: ssl.SSLContext | bool = True,
        seconds: float = 10,
        share: float = 1,
    ) -> None:
        """
        Args:
            resolve: gives all addresses of a name, or raises OSError; in place of the system's.
            is_allowed: judges each of them.
            ports: that may be connected to.
            verify: what certificates are checked with.
            seconds: for each answer, redirects included.
            share: of what runs at once, for one caller.
        """
        self._resolve = resolve or Resolver(share=share)
        self._is_allowed = is_allowed
        self._ports = ports
        self._verify = verify
        self._seconds = seconds
        self._shares = Shares(_MOST_AT_ONCE, share)

    @cached_property
    def _client(self) -> httpx2.AsyncClient:
        """Made when it is first needed, as it reads the certificates to trust; it keeps nothing that is to be closed."""
        return httpx2.AsyncClient(
            verify=self._verify,
            trust_env=False,  # a proxy would look the name up again
            timeout=httpx2.Timeout(None, connect=self._seconds / _MOST_ADDRESSES),  # there is time to try them all
            limits=httpx2.Limits(max_keepalive_connections=0),  # one name's connection is of no use for another's
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            headers={"User-Agent": f"{NAME}/{metadata.version(NAME)}", "Accept-Encoding": "identity"},
            event_hooks={"response": [_take_redirect]},
        )

    async def get(self, url: str) -> Response:
        """Fetch an address, whatever its status.

        Raises:
            Failed: it is not allowed, or a redirect leads to one that is not.
            UpstreamUnavailable: it did not answer in time, or there is too much to fetch now.
            UpstreamRejected: its answer is too large, or leads nowhere.
            Overloaded: too many names are being looked up.
        """
        return await self._fetch("GET", url)

    async def head(self, url: str) -> Response:
        """The same without the body."""
        return await self._fetch("HEAD", url)

    async def _fetch(self, method: str, text: str) -> Response:
        caller = current_caller.get()
        if self._shares.take(caller) != "ok":
            raise UpstreamUnavailable("Too many addresses are being fetched. Retry after 1 s.", retry_after=1)
        log = structlog.get_logger()
        try:
            return await self._follow(method, text)
        except Refused as error:
            log.warning("address_refused", rule=error.rule)
            raise Failed(_REFUSAL) from None
        except NoAnswer as error:
            log.warning("upstream_failed", upstream="web", reason=error.reason)
            raise _told(error) from None
        finally:
            self._shares.release(caller)

    async def _follow(self, method: str, text: str) -> Response:
        left = max(0.0, anyio.current_effective_deadline() - anyio.current_time())
        until = anyio.current_time() + left - min(0.25, left / 10)  # a margin to say in what went wrong
        url = self._checked(None, text)
        for _ in range(_MOST_REDIRECTS + 1):
            response = await self._ask(method, url, min(until, anyio.current_time() + self._seconds))
            location = response.headers.get(_REDIRECT)
            if location is None:
                return response
            url = self._checked(url, location)
        raise NoAnswer("redirected", "redirects without an end", passes=False)

    def _checked(self, base: httpx2.URL | None, text: str) -> httpx2.URL:
        """The URL, as far as it can be judged before its name is looked up."""
        if len(text) > _LONGEST_URL:
            raise Refused("url")
        try:
            url = httpx2.URL(text) if base is None else base.join(text)
        except (httpx2.InvalidURL, ValueError):
            raise Refused("url") from None
        if url.scheme not in _DEFAULT_PORTS:
            raise Refused("scheme")
        if url.userinfo:
            raise Refused("user")
        if (_DEFAULT_PORTS[url.scheme] if url.port is None else url.port) not in self._ports:
            raise Refused("port")
        host = url.raw_host.decode("ascii").removesuffix(".")
        if _as_address(host) is None and (not _NAME.fullmatch(host) or host.rpartition(".")[2] in _LOCAL):
            raise Refused("name")
        if base is not None and base.scheme == "https" and url.scheme == "http":
            raise NoAnswer("redirected", "redirects from https to http, which is not followed", passes=False)
        return url.copy_with(host=host)

    async def _ask(self, method: str, url: httpx2.URL, until: float) -> Response:
        """The answer of one of the addresses, each of which has been judged."""
        host, failure = url.raw_host.decode("ascii"), NoAnswer("timeout", "did not answer in time")
        for address in _in_turn(await self._look_up(host, until)):
            request = self._client.build_request(
                method,
                url.copy_with(host=str(address)),
                headers={"Host": url.netloc.decode("ascii")},
                extensions={"sni_hostname": host},  # the name that is asked for, and that the certificate is to have
            )
            seconds = max(0.0, until - anyio.current_time())
            span, result, status = begin_fetch("web", method), "cancelled", None
            try:
                response = await exchange(self._client, request, "web", seconds=seconds, largest=_LARGEST_ANSWER)
                result, status = "ok", response.status
                return response
            except NoAnswer as error:
                result = error.label
                if error.reason != "no_connection":
                    raise
                failure = error
            finally:
                end_attempt(span, result, status)
        raise failure

    async def _look_up(self, host: str, until: float) -> list[Address]:
        """All addresses of a host, every one of them allowed. A name that has none is refused like one that is private."""
        address = _as_address(host)
        try:
            with anyio.fail_after(max(0.0, until - anyio.current_time())):
                found = await self._resolve(host) if address is None else [address]
        except TimeoutError:
            raise NoAnswer("timeout", "did not answer in time") from None
        except OSError as error:
            if error.errno == socket.EAI_AGAIN:
                raise NoAnswer("no_connection", "cannot be reached") from None
            raise Refused("unknown") from None
        if not found or not all(map(self._is_allowed, found)):
            raise Refused("address")
        return found


async def _take_redirect(response: httpx2.Response) -> None:
    """Take the address before the client reads it, which ends in errors of several kinds (httpx2 2.12, 2.16)."""
    if response.has_redirect_location:
        response.headers[_REDIRECT] = response.headers.pop("location")


def _as_address(host: str) -> Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _in_turn(found: list[Address]) -> list[Address]:
    """Those to try: the first, then one of the other kind, as a machine may have no way to all of one kind."""
    same = [each for each in found if each.version == found[0].version]
    other = [each for each in found if each.version != found[0].version]
    return [*same[:1], *other[:1], *same[1:], *other[1:]][:_MOST_ADDRESSES]


def _told(failure: NoAnswer) -> CallError:
    if failure.passes:
        return UpstreamUnavailable(f"The address {failure.said}. Retry later.")
    return UpstreamRejected(f"The address {failure.said}. Retrying does not help.")


@asynccontextmanager
async def open_public_web(settings: Settings) -> AsyncIterator[PublicWeb]:
    """One for all tools."""
    yield PublicWeb(share=settings.caller_share)


ThePublicWeb = Annotated[PublicWeb, Depends(open_public_web, label="public_web")]
"""Annotate a tool's parameter with this, and the server fills it in."""
