"""Resources of the conformance suite."""

from base64 import b64decode

from ..shared import PNG
from ..tooling import resource


@resource("test://static-text", mime_type="text/plain")
async def static_text() -> str:
    """A text."""
    return "This is the content of the static text resource."


@resource("test://static-binary", mime_type="image/png")
async def static_binary() -> bytes:
    """An image."""
    return b64decode(PNG)


@resource("test://template/{id}/data", mime_type="application/json")
async def template(id: str) -> dict[str, str | bool]:
    """Something with an id in its URI."""
    return {"id": id, "templateTest": True, "data": f"Data for ID: {id}"}


@resource("test://watched-resource", mime_type="text/plain")
async def watched() -> str:
    """A text that clients of the handshake revisions would subscribe to."""
    return "Watched resource content"
