"""Tools of the conformance suite that ask the client in the handshake revisions, by requests of their own."""

from typing import Annotated, Any, Literal

from mcp_types import SamplingMessage, TextContent
from pydantic import BaseModel, Field

from ..tooling import Context, tool


@tool()
async def test_sampling(prompt: str, ctx: Context) -> str:
    """Ask the client's model."""
    question = SamplingMessage(role="user", content=TextContent(type="text", text=prompt))
    answer = await ctx.session.create_message([question], max_tokens=100, related_request_id=ctx.request_id)
    return f"LLM response: {answer.content.text if isinstance(answer.content, TextContent) else ''}"


class User(BaseModel):
    """Who the user is."""

    username: Annotated[str, Field(description="User's response")]
    email: Annotated[str, Field(description="User's email address")]


@tool()
async def test_elicitation(message: str, ctx: Context) -> str:
    """Ask the user."""
    return await _elicit(ctx, message, User)


class Defaults(BaseModel):
    """A default of every primitive type."""

    name: str = "John Doe"
    age: int = 30
    score: float = 95.5
    status: Literal["active", "inactive", "pending"] = "active"
    verified: bool = True


@tool()
async def test_elicitation_sep1034_defaults(ctx: Context) -> str:
    """Ask with defaults."""
    return await _elicit(ctx, "Please check these", Defaults)


def _titled(keyword: str, *titles: str) -> dict[str, Any]:
    values = [{"const": f"value{n}", "title": title} for n, title in enumerate(titles, start=1)]
    return {"type": "string", keyword: values} if keyword == "oneOf" else {"items": {keyword: values}}


class Enums(BaseModel):
    """A choice of every kind. The suite fixes the names."""

    untitledSingle: Literal["option1", "option2", "option3"]
    titledSingle: Annotated[str, Field(json_schema_extra=_titled("oneOf", "First Option", "Second Option"))]
    legacyEnum: Annotated[
        str, Field(json_schema_extra={"enum": ["opt1", "opt2"], "enumNames": ["Option One", "Option Two"]})
    ]
    untitledMulti: list[Literal["option1", "option2", "option3"]]
    titledMulti: Annotated[list[str], Field(json_schema_extra=_titled("anyOf", "First Choice", "Second Choice"))]


@tool()
async def test_elicitation_sep1330_enums(ctx: Context) -> str:
    """Ask to choose."""
    return await _elicit(ctx, "Please choose", Enums)


async def _elicit(ctx: Context, message: str, schema: type[BaseModel]) -> str:
    answer = await ctx.elicit(message, schema)
    content = answer.data.model_dump_json() if answer.action == "accept" else "{}"
    return f"User response: action={answer.action}, content={content}"
