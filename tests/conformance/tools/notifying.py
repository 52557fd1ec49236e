"""Tools of the conformance suite that send notifications while they run."""

import anyio

from ..tooling import Context, tool


@tool(read_only=True)
async def test_tool_with_progress(ctx: Context) -> str:
    """Report progress three times."""
    for done in (0, 50, 100):
        await ctx.report_progress(done, 100)
        await anyio.sleep(0.05)
    return "done"


@tool(read_only=True)
async def test_tool_with_logging(ctx: Context) -> str:
    """Log to a client of the handshake revisions, three times."""
    return await _log(ctx)


@tool(read_only=True)
async def test_logging_tool(ctx: Context) -> str:
    """Log to a client that may not have asked for it."""
    return await _log(ctx)


@tool()
async def test_trigger_tool_change(ctx: Context) -> None:
    """Say that the list of tools has changed."""
    await ctx.notify_tools_changed()


@tool()
async def test_trigger_prompt_change(ctx: Context) -> None:
    """Say that the list of prompts has changed."""
    await ctx.notify_prompts_changed()


async def _log(ctx: Context) -> str:
    for text in ("Tool execution started", "Tool processing data", "Tool execution completed"):
        await ctx.info(text)
        await anyio.sleep(0.05)
    return "logged"
