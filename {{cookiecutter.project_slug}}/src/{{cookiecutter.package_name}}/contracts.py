"""What a function takes and gives, as strict models and published schemas, compiled once at start.

Arguments are validated as JSON: strictly (`"3"` is no integer), with unknown keys refused at every depth. Results are
validated against their own schema, stripped of characters that can deceive a reader, and bounded in size.
"""

import inspect
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import deepcopy
from functools import cached_property
from itertools import islice
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import mcp_types as types
from mcp.server.mcpserver import Context
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import PydanticSerializationError, PydanticUndefined, SchemaValidator, from_json, to_json

from .auth.principal import Principal
from .errors import InvalidArguments, InvalidResult, ResultTooLarge
from .text import EqualKeys, clean, is_clean
from .tooling import Depends
from .validation import MOST_TOLD, first_errors, lines_of, problems_of, told

MAX_CHARACTERS = 10_000
MAX_ITEMS = 1_000

_SMALL = 16_384  # bytes of arguments in which every problem is found
_MANY_NAMES = 5_000  # at most, where every unknown name is found
_MANY_PARTS = 2_000  # lists and objects: pydantic takes fifty times their bytes for them, whether they fit or not
_LONG_NAME = re.compile(rb'"[^"]{200,}+":')  # pydantic copies it into each error below it
_OBJECTS = ("dict", "model", "typed-dict", "dataclass")
_WRONG = "wrong"  # the type of an error that stands for others
_ONE_ERROR = {"custom_error_type": _WRONG, "custom_error_message": _WRONG}
_WHOLE_FLOAT = re.compile(rb"\d\.0[],}]|\de")  # as `to_json` writes them

Schema = dict[str, Any]


