"""The issuer's public keys (JWK set, RFC 7517): fetched when they are needed, kept while they cannot be fetched.

A key that has left the issuer's document is refused after the next fetch: within the hour, or as soon as a token names a
key that is not known.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import anyio
import httpx2
import structlog
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt import PyJWK
from pydantic_core import from_json

from ..errors import Unavailable
from ..settings import is_safe_url, unproxied

_FETCH_SECONDS = 5.0  # all of one fetch, discovery included
_FRESH_SECONDS = 3600.0
_UNKNOWN_SECONDS = 10.0  # between fetches for a key that is not known, and between failed ones while there are keys
_RETRY_SECONDS = 2.0  # between failed ones while there are none
_LARGEST_DOCUMENT = 256 << 10  # bytes
_MOST_KEYS = 100  # to use: each is tried by a token that names none
_RSA_BITS = range(2048, 16385)  # RFC 7518, sections 3.3 and 3.5; more than OpenSSL verifies with

_RSA = frozenset(f"{kind}{bits}" for kind in ("RS", "PS") for bits in (256, 384, 512))
_CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_ED25519 = frozenset({"EdDSA", "Ed25519"})  # one algorithm: its old name, and that of RFC 9864
ALGORITHMS = _RSA | set(_CURVES.values()) | _ED25519
"""Asymmetric ones only: with any other, whoever knows the public key could sign."""

PublicKey = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey


@dataclass(frozen=True, slots=True)
class Key:
    """A public key. `algorithms`: what a token may be signed with, by its type and by its own `alg`."""

    kid: str | None
    algorithms: frozenset[str]
    public: PublicKey


class Unusable(Exception):
    """A document that is none, or has no key to use. The text is for the log: fixed words, nothing of the document."""


class Jwks:
    """The keys, while it is open. One fetch runs at a time; whoever waits for it may leave without ending it."""

    def __init__(self, issuer: str, url: str | None, clock: Callable[[], float]) -> None:
        """
        Args:
            issuer: whose keys they are.
            url: where they are; None: where the issuer's metadata says.
            clock: in seconds.
        """
        self._issuer = issuer
        self._url = url
        self._clock = clock
        self._client: httpx2.AsyncClient
        self._keys: list[Key] = []
        self._fetching: asyncio.Task[None] | None = None
        self._due = self._unknown_from = -1.0
        self._is_failing: bool | None = None
        self._is_cut = False

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Begin to fetch, and wait for nothing: a server starts while its issuer is down."""
        # Proxies and certificates of the environment count, as a server may reach its issuer in no other way; plain HTTP
        # is for this machine. Compressed answers would have no size before they are read.
        mounts = {"http://": None, **unproxied(self._issuer, self._url)}
        headers = {"Accept-Encoding": "identity"}
        async with httpx2.AsyncClient(timeout=_FETCH_SECONDS, mounts=mounts, headers=headers) as self._client:
            self._begin()
            try:
                yield
            finally:
                if self._fetching is not None:
                    self._fetching.cancel()
                    await asyncio.wait([self._fetching])

    async def load(self) -> None:
        """Have keys, and have old ones replaced, for which nobody waits.

        Raises:
            Unavailable: there are none.
        """
        if self._clock() >= self._due:
            self._begin()
        if not self._keys:
            await self._fetched()
        if not self._keys:
            text = "Access tokens cannot be checked now: the issuer's keys are not there. Retry after 2 s."
            raise Unavailable(text, retry_after=_RETRY_SECONDS)

    def has(self, key: Key) -> bool:
        """Whether the issuer still publishes this key, as far as is known. Begins to look if that is long ago."""
        if self._clock() >= self._due:
            self._begin()
        return key in self._keys

    async def find(self, kid: str | None) -> list[Key]:
        """The keys of this id, or all if the token names none.

        Raises:
            Unavailable: there are no keys.
        """
        await self.load()
        found = self._named(kid)
        if not found:
            now = self._clock()
            if not self._is_fetching and now >= self._unknown_from:
                self._unknown_from = now + _UNKNOWN_SECONDS
                self._begin()
            await self._fetched()
            found = self._named(kid)
        return found

    def _named(self, kid: str | None) -> list[Key]:
        return [key for key in self._keys if kid is None or key.kid == kid]

    @property
    def _is_fetching(self) -> bool:
        return self._fetching is not None and not self._fetching.done()

    def _begin(self) -> None:
        if not self._is_fetching:
            self._fetching = asyncio.create_task(self._fetch())

    async def _fetched(self) -> None:
        """Wait for the fetch that runs, if one does."""
        if self._fetching is not None:
            await asyncio.wait([self._fetching])  # leaves the task alone when the one who waits is cancelled

    async def _fetch(self) -> None:
        log = structlog.get_logger()
        try:
            with anyio.fail_after(_FETCH_SECONDS):
                found = _read(await self._get(self._url or await self._discover()))
        except Exception as error:  # noqa: BLE001 - whatever it is, the keys that are there stay
            self._due = self._clock() + (_UNKNOWN_SECONDS if self._keys else _RETRY_SECONDS)
            if self._is_failing is not True:
                problem = str(error) if isinstance(error, Unusable) else type(error).__name__
                log.error("jwks_unavailable", url=self._url or self._issuer, problem=problem, kept=len(self._keys))
            self._is_failing = True
        else:
            self._keys = found[:_MOST_KEYS]
            self._due = self._clock() + _FRESH_SECONDS
            if not self._is_cut and len(found) > _MOST_KEYS:
                self._is_cut = True
                log.warning("jwks_cut", url=self._url or self._issuer, kept=_MOST_KEYS)
            if self._is_failing is not False:
                log.info("jwks_loaded", url=self._url or self._issuer, keys=len(self._keys))
            self._is_failing = False

    async def _discover(self) -> str:
        """The address of the keys, as the issuer's metadata names it."""
        failure = Unusable("no metadata")
        for url in _well_known(self._issuer):
            try:
                return _jwks_uri(await self._get(url), self._issuer)
            except Unusable as error:
                failure = error
        raise failure

    async def _get(self, url: str) -> dict[str, Any]:
        """A JSON object. A redirect is no answer: it may lead to where the address would have been refused."""
        data = bytearray()
        async with self._client.stream("GET", url) as response:
            if response.status_code != 200:
                raise Unusable(f"status {response.status_code}")
            async for part in response.aiter_raw():
                data += part
                if len(data) > _LARGEST_DOCUMENT:
                    raise Unusable("too large")
        try:
            document = from_json(data)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise Unusable("no JSON object")
        return document


