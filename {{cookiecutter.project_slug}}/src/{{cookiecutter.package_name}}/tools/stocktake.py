"""A long tool: it reports progress, and cancelling the call stops it."""

from typing import Annotated

import anyio
from pydantic import BaseModel, Field

from ..shop import TheShop
from ..tooling import Context, tool


class Count(BaseModel):
    """What was counted."""

    aisles: int
    pieces: int


@tool(title="Count the stock", read_only=True, timeout_seconds=120, open_world=False)
async def stocktake(
    ctx: Context,
    shop: TheShop,
    pause_ms: Annotated[int, Field(ge=0, le=5000, description="Rest after each aisle.")] = 100,
) -> Count:
    """Count every piece in the shop, aisle by aisle."""
    pieces = 0
    aisles = sorted({part.aisle for part in shop.parts.values()})
    for done, aisle in enumerate(aisles, start=1):
        pieces += sum(part.in_stock for part in shop.parts.values() if part.aisle == aisle)
        await ctx.report_progress(done, len(aisles), f"aisle {aisle}")
        await anyio.sleep(pause_ms / 1000)  # where the server is free for others, and where a cancelled call ends
    return Count(aisles=len(aisles), pieces=pieces)
