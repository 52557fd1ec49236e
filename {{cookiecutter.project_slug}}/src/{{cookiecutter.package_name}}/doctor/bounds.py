"""Which arguments a published schema lets grow without limit."""

from collections.abc import Mapping
from typing import Any

# Formats whose own grammar bounds their length; a URL or a path can be of any.
_BOUNDED_FORMATS = ("date", "time", "duration", "uuid", "ip")


def unbounded(schema: Mapping[str, Any]) -> list[str]:
    """The arguments of an object's schema that have no bound, or hold something that has none."""
    definitions = schema.get("$defs", {})
    return [name for name, part in schema["properties"].items() if _is_open(part, definitions, frozenset())]


def _is_open(part: Any, definitions: Mapping[str, Any], seen: frozenset[str]) -> bool:
    """`seen`: the definitions that are being looked into. That a model holds itself is bounded by its collections."""
    if isinstance(part, bool):
        return part
    if reference := part.get("$ref"):
        return reference not in seen and _is_open(
            definitions[reference.rpartition("/")[2]], definitions, seen | {reference}
        )
    if "enum" in part or "const" in part:
        return False
    inside = [each for key in ("anyOf", "oneOf", "allOf") for each in part.get(key, ())]
    if any(each.get("type") == "number" for each in inside):
        inside = [each for each in inside if each != {"type": "string"}]  # a Decimal: pydantic publishes no length
    kind = part.get("type")
    if kind == "string":
        return not ("maxLength" in part or "pattern" in part or part.get("format", "").startswith(_BOUNDED_FORMATS))
    if kind == "array":
        if "maxItems" not in part:
            return True
        inside += [*part.get("prefixItems", ()), part.get("items", False)]
    elif kind == "object":
        by_pattern = part.get("patternProperties", {})
        others = part.get("additionalProperties", not by_pattern)
        if "maxProperties" not in part and (by_pattern or others is not False):
            return True
        inside += [*part.get("properties", {}).values(), *by_pattern.values(), others]
    elif not inside:
        return kind not in ("integer", "number", "boolean", "null")  # without a type: any JSON at all
    return any(_is_open(each, definitions, seen) for each in inside)
