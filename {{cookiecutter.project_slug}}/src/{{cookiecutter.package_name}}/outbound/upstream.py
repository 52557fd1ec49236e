"""One client for each service that tools call: declared once, injected into tools, unseen by the model.

TheRates = Annotated[Outbound, upstream("rates", base_url="upstream_base_url", token="upstream_token")]

@tool(read_only=True)
async def convert(amount: float, rates: TheRates) -> float:
    return amount * (await rates.get("/latest")).parse(Latest).rate
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy
from importlib import metadata

import httpx2
from pydantic import SecretStr

from .. import NAME
from ..settings import PREFIX, Settings, unproxied
from ..tooling import DeclarationError, Depends
from .client import Limits, Outbound

__all__ = ["Limits", "Outbound", "upstream"]


def upstream(
    name: str,
    *,
    base_url: str,
    token: str | None = None,
    token_header: str = "Authorization",
    limits: Limits = Limits(),  # noqa: B008 - frozen
) -> Depends:
    """Declare a service that tools call: `Annotated[Outbound, upstream(...)]` is a tool's parameter.

    Args:
        name: how logs, metrics, `/readyz` and messages call it.
        base_url: the setting with its address; while that is not set, calls fail and everything else works.
        token: the setting with this server's own credential there. A caller's is never passed on.
        token_header: what carries it; in `Authorization` it is a Bearer token.
    """
    for field in filter(None, (base_url, token)):
        if field not in Settings.model_fields:
            raise DeclarationError(f"upstream {name}: there is no setting {field}; add a field to settings.py")
    variable = f"{PREFIX}{base_url.upper()}"

    @asynccontextmanager
    async def open_upstream(settings: Settings) -> AsyncIterator[Outbound]:
        url, secret = getattr(settings, base_url), getattr(settings, token) if token else None
        if url is None:  # a server that calls nobody does without what takes its part of the start
            yield Outbound(name, None, limits, settings.max_concurrent_calls, variable)
            return
        import tenacity  # noqa: F401 - here, and not in the first call

        headers = {"User-Agent": f"{NAME}/{metadata.version(NAME)}"}
        if isinstance(secret, SecretStr):
            value = secret.get_secret_value()
            headers[token_header] = f"Bearer {value}" if token_header == "Authorization" else value
        async with httpx2.AsyncClient(
            base_url=url,
            headers=headers,
            timeout=httpx2.Timeout(limits.attempt_seconds, connect=limits.connect_seconds),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=20),  # the bulkhead bounds them
            mounts=unproxied(url),
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),  # one caller's would be the next one's
        ) as client:
            yield Outbound(name, client, limits, settings.max_concurrent_calls, variable)

    return Depends(open_upstream, check=Outbound.check, optional=True, label=name)
