"""A prompt with validated arguments."""

from ..shop import Quantity, Sku, TheShop
from ..tooling import prompt


@prompt(title="Reorder a part")
async def reorder(sku: Sku, shop: TheShop, quantity: Quantity = 10) -> str:
    """Ask for a reorder of one part."""
    part = shop.part(sku)
    return (
        f"We are running low on {part.name} ({part.sku}): {part.in_stock} left. "
        f"Check the part with get_part, then order {quantity} with place_order if stock allows."
    )
