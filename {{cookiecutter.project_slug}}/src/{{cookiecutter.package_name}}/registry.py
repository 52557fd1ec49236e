"""What is served: every declared tool, resource and prompt, compiled, each able to run."""

import asyncio
import base64
import inspect
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from types import CodeType
from typing import Any, get_args

import mcp_types as types
from mcp.server import ServerRequestContext
from mcp.server.mcpserver import Context, ResourceSecurity
from mcp.server.subscriptions import SubscriptionBus
from mcp.shared.exceptions import MCPError, NoBackChannelError
from mcp.shared.uri_template import InvalidUriTemplate, UriTemplate
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError
from pydantic_core import to_json

from .auth.principal import current_principal
from .contracts import Results, Signature, bounded, question
from .errors import (
    CallError,
    Failed,
    InvalidArguments,
    InvalidResult,
    NotFound,
    ResultTooLarge,
    StartError,
    UnknownTool,
)
from .logs import hide_shapes
from .text import clean
from .threads import Threads
from .tooling import Declaration, Depends
from .validation import problems_of

MOST_SUBSCRIPTIONS = 100
LONGEST_URI = 2048  # characters

Opened = Mapping[Depends, Any]


class Crashed(Exception):
    """A function raised what the SDK or asyncio would take for their own: `__cause__` is what it was.

    pydantic's errors would be answered as malformed parameters, an `MCPError` with its text, and `SystemExit` or a
    stray `CancelledError` would end the server.
    """


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every function runs in."""

    threads: Threads
    bus: SubscriptionBus


class Served:
    """One declared function, ready to be called."""

    def __init__(self, declaration: Declaration, around: "Surroundings") -> None:
        self.declaration = declaration
        self.name = declaration.name
        self.scopes = declaration.scopes
        self.cost = declaration.cost
        self.timeout_seconds = declaration.timeout_seconds
        self.read_only = declaration.read_only
        self.idempotent = declaration.idempotent
        self.signature = Signature(declaration.function)
        self.has_context = self.signature.context is not None
        self._around = around
        self.asks = _may_ask(self.signature.returns)
        self._is_async = inspect.iscoroutinefunction(declaration.function)
        if inspect.isgeneratorfunction(declaration.function) or inspect.isasyncgenfunction(declaration.function):
            raise TypeError("is a generator; return the whole value")

    def refuse_unknown(self, arguments: Mapping[str, Any]) -> None:
        """Raise InvalidArguments if there are more of them than parameters."""
        if len(arguments) > len(self.signature.names):
            self.signature.parse(arguments)

    def complete(self, name: str, typed: str) -> list[str]:
        """The values that an argument can take and that start with what is typed, where its type lists them."""
        schema = self.signature.schema
        part = schema["properties"].get(name, {})
        for each in (part, *part.get("anyOf", ())):
            found = schema.get("$defs", {}).get(each.get("$ref", "").rpartition("/")[2], each)
            if values := found.get("enum") or ([found["const"]] if "const" in found else []):
                return [str(value) for value in values if str(value).startswith(typed)]
        return []

    async def run(self, ctx: ServerRequestContext[Opened], arguments: dict[str, Any], params: Any = None) -> Any:
        """Call the function. A `def` runs in the server's own threads, and is left behind there when cancelled."""
        for name, dependency in self.signature.dependencies.items():
            arguments[name] = ctx.lifespan_context[dependency]
        if self.signature.principal is not None:
            arguments[self.signature.principal] = current_principal.get()
        _let_go(ctx, params)
        if self.signature.context is not None:
            arguments[self.signature.context] = Context(
                request_context=ctx, input_params=params, subscriptions=self._around.bus
            )
        try:
            if self._is_async:
                value = await self.declaration.function(**arguments)
            else:
                value = await self._around.threads.run(self.name, partial(self.declaration.function, **arguments))
        except asyncio.CancelledError as error:
            if (task := asyncio.current_task()) is None or task.cancelling():
                raise
            raise Crashed from error  # nobody cancelled this call: something inside it was
        except NoBackChannelError as error:
            if ctx.protocol_version in MODERN_PROTOCOL_VERSIONS:
                raise Crashed from error  # there a tool asks by returning an InputRequiredResult
            raise Failed(_NEEDS_SESSION) from None
        except MCPError as error:
            if error.code in _PROTOCOL_ERRORS:
                raise
            if self.signature.context is not None and ctx.protocol_version not in MODERN_PROTOCOL_VERSIONS:
                raise Failed("The client refused, or could not answer, what it was asked.") from None
            raise Crashed from error
        except BaseExceptionGroup as group:
            raise (_only_call_error(group) or Crashed()) from group
        except ValidationError as error:
            raise Crashed from error
        except Exception:
            raise
        except BaseException as error:  # Rust's panics are such, and would end the server
            raise Crashed from error
        if isinstance(value, types.InputRequiredResult):
            if ctx.protocol_version not in MODERN_PROTOCOL_VERSIONS:
                raise Failed(_NEEDS_MODERN)
            if not self.asks:  # its state would be bound to nothing
                raise InvalidResult(["result: asks, and the function's annotation names no InputRequiredResult"])
        return value


