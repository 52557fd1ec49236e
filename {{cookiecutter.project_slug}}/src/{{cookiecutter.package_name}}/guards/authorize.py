"""Scopes: declared on a tool, resource or prompt, checked before it is reached."""

from typing import Any

from ..calls import Call, Proceed
from ..errors import Forbidden, Unauthenticated


class Authorize:
    """Refuses a call whose principal lacks a scope. Without scopes of its own, a target is open to everyone."""

    async def __call__(self, call: Call, proceed: Proceed) -> Any:
        needed = call.target.scopes if call.target is not None else frozenset()
        granted = call.principal.scopes
        if needed <= granted:
            return await proceed(call)
        wanted = " ".join(sorted(needed))
        how = (
            f"Start the server with MCP_LOCAL_SCOPES={','.join(sorted(granted | needed))} to grant it."
            if call.transport == "stdio"
            else "This server accepts no credentials over HTTP."
        )
        refusal = Forbidden if granted else Unauthenticated
        raise refusal(f"This needs the scope {wanted}. {how}")
