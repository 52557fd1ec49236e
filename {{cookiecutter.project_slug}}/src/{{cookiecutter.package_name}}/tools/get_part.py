"""A tool that can refuse: `Shop.part` raises `Failed`, whose text the model reads."""

from ..shop import Part, Sku, TheShop
from ..tooling import tool


@tool(title="Get a part", read_only=True, open_world=False)
async def get_part(sku: Sku, shop: TheShop) -> Part:
    """Show one part: its name, where it is kept, its price and how many are in stock."""
    return shop.part(sku)