def _well_known(issuer: str) -> Iterator[str]:
    """Where an issuer's metadata may be: RFC 8414, sections 3.1 and 5; OpenID Connect Discovery 1.0, section 4.1."""
    parts = urlsplit(issuer)
    root, path = f"{parts.scheme}://{parts.netloc}", parts.path.rstrip("/")
    yield f"{root}/.well-known/oauth-authorization-server{path}"
    yield f"{root}/.well-known/openid-configuration{path}"
    if path:
        yield f"{root}{path}/.well-known/openid-configuration"


def _jwks_uri(metadata: dict[str, Any], issuer: str) -> str:
    if metadata.get("issuer") != issuer:  # RFC 8414, section 3.3: identical
        raise Unusable("metadata of another issuer")
    uri = metadata.get("jwks_uri")
    if not isinstance(uri, str) or not is_safe_url(uri.partition("?")[0]):  # some issuers have a query in it
        raise Unusable("jwks_uri is neither https nor on this machine")
    return uri


def _read(document: dict[str, Any]) -> list[Key]:
    """The keys to use, each once, and one more than are kept where there are more."""
    listed = document.get("keys")
    if not isinstance(listed, list):
        raise Unusable("no JWK set")
    keys: list[Key] = []
    for each in listed:
        with suppress(Exception):  # one key that cannot be read leaves the others of use
            if (key := _key(each)) is not None and key not in keys:
                keys.append(key)
        if len(keys) > _MOST_KEYS:
            break
    if not keys:
        raise Unusable("no key to use")
    return keys


def _key(jwk: Any) -> Key | None:
    """None: it is not for signatures, secret, weak, or of an unknown kind. Raises anything where it cannot be read."""
    kid, use, operations = jwk.get("kid"), jwk.get("use"), jwk.get("key_ops")
    if not isinstance(kid, str | None) or use not in (None, "sig"):
        return None
    if operations is not None and "verify" not in operations:
        return None
    public = PyJWK({**jwk, "alg": None}).key  # by its type: PyJWT does not know the name of every algorithm
    algorithms = _algorithms(public)
    if (named := jwk.get("alg")) is not None and not (named in algorithms and algorithms == _ED25519):
        algorithms &= {named}
    return Key(kid, algorithms, public) if algorithms else None


def _algorithms(key: object) -> frozenset[str]:
    """What a key can verify (RFC 7518, section 3.1; RFC 8037, section 3.1; RFC 9864, section 2.2)."""
    if isinstance(key, RSAPublicKey):
        return _RSA if key.key_size in _RSA_BITS else frozenset()
    if isinstance(key, EllipticCurvePublicKey) and key.curve.name in _CURVES:
        return frozenset({_CURVES[key.curve.name]})
    return _ED25519 if isinstance(key, Ed25519PublicKey) else frozenset()
