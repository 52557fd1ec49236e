"""Who calls over HTTP, and whether they may: decided from the headers and the body, before anything runs.

A tool's result cannot carry an HTTP status, so the refusals that clients act on (RFC 6750, RFC 9728, specification,
basic/authorization) are made here: 401 and 403 with a challenge, 429 with `Retry-After`.
"""

from collections.abc import Mapping
from math import ceil
from typing import Any, NoReturn
from urllib.parse import urlsplit

from mcp_types import DEFAULT_NEGOTIATED_VERSION
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS, MODERN_PROTOCOL_VERSIONS

from .. import NAME
from ..auth.credentials import Authenticator, Rejected
from ..auth.principal import ANONYMOUS, SCOPE_KEY, Principal
from ..calls import Call
from ..errors import CallError, Forbidden, RateLimited, Unauthenticated, Unavailable
from ..guards.authorize import lacking
from ..guards.rate_limit import address_key
from ..limits.gcra import Gcra
from ..registry import Registry
from ..sdk import new_request_id, parent_of
from ..server import Application
from ..text import in_words
from .exchange import Scope
from .messages import Json
from .refusals import Denied

METADATA = "/.well-known/oauth-protected-resource"
_LONGEST_CREDENTIAL = 8192  # characters


class Admission:
    """Puts the caller's principal into the scope of each request, or refuses it."""

    def __init__(self, app: Application) -> None:
        settings = app.settings
        self._app = app
        self._authenticator = app.authenticator
        self._is_open = settings.auth_allow_anonymous
        self._failures = Gcra(settings.auth_failures_per_minute, settings.auth_failures_per_minute)
        self._has_metadata = settings.auth_mode == "jwt"
        self._public_url = settings.public_url
        served = app.registry.served
        self._initial_scopes = frozenset[str]().union(*(each.scopes for each in served if each.read_only))
        own = [METADATA + urlsplit(self._public_url).path] if self._public_url else []
        self.metadata_paths = frozenset([METADATA, f"{METADATA}/mcp", *own] if self._has_metadata else [])

    async def admit(self, scope: Scope, headers: Mapping[str, str], message: Json | None) -> None:
        """Let a request in, or raise Denied. `message`: its body, if it has one."""
        if self._authenticator is None:
            return
        asked = _Asked(scope, headers, message or {}, self._app.registry)
        needs, principal = asked.needs, ANONYMOUS
        if (presented := headers.get("authorization")) is not None:
            principal = await self._authenticate(self._authenticator, presented, asked)
        elif needs or not self._is_open:
            hint = " A credential in the address is not accepted." if scope.get("query_string") else ""
            text = f"Send a credential, as in: Authorization: Bearer <credential>.{hint}"
            self._deny(Unauthenticated(text), asked, challenge={})
        if not needs <= principal.scopes:
            text = lacking(principal, needs)
            challenge = {"error": "insufficient_scope", "error_description": text}
            self._deny(Forbidden(text), asked, principal, challenge=challenge)
        scope[SCOPE_KEY] = principal

    async def _authenticate(self, authenticator: Authenticator, presented: str, asked: "_Asked") -> Principal:
        """Who sent this `Authorization` header; raises Denied."""
        address = address_key(asked.client)
        if len(self._failures) and (wait := self._failures.wait(address)) > 0:
            text = f"Too many credentials from this address were not valid. Retry after {in_words(wait)}."
            self._deny(RateLimited(text, retry_after=wait), asked)
        try:
            return await authenticator.authenticate(_bearer(presented))
        except Rejected as error:
            self._failures.take(address)
            challenge = {"error": "invalid_token", "error_description": error.message}
            self._deny(Unauthenticated(error.message), asked, rejected=error, challenge=challenge)
        except Unavailable as error:
            self._deny(error, asked)

    def metadata(self, scope: Scope, host: str) -> dict[str, Any]:
        """What this resource is and who issues tokens for it (RFC 9728, section 2)."""
        found: dict[str, Any] = {
            "resource": self._resource(scope, host),
            "authorization_servers": [self._app.settings.jwt_issuer],
            "bearer_methods_supported": ["header"],
            "resource_name": NAME,
        }
        # Not every scope there is: clients would ask for all of them at once (security best practices, scopes).
        return found | ({"scopes_supported": sorted(self._initial_scopes)} if self._initial_scopes else {})

    def _deny(
        self,
        error: CallError,
        asked: "_Asked",
        principal: Principal = ANONYMOUS,
        *,
        rejected: Rejected | None = None,
        challenge: Mapping[str, str] | None = None,
    ) -> NoReturn:
        """Raise Denied. `challenge`: what `WWW-Authenticate` says beside what is needed; None: there is none."""
        is_known = asked.method == "initialize" or self._app.mcp.get_request_handler(asked.method) is not None
        call = Call(
            request_id=new_request_id(),
            rpc_id=asked.rpc_id,
            method=asked.method if is_known else "unknown",
            target=asked.target,
            needs=asked.needs,
            principal=principal,
            transport="http",
            protocol_version=asked.version if asked.version in _VERSIONS else "unknown",
            parent=parent_of(asked.params.get("_meta")) or parent_of(asked.headers),
            client=asked.client,
            rejected=rejected,
        )
        headers = {} if error.retry_after is None else {b"retry-after": b"%d" % ceil(error.retry_after)}
        if challenge is not None:
            wanted = asked.needs or (frozenset() if challenge else self._initial_scopes)
            headers[b"www-authenticate"] = self._challenge(asked, wanted, challenge)
        raise Denied(error, call, headers)

    def _challenge(self, asked: "_Asked", scopes: frozenset[str], more: Mapping[str, str]) -> bytes:
        """`WWW-Authenticate` (RFC 6750, section 3; RFC 9728, section 5.1)."""
        said = {"realm": NAME, **more, "scope": " ".join(sorted(scopes))}
        if self._has_metadata:
            said["resource_metadata"] = self._metadata_url(asked.scope, asked.headers["host"])
        return ("Bearer " + ", ".join(f'{name}="{value}"' for name, value in said.items() if value)).encode()

    def _resource(self, scope: Scope, host: str) -> str:
        return self._public_url or f"{scope['scheme']}://{host}/mcp"

    def _metadata_url(self, scope: Scope, host: str) -> str:
        resource = urlsplit(self._resource(scope, host))
        return f"{resource.scheme}://{resource.netloc}{METADATA}{resource.path}"