def _let_go(ctx: ServerRequestContext[Opened], params: Any) -> None:
    """Keep nothing of the message but its envelope, and the answers to what was asked, once its arguments are validated.

    Emptied in place: the transport, the SDK's runner and, with sessions, its dispatcher hold the same objects to the end.
    """
    for each in (ctx.params or {}).values():
        if isinstance(each, dict | list):
            each.clear()
    if "arguments" in params.__dict__:
        params.__dict__["arguments"] = None  # five times as fast as by pydantic's own way


def _may_ask(returns: Any) -> bool:
    """Whether a return annotation lets a question through."""
    if returns in (inspect.Signature.empty, Any, object, types.InputRequiredResult):
        return True
    return any(_may_ask(each) for each in get_args(returns))


_NEEDS_MODERN = "This needs to ask you something, and this connection cannot. Connect with revision 2026-07-28."
_NEEDS_SESSION = (
    "This needs to ask you something, and this connection cannot. Connect over stdio, or start the server with "
    "MCP_HTTP_SESSIONS=stateful."
)
_PROTOCOL_ERRORS = {types.MISSING_REQUIRED_CLIENT_CAPABILITY, types.URL_ELICITATION_REQUIRED}
"""What a tool may raise as an `MCPError`, as the specification gives these to tools."""


def _only_call_error(group: BaseExceptionGroup[Any]) -> CallError | None:
    """The one `CallError` that a task group inside a tool has wrapped."""
    inside: BaseException = group
    while isinstance(inside, BaseExceptionGroup) and len(inside.exceptions) == 1:
        inside = inside.exceptions[0]
    return inside if isinstance(inside, CallError) else None


class ServedTool(Served):
    """A tool."""

    def __init__(self, declaration: Declaration, around: "Surroundings") -> None:
        super().__init__(declaration, around)
        if self.signature.returns is inspect.Signature.empty:
            raise TypeError("has no return annotation; it is the schema of the result")
        self._results = Results(self.signature.returns)
        self.listed = types.Tool(
            name=self.name,
            title=declaration.title,
            description=declaration.description,
            input_schema=self.signature.schema,
            output_schema=self._results.schema,
            annotations=types.ToolAnnotations(
                title=declaration.title,
                read_only_hint=declaration.read_only,
                destructive_hint=declaration.destructive,
                idempotent_hint=declaration.idempotent,
                open_world_hint=declaration.open_world,
            ),
        )

    async def call(
        self, ctx: ServerRequestContext[Opened], params: types.CallToolRequestParams, limit: int
    ) -> dict[str, Any]:
        """Validate, run, render."""
        value = await self.run(ctx, self.signature.parse(params.arguments or {}), params)
        if isinstance(value, types.CallToolResult) and value.is_error:
            raise Failed("\n".join(block.text for block in value.content if isinstance(block, types.TextContent)))
        return self._results.render(value, limit)


