"""What the tests of the edge build on holds by itself."""

import pytest

from raw import Connection, Start, headers_of, message, post

pytestmark = [pytest.mark.install, pytest.mark.timeout(300)]


@pytest.mark.parametrize("era", ["2026-07-28", "2025-11-25"])
def test_tool_of_the_tests_is_served(start: Start, era: str) -> None:
    """A server with the tests' own tools answers a plain call."""
    call = message(era, 1, "tools/call", {"name": "wait", "arguments": {"seconds": 0}})
    with Connection(start("http").port) as connection:
        (answer,) = connection.ask(post(headers_of(call, era), call)).messages
    assert answer["result"]["structuredContent"] == {"result": "done"}
