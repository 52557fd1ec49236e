"""Text that is safe to show, to a model or to a person."""

import json
import re
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, TypeVar

_T = TypeVar("_T")
_LONGEST_REMEMBERED = 128  # characters

# What nobody sees, and a model reads: control characters but tab and line ends, halves of surrogate pairs, what Unicode
# calls ignorable (DerivedCoreProperties, Default_Ignorable_Code_Point: zero-width characters, fillers, bidirectional
# controls, variation selectors, tags), and the marks of interlinear annotations. A space of whatever width is seen.
_NEVER = (
    "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ud800-\udfff\ufe00-\ufe0d\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_SELECTORS, _JOINERS, _MONGOLIAN = "\ufe0e\ufe0f", "\u200c\u200d", "\u180b-\u180d\u180f"
_UNSEEN = f"{_NEVER}{_SELECTORS}{_JOINERS}\u180b-\u180f"

# Where scripts need some of it. Joiners: in scripts whose letters join or stack, and between pictures (UTS #51).
_PICTURE = (
    "[\xa9\xae\u203c\u2049\u2122\u2139\u2194-\u21aa\u231a-\u23fa\u24c2\u25aa-\u25fe\u2600-\u27bf\u2934\u2935\u2b05-\u2b55"
    "\u3030\u303d\u3297\u3299\U0001f000-\U0001faff]"
)
_SCRIPTS = (
    "\u0600-\u061b\u061d-\u0dff\u1000-\u109f\u1700-\u17b3\u17b6-\u17ff\u1800-\u180a\u1810-\u18af\u1900-\u1c7f\u1cd0-\u1cff"
    "\ua800-\ua8ff\ua930-\ua95f\ua980-\uaaff\uabc0-\uabff\ufb50-\ufdff\ufe70-\ufefe\U00010a00-\U00011fff\U0001e900-\U0001e95f"
)
_VIRAMA = (
    "[\u094d\u09cd\u0a4d\u0acd\u0b4d\u0bcd\u0c4d\u0ccd\u0d3b\u0d3c\u0d4d\u0dca\u1039\u103a\u1714\u1734\u17d2\u1a60\u1b44\u1baa"
    "\u1bab\u1bf2\u1bf3\ua806\ua82c\ua8c4\ua953\ua9c0\uaaf6\uabed]"
)
_LETTER = "[\u1820-\u18aa]"  # Mongolian
_RUN = f"[{_UNSEEN}]" * 3  # no script needs as many, one after the other

_HIDDEN = re.compile(
    f"[{_UNSEEN}](?:(?<=[{_NEVER}])[{_NEVER}]*|(?<={_RUN})[{_UNSEEN}]*|(?!"
    f"(?<={_PICTURE}[{_SELECTORS}])|(?<=[0-9#*]\ufe0f)(?=\u20e3)"
    f"|(?<={_PICTURE}\u200d)(?={_PICTURE})|(?<={_PICTURE}[{_SELECTORS}]\u200d)(?={_PICTURE})"
    f"|(?<=[0-9{_SCRIPTS}][{_JOINERS}])(?=[{_SCRIPTS}])|(?<={_VIRAMA}[{_JOINERS}])"
    f"|(?<={_LETTER}[{_MONGOLIAN}])|(?<={_LETTER}\u180e)(?={_LETTER})"
    "))"
)
"""It looks at a few neighbours of each character, and never further: linear."""
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_NO_MARKS = re.compile(f"[\x00-\x1f\u2028\u2029{_UNSEEN}]+")


class EqualKeys(ValueError):
    """Two keys of an object are the same without the characters that nobody sees."""


def clean(value: Any) -> Any:
    """`value`, with JSON in it or not, without characters that show a reader something else than what is there.

    Raises:
        EqualKeys: it would lose a member of an object.
    """
    if isinstance(value, str):
        return (_CONTROLS if value.isascii() else _HIDDEN).sub("", value)
    if isinstance(value, dict):
        cleaned = {clean(key): clean(item) for key, item in value.items()}
        if len(cleaned) < len(value):
            raise EqualKeys
        return cleaned
    if isinstance(value, list):
        return [clean(item) for item in value]
    return value


def is_clean(data: bytes) -> bool:
    """Whether `clean` would leave JSON text as it is; False if that takes a closer look."""
    if not data.isascii() or b"\x7f" in data:
        return False
    return b"\\" not in data or not (b"\\u" in data or b"\\b" in data or b"\\f" in data)


def one_line(data: bytes) -> bytes:
    """JSON text without what some readers take for the end of a line: it is escaped."""
    if not data.isascii():
        for raw, escape in _LINE_ENDS:
            data = data.replace(raw, escape)
    return data


_LINE_ENDS = tuple((end.encode(), json.dumps(end)[1:-1].encode()) for end in "\x85\u2028\u2029")


def escaped(text: str) -> str:
    """Text with JSON's escapes in the place of what nobody sees, line ends too."""
    if text.isascii() and text.isprintable():
        return text
    return _NO_MARKS.sub(lambda found: json.dumps(found[0])[1:-1], text)


def remembered(size: int) -> Callable[[Callable[[str], _T]], Callable[[str], _T]]:
    """As `functools.lru_cache`, for a function of text from outside: what is long is not kept."""

    def around(function: Callable[[str], _T]) -> Callable[[str], _T]:
        known = lru_cache(maxsize=size)(function)

        @wraps(function)
        def ask(text: str) -> _T:
            return known(text) if len(text) <= _LONGEST_REMEMBERED else function(text)

        return ask

    return around


def in_words(seconds: float) -> str:
    """`0.5 s`, `3 s`: never less than it is."""
    tenths = -(-seconds // 0.1) / 10
    return f"{tenths:g} s" if tenths < 1 else f"{-(-seconds // 1):g} s"
