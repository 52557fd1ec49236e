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
from ..auth.credentials import Rejected
from ..auth.principal import ANONYMOUS, SCOPE_KEY
from ..calls import Call
from ..errors import CallError, Forbidden, RateLimited, Unauthenticated, Unavailable
from ..guards.authorize import lacking
from ..guards.rate_limit import address_key, in_words
from ..limits.gcra import Gcra
from ..sdk import as_user, new_request_id, trace_id_of
from ..server import Application
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
        call = self._call(scope, headers, message or {})
        presented = headers.get("authorization")
        if presented is not None:
            address = address_key(call.client)
            if (wait := self._failures.wait(address)) > 0:
                text = f"Too many credentials from this address were not valid. Retry after {in_words(wait)}."
                self._deny(RateLimited(text, retry_after=wait), call)
            try:
                call.principal = await self._authenticator.authenticate(_bearer(presented))
            except Rejected as error:
                self._failures.take(address)
                call.rejected = error
                challenge = self._challenge(scope, headers, call, "invalid_token", error.message)
                self._deny(Unauthenticated(error.message), call, challenge)
            except Unavailable as error:
                self._deny(error, call)
        if call.principal is ANONYMOUS and (call.needs or not self._is_open):
            hint = " A credential in the address is not accepted." if scope.get("query_string") else ""
            text = f"Send a credential, as in: Authorization: Bearer <credential>.{hint}"
            self._deny(Unauthenticated(text), call, self._challenge(scope, headers, call))
        if not call.needs <= call.principal.scopes:
            text = lacking(call)
            self._deny(Forbidden(text), call, self._challenge(scope, headers, call, "insufficient_scope", text))
        scope[SCOPE_KEY] = call.principal
        if call.principal is not ANONYMOUS:
            scope["user"] = as_user(call.principal)  # the SDK binds sessions to it

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

    def _call(self, scope: Scope, headers: Mapping[str, str], message: Json) -> Call:
        method, params = message.get("method"), message.get("params")
        is_known = method == "initialize" or (method and self._app.mcp.get_request_handler(method) is not None)
        version = headers.get("mcp-protocol-version", DEFAULT_NEGOTIATED_VERSION)
        client = scope.get("client")
        return Call(
            request_id=new_request_id(),
            rpc_id=message.get("id"),
            method=str(method) if is_known else "unknown",
            target=self._app.registry.target(method, params) if method else None,
            needs=self._app.registry.needs(method, params) if method else frozenset(),
            principal=ANONYMOUS,
            transport="http",
            protocol_version=version if version in _VERSIONS else "unknown",
            trace_id=trace_id_of(params.get("_meta")) if isinstance(params, Mapping) else None,
            client=client[0] if client else None,
        )

    def _challenge(
        self, scope: Scope, headers: Mapping[str, str], call: Call, error: str = "", text: str = ""
    ) -> dict[bytes, bytes]:
        """`WWW-Authenticate` (RFC 6750, section 3; RFC 9728, section 5.1)."""
        wanted = call.needs or (self._initial_scopes if not error else frozenset())
        said = {
            "realm": NAME,
            "error": error,
            "error_description": text,
            "scope": " ".join(sorted(wanted)),
            "resource_metadata": self._metadata_url(scope, headers["host"]) if self._has_metadata else "",
        }
        challenge = "Bearer " + ", ".join(f'{name}="{value}"' for name, value in said.items() if value)
        return {b"www-authenticate": challenge.encode("latin-1", "replace")}

    def _resource(self, scope: Scope, host: str) -> str:
        return self._public_url or f"{scope['scheme']}://{host}/mcp"

    def _metadata_url(self, scope: Scope, host: str) -> str:
        resource = urlsplit(self._resource(scope, host))
        return f"{resource.scheme}://{resource.netloc}{METADATA}{resource.path}"

    def _deny(self, error: CallError, call: Call, headers: Mapping[bytes, bytes] | None = None) -> NoReturn:
        wait = {} if error.retry_after is None else {b"retry-after": b"%d" % ceil(error.retry_after)}
        raise Denied(error, call, {**(headers or {}), **wait})


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
