"""Scopes: declared on a tool, resource or prompt, checked before it is reached."""

from typing import Any

from ..auth.principal import Principal
from ..calls import Call, Proceed
from ..errors import Forbidden, Unauthenticated


class Authorize:
    """Refuses a call whose principal lacks a scope. What declares none is open to all who may call at all.

    Over HTTP most refusals come earlier, as a 401 or 403 (`serving/admission.py`); this one is on every way to a tool.
    """

    def __init__(self, *, is_open: bool) -> None:
        """`is_open`: whether a caller without a credential may use what declares no scopes."""
        self._is_open = is_open

    async def __call__(self, call: Call, proceed: Proceed) -> Any:
        principal, needs = call.principal, call.needs
        if call.rejected is not None and (needs or call.target is not None or call.method in _NAMES_A_TARGET):
            raise Unauthenticated(call.rejected.message)
        if principal.kind == "anonymous" and not self._is_open and call.target is not None:
            raise Unauthenticated("Send a credential.")
        if needs <= principal.scopes:
            return await proceed(call)
        raise Forbidden(lacking(principal, needs))


# Where nobody is told what there is, or what becomes of it, before the credential is good.
_NAMES_A_TARGET = ("tools/call", "prompts/get", "resources/read", "subscriptions/listen")


def lacking(principal: Principal, needs: frozenset[str]) -> str:
    """What to tell a caller who lacks a scope: all that are needed, and where they come from."""
    noun, pronoun = ("scope", "it") if len(needs) == 1 else ("scopes", "them")
    remedy = {
        "local": f"Start the server with MCP_LOCAL_SCOPES={','.join(sorted(principal.scopes | needs))}.",
        "api_key": f"Use an API key that grants {pronoun}.",
        "jwt": f"Ask the authorization server for a token that grants {pronoun}.",
        "anonymous": "This server takes no credentials: its operator can change that with MCP_AUTH_MODE.",
    }[principal.kind]
    return f"This needs the {noun} {' '.join(sorted(needs))}. {remedy}"
