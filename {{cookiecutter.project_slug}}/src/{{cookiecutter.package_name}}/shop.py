"""The worked example's domain: a spare-parts shop, whose catalogue ships in the package."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, TypeAdapter

from .errors import Failed
from .settings import Settings
from .tooling import Depends

Sku = Annotated[str, Field(pattern=r"^[A-Z]{3}-\d{4}$", max_length=8, description="A part number, as in BRG-6204.")]
Quantity = Annotated[int, Field(ge=1, le=999, description="How many.")]


class Part(BaseModel):
    """One part of the catalogue."""

    sku: Sku
    name: str
    aisle: Annotated[str, Field(description="Where it is kept, as in A3.")]
    price_cents: Annotated[int, Field(ge=0)]
    in_stock: Annotated[int, Field(ge=0)]


class Order(BaseModel):
    """One order that was placed."""

    number: int
    sku: Sku
    quantity: Quantity
    total_cents: int


class Shop:
    """The catalogue, and the orders placed with this process; a real one would keep both in a database."""

    def __init__(self, parts: list[Part]) -> None:
        self.parts = {part.sku: part for part in parts}
        self._orders: dict[str, Order] = {}

    def search(self, words: str) -> list[Part]:
        """The parts whose number or name has all of the words."""
        wanted = words.lower().split()
        return [part for part in self.parts.values() if all(w in f"{part.sku} {part.name}".lower() for w in wanted)]

    def part(self, sku: str) -> Part:
        """Raises Failed, with a message the model can act on."""
        if (part := self.parts.get(sku)) is None:
            raise Failed("There is no part with this number. search_parts finds parts by name.")
        return part

    def order(self, key: str, sku: str, quantity: int) -> Order:
        """Place an order once for each key; the same key gives the same order again."""
        if (placed := self._orders.get(key)) is not None:
            if (placed.sku, placed.quantity) != (sku, quantity):
                raise Failed("This idempotency_key was used for another order. Use a new one.")
            return placed
        part = self.part(sku)
        if quantity > part.in_stock:
            raise Failed(f"Only {part.in_stock} are in stock. Order fewer.")
        part.in_stock -= quantity
        order = Order(number=len(self._orders) + 1, sku=sku, quantity=quantity, total_cents=quantity * part.price_cents)
        self._orders[key] = order
        return order


@asynccontextmanager
async def open_shop(settings: Settings) -> AsyncIterator[Shop]:
    """Opened once, before the first request; a database pool would be opened and closed here."""
    data = (Path(__file__).parent / "data" / "parts.json").read_bytes()
    yield Shop(TypeAdapter(list[Part]).validate_json(data))


TheShop = Annotated[Shop, Depends(open_shop)]
"""Annotate a tool's parameter with this, and the server fills it in."""
