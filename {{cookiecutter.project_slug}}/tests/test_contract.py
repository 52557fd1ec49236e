"""What every tool, resource and prompt has to be, whoever wrote it: a new file is held to this by being there."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from {{ cookiecutter.package_name }}.registry import Registry, ServedTool
from {{ cookiecutter.package_name }}.server import build_server
from {{ cookiecutter.package_name }}.settings import Settings

from .conftest import Connect


def registry() -> Registry:
    """What this project serves."""
    return build_server(Settings.model_construct()).registry


TOOLS = list(registry().tools.values())


def parts(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """A schema and every schema in it."""
    yield path, schema
    for key in ("properties", "$defs"):
        for name, inner in schema.get(key, {}).items():
            yield from parts(inner, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from parts(schema[key], f"{path}[]")
    for key in ("anyOf", "oneOf", "allOf"):
        for inner in schema.get(key, []):
            yield from parts(inner, path)


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_tool_is_described(tool: ServedTool) -> None:
    """It has a name every client accepts, a title, a description, and a description for each argument."""
    assert re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", tool.name)
    assert tool.listed.title
    assert tool.listed.description
    undescribed = [n for n, s in tool.signature.schema["properties"].items() if not described(s, tool.signature.schema)]
    assert undescribed == []


def described(schema: dict[str, Any], root: dict[str, Any]) -> bool:
    """Whether an argument has a description, of its own or of its type."""
    if "$ref" in schema:
        return described(root["$defs"][schema["$ref"].rpartition("/")[2]], root)
    return bool(schema.get("description"))


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_tool_schemas_are_valid_closed_and_bounded(tool: ServedTool) -> None:
    """They are JSON Schema 2020-12; unknown arguments are refused; no string or list is without an end."""
    schema = tool.signature.schema
    Draft202012Validator.check_schema(schema)
    if tool.listed.output_schema is not None:
        Draft202012Validator.check_schema(tool.listed.output_schema)
        assert tool.listed.output_schema["type"] == "object"
    assert schema["additionalProperties"] is False
    for path, part in parts(schema):
        if part.get("type") == "string" and not {"enum", "const", "format"} & set(part):
            assert "maxLength" in part, f"{path} has no max_length"
        if part.get("type") == "array":
            assert "maxItems" in part, f"{path} has no max_length"


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_tool_defaults_fit_their_schema(tool: ServedTool) -> None:
    """A default that the schema refuses would surprise whoever leaves the argument out."""
    for argument in tool.signature.schema["properties"].values():
        if "default" in argument:
            Draft202012Validator(argument | {"$defs": tool.signature.schema.get("$defs", {})}).validate(
                argument["default"]
            )


async def test_everything_discovered_is_listed(connect: Connect) -> None:
    """To a caller who may use it, over both transports and in both eras."""
    served = registry()
    async with connect(scopes=frozenset().union(*(each.scopes for each in served.served))) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert set(tools) == set(served.tools)
        for name, tool in served.tools.items():
            assert tools[name] == tool.listed
        listed = {str(each.uri) for each in (await client.list_resources()).resources}
        listed |= {each.uri_template for each in (await client.list_resource_templates()).resource_templates}
        assert listed == {each.declaration.uri for each in served.resources.values()}
        assert {each.name for each in (await client.list_prompts()).prompts} == set(served.prompts)


async def test_every_tool_refuses_what_it_does_not_know(connect: Connect) -> None:
    """An unknown argument ends before the tool, whatever the tool is."""
    async with connect() as client:
        for name, tool in registry().tools.items():
            result = await client.call_tool(name, {"no_such_argument": 1})
            assert result.is_error
            code = (result.meta or {})["plinth/error"]["code"]
            assert code == ("forbidden" if tool.scopes else "invalid_arguments")
