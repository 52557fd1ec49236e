"""`new-tool`: a tool file and its test, to be filled in."""

import builtins
import keyword
import re
from pathlib import Path
from string import Template

from .errors import StartError

_TOOL = Template('''"""$title."""

from typing import Annotated

from pydantic import Field

from ..tooling import tool


@tool(title="$title", read_only=True, open_world=False)
async def $name(
    text: Annotated[str, Field(max_length=200, description="What to work on.")],
) -> str:
    """Say here, for the model, what this does and when to use it."""
    return text
''')

_TEST = Template('''"""The tool `$name`, called as a client calls it."""

from .conftest import Connect


async def test_${name}_answers(connect: Connect) -> None:
    """`$name` gives its text back."""
    async with connect() as client:
        result = await client.call_tool("$name", {"text": "hello"})
    assert result.structured_content == {"result": "hello"}
''')


def new_tool(name: str) -> list[Path]:
    """Write `tools/<name>.py` and `tests/test_<name>.py`.

    Raises:
        StartError: the name is no function name, a file is there already, or this is not the source tree.
    """
    taken_names = {*dir(builtins), *keyword.kwlist, *keyword.softkwlist, "tool"}
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", name) or name in taken_names:
        raise StartError(["new-tool: NAME must be a Python function name in lower case, as in find_invoice"])
    package = Path(__file__).parent
    root = package.parent.parent
    if not (root / "pyproject.toml").is_file():
        raise StartError(["new-tool: works in the project's source tree only; run it there with `uv run`"])
    files = {package / "tools" / f"{name}.py": _TOOL, root / "tests" / f"test_{name}.py": _TEST}
    if taken := [str(path.relative_to(root)) for path in files if path.exists()]:
        raise StartError([f"new-tool: {path} is there already" for path in taken])
    title = name.replace("_", " ").capitalize()
    for path, text in files.items():
        path.write_text(text.substitute(name=name, title=title), encoding="utf-8", newline="\n")
    return [path.relative_to(root) for path in files]