class ServedResource(Served):
    """A resource, or a template of resources."""

    def __init__(self, declaration: Declaration, around: "Surroundings") -> None:
        super().__init__(declaration, around)
        self.template = UriTemplate.parse(declaration.uri)
        if set(self.template.variable_names) != set(self.signature.names):
            raise TypeError(f"the variables of {declaration.uri} are not the function's parameters")
        self._results = Results(self.signature.returns)
        described: dict[str, Any] = {
            "name": self.name,
            "title": declaration.title,
            "description": declaration.description,
            "mime_type": declaration.mime_type,
        }
        self.listed: types.Resource | None = None
        self.listed_template: types.ResourceTemplate | None = None
        if self.signature.names:
            self.listed_template = types.ResourceTemplate(uri_template=declaration.uri, **described)
        else:
            self.listed = types.Resource(uri=declaration.uri, **described)

    async def read(
        self, ctx: ServerRequestContext[Opened], params: types.ReadResourceRequestParams, limit: int
    ) -> types.ReadResourceResult | types.InputRequiredResult:
        """Validate the variables of the URI, run, render."""
        found = self.template.match(params.uri) or {}
        if (unsafe := _SECURITY.validate(found)) is not None:
            raise InvalidArguments([f"{unsafe}: must not be an absolute path, or contain .. or a null character"])
        variables = {name: value if isinstance(value, str) else "/".join(value) for name, value in found.items()}
        value = await self.run(ctx, self.signature.parse_strings(variables), params)
        if isinstance(value, types.InputRequiredResult):
            return question(value, limit)
        if isinstance(value, types.ReadResourceResult):
            return types.ReadResourceResult.model_validate(bounded(value.model_dump(mode="json", by_alias=True), limit))
        mime_type = self.declaration.mime_type
        contents: types.TextResourceContents | types.BlobResourceContents
        if isinstance(value, bytes):
            blob = base64.b64encode(value).decode()
            contents = types.BlobResourceContents(
                uri=params.uri, mime_type=mime_type or "application/octet-stream", blob=blob
            )
            size = len(blob)
        else:
            data = self._results.dump(value, limit)
            text, kind = (data, "text/plain") if isinstance(data, str) else (to_json(data).decode(), "application/json")
            contents = types.TextResourceContents(uri=params.uri, mime_type=mime_type or kind, text=text)
            size = len(text.encode())
        if size > limit:
            raise ResultTooLarge(limit)
        return types.ReadResourceResult(contents=[contents])


_SECURITY = ResourceSecurity()
_NONE = frozenset[str]()


class ServedPrompt(Served):
    """A prompt."""

    def __init__(self, declaration: Declaration, around: "Surroundings") -> None:
        super().__init__(declaration, around)
        schema = self.signature.schema
        self.listed = types.Prompt(
            name=self.name,
            title=declaration.title,
            description=declaration.description,
            arguments=[
                types.PromptArgument(
                    name=name,
                    description=schema["properties"][name].get("description"),
                    required=name in schema.get("required", ()),
                )
                for name in self.signature.names
            ],
        )

    async def get(
        self, ctx: ServerRequestContext[Opened], params: types.GetPromptRequestParams, limit: int
    ) -> types.GetPromptResult | types.InputRequiredResult:
        """Validate, run, render."""
        value = await self.run(ctx, self.signature.parse_strings(params.arguments or {}), params)
        if isinstance(value, types.InputRequiredResult):
            return question(value, limit)
        if isinstance(value, str):
            value = [types.PromptMessage(role="user", content=types.TextContent(type="text", text=value))]
        try:
            if not isinstance(value, types.GetPromptResult):
                value = types.GetPromptResult(description=self.listed.description, messages=value)
            return types.GetPromptResult.model_validate(bounded(value.model_dump(mode="json", by_alias=True), limit))
        except ValidationError as error:
            raise InvalidResult(problems_of(error)) from None


