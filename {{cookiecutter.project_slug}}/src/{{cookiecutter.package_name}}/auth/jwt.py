"""Access tokens that an authorization server has signed: JWT (RFC 7519) for this server (RFC 9068, section 4)."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Self

import jwt

from ..errors import StartError
from ..settings import Settings
from ..text import clean
from .credentials import Rejected
from .jwks import ALGORITHMS, Jwks
from .principal import Principal

_LONGEST_TOKEN = 8192  # characters
_LEEWAY = 5  # seconds that clocks may differ
_TYPES = {"at+jwt", "application/at+jwt", "jwt"}  # RFC 9068, section 2.1, and what most issuers write
_REASONS: dict[type[Exception], str] = {
    jwt.ExpiredSignatureError: "expired",
    jwt.ImmatureSignatureError: "not yet valid",
    jwt.InvalidAudienceError: "wrong audience",
    jwt.InvalidIssuerError: "wrong issuer",
    jwt.InvalidSignatureError: "bad signature",
    jwt.MissingRequiredClaimError: "missing claim",
}
# PyJWT 2.13 lets the last three out, for numbers, types and nesting that no honest issuer writes; 2.15 does not.
_UNREADABLE = (jwt.PyJWTError, TypeError, OverflowError, RecursionError)


class JwtAuthenticator:
    """Tells who holds an access token. It is open while the server serves."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: in seconds; says when keys are fetched, not whether a token has expired."""
        if settings.jwt_issuer is None or settings.audience is None:  # PyJWT would not compare what is None
            raise StartError(["MCP_JWT_ISSUER, MCP_JWT_AUDIENCE: must be set, as MCP_AUTH_MODE is jwt"])
        self._issuer, self._audience = settings.jwt_issuer, settings.audience
        self._keys = Jwks(self._issuer, settings.jwt_jwks_url, clock)

    @asynccontextmanager
    async def open(self, settings: Settings) -> AsyncIterator[Self]:
        """As `Depends` asks for; raises nothing when the issuer is down."""
        async with self._keys.open():
            yield self

    async def check(self) -> None:
        """Raises Unavailable: no keys were loaded since the start."""
        await self._keys.load()

    async def authenticate(self, credential: str) -> Principal:
        """Who holds this token. What is cheap to refuse is refused before a key is fetched or a signature verified.

        Raises:
            Rejected: it is not valid.
            Unavailable: no keys were loaded since the start.
        """
        kid, algorithm = _read_header(credential)
        named = await self._keys.find(kid)
        if not named:
            raise _rejected("unknown key")
        fitting = [key for key in named if algorithm in key.algorithms]
        if len(fitting) != 1:
            raise _rejected("ambiguous key" if fitting else "algorithm")
        try:
            claims = jwt.decode(
                credential,
                fitting[0].public,
                algorithms=sorted(fitting[0].algorithms),
                issuer=self._issuer,
                audience=self._audience,
                leeway=_LEEWAY,
                options={"require": ["exp", "iss", "aud"]},
            )
        except _UNREADABLE as error:
            raise _rejected(_REASONS.get(type(error), "malformed")) from None
        return _principal(claims)


def _read_header(token: str) -> tuple[str | None, str]:
    """The key's id and the algorithm."""
    if len(token) > _LONGEST_TOKEN:
        raise _rejected("too long")
    if not token.isascii():
        raise _rejected("malformed")
    try:
        header = jwt.get_unverified_header(token)
    except _UNREADABLE:
        raise _rejected("malformed") from None
    kind, algorithm = header.get("typ", "JWT"), header.get("alg")
    if "crit" in header:  # RFC 7515, section 4.1.11: no extension is understood here
        raise _rejected("malformed")
    if not isinstance(kind, str) or kind.lower() not in _TYPES:
        raise _rejected("type")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise _rejected("algorithm")
    return header.get("kid"), algorithm


def _principal(claims: dict[str, Any]) -> Principal:
    """Whom verified claims stand for (RFC 9068, section 2.2)."""
    # PyJWT reads "123" and true as times
    if any(type(claims[name]) not in (int, float) for name in ("exp", "nbf", "iat") if name in claims):
        raise _rejected("malformed")
    subject, client = _text(claims.get("sub")), _text(claims.get("client_id", claims.get("azp")))
    if subject is None and client is None:
        raise _rejected("missing claim")
    return Principal("jwt", _scopes(claims), claims["iss"], client, subject)


def _scopes(claims: dict[str, Any]) -> frozenset[str]:
    """`scope` is text with spaces (RFC 8693, section 4.2); `scp`, as some issuers write, such text or a list."""
    listed = claims.get("scope", claims.get("scp", ""))
    if isinstance(listed, str):
        listed = [scope for scope in listed.split(" ") if scope]
    if not isinstance(listed, list) or not all(_text(each) for each in listed):
        raise _rejected("malformed")
    return frozenset(listed)


def _text(claim: object) -> str | None:
    if claim is None:
        return None
    if not isinstance(claim, str) or not claim or clean(claim) != claim:
        raise _rejected("malformed")
    return claim


def _rejected(reason: str) -> Rejected:
    if reason == "expired":
        return Rejected("The access token has expired.", reason)
    return Rejected("The access token is not valid for this server.", reason)
