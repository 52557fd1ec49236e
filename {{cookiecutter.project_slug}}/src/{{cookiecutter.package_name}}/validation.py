"""What is wrong with a value, in words that name the field, the rule and the remedy, and never the value.

pydantic's own texts may quote the input (a date's, a URL's, a custom validator's), so they are not used.
"""

import re
from collections.abc import Callable, Collection, Iterable
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json

_TEXTS = {
    "json_invalid": "must be JSON",
    "missing": "is required",
    "missing_argument": "is required",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "int_type": "must be an integer",
    "int_parsing": "must be an integer",
    "int_from_float": "must be an integer",
    "int_parsing_size": "must be a smaller integer",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "decimal_type": "must be a decimal number",
    "decimal_parsing": "must be a decimal number",
    "decimal_max_digits": "must have at most {max_digits} digits",
    "decimal_max_places": "must have at most {decimal_places} decimal places",
    "string_type": "must be a string",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "must match the pattern {pattern}",
    "string_unicode": "must be valid Unicode",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "multiple_of": "must be a multiple of {multiple_of}",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "set_type": "must be a list",
    "frozen_set_type": "must be a list",
    "too_short": "must have at least {min_length} items",
    "too_long": "must have at most {max_length} items",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "dataclass_type": "must be an object",
    "none_required": "must be null",
    "date_type": "must be a date, as in 2026-01-31",
    "date_parsing": "must be a date, as in 2026-01-31",
    "date_from_datetime_parsing": "must be a date, as in 2026-01-31",
    "datetime_type": "must be a date and time, as in 2026-01-31T12:00:00Z",
    "datetime_parsing": "must be a date and time, as in 2026-01-31T12:00:00Z",
    "datetime_from_date_parsing": "must be a date and time, as in 2026-01-31T12:00:00Z",
    "timezone_aware": "must have a time zone, as in 2026-01-31T12:00:00Z",
    "time_type": "must be a time, as in 12:00:00",
    "time_parsing": "must be a time, as in 12:00:00",
    "time_delta_type": "must be a duration, as in PT1H30M",
    "time_delta_parsing": "must be a duration, as in PT1H30M",
    "uuid_type": "must be a UUID",
    "uuid_parsing": "must be a UUID",
    "url_type": "must be a URL",
    "url_parsing": "must be a URL",
    "url_scheme": "must be a URL that starts with {expected_schemes}",
    "url_too_long": "must be a URL of at most {max_length} characters",
    "too_deep": "must not be nested deeper than its schema",
    "wrong": "does not fit its schema; of so much no more is told",
    "union_tag_invalid": "must have a tag of {expected_tags}",
    "union_tag_not_found": "must have the tag {discriminator}",
}  # fmt: skip
MOST_TOLD = 20
"""Problems; of more it is told how many there are."""
_LONGEST_TOLD = 3500  # characters of them all
_FEW = 200  # errors that pydantic makes into Python's objects at little cost
_ENOUGH = 100_000  # characters of JSON with the first of many errors, or of one with a long name in it

SETTING = "setting"
"""The type of an error of `settings.py`, whose text is that of the line: it never holds the value."""
_PLAIN_NAME = re.compile(r"(io\.modelcontextprotocol/)?[A-Za-z_][A-Za-z0-9_-]{0,39}")


def problems_of(error: ValidationError, **options: Any) -> list[str]:
    """One line for each thing that is wrong, or for the first of very many. Options as of `lines_of`."""
    return lines_of(first_errors(error), **options)


def first_errors(error: ValidationError) -> list[Any]:
    """pydantic's errors, or the first of very many: to make objects of them costs more than it did to find them."""
    if error.error_count() <= _FEW:
        return list(error.errors(include_url=False, include_input=False))
    text = error.json(include_url=False, include_input=False)
    found: list[Any] = from_json(text[:_ENOUGH], allow_partial=True)[:-1] or from_json(text)
    return [{**each, "loc": tuple(each["loc"])} for each in found[:_FEW]]


