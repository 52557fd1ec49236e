"""Inputs that did something new, or that two parsers disagreed on: kept, and tried again by `tests/edge/test_corpus.py`."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import NamedTuple

from bootstrap import ROOT
from judge import call, request
from pieces import DIRECT

FOLDER = ROOT / "tests" / "edge" / "corpus"
MOST = {DIRECT: 160, "": 40}  # entries: those that go directly, and all others
LARGEST = 6000  # bytes
_EACH = 3  # entries of one kind of disagreement


class Entry(NamedTuple):
    """An input. `way`: by which it did what is `found`."""

    way: str
    pieces: list[bytes]
    found: str


class Corpus:
    """What is kept, in files."""

    def __init__(self) -> None:
        self._found = Counter((each.way, _short(each.found)) for each in kept())
        self._ways = Counter(each.way if each.way == DIRECT else "" for each in kept())

    def keep(self, way: str, pieces: Sequence[bytes], found: str) -> None:
        """Keep an input, unless there is one that did the same, no room, or too much of it."""
        is_behaviour = "|" in found
        kind = way if way == DIRECT else ""
        if self._found[way, _short(found)] >= (1 if is_behaviour else _EACH) or self._ways[kind] >= MOST[kind]:
            return
        if sum(map(len, pieces)) > LARGEST:
            return
        self._found[way, _short(found)] += 1
        self._ways[kind] += 1
        entry = {"way": way, "found": found, "pieces": [each.decode("latin-1") for each in pieces]}
        text = json.dumps(entry, indent=1) + "\n"
        FOLDER.mkdir(exist_ok=True)
        (FOLDER / f"{sha256(text.encode()).hexdigest()[:12]}.json").write_text(text, encoding="ascii")


def kept() -> Iterator[Entry]:
    """All of them, in the order of their names."""
    for path in sorted(FOLDER.glob("*.json")):
        entry = json.loads(path.read_text(encoding="ascii"))
        yield Entry(entry["way"], [each.encode("latin-1") for each in entry["pieces"]], entry["found"])


def upgrades(times: int) -> list[bytes]:
    """A head without its last byte; then that, and a body of so many offers and a request that fits twice as many bytes."""
    inner = b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nX: "
    tail = (inner.ljust(2 * times - 4, b"x")[: 2 * times - 4] + b"\r\n\r\n") if times > 24 else inner[: 2 * times]
    body = b" " + b"\r\nupgrade:" * times + tail
    whole = request(body)
    at = whole.index(b"\r\n\r\n") + 3
    return [whole[:at], whole[at:], request(call("ok-after"))]


def _short(found: str) -> str:
    """A behaviour without what differs from one input to the next."""
    return re.sub(r"\s+", " ", found)
