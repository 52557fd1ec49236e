"""Access tokens that an authorization server has signed: JWT (RFC 7519) for this server (RFC 9068, section 4)."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, Self

import jwt
from jwt.algorithms import OKPAlgorithm

from ..errors import StartError
from ..settings import Settings, spellings
from ..text import clean
from .credentials import LONGEST_CREDENTIAL, Rejected
from .jwks import ALGORITHMS, Jwks, Key
from .principal import Principal

_LONGEST_HEADER = 16384  # characters: a chain of certificates in it, as some issuers send, takes half of that
_MOST_TRIED = 4  # keys of one id that could have made the same signature: each costs a verification
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

try:
    jwt.get_algorithm_by_name("Ed25519")
except NotImplementedError:  # PyJWT 2.15 knows it as EdDSA only (RFC 9864, section 2.2)
    jwt.register_algorithm("Ed25519", OKPAlgorithm())


class _Grant(NamedTuple):
    """What is kept of a token: when it expires (`exp`, seconds since 1970), and the key that it is signed with."""

    expires: float
    key: Key


class JwtAuthenticator:
    """Tells who holds an access token. It is open while the server serves."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: in seconds; says when keys are fetched, not whether a token has expired."""
        if settings.jwt_issuer is None or settings.audience is None:  # PyJWT would not compare what is None
            raise StartError(["MCP_JWT_ISSUER, MCP_JWT_AUDIENCE: must be set, as MCP_AUTH_MODE is jwt"])
        self._issuer, self._audiences = settings.jwt_issuer, spellings(settings.audience)
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
        if not fitting:
            raise _rejected("algorithm")
        if kid is None and any(key.public != fitting[0].public for key in fitting):
            raise _rejected("ambiguous key")
        failure: Exception = jwt.InvalidSignatureError()
        for key in fitting[:_MOST_TRIED]:
            try:
                return _principal(self._claims(credential, key), key)
            except jwt.InvalidSignatureError as error:
                failure = error
            except _UNREADABLE as error:
                failure = error
                break
        raise _rejected(_REASONS.get(type(failure), "malformed"))

    def _claims(self, token: str, key: Key) -> dict[str, Any]:
        """What a token says that this key has signed; raises one of `_UNREADABLE`."""
        return jwt.decode(
            token,
            key.public,
            algorithms=sorted(key.algorithms),
            issuer=self._issuer,
            audience=self._audiences,
            leeway=_LEEWAY,
            options={"require": ["exp", "iss", "aud"]},
        )

    def recheck(self, principal: Principal) -> Principal:
        """As `Authenticator.recheck`. There is no leeway: what lasts ends at the token's `exp`."""
        grant = principal.grant
        if not isinstance(grant, _Grant) or grant.expires <= time.time():
            raise _rejected("expired")
        if not self._keys.has(grant.key):
            raise _rejected("unknown key")
        return principal


def _read_header(token: str) -> tuple[str | None, str]:
    """The key's id and the algorithm. The rest of the token, which may be long, is not looked at yet."""
    if len(token) > LONGEST_CREDENTIAL:
        raise _rejected("too long")
    encoded, _, rest = token.partition(".")
    if not token.isascii() or rest.count(".") != 1 or len(encoded) > _LONGEST_HEADER:
        raise _rejected("malformed")
    try:
        header = jwt.get_unverified_header(f"{encoded}..")
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


def _principal(claims: dict[str, Any], key: Key) -> Principal:
    """Whom verified claims stand for (RFC 9068, section 2.2)."""
    # PyJWT reads "123" and true as times
    if any(type(claims[name]) not in (int, float) for name in ("exp", "nbf", "iat") if name in claims):
        raise _rejected("malformed")
    subject, client = _text(claims.get("sub")), _text(claims.get("client_id", claims.get("azp")))
    if subject is None and client is None:
        raise _rejected("missing claim")
    return Principal("jwt", _scopes(claims), claims["iss"], client, subject, _Grant(claims["exp"], key))


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
