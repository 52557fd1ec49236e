"""Who calls over HTTP, and whether they may: decided before anything runs.

A tool's result cannot carry an HTTP status, so the refusals that clients act on (RFC 6750, RFC 9728, specification,
basic/authorization) are made here: 401 and 403 with a challenge, 429 with `Retry-After`. Who calls is read from the
headers, before the body is waited for; what they may, from the body.
"""

from collections.abc import Mapping
from math import ceil
from typing import Any, NoReturn
from urllib.parse import urlsplit

import structlog
from mcp_types import DEFAULT_NEGOTIATED_VERSION
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS, MODERN_PROTOCOL_VERSIONS

from .. import NAME
from ..auth.credentials import LONGEST_CREDENTIAL, Authenticator, Rejected
from ..auth.principal import ANONYMOUS, SCOPE_KEY, Principal
from ..auth.remembered import Remembered
from ..calls import Call, Target
from ..errors import CallError, Forbidden, RateLimited, Unauthenticated, Unavailable
from ..guards.authorize import lacking
from ..guards.rate_limit import address_key
from ..limits.gcra import Gcra
from ..sdk import new_request_id, parent_of
from ..server import Application
from ..text import in_words
from .bounds import dearness
from .exchange import Scope
from .messages import Json
from .proxies import BELIEVED
from .refusals import Denied

_AT_ONCE = 10  # times as much as calls at once, for messages of very many values
METADATA = "/.well-known/oauth-protected-resource"


