"""Guards where a message ends: inputs that once did something new, or on which two parsers disagreed, are tried again.

h11 reads the same bytes and says what is a request and what is not (`tests/judge.py`); each answer has to be the one to the
request at its place, with the body that was sent. `tests/proofs/bytes.py` makes new inputs, and keeps them in `corpus/`.
"""

from pathlib import Path

import pytest

from corpus import kept, upgrades
from fronts import FRONTS
from installed import Installed
from pieces import DIRECT, Bench

pytestmark = [pytest.mark.install, pytest.mark.timeout(300)]

SAMPLE = 6  # of those that go directly, every so manieth also goes through each proxy


def test_corpus_is_there() -> None:
    """The tests below try something: inputs in one piece and in several, with and without an answer."""
    entries = list(kept())
    assert len(entries) >= 50
    assert {len(each.pieces) > 1 for each in entries} == {True, False}
    assert sum(map(len, (piece for each in entries for piece in each.pieces))) < 1_000_000


def test_every_kept_input(installed: Installed, tmp_path: Path) -> None:
    """No input makes the server see another message than h11 sees."""
    with Bench(installed, tmp_path, [DIRECT]) as bench, bench.by(DIRECT):
        wrong = []
        for entry in kept():
            if entry.way == DIRECT:
                played = bench.play(DIRECT, entry.pieces)
                wrong += [(kind, played.signature, entry.pieces) for kind in played.kinds]
    assert wrong + bench.rest() == []


def test_offers_in_a_body_whose_head_ended_late(installed: Installed, tmp_path: Path) -> None:
    """What looks like a header of a body stays as it is, and the body's end stays where it is, wherever a read ends."""
    with Bench(installed, tmp_path, [DIRECT]) as bench, bench.by(DIRECT):
        seen = {times: bench.play(DIRECT, upgrades(times)) for times in range(1, 61)}
    assert {times: each.kinds for times, each in seen.items() if each.kinds or not each.found} == {}
    assert {len(each.verdict.asked) for each in seen.values()} == {2}


@pytest.mark.parametrize("way", FRONTS)
def test_sample_through_a_proxy(installed: Installed, tmp_path: Path, way: str) -> None:
    """Nothing that one client sends through a proxy is answered to another, nor makes the server believe an address."""
    sample = [each.pieces for each in kept() if each.way == DIRECT][::SAMPLE]
    sample += [each.pieces for each in kept() if each.way == way] + [upgrades(times) for times in range(26, 61, 2)]
    with Bench(installed, tmp_path, [way]) as bench:
        with bench.by(way) as other:
            wrong = [(kind, pieces) for pieces in sample for kind in bench.play(way, pieces).kinds]
        assert other.seen["own"] >= len(sample)
        relay = bench.relays[way]
    # What the proxy sent on, and got for it, is judged too.
    assert wrong + relay.found + bench.rest() == []
    assert relay.judged["requests"] >= len(sample)