class Registry:
    """All that is served, by name.

    Raises:
        StartError: a line for each declaration that cannot be served.
    """

    def __init__(self, declarations: Iterable[Declaration], around: Surroundings) -> None:
        self.tools: dict[str, ServedTool] = {}
        self.resources: dict[str, ServedResource] = {}
        self.prompts: dict[str, ServedPrompt] = {}
        self._fixed: dict[str, ServedResource] = {}  # a URI without variables is not a template's to answer
        taken: dict[tuple[str, str], Declaration] = {}
        problems: list[str] = []
        for each in declarations:
            place = f"{each.place}: {each.name}"
            other = taken.setdefault((each.kind, each.name), each)
            if other is not each:
                problems.append(f"{place}: {other.place} has a {each.kind} of this name too; rename one")
                continue
            if not each.description:
                problems.append(f"{place}: has no docstring; it is the description that the model reads")
            try:
                self._add(each, around)
            except (TypeError, NameError, ValueError, InvalidUriTemplate) as error:
                problems.append(f"{place}: {' '.join(str(error).split())}")
            except Exception as error:  # noqa: BLE001 - pydantic has many ways to say that a type has no schema
                problems.append(f"{place}: {type(error).__name__}: no schema can be made of its signature")
        uris = Counter(each.declaration.uri for each in self.resources.values())
        problems += [f"resources/: two resources have the URI {uri}; change one" for uri, n in uris.items() if n > 1]
        if problems:
            raise StartError(problems)

    @property
    def served(self) -> list[Served]:
        """Everything."""
        return [*self.tools.values(), *self.resources.values(), *self.prompts.values()]

    @property
    def code(self) -> dict[CodeType, str]:
        """The code of every function, and its name."""
        return {inspect.unwrap(each.declaration.function).__code__: each.name for each in self.served}

    def target(self, method: str, params: Mapping[str, Any] | None) -> Served | None:
        """What a request is for, read from its unvalidated parameters; None if nothing is served there."""
        params = params or {}
        if method == "completion/complete" and isinstance(params.get("ref"), Mapping):
            params = params["ref"]
            method = "prompts/get" if params.get("type") == "ref/prompt" else "resources/templates"
        name = params.get("name" if method in ("tools/call", "prompts/get") else "uri")
        if not isinstance(name, str):
            return None
        if method == "tools/call":
            return self.tools.get(name)
        if method == "prompts/get":
            return self.prompts.get(name)
        if method == "resources/templates":
            return next((each for each in self.resources.values() if each.declaration.uri == name), None)
        return self._resource(name) if method == "resources/read" else None

    def aim(self, method: str, params: Mapping[str, Any] | None) -> tuple[Served | None, frozenset[str]]:
        """A request's target, and the scopes it takes: the target's, or those of the resources it wants to hear of."""
        if (target := self.target(method, params)) is not None:
            return target, target.scopes
        if method != "subscriptions/listen":
            return None, _NONE
        wanted = (params or {}).get("notifications")
        uris = wanted.get("resourceSubscriptions") if isinstance(wanted, Mapping) else None
        listed = uris[:MOST_SUBSCRIPTIONS] if isinstance(uris, list) else []  # more are refused, but not here
        found = [self._resource(uri) for uri in listed if isinstance(uri, str)]
        return None, _NONE.union(*(each.scopes for each in found if each is not None))

    def tool(self, name: str) -> ServedTool:
        """Raises UnknownTool."""
        if (found := self.tools.get(name)) is None:
            raise UnknownTool
        return found

    def prompt(self, name: str) -> ServedPrompt:
        """Raises NotFound."""
        if (found := self.prompts.get(name)) is None:
            raise NotFound("There is no prompt of this name. prompts/list shows the prompts there are.")
        return found

    def resource(self, uri: str) -> ServedResource:
        """Raises NotFound, with the URI in its data, as the specification shows it."""
        if (found := self._resource(uri)) is None:
            raise NotFound(
                "There is no resource at this URI. resources/list and resources/templates/list show what there is.",
                {"uri": hide_shapes(clean(uri[: 2 * LONGEST_URI]), LONGEST_URI)},
            )
        return found

    def _resource(self, uri: str) -> ServedResource | None:
        if (fixed := self._fixed.get(uri)) is not None:
            return fixed
        if len(uri) > LONGEST_URI:  # matching takes its time, for callers too who have not been let in
            return None
        return next((each for each in self.resources.values() if each.template.match(uri) is not None), None)

    def _add(self, declaration: Declaration, around: Surroundings) -> None:
        if declaration.kind == "tool":
            self.tools[declaration.name] = ServedTool(declaration, around)
        elif declaration.kind == "resource":
            made = self.resources[declaration.name] = ServedResource(declaration, around)
            if made.listed is not None:
                self._fixed[declaration.uri] = made
        else:
            self.prompts[declaration.name] = ServedPrompt(declaration, around)