class Signature:
    """A function's parameters: what the caller gives (`schema`), what the server fills in (`context`, `principal`,
    `dependencies`).

    Raises:
        TypeError: a parameter that no schema can describe.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        hints = get_type_hints(function, include_extras=True)
        self.context: str | None = None
        self.principal: str | None = None
        self.dependencies: dict[str, Depends] = {}
        self.returns = hints.get("return", inspect.Signature.empty)
        fields: dict[str, Any] = {}  # under neutral names, as a parameter may be called `json` or `_x`
        names: list[str] = []
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
                raise TypeError(f"{name}: *args, **kwargs and positional-only parameters have no schema")
            if name not in hints:
                raise TypeError(f"{name} has no annotation")
            marks = getattr(hints[name], "__metadata__", ())
            if depends := [each for each in marks if isinstance(each, Depends)]:
                self.dependencies[name] = depends[0]
            elif _is_context(hints[name]):
                self.context = name
            elif hints[name] is Principal:
                self.principal = name
            elif any(getattr(each, "alias", None) for each in (*marks, parameter.default)):
                raise TypeError(f"{name}: an alias is not published; give the parameter the name it is to have")
            else:
                fields[f"p{len(names)}"] = (hints[name], _aliased(parameter, name))
                names.append(name)
        self.names = tuple(names)
        strict = ConfigDict(strict=True, extra="forbid")
        model: type[BaseModel] = create_model("Arguments", __config__=strict, **fields)
        self._known = frozenset(names)
        self._core = core = _bound(deepcopy(model.__pydantic_core_schema__))
        self._validator = SchemaValidator(core, _use_prebuilt=False)  # prebuilt ones would not know the bounds
        self.schema = _close(_PlainJsonSchema(by_alias=True).generate(core))
        definitions = self.schema.get("$defs", {})
        self._depths = {name: _depth_of(part, definitions) for name, part in self.schema["properties"].items()}
        self._fields = {name for part in _objects(self.schema) for name in part["properties"]}

    def parse(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Validate JSON arguments.

        Raises:
            InvalidArguments: the problems, by field.
        """
        given, unknown, count = self._split(arguments)
        try:
            data = to_json(given)
        except (PydanticSerializationError, RecursionError):
            raise InvalidArguments(["arguments: must be valid Unicode, and nested less deeply"]) from None
        if len(data) > _SMALL and (deep := self._too_deep(given, data)) is not None:
            raise self._invalid(unknown, [{"type": "too_deep", "loc": (deep,)}], 1 + count)
        validator = self._validator_for(data)
        try:
            found = validator.validate_json(data, strict=True, extra="forbid")
        except ValidationError as error:
            errors = first_errors(error)
            # JSON has one kind of number: 3.0 fits "integer", and only pydantic tells them apart.
            if _WHOLE_FLOAT.search(data) is None or not any(each["type"] in ("int_type", _WRONG) for each in errors):
                raise self._invalid(unknown, errors, error.error_count() + count) from None
            try:
                found = validator.validate_json(to_json(_whole(given)), strict=True, extra="forbid")
            except ValidationError as again:
                raise self._invalid(unknown, first_errors(again), again.error_count() + count) from None
        return self._named(found, unknown, count)

    def parse_strings(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Validate arguments that the protocol carries as strings: a prompt's, or the variables of a URI."""
        given, unknown, count = self._split(arguments)
        try:
            found = self._validator.validate_strings(given, strict=True, extra="forbid")
        except ValidationError as error:
            raise self._invalid(unknown, first_errors(error), error.error_count() + count) from None
        return self._named(found, unknown, count)

    def _split(self, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], list[str], int]:
        """What is for the parameters, the first names that are of none, and how many of these there are: pydantic would
        make an error of each."""
        if arguments.keys() <= self._known:
            return dict(arguments), [], 0
        given = {name: arguments[name] for name in self.names if name in arguments}
        unknown = (name for name in arguments if name not in self._known)
        return given, list(islice(unknown, MOST_TOLD)), len(arguments) - len(given)

    def _too_deep(self, given: Mapping[str, Any], data: bytes) -> str | None:
        """The first argument that has lists and objects in each other where its schema has none any more, if there are many
        of them. `data`: the same as JSON."""
        left = data.count(b"[") + data.count(b"{") - 1  # that are not seen yet, if no text has any
        if left < _MANY_PARTS:
            return None
        for name, value in given.items():
            inside, depth = [value], self._depths[name]
            while inside and left and depth < math.inf:
                inside, depth = [each for each in inside if type(each) in (list, dict)], depth - 1
                if inside and depth < 0:
                    return name
                if left := left - len(inside):
                    inside = [part for each in inside for part in (each.values() if type(each) is dict else each)]
        return None

    def _validator_for(self, data: bytes) -> SchemaValidator:
        """What makes few errors of data that can hold very many: a million of them takes seconds, and a gigabyte."""
        if len(data) <= _SMALL:
            return self._validator
        return self._curt if data.count(b'":') > _MANY_NAMES or _has_long_name(data) else self._brief

    @cached_property
    def _brief(self) -> SchemaValidator:
        """Of a list it names the first item that is wrong, and of a union no member."""
        return SchemaValidator(_fail_fast(deepcopy(self._core)), _use_prebuilt=False)

    @cached_property
    def _curt(self) -> SchemaValidator:
        """Of an object in an argument it says no more than that it is wrong."""
        core: Any = deepcopy(self._core)
        whole = core["schema"] if core["type"] == "definitions" else core
        return SchemaValidator(_fail_fast(core, but=whole, kinds=_OBJECTS), _use_prebuilt=False)

    def _named(self, model: BaseModel, unknown: list[str], count: int) -> dict[str, Any]:
        if unknown:
            raise self._invalid(unknown, [], count)
        return dict(zip(self.names, model.__dict__.values(), strict=True))

    def _invalid(self, unknown: list[str], errors: Sequence[Any], count: int) -> InvalidArguments:
        """`unknown`: the first names that are of no parameter; `errors`: the first that pydantic has found in the other
        arguments; `count`: of all there are."""
        extra = [{"type": "extra_forbidden", "loc": (name,)} for name in unknown]
        lines = lines_of([*errors, *extra], known=self.names, fields=self._fields)
        return InvalidArguments(told(lines, count - len(errors) - len(extra)))