def lines_of(
    errors: Iterable[Any],
    *,
    known: tuple[str, ...] = (),
    fields: Collection[str] | None = None,
    name: Callable[[str], str] = lambda field: field,
) -> list[str]:
    """One line for each of `first_errors`.

    Args:
        errors: what pydantic found.
        known: the top-level names there are, told when an unknown one was given.
        fields: the names there are at any depth. Others in a place are pydantic's labels for the members of a union,
            or the caller's own keys, and are left out.
        name: how a top-level field is called where the reader meets it.
    """
    lines, hint = [], f" (there is {', '.join(known)})" if known else " (there are no arguments)"
    for found in errors:
        place, kind = found["loc"], found["type"]
        text = _TEXTS.get(kind, "is not valid; see its schema").format_map(_Rule(found.get("ctx", {})))
        if kind == SETTING:
            text = found["msg"]
        if kind in ("extra_forbidden", "unexpected_keyword_argument"):
            text = "is unknown; remove it"
            if len(place) == 1:
                text, hint = text + hint, ""
        elif fields is not None:
            place = tuple(part for part in place if isinstance(part, int) or part in fields)
        lines.append(f"{_path(place, name)}: {text}")
    return list(dict.fromkeys(lines))


def told(lines: list[str], beyond: int = 0) -> list[str]:
    """The first `lines` of what is wrong, and how many more there are, `beyond` them too."""
    shown = lines[:MOST_TOLD]
    while len(shown) > 1 and sum(map(len, shown)) > _LONGEST_TOLD:
        shown.pop()
    more = len(lines) - len(shown) + beyond
    return [*shown, f"… and {more} more problem{'s' if more > 1 else ''}"] if more > 0 else shown


def request_problems(error: ValidationError, request: dict[str, Any]) -> list[str]:
    """One line for each thing that is wrong with the parameters of a request; none if something else is wrong.

    Args:
        error: what pydantic found with the SDK's model of the request.
        request: what was held against it. What pydantic names in a place and the request does not have is the label
            of a member of a union.
    """
    found = first_errors(error)
    if any(each["loc"][:1] != ("params",) for each in found):
        return []
    places = [(each, *_place_of(each["loc"], request, each["type"])) for each in found]
    # `ref/prompt` is told nothing of what `ref/resource` needs.
    other = {member for each, _, member in places if member and each["type"] == "literal_error"}
    meant = {member[:-1] for _, _, member in places if member and member not in other}
    texts: dict[str, list[str]] = {}
    for each, place, member in places:
        if member in other and member[:-1] in meant:
            continue
        text = _TEXTS.get(each["type"], "is not valid; see the specification").format_map(_Rule(each.get("ctx", {})))
        said = texts.setdefault(_path(place, str), [])
        text = text.removeprefix("must be ") if said and said[0].startswith("must be ") else text
        if text not in said and f"must be {text}" not in said:
            said.append(text)
    return told([f"{place}: {' or '.join(said)}" for place, said in texts.items()], error.error_count() - len(found))


def _place_of(loc: tuple[int | str, ...], value: Any, kind: str) -> tuple[tuple[int | str, ...], tuple[int | str, ...]]:
    """Where something is wrong, without labels; and up to its first label, or nothing."""
    place: list[int | str] = []
    member: tuple[int | str, ...] = ()
    for depth, part in enumerate(loc, 1):
        is_item = isinstance(value, list) and isinstance(part, int) and part < len(value)
        if is_item or (isinstance(value, dict) and part in value):
            value = value[part]
        elif kind != "missing" or depth < len(loc):
            member = member or loc[:depth]
            continue
        place.append(part)
    return tuple(place), member


class _Rule(dict[str, Any]):
    """The rule's own numbers and names; they come from the schema, not from the caller."""

    def __missing__(self, key: str) -> str:
        return "what its schema says"


def _path(place: tuple[int | str, ...], name: Callable[[str], str]) -> str:
    """`lines.0.sku`. A key that the caller made up is shown only if it is a plain name: it could be anything."""
    parts = [str(part) if isinstance(part, int) or _PLAIN_NAME.fullmatch(part) else "(name)" for part in place]
    return ".".join([name(parts[0]), *parts[1:]]) if parts else "arguments"
