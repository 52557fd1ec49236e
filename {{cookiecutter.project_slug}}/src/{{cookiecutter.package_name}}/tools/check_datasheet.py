"""A tool that goes where its caller says: through the guard, and without showing what is there, as a relay would."""

import re
from typing import Annotated

from pydantic import BaseModel, Field

from ..outbound.public import ThePublicWeb
from ..tooling import tool

_MEDIA_TYPE = re.compile(
    "(?:application|audio|font|image|message|model|multipart|text|video)/[a-z0-9][a-z0-9!#$&^_.+-]{0,63}"
)


class Datasheet(BaseModel):
    """What a link leads to."""

    status: Annotated[int, Field(description="Of HTTP: with 200 it is there, with 404 it is not.")]
    media_type: Annotated[str | None, Field(description="As in application/pdf, if it is told.")]
    size_bytes: Annotated[int | None, Field(ge=0, description="If it is told.")]


@tool(title="Check a datasheet", scopes={"datasheets:check"}, timeout_seconds=15, read_only=True)
async def check_datasheet(
    url: Annotated[str, Field(max_length=2048, description="The supplier's link, http or https.")], web: ThePublicWeb
) -> Datasheet:
    """Check whether the link to a supplier's datasheet leads to one, without reading it."""
    found = await web.head(url)
    if found.status in (405, 501):  # some servers know GET alone
        found = await web.get(url)
    kind = _MEDIA_TYPE.match(found.headers.get("content-type", "").lower())
    size = found.headers.get("content-length", "")
    return Datasheet(
        status=found.status,
        media_type=kind[0] if kind else None,
        size_bytes=int(size) if re.fullmatch("[0-9]{1,15}", size) else None,
    )
