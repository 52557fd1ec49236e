"""The caller, as every guard and log line knows it."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Principal:
    """Who made a call, and what they may do.

    `local`: the user who started the server and owns its pipe. `anonymous`: a caller over HTTP without a credential.
    """

    kind: Literal["local", "anonymous"]
    scopes: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """How logs call this principal."""
        return self.kind


ANONYMOUS = Principal("anonymous")