class _Asked:
    """What is known of a request before it is served."""

    def __init__(self, scope: Scope, headers: Mapping[str, str], message: Json, registry: Registry) -> None:
        self.scope, self.headers, self.rpc_id = scope, headers, message.get("id")
        self.method: str = message.get("method", "")
        self.params: Json = message.get("params") or {}
        self.target, self.needs = registry.aim(self.method, self.params)

    @property
    def client(self) -> str | None:
        """Its address."""
        client = self.scope.get("client")
        return client[0] if client else None

    @property
    def version(self) -> str:
        """The revision that its headers name."""
        return self.headers.get("mcp-protocol-version", DEFAULT_NEGOTIATED_VERSION)


_VERSIONS = {*HANDSHAKE_PROTOCOL_VERSIONS, *MODERN_PROTOCOL_VERSIONS}


def _bearer(header: str) -> str:
    """The credential of an `Authorization` header (RFC 6750, section 2.1); raises Rejected."""
    scheme, _, credential = header.partition(" ")
    credential = credential.strip(" ")
    if scheme.lower() != "bearer" or not credential or " " in credential:
        raise Rejected("Send the credential as: Authorization: Bearer <credential>.", "malformed header")
    if len(credential) > _LONGEST_CREDENTIAL:
        raise Rejected(f"A credential is at most {_LONGEST_CREDENTIAL} characters long.", "too long")
    return credential
