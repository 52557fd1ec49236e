"""A resource template: each part of the catalogue at its own URI."""

from ..shop import Part, Sku, TheShop
from ..tooling import resource


@resource("part://{sku}", title="A part", mime_type="application/json")
async def part(sku: Sku, shop: TheShop) -> Part:
    """One part of the catalogue, as JSON."""
    return shop.part(sku)
