"""Guards what an input may cost: processor time and memory, as multiples of a plain call's, before and after authentication.

The same as `tests/proofs/costs.py --brief` prints as a table. No clock is asked: a busy machine changes little.
"""

from pathlib import Path

import pytest

from costing import held, rows
from installed import Installed

pytestmark = [pytest.mark.install, pytest.mark.timeout(600)]

TIMES, SIZE = 6, 100_000


def test_processor_time(installed: Installed, tmp_path: Path) -> None:
    """No kind of input takes more than 20 times a plain call's time: for each byte, and against one as large."""
    found = list(rows(installed, tmp_path, TIMES, SIZE, is_brief=True))
    assert len(found) > 200
    beyond = {
        f"{row.kind} ({row.way})": (round(row.by_byte, 1), round(row.by_size, 1)) for row in found if not row.holds
    }
    assert beyond == {}


def test_memory(installed: Installed, tmp_path: Path) -> None:
    """What is held takes at most 10 bytes for each byte sent, and all that can be held has a bound."""
    found = list(held(installed, tmp_path, is_brief=True))
    beyond = {
        (kept.kind, kept.inputs): (kept.sent, kept.grown, round(kept.multiple, 1)) for kept in found if not kept.holds
    }
    assert {kept.is_flood for kept in found} == {True, False}
    assert beyond == {}
