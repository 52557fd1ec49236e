"""What a function takes and gives, as strict models and published schemas, compiled once at start.

Arguments are validated as JSON: strictly (`"3"` is no integer), with unknown keys refused at every depth. Results are
validated against their own schema, stripped of characters that can deceive a reader, and bounded in size.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import mcp_types as types
from annotated_types import MaxLen
from mcp.server.mcpserver import Context
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import PydanticSerializationError, PydanticUndefined, from_json, to_json

from .errors import InvalidArguments, ResultTooLarge
from .tooling import Depends
from .validation import problems_of

MAX_CHARACTERS = 10_000
MAX_ITEMS = 1_000

Schema = dict[str, Any]


class Signature:
    """A function's parameters: what the caller gives (`schema`), what the server fills in (`context`, `dependencies`).

    Raises:
        TypeError: a parameter that no schema can describe.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        hints = get_type_hints(function, include_extras=True)
        self.context: str | None = None
        self.dependencies: dict[str, Depends] = {}
        self.returns = hints.get("return", inspect.Signature.empty)
        fields: dict[str, Any] = {}  # under neutral names, as a parameter may be called `json` or `_x`
        names: list[str] = []
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
                raise TypeError(f"{name}: *args, **kwargs and positional-only parameters have no schema")
            if name not in hints:
                raise TypeError(f"{name} has no annotation")
            hint = hints[name]
            marks = [each for each in getattr(hint, "__metadata__", ()) if isinstance(each, Depends)]
            if marks:
                self.dependencies[name] = marks[0]
            elif _is_context(hint):
                self.context = name
            else:
                fields[f"p{len(names)}"] = (bounded(hint), _aliased(parameter, name))
                names.append(name)
        self.names = tuple(names)
        strict = ConfigDict(strict=True, extra="forbid")
        model: type[BaseModel] = create_model("Arguments", __config__=strict, **fields)
        self._validator = model.__pydantic_validator__
        self.schema = _close(model.model_json_schema(by_alias=True, schema_generator=_PlainJsonSchema))

    def parse(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Validate JSON arguments.

        Raises:
            InvalidArguments: every problem, by field.
        """
        try:
            try:
                return self._named(self._validator.validate_json(to_json(arguments), strict=True, extra="forbid"))
            except ValidationError as error:
                # JSON has one kind of number: 3.0 fits "integer", and only pydantic tells them apart.
                if not any(each["type"] == "int_type" for each in error.errors()):
                    raise
                again = to_json(_whole(arguments))
                return self._named(self._validator.validate_json(again, strict=True, extra="forbid"))
        except ValidationError as error:
            raise InvalidArguments(problems_of(error, known=self.names)) from None
        except (PydanticSerializationError, RecursionError):
            raise InvalidArguments(["arguments: must be valid Unicode, and nested less deeply"]) from None

    def parse_strings(self, arguments: Any) -> dict[str, Any]:
        """Validate arguments that the protocol carries as strings: a prompt's, or the variables of a URI."""
        try:
            return self._named(self._validator.validate_strings(arguments, strict=True, extra="forbid"))
        except ValidationError as error:
            raise InvalidArguments(problems_of(error, known=self.names)) from None

    def _named(self, model: BaseModel) -> dict[str, Any]:
        return dict(zip(self.names, model.__dict__.values(), strict=True))


class Results:
    """What a tool returns, as `structuredContent`, text and schema.

    A value that is no object is wrapped as `{"result": value}`, as the revisions before 2026-07-28 need it. Content
    blocks and the SDK's own results pass through; they have no schema.
    """

    def __init__(self, returns: Any) -> None:
        self.schema: Schema | None = None
        self._adapter: TypeAdapter[Any] | None = None
        if returns in (None, NoneType) or _is_content(returns):
            return
        self._adapter = TypeAdapter(returns)
        schema = self._schema(by_alias=True)
        self._wraps = schema.get("type") != "object"
        if self._wraps:
            definitions = schema.pop("$defs", None)
            schema = {"type": "object", "properties": {"result": schema}, "required": ["result"]}
            schema |= {"$defs": definitions} if definitions else {}
        self.schema = schema
        self._renamed = self._schema(by_alias=True) != self._schema(by_alias=False)
        self._is_text = returns is str

    def render(self, value: Any, limit: int) -> dict[str, Any]:
        """The result on the wire, at most `limit` bytes of text.

        Raises:
            ResultTooLarge: it is larger.
            ValidationError, PydanticSerializationError: `value` is not what the function says it returns.
        """
        if self._adapter is None:
            return _content(value, limit)
        text = self._adapter.dump_json(value, by_alias=True, warnings="error")
        if len(text) > limit:
            raise ResultTooLarge(limit)
        if self._renamed:
            check = self._adapter.dump_json(value, by_alias=False, warnings="error")
            self._adapter.validate_json(check, by_alias=False, by_name=True)
        else:
            self._adapter.validate_json(text)
        data = clean(from_json(text))
        shown = data if self._is_text else to_json(data).decode()
        return {
            "content": [{"type": "text", "text": shown}],
            "structuredContent": {"result": data} if self._wraps else data,
            "isError": False,
            "resultType": "complete",
        }

    def _schema(self, *, by_alias: bool) -> Schema:
        assert self._adapter is not None
        return self._adapter.json_schema(mode="serialization", by_alias=by_alias, schema_generator=_PlainJsonSchema)


def bounded(hint: Any) -> Any:
    """`hint` with the default bound on every string and collection in it; a bound of its own, outside it, wins."""
    origin, inside = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return Annotated[(bounded(inside[0]), *inside[1:])]
    if origin in (Union, UnionType):
        return Union[tuple(bounded(each) for each in inside)]  # noqa: UP007 - built from parts
    if hint in (str, bytes):
        return Annotated[hint, MaxLen(MAX_CHARACTERS)]
    base = origin or hint
    if base in (list, set, frozenset, dict) or (base is tuple and inside[1:] == (...,)):
        return Annotated[base[tuple(bounded(each) for each in inside)] if inside else base, MaxLen(MAX_ITEMS)]
    return hint


_UNSAFE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff\U000e0000-\U000e007f]")
"""Control characters but tab and line ends, bidirectional overrides and isolates, invisible tag characters."""


