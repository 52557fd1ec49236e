"""The tool `greet`, called as a client calls it."""

from .conftest import Connect


async def test_greet_answers(connect: Connect) -> None:
    """It greets by name."""
    async with connect() as client:
        result = await client.call_tool("greet", {"name": "Ada"})
    assert result.structured_content == {"result": "Hello, Ada!"}