class Results:
    """What a function returns, as JSON, and for a tool as `structuredContent`, text and schema.

    A value that is no object is wrapped as `{"result": value}`, as the revisions before 2026-07-28 need it. Content
    blocks and the SDK's own results pass through; they have no schema.
    """

    def __init__(self, returns: Any) -> None:
        self.schema: Schema | None = None
        self._adapter: TypeAdapter[Any] | None = None
        returns = _without_content(returns)
        if returns in (None, NoneType):
            return
        self._adapter = TypeAdapter(returns)
        schema = self._adapter.json_schema(mode="serialization", schema_generator=_PlainJsonSchema)
        self._json_schema = dict(schema)
        self._wraps = schema.get("type") != "object"
        if self._wraps:
            definitions = schema.pop("$defs", None)
            schema = {"type": "object", "properties": {"result": schema}, "required": ["result"]}
            schema |= {"$defs": definitions} if definitions else {}
        self.schema = schema

    def dump(self, value: Any, limit: int) -> Any:
        """`value` as cleaned JSON data, at most `limit` bytes of text.

        Raises:
            ResultTooLarge: it is larger.
            InvalidResult: it is not what the function says it returns.
        """
        if self._adapter is None:
            if value is not None:
                raise InvalidResult(["result: must be null, as the function returns None"])
            return None
        try:
            text = self._adapter.dump_json(value, by_alias=True, warnings="error")
        except (PydanticSerializationError, UnicodeError):
            raise InvalidResult(["result: is not of the type that the function returns"]) from None
        if len(text) > limit:
            raise ResultTooLarge(limit)
        data = from_json(text)
        if not is_clean(text):
            data = cleaned(data)
            text = to_json(data)
        try:
            self._adapter.validate_json(text)
        except ValidationError as error:
            self._judge(data, error)
        return data

    def render(self, value: Any, limit: int) -> dict[str, Any]:
        """A tool's result on the wire; raises what `dump` raises."""
        if self._adapter is None or _is_content(value):
            return _content(value, limit)
        data = self.dump(value, limit)
        return {
            "content": [{"type": "text", "text": data if isinstance(data, str) else to_json(data).decode()}],
            "structuredContent": {"result": data} if self._wraps else data,
            "isError": False,
            "resultType": "complete",
        }

    def _judge(self, data: Any, error: ValidationError) -> None:
        """Ask the published schema itself: some models cannot read what they write (computed fields, aliases)."""
        from jsonschema import Draft202012Validator

        if not Draft202012Validator(self._json_schema).is_valid(data):
            raise InvalidResult(problems_of(error))


def _has_long_name(data: bytes) -> bool:
    if b"\\" in data:  # the quotes that are left begin or end a text
        data = data.replace(b"\\\\", b"__").replace(b'\\"', b"__")
    return _LONG_NAME.search(data) is not None


def _fail_fast(core: Any, *, but: Any = None, kinds: Collection[str] = ()) -> Any:
    """Let a core schema stop at the first wrong item of a list, and make one error of all in a union.

    `kinds`: of what else, other than `but`, it makes one error.
    """
    parts = core.items() if isinstance(core, dict) else enumerate(core) if isinstance(core, list | tuple) else ()
    for key, each in parts:
        if key not in _NO_SCHEMAS:
            _fail_fast(each, but=but, kinds=kinds)
    kind = core.get("type") if isinstance(core, dict) else None
    if kind in ("list", "set", "frozenset", "tuple"):
        core["fail_fast"] = True
    elif kind == "union":
        core |= _ONE_ERROR
    elif kind in kinds and core is not but:
        inside = dict(core)
        reference = {"ref": inside.pop("ref")} if "ref" in inside else {}
        core.clear()
        core |= {"type": "custom-error", "schema": inside, **_ONE_ERROR, **reference}
    return core


def _bound(core: Any) -> Any:
    """Put the default bound on every string and collection of a core schema that has none; no number is infinite."""
    if isinstance(core, list | tuple):
        for each in core:
            _bound(each)
    elif isinstance(core, dict):
        if core.get("type") == "generator":  # it would be validated while the tool reads it, and never as a whole
            raise TypeError("an Iterable or Iterator is not validated before it is read; write list[...]")
        limit = _LIMITS.get(core.get("type", ""))
        if limit is not None and (core["type"] != "tuple" or "variadic_item_index" in core):
            core.setdefault("max_length", limit)
        if core.get("type") == "float":
            core["allow_inf_nan"] = False
        for key, inside in core.items():
            if key not in _NO_SCHEMAS:
                _bound(inside)
    return core


_NO_SCHEMAS = ("default", "metadata", "serialization", "expected", "config")
_LIMITS = {
    **dict.fromkeys(("str", "bytes", "url", "multi-host-url"), MAX_CHARACTERS),
    **dict.fromkeys(("list", "set", "frozenset", "tuple", "deque", "dict", "ordered-dict"), MAX_ITEMS),
}


