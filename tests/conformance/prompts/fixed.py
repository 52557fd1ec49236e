"""Prompts of the conformance suite."""

from mcp_types import (
    ElicitResult,
    EmbeddedResource,
    ImageContent,
    InputRequiredResult,
    PromptMessage,
    TextContent,
    TextResourceContents,
)

from ..shared import PNG, elicitation
from ..tooling import Context, prompt


@prompt()
async def test_simple_prompt() -> str:
    """A prompt without arguments."""
    return "This is a simple prompt for testing."


@prompt()
async def test_prompt_with_arguments(arg1: str, arg2: str) -> str:
    """A prompt with two arguments."""
    return f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'"


@prompt()
async def test_prompt_with_embedded_resource(resourceUri: str) -> list[PromptMessage]:
    """A prompt with a resource in it. The suite fixes the argument's name."""
    text = "Embedded resource content for testing."
    contents = TextResourceContents(uri=resourceUri, mime_type="text/plain", text=text)
    return [
        PromptMessage(role="user", content=EmbeddedResource(type="resource", resource=contents)),
        _text("Please process the embedded resource above."),
    ]


@prompt()
async def test_prompt_with_image() -> list[PromptMessage]:
    """A prompt with an image in it."""
    image = ImageContent(type="image", data=PNG, mime_type="image/png")
    return [PromptMessage(role="user", content=image), _text("Please analyze the image above.")]


@prompt()
async def test_input_required_result_prompt(ctx: Context) -> str | InputRequiredResult:
    """A prompt that asks before it answers."""
    answer = (ctx.input_responses or {}).get("user_context")
    if isinstance(answer, ElicitResult) and answer.content:
        return f"Context: {answer.content['context']}"
    question = elicitation("What context should the prompt use?", context="string")
    return InputRequiredResult(input_requests={"user_context": question})


def _text(text: str) -> PromptMessage:
    return PromptMessage(role="user", content=TextContent(type="text", text=text))
