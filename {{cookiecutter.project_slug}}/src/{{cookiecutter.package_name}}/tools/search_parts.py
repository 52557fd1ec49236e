"""A read-only tool with a bounded list and a structured result."""

from typing import Annotated

from pydantic import BaseModel, Field

from ..shop import Part, TheShop
from ..tooling import tool


class Found(BaseModel):
    """One page of parts."""

    total: Annotated[int, Field(description="How many parts match; `parts` may show fewer.")]
    parts: Annotated[list[Part], Field(max_length=50)]


@tool(title="Search parts", read_only=True, open_world=False)
async def search_parts(
    query: Annotated[str, Field(min_length=1, max_length=100, description="Words of the name, or of the number.")],
    shop: TheShop,
    limit: Annotated[int, Field(ge=1, le=50, description="At most so many.")] = 10,
) -> Found:
    """Find spare parts by name or number."""
    matching = shop.search(query)
    return Found(total=len(matching), parts=matching[:limit])
