"""A credential in, a principal or nothing out."""

from typing import Protocol

from .principal import Principal

LONGEST_CREDENTIAL = 32_768
"""Characters. Access tokens with 150 groups in them fit; the head of a request may be twice as long (`serving/protocol.py`)."""


class Rejected(Exception):
    """A credential that is of no use here.

    `message` tells its holder the remedy, and nothing that would help to guess one. `reason` is for the log: a fixed word
    or two, as in `expired`.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason


class Authenticator(Protocol):
    """What tells who holds a credential."""

    async def authenticate(self, credential: str) -> Principal:
        """Who holds `credential`: any text that a client has sent, or that stands in the environment.

        Raises:
            Rejected: it is not valid.
            Unavailable: whether it is valid cannot be found out now.
        """

    def recheck(self, principal: Principal) -> Principal:
        """Who holds the credential now that `principal` came with: its scopes may be others. Waits for nothing.

        Raises:
            Rejected: it has expired, or was withdrawn.
        """
