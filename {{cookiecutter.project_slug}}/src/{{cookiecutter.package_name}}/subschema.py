"""Whether everything that fits one JSON Schema fits another, and if not, why: for the schemas that pydantic publishes.

It errs on one side: what it cannot compare, such as two patterns, is no fit unless it is the same.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jsonschema import Draft202012Validator

Schema = Mapping[str, Any] | bool

ANNOTATIONS = {
    *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "discriminator"),
    *("$comment", "$id", "$schema", "$defs"),
}
_LENGTHS = ("Length", "Items", "Properties")
_KNOWN = {
    *("type", "enum", "const", "anyOf", "oneOf", "multipleOf", "uniqueItems", "items", "prefixItems"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    *("properties", "required", "additionalProperties"),
    *(bound + what for bound in ("min", "max") for what in _LENGTHS),
}
_FINITE: dict[str, list[Any]] = {"boolean": [False, True], "null": [None]}


class Gap(NamedTuple):
    """Where something fits the narrow schema and not the wide one. The values are those of the keyword; None: absent."""

    path: str
    """As in `lines[].sku`; empty for the whole."""
    keyword: str
    narrow: Any
    wide: Any


def gaps(narrow: Schema, wide: Schema, *, of_results: bool = False) -> list[Gap]:
    """Why not everything that fits `narrow` fits `wide`; empty if it does.

    Args:
        of_results: the reader's view. A field that `wide` names and `narrow` does not is missed, even if it was optional,
            and one that a closed `wide` does not name is skipped.
    """
    return list(dict.fromkeys(map(_hashable, _Comparison(_root(narrow), _root(wide), of_results).whole())))


def _root(schema: Schema) -> dict[str, Any]:
    return dict(schema) if isinstance(schema, Mapping) else {} if schema else {"not": {}}


def _hashable(gap: Gap) -> Gap:
    return gap._replace(narrow=_text(gap.narrow), wide=_text(gap.wide))


def _text(value: Any) -> str | None:
    return None if value is None else json.dumps(value, sort_keys=True)


@dataclass
class _Comparison:
    narrow_root: dict[str, Any]
    wide_root: dict[str, Any]
    of_results: bool
    open: set[tuple[str | None, str | None]] = field(default_factory=set)

    def whole(self) -> Iterator[Gap]:
        """All gaps."""
        return self.between(self.narrow_root, self.wide_root, "")

    def between(self, narrow: Schema, wide: Schema, path: str) -> Iterator[Gap]:
        """Of two parts of the schemas, which may still refer to definitions."""
        pair = (_text(narrow), _text(wide))
        if narrow is False or wide is True or pair in self.open:  # of a recursive type: being compared further up
            return
        if wide is False:
            yield Gap(path, "not", None, {})
            return
        self.open.add(pair)
        choices = list(_choices(wide, self.wide_root))
        for each in _choices(narrow, self.narrow_root):
            yield from self.fits_one(each, choices, path)
        self.open.remove(pair)

    def fits_one(self, narrow: dict[str, Any], choices: Sequence[dict[str, Any]], path: str) -> Iterator[Gap]:
        """Of one alternative against several: what is missing to the one of its type, or the type is."""
        values = _values(narrow)
        if values is not None:
            fitting = [Draft202012Validator({**each, "$defs": self.wide_root.get("$defs", {})}) for each in choices]
            left = [value for value in values if not any(each.is_valid(value) for each in fitting)]
            if left and left == values and not {"enum", "const"} & narrow.keys():
                yield Gap(path, "type", narrow["type"], _types(choices))
            elif left:
                yield Gap(path, "enum", left, None)
            return
        found = [list(self.constraints(narrow, each, path)) for each in choices if _type_fits(narrow, each)]
        if found:
            yield from min(found, key=len)
        else:
            yield Gap(path, "type", narrow.get("type"), _types(choices))

    def constraints(self, narrow: dict[str, Any], wide: dict[str, Any], path: str) -> Iterator[Gap]:
        """Of two schemas of one type, keyword by keyword."""
        if (values := _values(wide)) is not None:
            yield Gap(path, "enum", None, values)
        yield from _bounds(narrow, wide, path)
        for what in _LENGTHS:
            if narrow.get(f"min{what}", 0) < wide.get(f"min{what}", 0):
                yield Gap(path, f"min{what}", narrow.get(f"min{what}"), wide[f"min{what}"])
            if narrow.get(f"max{what}", math.inf) > wide.get(f"max{what}", math.inf):
                yield Gap(path, f"max{what}", narrow.get(f"max{what}"), wide[f"max{what}"])
        if wide.get("uniqueItems") and not narrow.get("uniqueItems"):
            yield Gap(path, "uniqueItems", None, True)
        for keyword in sorted(wide.keys() - _KNOWN - ANNOTATIONS):
            if narrow.get(keyword) != wide[keyword] or (_refers(wide[keyword]) and not self.same_definitions):
                yield Gap(path, keyword, narrow.get(keyword), wide[keyword])
        kind = narrow.get("type", wide.get("type"))
        if kind in ("array", None):
            yield from self.items(narrow, wide, path)
        if kind in ("object", None):
            yield from self.fields(narrow, wide, path)

    @property
    def same_definitions(self) -> bool:
        """Whether a reference means the same in both."""
        return bool(self.narrow_root.get("$defs") == self.wide_root.get("$defs"))

    def items(self, narrow: dict[str, Any], wide: dict[str, Any], path: str) -> Iterator[Gap]:
        """Position by position, then the rest."""
        first, second = narrow.get("prefixItems", []), wide.get("prefixItems", [])
        most = narrow.get("maxItems", math.inf)
        fixed = max(len(first), len(second))
        for place in range(fixed):
            if place < most:
                yield from self.between(
                    first[place] if place < len(first) else narrow.get("items", True),
                    second[place] if place < len(second) else wide.get("items", True),
                    f"{path}[{place}]",
                )
        if fixed < most:
            yield from self.between(narrow.get("items", True), wide.get("items", True), f"{path}[]")

    def fields(self, narrow: dict[str, Any], wide: dict[str, Any], path: str) -> Iterator[Gap]:
        """Name by name, then those that have none."""
        has, takes = narrow.get("properties", {}), wide.get("properties", {})
        rest, others = narrow.get("additionalProperties", True), wide.get("additionalProperties", True)
        gone = set()
        for name in {**has, **takes}:
            below = f"{path}.{name}" if path else name
            if name in has and name in takes:
                yield from self.between(has[name], takes[name], below)
            elif name in takes:
                if self.of_results:
                    gone.add(name)
                    yield Gap(below, "properties", None, True)
                else:
                    yield from self.between(rest, takes[name], below)
            elif others is not False:
                yield from self.between(has[name], others, below)
            elif not self.of_results:
                yield Gap(below, "properties", True, None)
        for name in wide.get("required", ()):
            if name not in narrow.get("required", ()) and name not in gone:
                yield Gap(f"{path}.{name}" if path else name, "required", False if name in has else None, True)
        if others is not False:
            yield from self.between(rest, others, f"{path}.*")
        elif rest is not False and not self.of_results:
            yield Gap(path, "additionalProperties", rest, False)


def _choices(schema: Schema, root: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The alternatives of a schema, without references and annotations, and each of one type at most."""
    if isinstance(schema, bool):
        if schema:
            yield {}
        return
    plain = {key: value for key, value in schema.items() if key not in ANNOTATIONS}
    if (name := plain.pop("$ref", None)) is not None:
        target = root["$defs"][name.removeprefix("#/$defs/")]
        yield from _choices({**target, **plain} if isinstance(target, Mapping) else target, root)
        return
    for keyword in ("anyOf", "oneOf"):
        if keyword in plain:
            beside = {key: value for key, value in plain.items() if key != keyword}
            for each in plain[keyword]:
                yield from _choices({**beside, **each} if isinstance(each, Mapping) else each, root)
            return
    if isinstance(plain.get("type"), list):
        for kind in plain["type"]:
            yield {**plain, "type": kind}
        return
    yield plain


