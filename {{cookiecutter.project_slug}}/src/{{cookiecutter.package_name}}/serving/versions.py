"""Which protocol revision a message is of, as its headers and its body agree on it."""

from collections.abc import Mapping

from mcp.shared.exceptions import MCPError
from mcp.shared.inbound import InboundLadderRejection, InboundModernRoute, classify_inbound_request
from mcp_types import (
    DEFAULT_NEGOTIATED_VERSION,
    HEADER_MISMATCH,
    INVALID_REQUEST,
    PROTOCOL_VERSION_META_KEY,
    UNSUPPORTED_PROTOCOL_VERSION,
)
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS, LATEST_HANDSHAKE_VERSION, MODERN_PROTOCOL_VERSIONS

from ..sdk import SERVED_VERSIONS
from ..text import clean
from .messages import Json

_LONGEST_SHOWN = 64  # characters of a revision that is given back


def has_envelope(message: Json) -> bool:
    """Whether a message names its revision itself, as no revision before 2026-07-28 does."""
    meta = (message.get("params") or {}).get("_meta")
    return isinstance(meta, dict) and PROTOCOL_VERSION_META_KEY in meta


def revision_of(message: Json, headers: Mapping[str, str]) -> str:
    """What a message over HTTP is served in (specification, transports: protocol version header).

    A handshake agrees on it in its body, whatever the header says.

    Raises:
        MCPError: headers and body disagree, or the revision is not served.
    """
    named, method = headers.get("mcp-protocol-version"), message.get("method")
    if has_envelope(message):
        if named is None or named != message["params"]["_meta"][PROTOCOL_VERSION_META_KEY]:
            text = f"MCP-Protocol-Version: must be {PROTOCOL_VERSION_META_KEY} of params._meta. Send the same in both."
            raise MCPError(HEADER_MISMATCH, text)
    elif method == "initialize":
        wanted = (message.get("params") or {}).get("protocolVersion")
        return wanted if wanted in HANDSHAKE_PROTOCOL_VERSIONS else LATEST_HANDSHAKE_VERSION
    if named is None:
        return DEFAULT_NEGOTIATED_VERSION
    if named in MODERN_PROTOCOL_VERSIONS:
        if "id" not in message and headers.get("mcp-method", method) != method:
            raise MCPError(HEADER_MISMATCH, "Mcp-Method: must be the method of the body. Send the same in both.")
    elif named not in HANDSHAKE_PROTOCOL_VERSIONS:
        raise not_served(named)
    return named


def route_of(message: Json, headers: Mapping[str, str] | None = None) -> InboundModernRoute:
    """The envelope of a request of 2026-07-28. `headers`: None where there are none.

    Raises:
        MCPError: it is not whole, the headers differ from the body, or the revision is not served.
    """
    found = classify_inbound_request(message, headers=headers)
    if isinstance(found, InboundModernRoute):
        return found
    if found.code == UNSUPPORTED_PROTOCOL_VERSION:
        raise not_served(message["params"]["_meta"][PROTOCOL_VERSION_META_KEY])
    raise as_error(found)


def as_error(rejection: InboundLadderRejection) -> MCPError:
    """What the SDK rejects, with the remedy."""
    remedy = ". Send the same in both." if rejection.code == HEADER_MISMATCH else ""
    return MCPError(rejection.code, f"{rejection.message}{remedy}", rejection.data)


def not_served(revision: str) -> MCPError:
    """The error for a revision that a request may not name; it tells those that it may."""
    if revision in HANDSHAKE_PROTOCOL_VERSIONS:  # clients take any other error for the hint to shake hands
        text = "This revision begins with initialize, and its requests carry no envelope. Send initialize first."
        return MCPError(INVALID_REQUEST, text)
    text = f"This protocol revision is not served. Use one of {', '.join(SERVED_VERSIONS)}."
    shown = clean(revision[:_LONGEST_SHOWN])
    data = {"supported": list(SERVED_VERSIONS), "requested": shown}
    return MCPError(UNSUPPORTED_PROTOCOL_VERSION, text, data)
