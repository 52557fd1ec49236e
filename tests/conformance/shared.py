"""What the tools, resources and prompts of the conformance suite share."""

from mcp_types import ElicitRequest, ElicitRequestFormParams

# The smallest picture and sound there are, in base64: one black pixel, two silent samples.
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
WAV = "UklGRiYAAABXQVZFZm10IBAAAAABAAEAQB8AAEAfAAABAAgAZGF0YQIAAACAgA=="


def elicitation(message: str, **fields: str) -> ElicitRequest:
    """A form with these required fields, each name with its JSON type."""
    schema = {
        "type": "object",
        "properties": {name: {"type": kind} for name, kind in fields.items()},
        "required": list(fields),
    }
    return ElicitRequest(params=ElicitRequestFormParams(message=message, requested_schema=schema))
