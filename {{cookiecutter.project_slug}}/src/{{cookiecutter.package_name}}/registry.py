"""What is served: every declared tool, resource and prompt, compiled, each able to run."""

import base64
import inspect
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import mcp_types as types
from mcp.server import ServerRequestContext
from mcp.server.mcpserver import Context
from mcp.shared.uri_template import InvalidUriTemplate, UriTemplate
from pydantic import ValidationError
from pydantic_core import PydanticSerializationError, to_json

from .contracts import Results, Signature, clean
from .errors import Failed, NotFound, ResultTooLarge, StartError, UnknownTool
from .logs import hide_shapes
from .tooling import Declaration, Depends

Opened = Mapping[Depends, Any]


class InvalidResult(Exception):
    """A function did not return what its annotation says; `__cause__` knows where."""


class InvalidInside(Exception):
    """A function met data that pydantic refused; `__cause__` knows where.

    Let through as it is, the SDK's caller could not tell it from malformed parameters of the request.
    """


class Served:
    """One declared function, ready to be called."""

    def __init__(self, declaration: Declaration, threads: anyio.CapacityLimiter) -> None:
        self.declaration = declaration
        self.name = declaration.name
        self.scopes = declaration.scopes
        self.timeout_seconds = declaration.timeout_seconds
        self.read_only = declaration.read_only
        self.idempotent = declaration.idempotent
        self.signature = Signature(declaration.function)
        self._threads = threads
        self._is_async = inspect.iscoroutinefunction(declaration.function)

    async def run(self, ctx: ServerRequestContext[Opened], arguments: dict[str, Any], params: Any = None) -> Any:
        """Call the function. A `def` runs in the server's own threads, and is left behind there when cancelled."""
        for name, dependency in self.signature.dependencies.items():
            arguments[name] = ctx.lifespan_context[dependency]
        if self.signature.context is not None:
            arguments[self.signature.context] = Context(request_context=ctx, input_params=params)
        try:
            if self._is_async:
                return await self.declaration.function(**arguments)
            work = partial(self.declaration.function, **arguments)
            return await anyio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._threads)
        except ValidationError as error:
            raise InvalidInside from error


class ServedTool(Served):
    """A tool."""

    def __init__(self, declaration: Declaration, threads: anyio.CapacityLimiter) -> None:
        super().__init__(declaration, threads)
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
        try:
            return self._results.render(value, limit)
        except (ValidationError, PydanticSerializationError, AttributeError) as error:
            raise InvalidResult from error


class ServedResource(Served):
    """A resource, or a template of resources."""

    def __init__(self, declaration: Declaration, threads: anyio.CapacityLimiter) -> None:
        super().__init__(declaration, threads)
        self.template = UriTemplate.parse(declaration.uri)
        if set(self.template.variable_names) != set(self.signature.names):
            raise TypeError(f"the variables of {declaration.uri} are not the function's parameters")
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
        variables = {name: value if isinstance(value, str) else "/".join(value) for name, value in found.items()}
        value = await self.run(ctx, self.signature.parse_strings(variables), params)
        if isinstance(value, types.ReadResourceResult | types.InputRequiredResult):
            return value
        mime_type = self.declaration.mime_type
        contents: types.TextResourceContents | types.BlobResourceContents
        if isinstance(value, bytes):
            blob = base64.b64encode(value).decode()
            contents = types.BlobResourceContents(
                uri=params.uri, mime_type=mime_type or "application/octet-stream", blob=blob
            )
            size = len(blob)
        else:
            kind = "text/plain" if isinstance(value, str) else "application/json"
            text = clean(value if isinstance(value, str) else to_json(value, by_alias=True).decode())
            contents = types.TextResourceContents(uri=params.uri, mime_type=mime_type or kind, text=text)
            size = len(text.encode())
        if size > limit:
            raise ResultTooLarge(limit)
        return types.ReadResourceResult(contents=[contents])


class ServedPrompt(Served):
    """A prompt."""

    def __init__(self, declaration: Declaration, threads: anyio.CapacityLimiter) -> None:
        super().__init__(declaration, threads)
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
        if isinstance(value, types.GetPromptResult | types.InputRequiredResult):
            return value
        if isinstance(value, str):
            value = [types.PromptMessage(role="user", content=types.TextContent(type="text", text=value))]
        result = types.GetPromptResult(description=self.listed.description, messages=value)
        if len(result.model_dump_json()) > limit:
            raise ResultTooLarge(limit)
        return types.GetPromptResult.model_validate(clean(result.model_dump(mode="json", by_alias=True)))


class Registry:
    """All that is served, by name.

    Raises:
        StartError: a line for each declaration that cannot be served.
    """

    def __init__(self, declarations: Iterable[Declaration], threads: int) -> None:
        """`threads`: how many `def` functions may run at once."""
        self.tools: dict[str, ServedTool] = {}
        self.resources: dict[str, ServedResource] = {}
        self.prompts: dict[str, ServedPrompt] = {}
        limiter = anyio.CapacityLimiter(threads)
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
            if each.cost < 1 or (each.timeout_seconds is not None and each.timeout_seconds <= 0):
                problems.append(f"{place}: cost and timeout_seconds must be greater than 0")
            try:
                self._add(each, limiter)
            except (TypeError, NameError, ValueError, InvalidUriTemplate) as error:
                problems.append(f"{place}: {' '.join(str(error).split())}")
            except Exception as error:  # noqa: BLE001 - pydantic has many ways to say that a type has no schema
                problems.append(f"{place}: {type(error).__name__}: no schema can be made of its signature")
        if problems:
            raise StartError(problems)

    @property
    def served(self) -> list[Served]:
        """Everything."""
        return [*self.tools.values(), *self.resources.values(), *self.prompts.values()]

    def target(self, method: str, params: Mapping[str, Any] | None) -> Served | None:
        """What a request is for, read from its unvalidated parameters; None if nothing is served there."""
        params = params or {}
        name = params.get("uri" if method == "resources/read" else "name")
        if not isinstance(name, str):
            return None
        if method == "tools/call":
            return self.tools.get(name)
        if method == "prompts/get":
            return self.prompts.get(name)
        return self._resource(name) if method == "resources/read" else None

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
                {"uri": hide_shapes(clean(uri))[:2048]},
            )
        return found

    def _resource(self, uri: str) -> ServedResource | None:
        return next((each for each in self.resources.values() if each.template.match(uri) is not None), None)

    def _add(self, declaration: Declaration, limiter: anyio.CapacityLimiter) -> None:
        if declaration.kind == "tool":
            self.tools[declaration.name] = ServedTool(declaration, limiter)
        elif declaration.kind == "resource":
            self.resources[declaration.name] = ServedResource(declaration, limiter)
        else:
            self.prompts[declaration.name] = ServedPrompt(declaration, limiter)
