"""Text that is safe to show, to a model or to a person."""

import re
from typing import Any

_UNSAFE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff\U000e0000-\U000e007f]"
)
"""Control characters but tab and line ends, bidirectional overrides and isolates, halves of surrogate pairs, and
invisible tag characters."""


def clean(value: Any) -> Any:
    """`value`, with JSON in it or not, without characters that show a reader something else than what is there."""
    if isinstance(value, str):
        return _UNSAFE.sub("", value)
    if isinstance(value, dict):
        return {clean(key): clean(item) for key, item in value.items()}
    if isinstance(value, list):
        return [clean(item) for item in value]
    return value


def in_words(seconds: float) -> str:
    """`0.5 s`, `3 s`: never less than it is."""
    tenths = -(-seconds // 0.1) / 10
    return f"{tenths:g} s" if tenths < 1 else f"{-(-seconds // 1):g} s"
