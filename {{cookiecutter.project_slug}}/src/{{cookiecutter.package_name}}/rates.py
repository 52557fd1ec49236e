"""The worked example's other service: it knows exchange rates, at `MCP_UPSTREAM_BASE_URL`."""

from typing import Annotated

from pydantic import BaseModel, Field

from .errors import Failed
from .outbound.upstream import Outbound, upstream

TheRates = Annotated[Outbound, upstream("rates", base_url="upstream_base_url", token="upstream_token")]
"""Annotate a tool's parameter with this, and the server fills it in."""

Currency = Annotated[str, Field(pattern=r"^[A-Z]{3}$", description="A currency's code, as in USD.")]


class Latest(BaseModel):
    """What `GET /latest/EUR/USD` answers, of which only this is needed: how many USD one EUR is."""

    rate: Annotated[float, Field(gt=0, allow_inf_nan=False)]


async def latest_rate(rates: Outbound, base: str, target: str) -> float:
    """How much of `target` one of `base` is; raises Failed for a currency that the service does not know."""
    answer = await rates.get("/latest", base, target, accept={404}, share=True)
    if answer.status == 404:
        raise Failed("The rates service does not know this currency. Use another one.")
    return answer.parse(Latest).rate
