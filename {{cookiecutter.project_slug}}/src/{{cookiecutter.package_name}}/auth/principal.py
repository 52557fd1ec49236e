"""The caller, as every guard, limit and log line knows it."""

from contextvars import ContextVar
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Literal


@dataclass(frozen=True, slots=True)
class Principal:
    """Who made a call, and what they may do.

    `local`: the user who started the server and owns its pipe. `anonymous`: a caller without a credential. `api_key`:
    `client` is the key's name, `subject` its id. `jwt`: the token's issuer, client and subject.
    """

    kind: Literal["local", "anonymous", "api_key", "jwt"]
    scopes: frozenset[str] = frozenset()
    issuer: str | None = None
    client: str | None = None
    subject: str | None = None
    grant: object = field(default=None, compare=False, repr=False)
    """What its authenticator knows the credential by when it is asked again; never the credential."""
    name: str = field(init=False)
    """How logs and limits call this principal: the same in every process, and without a person's name in it."""

    def __post_init__(self) -> None:
        name: str = self.kind
        if self.kind == "api_key":
            name = f"api_key:{self.subject}"
        elif self.kind == "jwt":
            identity = "\0".join(part or "" for part in (self.issuer, self.client, self.subject))
            name = f"jwt:{sha256(identity.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"
        object.__setattr__(self, "name", name)


ANONYMOUS = Principal("anonymous")

SCOPE = r"^[\x21\x23-\x2b\x2d-\x5b\x5d-\x7e]+$"
"""What a scope is made of (RFC 6749, section 3.3), without the comma, which settings list them with."""

SCOPE_KEY = "principal"
"""Where the ASGI scope of an HTTP request keeps it."""

current_principal: ContextVar[Principal] = ContextVar("current_principal", default=ANONYMOUS)
"""Who made the request that is being served."""