class _PlainJsonSchema(GenerateJsonSchema):
    """Without the titles that pydantic makes of names: they cost the model tokens and tell it nothing."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def get_title_from_name(self, name: str) -> str:
        return name

    def generate(self, schema: Any, mode: Any = "validation") -> Schema:
        made = super().generate(schema, mode)
        for part in (made, *made.get("$defs", {}).values()):
            part.pop("title", None)
        return made


def _objects(schema: Schema) -> list[Schema]:
    """The objects with named properties in a schema."""
    return [part for part in (schema, *schema.get("$defs", {}).values()) if "properties" in part]


def _depth_of(schema: Any, definitions: Mapping[str, Any], within: tuple[str, ...] = ()) -> float:
    """How many lists and objects, each in another, fit a JSON schema; infinite: as many as one likes."""
    if not isinstance(schema, dict):
        return math.inf if schema else 0
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return math.inf if name in within else _depth_of(definitions[name], definitions, (*within, name))
    kinds, members = schema.get("type", []), [*schema.get("anyOf", ()), *schema.get("oneOf", ())]
    if not members and not kinds:
        return math.inf
    deepest = [_depth_of(each, definitions, within) for each in members]
    if "object" in kinds:
        parts = [*schema.get("properties", {}).values(), schema.get("additionalProperties", True)]
        deepest += [1 + _depth_of(each, definitions, within) for each in parts]
    if "array" in kinds:
        parts = [*schema.get("prefixItems", ()), schema.get("items", "prefixItems" not in schema)]
        deepest += [1 + _depth_of(each, definitions, within) for each in parts]
    return max(deepest, default=0)


def _close(schema: Schema) -> Schema:
    """Publish what `extra="forbid"` does: no object with named properties takes another one."""
    schema.setdefault("properties", {})
    for part in _objects(schema):
        part["additionalProperties"] = False
    return schema


def _aliased(parameter: inspect.Parameter, alias: str) -> Any:
    default = parameter.default
    if isinstance(default, FieldInfo):
        return FieldInfo.merge_field_infos(default, alias=alias, validation_alias=alias, serialization_alias=alias)
    return Field(PydanticUndefined if default is parameter.empty else default, alias=alias)


def _is_context(hint: Any) -> bool:
    if get_origin(hint) in (Union, UnionType):
        return any(_is_context(each) for each in get_args(hint))
    base = get_origin(hint) or hint
    return inspect.isclass(base) and issubclass(base, Context)


_CONTENT = (types.TextContent, types.ImageContent, types.AudioContent, types.ResourceLink, types.EmbeddedResource)
_RESULTS = (types.CallToolResult, types.InputRequiredResult, types.ReadResourceResult, types.GetPromptResult)


def _without_content(hint: Any) -> Any:
    """What is left of a return annotation for a schema, without the types that pass through."""
    origin, inside = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        kept = [left for each in inside if (left := _without_content(each)) is not None]
        return Union[tuple(kept)] if set(kept) - {NoneType} else None  # noqa: UP007 - built from parts
    if origin in (list, tuple) and any(_passes(each) for each in _flat(inside)):
        return None  # a list with content in it is content
    return None if _passes(hint) else hint


def _flat(hints: tuple[Any, ...]) -> list[Any]:
    return [part for hint in hints for part in (_flat(get_args(hint)) if get_origin(hint) else [hint])]


def _passes(hint: Any) -> bool:
    return inspect.isclass(hint) and issubclass(hint, (*_CONTENT, *_RESULTS))


def _is_content(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(isinstance(each, _CONTENT) for each in value)
    return isinstance(value, (*_CONTENT, *_RESULTS))


def _content(value: Any, limit: int) -> dict[str, Any]:
    """Content blocks, or one of the SDK's own results, cleaned and bounded."""
    if isinstance(value, _RESULTS):
        result = value.model_dump(mode="json", by_alias=True, exclude_none=True)
    else:
        blocks = [] if value is None else value if isinstance(value, list | tuple) else [value]
        texts = [types.TextContent(type="text", text=each) if isinstance(each, str) else each for each in blocks]
        if not all(isinstance(each, _CONTENT) for each in texts):
            raise InvalidResult(["result: is not of the type that the function returns"])
        content = [each.model_dump(mode="json", by_alias=True, exclude_none=True) for each in texts]
        result = {"content": content, "resultType": "complete"}
    return bounded(result, limit)


def bounded(result: dict[str, Any], limit: int) -> dict[str, Any]:
    """One of the protocol's results, cleaned; raises ResultTooLarge and InvalidResult."""
    text = to_json(result)
    if len(text) > limit:
        raise ResultTooLarge(limit)
    if is_clean(text):
        return result
    kept = {name: result[name] for name in ("requestState",) if name in result}  # it is the tool's own, and sealed
    return cleaned(result) | kept


def question(value: types.InputRequiredResult, limit: int) -> types.InputRequiredResult:
    """What a resource or prompt asks back, cleaned; raises ResultTooLarge and InvalidResult."""
    asked = value.model_dump(mode="json", by_alias=True, exclude_none=True)
    return types.InputRequiredResult.model_validate(bounded(asked, limit))


def cleaned(data: dict[str, Any]) -> dict[str, Any]:
    """As `clean`; raises InvalidResult."""
    try:
        return clean(data)  # type: ignore[no-any-return]
    except EqualKeys:
        problem = "two keys of an object differ in characters alone that nobody sees, and are taken away; rename one"
        raise InvalidResult([f"result: {problem}"]) from None


def _whole(value: Any) -> Any:
    """`value` with each float that is a whole number as that integer."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {key: _whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return value