def _values(schema: dict[str, Any]) -> list[Any] | None:
    """All that fits, where these are a few."""
    if "const" in schema:
        return [schema["const"]]
    if "enum" in schema:
        return list(schema["enum"])
    return _FINITE.get(schema.get("type", ""))


def _types(choices: Sequence[dict[str, Any]]) -> list[str] | str | None:
    found = sorted({str(each["type"]) for each in choices if "type" in each})
    return found[0] if len(found) == 1 else found or None


def _type_fits(narrow: dict[str, Any], wide: dict[str, Any]) -> bool:
    has, takes = narrow.get("type"), wide.get("type")
    return takes is None or has == takes or (has, takes) == ("integer", "number")


def _bounds(narrow: dict[str, Any], wide: dict[str, Any], path: str) -> Iterator[Gap]:
    """Of numbers. An integer over 0 is one of 1 or more."""
    whole = narrow.get("type") == "integer"
    if _lowest(narrow, whole) < _lowest(wide, whole):
        yield Gap(path, "minimum", *(_end(each, "minimum", "exclusiveMinimum") for each in (narrow, wide)))
    if _lowest(_negated(narrow), whole) < _lowest(_negated(wide), whole):
        yield Gap(path, "maximum", *(_end(each, "maximum", "exclusiveMaximum") for each in (narrow, wide)))
    step = wide.get("multipleOf")
    if step is not None:
        steps = narrow.get("multipleOf", 1 if whole else math.inf) / step
        if not steps.is_integer():
            yield Gap(path, "multipleOf", narrow.get("multipleOf"), step)


def _lowest(schema: dict[str, Any], whole: bool) -> tuple[float, bool]:
    """The lower end, and whether it is left out."""
    least = schema.get("minimum", -math.inf)
    over = schema.get("exclusiveMinimum", -math.inf)
    if whole and math.isfinite(over):
        least, over = max(least, math.floor(over) + 1), -math.inf
    if whole and math.isfinite(least):
        least = math.ceil(least)
    return max((least, False), (over, math.isfinite(over)))


def _negated(schema: dict[str, Any]) -> dict[str, Any]:
    """With its upper end as the lower one."""
    ends = {"minimum": "maximum", "exclusiveMinimum": "exclusiveMaximum"}
    found = {low: -schema[high] for low, high in ends.items() if high in schema}
    return found


def _end(schema: dict[str, Any], closed: str, open_: str) -> Any:
    return schema.get(closed, schema.get(open_))


def _refers(value: Any) -> bool:
    return "$ref" in json.dumps(value)
