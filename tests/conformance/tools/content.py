"""Tools of the conformance suite that return each kind of content."""

from mcp_types import AudioContent, EmbeddedResource, ImageContent, TextContent, TextResourceContents

from ..errors import Failed
from ..shared import PNG, WAV
from ..tooling import tool


@tool(read_only=True)
async def test_simple_text() -> str:
    """Return text."""
    return "This is a simple text response for testing."


@tool(read_only=True)
async def test_image_content() -> ImageContent:
    """Return an image."""
    return ImageContent(type="image", data=PNG, mime_type="image/png")


@tool(read_only=True)
async def test_audio_content() -> AudioContent:
    """Return a sound."""
    return AudioContent(type="audio", data=WAV, mime_type="audio/wav")


@tool(read_only=True)
async def test_embedded_resource() -> EmbeddedResource:
    """Return a resource."""
    return _resource("test://embedded-resource", "text/plain", "This is an embedded resource content.")


@tool(read_only=True)
async def test_multiple_content_types() -> list[TextContent | ImageContent | EmbeddedResource]:
    """Return text, an image and a resource."""
    return [
        TextContent(type="text", text="Multiple content types test:"),
        ImageContent(type="image", data=PNG, mime_type="image/png"),
        _resource("test://mixed-content-resource", "application/json", '{"test":"data","value":123}'),
    ]


@tool(read_only=True)
async def test_error_handling() -> str:
    """Refuse, always."""
    raise Failed("This tool intentionally returns an error for testing")


def _resource(uri: str, mime_type: str, text: str) -> EmbeddedResource:
    contents = TextResourceContents(uri=uri, mime_type=mime_type, text=text)
    return EmbeddedResource(type="resource", resource=contents)
