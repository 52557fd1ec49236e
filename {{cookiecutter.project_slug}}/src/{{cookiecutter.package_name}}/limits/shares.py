"""Places that are few, and how many of them one caller may take."""

from typing import Literal


class Shares:
    """`total` places, of which one caller takes at most the part `share`, and always one.

    Callers without a place are forgotten. `most_of_one`: the places that one caller may take.
    """

    def __init__(self, total: int, share: float) -> None:
        self._total = total
        self.most_of_one = max(1, int(total * share))
        self._taken = 0
        self._held: dict[str, int] = {}

    def take(self, key: str | None) -> Literal["ok", "full", "share"]:
        """Take a place for a caller; None has no share, and takes what is free.

        `share`: the caller has had its part, whether or not others are free. `full`: no place is free.
        """
        held = self._held.get(key, 0) if key is not None else 0
        if held >= self.most_of_one and key is not None:
            return "share"
        if self._taken >= self._total:
            return "full"
        self._taken += 1
        if key is not None:
            self._held[key] = held + 1
        return "ok"

    def release(self, key: str | None) -> None:
        """Give a place back."""
        self._taken -= 1
        if key is None:
            return
        self._held[key] -= 1
        if not self._held[key]:
            del self._held[key]
