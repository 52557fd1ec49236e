"""The composition root: which guards stand before a call, in which order, and what answers each method."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import metadata
from typing import Any, TypeVar

import mcp_types as types
import structlog
from mcp.server import Server, ServerRequestContext
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler
from mcp.shared.exceptions import MCPError

from . import NAME, prompts, resources, tools
from .auth.principal import ANONYMOUS, Principal
from .calls import Guard, Transport
from .dependencies import Dependencies
from .errors import InvalidRequest, NotFound, Overloaded
from .guards.authorize import Authorize
from .guards.capacity import Capacity
from .guards.deadline import Deadline
from .guards.drain import Drain
from .guards.request_log import RequestLog
from .registry import Opened, Registry, Surroundings
from .sdk import LeanServer, install
from .settings import Settings
from .threads import Threads
from .tooling import discover

_ListT = TypeVar("_ListT")
_MOST_COMPLETIONS = 100  # specification, server/utilities/completion


@dataclass(frozen=True, slots=True)
class Application:
    """A server and what it was made of. `mcp` answers while it is open."""

    settings: Settings
    registry: Registry
    mcp: Server[Opened]
    drain: Drain
    threads: Threads
    dependencies: Dependencies

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Open what tools depend on, and close it at the end.

        Raises:
            StartError: something cannot be opened.
        """
        async with self.dependencies.open(self.settings):
            structlog.get_logger().info("started", transport=self.settings.transport)
            yield


def build_server(settings: Settings) -> Application:
    """Find what is to be served and put the server together. Opens nothing.

    Raises:
        StartError: a tool, resource or prompt cannot be served.
    """
    found = (*discover(tools, "tool"), *discover(resources, "resource"), *discover(prompts, "prompt"))
    threads, bus = Threads(settings.max_concurrent_calls), InMemorySubscriptionBus()
    registry = Registry(found, Surroundings(threads, bus))
    dependencies = Dependencies(each for one in registry.served for each in one.signature.dependencies.values())
    listeners = ListenHandler(bus)
    drain = Drain(listeners)
    guards: list[Guard] = [
        RequestLog(),
        drain,
        Authorize(),
        Capacity(settings.max_concurrent_calls),
        Deadline(settings.tool_timeout_seconds),
    ]
    server = _answer(registry, dependencies, listeners, settings.max_result_bytes)
    local = Principal("local", frozenset(settings.local_scopes))

    def principal(transport: Transport) -> Principal:
        return local if transport == "stdio" else ANONYMOUS

    install(server, guards, registry.target, principal, settings.sealing_keys)
    return Application(settings, registry, server, drain, threads, dependencies)


def _answer(
    registry: Registry, dependencies: Dependencies, listeners: ListenHandler, largest_result: int
) -> Server[Opened]:
    """The SDK's low-level server: its public handlers, and no validation but ours."""

    async def call_tool(ctx: ServerRequestContext[Opened], params: types.CallToolRequestParams) -> Any:
        return await registry.tool(params.name).call(ctx, params, largest_result)

    async def get_prompt(ctx: ServerRequestContext[Opened], params: types.GetPromptRequestParams) -> Any:
        return await registry.prompt(params.name).get(ctx, params, largest_result)

    async def read_resource(ctx: ServerRequestContext[Opened], params: types.ReadResourceRequestParams) -> Any:
        return await registry.resource(params.uri).read(ctx, params, largest_result)

    async def complete(ctx: ServerRequestContext[Opened], params: types.CompleteRequestParams) -> types.CompleteResult:
        served = registry.target(ctx.method, ctx.params)
        if served is None:
            raise NotFound("There is no prompt or resource template of this name to complete an argument of.")
        values = served.complete(params.argument.name, params.argument.value)
        shown = values[:_MOST_COMPLETIONS]
        return types.CompleteResult(
            completion=types.Completion(values=shown, total=len(values), has_more=len(values) > len(shown))
        )

    async def listen(
        ctx: ServerRequestContext[Opened], params: types.SubscriptionsListenRequestParams
    ) -> types.SubscriptionsListenResult:
        try:
            return await listeners(ctx, params)
        except MCPError:  # its only one
            raise Overloaded("Too many listen streams are open. Retry after 60 s.", retry_after=60) from None

    @asynccontextmanager
    async def lifespan(server: Server[Opened]) -> AsyncIterator[Opened]:
        yield dependencies.opened  # opened by `Application.open`, once for both of the SDK's entries and our own

    listed = [each.listed for each in registry.resources.values() if each.listed]
    templates = [each.listed_template for each in registry.resources.values() if each.listed_template]
    return LeanServer(
        NAME,
        version=metadata.version(NAME),
        lifespan=lifespan,
        get_tool_input_schema=lambda name: registry.tools[name].signature.schema if name in registry.tools else None,
        on_call_tool=call_tool,
        on_get_prompt=get_prompt,
        on_read_resource=read_resource,
        on_completion=complete,
        on_subscriptions_listen=listen,
        on_list_tools=_one_page(types.ListToolsResult(tools=[each.listed for each in registry.tools.values()])),
        on_list_prompts=_one_page(types.ListPromptsResult(prompts=[each.listed for each in registry.prompts.values()])),
        on_list_resources=_one_page(types.ListResourcesResult(resources=listed)),
        on_list_resource_templates=_one_page(types.ListResourceTemplatesResult(resource_templates=templates)),
    )


def _one_page(
    answer: _ListT,
) -> Callable[[ServerRequestContext[Opened], types.PaginatedRequestParams | None], Awaitable[_ListT]]:
    """A list that fits one page: no cursor was ever given out, so none is valid."""

    async def handle(ctx: ServerRequestContext[Opened], params: types.PaginatedRequestParams | None) -> _ListT:
        if params is not None and params.cursor is not None:
            raise InvalidRequest("This cursor is unknown. Start again without one.", types.INVALID_PARAMS)
        return answer

    return handle
