"""The smallest tool there is."""

from typing import Annotated

from pydantic import Field

from ..tooling import tool


@tool(title="Greet", read_only=True, open_world=False)
async def greet(name: Annotated[str, Field(min_length=1, max_length=100, description="Whom to greet.")]) -> str:
    """Greet someone by name."""
    return f"Hello, {name}!"