def clean(value: Any) -> Any:
    """`value` without characters that show a reader something else than what is there."""
    if isinstance(value, str):
        return _UNSAFE.sub("", value)
    if isinstance(value, dict):
        return {clean(key): clean(item) for key, item in value.items()}
    if isinstance(value, list):
        return [clean(item) for item in value]
    return value


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


def _close(schema: Schema) -> Schema:
    """Publish what `extra="forbid"` does: no object with named properties takes another one."""
    for part in (schema, *schema.get("$defs", {}).values()):
        if part.get("type") == "object" and "properties" in part:
            part["additionalProperties"] = False
    schema.setdefault("properties", {})
    return schema


def _aliased(parameter: inspect.Parameter, alias: str) -> Any:
    default = parameter.default
    if isinstance(default, FieldInfo):
        return FieldInfo.merge_field_infos(default, alias=alias, validation_alias=alias, serialization_alias=alias)
    return Field(PydanticUndefined if default is parameter.empty else default, alias=alias)


def _is_context(hint: Any) -> bool:
    base = get_origin(hint) or hint
    return inspect.isclass(base) and issubclass(base, Context)


_PASSED_THROUGH = (
    types.CallToolResult,
    types.InputRequiredResult,
    types.TextContent,
    types.ImageContent,
    types.AudioContent,
    types.ResourceLink,
    types.EmbeddedResource,
)


def _is_content(hint: Any) -> bool:
    origin, inside = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType, list, tuple, Annotated):
        return all(_is_content(each) for each in inside[: 1 if origin is Annotated else None] if each is not ...)
    return inspect.isclass(hint) and issubclass(hint, _PASSED_THROUGH)


def _content(value: Any, limit: int) -> dict[str, Any]:
    """Content blocks, or one of the SDK's own results, cleaned and bounded."""
    if value is None:
        value = []
    if isinstance(value, types.CallToolResult | types.InputRequiredResult):
        result = value.model_dump(mode="json", by_alias=True, exclude_none=True)
    else:
        blocks = value if isinstance(value, list | tuple) else [value]
        result = {
            "content": [each.model_dump(mode="json", by_alias=True, exclude_none=True) for each in blocks],
            "resultType": "complete",
        }
    if len(to_json(result)) > limit:
        raise ResultTooLarge(limit)
    return clean(result)  # type: ignore[no-any-return]


def _whole(value: Any) -> Any:
    """`value` with each float that is a whole number as that integer."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {key: _whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return value