class Admission:
    """Puts the caller's principal into the scope of each request, or refuses it."""

    def __init__(self, app: Application) -> None:
        settings = app.settings
        self._app = app
        self._authenticator = app.authenticator
        self._is_open = settings.auth_allow_anonymous
        self._failures = Gcra(settings.auth_failures_per_minute, settings.auth_failures_per_minute)
        self._remembered = Remembered()
        self._most_dear = _AT_ONCE * settings.rate_limit_burst
        limit = settings.rate_limit_per_minute
        self._dear = Gcra(limit, self._most_dear) if limit else None
        self._has_noted = False
        self._has_metadata = settings.auth_mode == "jwt"
        self._public_url = settings.public_url
        served = app.registry.served
        self._initial_scopes = frozenset[str]().union(*(each.scopes for each in served if each.read_only))
        own = [urlsplit(_metadata_url(self._public_url)).path] if self._public_url else []
        self.metadata_paths = frozenset([METADATA, f"{METADATA}/mcp", *own] if self._has_metadata else [])

    async def authenticate(self, scope: Scope, headers: Mapping[str, str]) -> None:
        """Put the caller's principal into the scope, or raise Denied."""
        if self._authenticator is None:
            return
        if (presented := headers.get("authorization")) is not None:
            scope[SCOPE_KEY] = await self._holder(self._authenticator, presented, _Asked(scope, headers))
        elif not self._is_open:
            self._ask_for_credential(_Asked(scope, headers))

    def afford(self, scope: Scope, headers: Mapping[str, str], body: bytes, caller: str | None) -> None:
        """Raise Denied, before it is read, for a message of very many values from a caller who has sent enough of them.

        Everybody waits while one is read, whatever becomes of it: this limit stands beside that of calls, in each process.
        """
        if self._dear is None or not (cost := dearness(body)):
            return
        if (wait := self._dear.take(caller or "", min(cost, self._most_dear))) > 0:
            text = f"You send very many values at a time. Send fewer, or retry after {in_words(wait)}."
            self._deny(RateLimited(text, retry_after=wait), _Asked(scope, headers), scope.get(SCOPE_KEY, ANONYMOUS))

    def authorize(self, scope: Scope, headers: Mapping[str, str], message: Json) -> None:
        """Raise Denied if what the message is for takes more than the caller may."""
        if self._authenticator is None:
            return
        target, needs = self._app.registry.aim(message.get("method", ""), message.get("params"))
        principal: Principal = scope.get(SCOPE_KEY, ANONYMOUS)
        if needs <= principal.scopes:
            return
        asked = _Asked(scope, headers, message, target, needs)
        if principal is ANONYMOUS:
            self._ask_for_credential(asked)
        text = lacking(principal, needs)
        challenge = {"error": "insufficient_scope", "error_description": text}
        self._deny(Forbidden(text), asked, principal, challenge=challenge, wanted=needs)

    def _ask_for_credential(self, asked: "_Asked") -> NoReturn:
        hint = " A credential in the address is not accepted." if asked.scope.get("query_string") else ""
        text = f"Send a credential, as in: Authorization: Bearer <credential>.{hint}"
        self._deny(Unauthenticated(text), asked, challenge={})

    async def _holder(self, authenticator: Authenticator, presented: str, asked: "_Asked") -> Principal:
        """Who sent this `Authorization` header; raises Denied.

        Others' failures from an address, which can be a proxy's that nobody has named, hold up only who was not known
        to be valid a short while ago. What is sent is checked in any case: it can be withdrawn, or have expired.
        """
        address, sent = address_key(asked.client), presented.partition(" ")[2].strip(" ")
        if len(self._failures) and (wait := self._failures.wait(address)) > 0 and sent not in self._remembered:
            text = f"Too many credentials from this address were not valid. Retry after {in_words(wait)}."
            self._deny(RateLimited(text, retry_after=wait), asked)
        try:
            principal = await authenticator.authenticate(_bearer(presented))
        except Rejected as error:
            self._remembered.discard(sent)
            self._failures.take(address)
            self._note_proxy(asked)
            challenge = {"error": "invalid_token", "error_description": error.message}
            self._deny(Unauthenticated(error.message), asked, rejected=error, challenge=challenge)
        except Unavailable as error:
            self._deny(error, asked)
        self._remembered.add(sent, principal)
        return principal

    def _note_proxy(self, asked: "_Asked") -> None:
        """Log, once, that a proxy seems to be before the server whose callers count as one."""
        if not self._has_noted and "x-forwarded-for" in asked.headers and BELIEVED not in asked.scope:
            self._has_noted = True
            structlog.get_logger().warning("proxy_not_named", client=asked.client, setting="MCP_TRUSTED_PROXIES")

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
        wanted: frozenset[str] | None = None,
    ) -> NoReturn:
        """Raise Denied.

        Args:
            error: as what.
            asked: the request.
            principal: who has sent it.
            rejected: what is wrong with its credential.
            challenge: what `WWW-Authenticate` says beside the scopes; None: there is none.
            wanted: the scopes in it. None: those to begin with, which are the same whatever is asked: who has no valid
                credential would else find out by name what there is, and what it takes. All that a call takes is in the
                403 that a caller gets who is known.
        """
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
            parent=parent_of(asked.meta) or parent_of(asked.headers),
            client=asked.client,
            rejected=rejected,
        )
        headers = {} if error.retry_after is None else {b"retry-after": b"%d" % ceil(error.retry_after)}
        if challenge is not None:
            wanted = self._initial_scopes if wanted is None else wanted
            headers[b"www-authenticate"] = self._challenge(asked, wanted, challenge)
        raise Denied(error, call, headers)

    def _challenge(self, asked: "_Asked", scopes: frozenset[str], more: Mapping[str, str]) -> bytes:
        """`WWW-Authenticate` (RFC 6750, section 3; RFC 9728, section 5.1)."""
        said = {"realm": NAME, **more, "scope": " ".join(sorted(scopes))}
        if self._has_metadata:
            said["resource_metadata"] = _metadata_url(self._resource(asked.scope, asked.headers["host"]))
        return ("Bearer " + ", ".join(f'{name}="{value}"' for name, value in said.items() if value)).encode()

    def _resource(self, scope: Scope, host: str) -> str:
        return self._public_url or f"{scope['scheme']}://{host}/mcp"


class _Asked:
    """What is known of a request before it is served. `message`: its body, if that was read."""

    def __init__(
        self,
        scope: Scope,
        headers: Mapping[str, str],
        message: Json | None = None,
        target: Target | None = None,
        needs: frozenset[str] = frozenset(),
    ) -> None:
        self.scope, self.headers, self.target, self.needs = scope, headers, target, needs
        self.rpc_id: str | int | None = None if message is None else message.get("id")
        # For the log, what the headers say has to do where there is no body yet.
        self.method: str = headers.get("mcp-method", "") if message is None else message.get("method", "")
        self.meta = ((message or {}).get("params") or {}).get("_meta")

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
    if len(credential) > LONGEST_CREDENTIAL:
        raise Rejected(f"A credential is at most {LONGEST_CREDENTIAL} characters long.", "too long")
    return credential


def _metadata_url(resource: str) -> str:
    """Where the metadata of a resource is (RFC 9728, section 3.1)."""
    parts = urlsplit(resource)
    return f"{parts.scheme}://{parts.netloc}{METADATA}{parts.path if parts.path != '/' else ''}"
