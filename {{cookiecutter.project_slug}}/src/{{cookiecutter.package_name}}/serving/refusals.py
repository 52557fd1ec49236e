"""What is refused before it reaches the dispatcher, as the JSON body every error has."""

from collections.abc import Mapping
from typing import Any

from mcp_types import INVALID_REQUEST

from ..sdk import complete_error


class Refused(Exception):
    """A request that is not served: an HTTP status, a JSON-RPC error, and headers of the answer."""

    def __init__(
        self,
        status: int,
        text: str,
        *,
        code: int = INVALID_REQUEST,
        data: Any = None,
        rpc_id: str | int | None = None,
        headers: Mapping[bytes, bytes] | None = None,
    ) -> None:
        super().__init__(text)
        self.status = status
        self.headers = dict(headers or {})
        self._error = {"text": text, "code": code, "data": data, "rpc_id": rpc_id}

    def body(self, client: str | None) -> dict[str, Any]:
        """The JSON-RPC error, complete and logged. `client`: the address it goes to."""
        return refusal(client=client, **self._error)


def refusal(
    text: str,
    *,
    code: int = INVALID_REQUEST,
    data: Any = None,
    rpc_id: str | int | None = None,
    client: str | None = None,
) -> dict[str, Any]:
    """A JSON-RPC error, complete and logged."""
    return {"jsonrpc": "2.0", "id": rpc_id, "error": complete_error(code, text, data, "http", rpc_id, client)}
