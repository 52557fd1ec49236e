"""A tool that calls another service: retries, deadline and errors are the client's (`outbound/client.py`)."""

from typing import Annotated

from pydantic import BaseModel, Field

from ..rates import Currency, TheRates, latest_rate
from ..shop import Sku, TheShop
from ..tooling import tool


class Price(BaseModel):
    """A part's price in another currency."""

    sku: Sku
    currency: Currency
    rate: Annotated[float, Field(description="What one euro was worth when this was asked.")]
    price_cents: Annotated[int, Field(ge=0)]


@tool(title="Convert a price", read_only=True, timeout_seconds=10)
async def convert_price(sku: Sku, currency: Currency, shop: TheShop, rates: TheRates) -> Price:
    """Show what a part costs in another currency, at the latest exchange rate."""
    part = shop.part(sku)
    rate = 1.0 if currency == "EUR" else await latest_rate(rates, "EUR", currency)
    return Price(sku=sku, currency=currency, rate=rate, price_cents=round(part.price_cents * rate))
