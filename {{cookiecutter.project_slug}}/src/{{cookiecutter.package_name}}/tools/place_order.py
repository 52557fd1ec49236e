"""A privileged tool that writes, and is safe to repeat."""

from typing import Annotated

from pydantic import Field

from ..shop import Order, Quantity, Sku, TheShop
from ..tooling import tool


@tool(
    title="Place an order",
    scopes={"orders:write"},
    cost=5,
    timeout_seconds=10,
    read_only=False,
    idempotent=True,
    open_world=False,
)
async def place_order(
    sku: Sku,
    quantity: Quantity,
    idempotency_key: Annotated[
        str, Field(min_length=8, max_length=64, description="New for each order; the same when you repeat a call.")
    ],
    shop: TheShop,
) -> Order:
    """Place one order and return it with its number."""
    return shop.order(idempotency_key, sku, quantity)
