"""The composition root: which guards stand before a call, in which order, and what answers each method."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib import metadata
from typing import Any, TypeVar

import mcp_types as types
import structlog
from mcp.server import Server, ServerRequestContext

from . import NAME, prompts, resources, tools
from .auth.principal import ANONYMOUS, Principal
from .calls import Guard, Transport
from .errors import InvalidRequest, StartError
from .guards.authorize import Authorize
from .guards.capacity import Capacity
from .guards.deadline import Deadline
from .guards.drain import Drain
from .guards.request_log import RequestLog
from .registry import Opened, Registry
from .sdk import install
from .settings import Settings
from .tooling import discover

_ListT = TypeVar("_ListT")


@dataclass(frozen=True, slots=True)
class Application:
    """A server and what it was made of."""

    settings: Settings
    registry: Registry
    mcp: Server[Opened]
    drain: Drain


def build_server(settings: Settings) -> Application:
    """Find what is to be served and put the server together. Opens nothing.

    Raises:
        StartError: a tool, resource or prompt cannot be served.
    """
    found = (*discover(tools, "tool"), *discover(resources, "resource"), *discover(prompts, "prompt"))
    registry = Registry(found, threads=settings.max_concurrent_calls)
    drain = Drain()
    guards: list[Guard] = [
        RequestLog(),
        drain,
        Authorize(),
        Capacity(settings.max_concurrent_calls),
        Deadline(settings.tool_timeout_seconds),
    ]
    server = _answer(registry, settings)
    local = Principal("local", frozenset(settings.local_scopes))

    def principal(transport: Transport) -> Principal:
        return local if transport == "stdio" else ANONYMOUS

    install(server, guards, registry.target, principal, settings.sealing_keys)
    return Application(settings, registry, server, drain)


def _answer(registry: Registry, settings: Settings) -> Server[Opened]:
    """The SDK's low-level server: its public handlers, and no validation but ours."""
    limit = settings.max_result_bytes

    async def call_tool(ctx: ServerRequestContext[Opened], params: types.CallToolRequestParams) -> Any:
        return await registry.tool(params.name).call(ctx, params, limit)

    async def get_prompt(ctx: ServerRequestContext[Opened], params: types.GetPromptRequestParams) -> Any:
        return await registry.prompt(params.name).get(ctx, params, limit)

    async def read_resource(ctx: ServerRequestContext[Opened], params: types.ReadResourceRequestParams) -> Any:
        return await registry.resource(params.uri).read(ctx, params, limit)

    @asynccontextmanager
    async def lifespan(server: Server[Opened]) -> AsyncIterator[Opened]:
        opened: dict[Any, Any] = {}
        async with AsyncExitStack() as stack:
            for served in registry.served:
                for dependency in served.signature.dependencies.values():
                    if dependency not in opened:
                        opened[dependency] = await stack.enter_async_context(_opening(dependency.open, settings))
            structlog.get_logger().info("started", transport=settings.transport)
            yield opened

    listed = [each.listed for each in registry.resources.values() if each.listed]
    templates = [each.listed_template for each in registry.resources.values() if each.listed_template]
    return Server(
        NAME,
        version=metadata.version(NAME),
        lifespan=lifespan,
        get_tool_input_schema=lambda name: registry.tools[name].signature.schema if name in registry.tools else None,
        on_call_tool=call_tool,
        on_get_prompt=get_prompt,
        on_read_resource=read_resource,
        on_list_tools=_one_page(types.ListToolsResult(tools=[each.listed for each in registry.tools.values()])),
        on_list_prompts=_one_page(types.ListPromptsResult(prompts=[each.listed for each in registry.prompts.values()])),
        on_list_resources=_one_page(types.ListResourcesResult(resources=listed)),
        on_list_resource_templates=_one_page(types.ListResourceTemplatesResult(resource_templates=templates)),
    )


@asynccontextmanager
async def _opening(
    open_it: Callable[[Settings], AbstractAsyncContextManager[Any]], settings: Settings
) -> AsyncIterator[Any]:
    """Open a dependency; one that fails to open stops the start with a line that names it."""
    async with AsyncExitStack() as stack:
        try:
            opened = await stack.enter_async_context(open_it(settings))
        except Exception as error:  # noqa: BLE001 - whatever a user's dependency raises
            structlog.get_logger().error("crash", exc_info=error)
            name = f"{open_it.__module__.rpartition('.')[2]}.{open_it.__name__}"
            raise StartError([f"{name}: {type(error).__name__} while this dependency was opened"]) from None
        yield opened


def _one_page(
    answer: _ListT,
) -> Callable[[ServerRequestContext[Opened], types.PaginatedRequestParams | None], Awaitable[_ListT]]:
    """A list that fits one page: no cursor was ever given out, so none is valid."""

    async def handle(ctx: ServerRequestContext[Opened], params: types.PaginatedRequestParams | None) -> _ListT:
        if params is not None and params.cursor is not None:
            raise InvalidRequest("This cursor is unknown. Start again without one.", types.INVALID_PARAMS)
        return answer

    return handle
