"""The composition root: which guards stand before a call, in which order, and what answers each method."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import metadata
from typing import Any, NamedTuple, TypeVar

import mcp_types as types
import structlog
from mcp.server import Server, ServerRequestContext
from mcp.server.subscriptions import InMemorySubscriptionBus, SubscriptionBus

from . import NAME, prompts, resources, tools
from .auth.credentials import Authenticator
from .auth.principal import ANONYMOUS, Principal, current_principal
from .auth.watch import Watch
from .calls import Guard
from .dependencies import Dependencies
from .errors import InvalidRequest, NotFound, StartError
from .guards.authorize import Authorize
from .guards.capacity import Capacity
from .guards.deadline import Deadline
from .guards.drain import Drain
from .guards.rate_limit import RateLimit
from .guards.request_log import RequestLog
from .guards.share import caller_of
from .limits.once import Once
from .limits.store import Store, make_store
from .listening import Listeners
from .registry import LONGEST_URI, MOST_SUBSCRIPTIONS, Opened, Registry, Surroundings
from .sdk import LeanServer, install, let_go_of_all
from .settings import Settings
from .threads import Threads
from .tooling import Depends, discover

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
    limits: Store
    authenticator: Authenticator | None
    """Who holds a credential that came over HTTP; None: none is asked for."""
    watch: Watch
    """What lasts is to be held in it."""

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
    """Find what is to be served and put the server together. Opens nothing but the file of keys.

    Raises:
        StartError: a tool, resource or prompt cannot be served, or a setting is of no use.
    """
    found = (*discover(tools, "tool"), *discover(resources, "resource"), *discover(prompts, "prompt"))
    credentials = _credentials(settings)
    watch = Watch(credentials.known_by)
    threads, (bus, listeners, bus_wanted) = _threads(settings), _events(settings, watch)
    registry = Registry(found, Surroundings(threads, bus))
    dear = [tool.name for tool in registry.tools.values() if tool.cost > settings.rate_limit_burst]
    if dear and settings.rate_limit_per_minute:
        raise StartError([f"MCP_RATE_LIMIT_BURST: must be at least the cost of {', '.join(sorted(dear))}"])
    store, store_wanted = make_store(settings)
    wanted = [each for one in registry.served for each in one.signature.dependencies.values()]
    dependencies = Dependencies([*credentials.wanted, *store_wanted, *bus_wanted, *wanted])
    drain = Drain(listeners)
    guards: list[Guard] = [
        RequestLog(),
        drain,
        Authorize(is_open=settings.auth_mode == "none" or settings.auth_allow_anonymous),
        RateLimit(store, settings.rate_limit_on_store_error, settings.rate_limit_burst),
        Capacity(settings.max_concurrent_calls, settings.caller_share, is_open=settings.auth_mode == "none"),
        Deadline(settings.tool_timeout_seconds),
    ]
    server = _answer(registry, dependencies, listeners, settings)
    once = Once(store, settings.rate_limit_on_store_error)
    install(server, guards, registry.aim, credentials.local, settings.sealing_keys, once)
    authenticator = credentials.authenticator
    return Application(settings, registry, server, drain, threads, dependencies, store, authenticator, watch)


def _threads(settings: Settings) -> Threads:
    return Threads(settings.max_concurrent_calls, settings.caller_share)


def _events(settings: Settings, watch: Watch) -> tuple[SubscriptionBus, Listeners, list[Depends]]:
    """Who is told of changes, and who listens: in all replicas, where they share a Redis."""
    url = settings.rate_limit_store.get_secret_value()
    if url.startswith("memory:") or settings.transport == "stdio":
        alone = InMemorySubscriptionBus()
        return alone, Listeners(alone, watch, settings.caller_share), []
    from .bus import RedisBus

    bus = RedisBus(url)
    listeners = Listeners(bus, watch, settings.caller_share)
    bus.on_gap = listeners.close
    return bus, listeners, [Depends(bus.open, check=RedisBus.check, optional=True, label="event_bus")]


class _Credentials(NamedTuple):
    """Who checks what comes over HTTP, who calls over stdio, who knows what became of either, and what that depends on."""

    authenticator: Authenticator | None
    local: Callable[[], Principal]
    known_by: Authenticator | None
    wanted: list[Depends]


def _credentials(settings: Settings) -> _Credentials:
    """What is not used is not imported, as it would take its part of the start."""
    keys, wanted = None, []
    if settings.api_keys_file is not None:
        from .auth.api_keys import ApiKeys

        keys = ApiKeys(settings.api_keys_file)
        wanted = [Depends(keys.open, check=ApiKeys.check_file, optional=True, label="api_keys")]
    user = Principal("local", frozenset(settings.local_scopes)) if settings.transport == "stdio" else ANONYMOUS

    def local() -> Principal:
        if keys is None or settings.api_key is None or user is ANONYMOUS:
            return user
        return keys.check(settings.api_key.get_secret_value())  # each time, as keys expire and are withdrawn

    if settings.auth_mode == "jwt" and settings.transport == "http":
        from .auth.jwt import JwtAuthenticator

        tokens = JwtAuthenticator(settings)
        wanted = [*wanted, Depends(tokens.open, check=JwtAuthenticator.check, label="jwt_keys")]
        return _Credentials(tokens, local, tokens, wanted)
    return _Credentials(keys if settings.auth_mode == "api_key" else None, local, keys, wanted)


def _answer(registry: Registry, dependencies: Dependencies, listeners: Listeners, settings: Settings) -> Server[Opened]:
    """The SDK's low-level server: its public handlers, and no validation but ours."""
    largest_result = settings.max_result_bytes

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
        uris = params.notifications.resource_subscriptions or ()
        if len(uris) > MOST_SUBSCRIPTIONS:
            raise InvalidRequest(f"Listen to at most {MOST_SUBSCRIPTIONS} resources at once.", types.INVALID_PARAMS)
        if max(map(len, uris), default=0) > LONGEST_URI:  # nobody looks up which scopes it takes
            text = f"notifications.resourceSubscriptions: a URI is at most {LONGEST_URI} characters long."
            raise InvalidRequest(text, types.INVALID_PARAMS)
        _, needs = registry.aim(ctx.method, ctx.params)
        caller = caller_of(ctx.request.scope, settings) if ctx.request is not None else None  # a pipe has one
        let_go_of_all(ctx, params)
        return await listeners.serve(ctx, params, needs, caller)

    @asynccontextmanager
    async def lifespan(server: Server[Opened]) -> AsyncIterator[Opened]:
        yield dependencies.opened  # opened by `Application.open`, once for both of the SDK's entries and our own

    tools, prompts, resources = registry.tools.values(), registry.prompts.values(), registry.resources.values()
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
        on_list_tools=_list(types.ListToolsResult, "tools", [(each.scopes, each.listed) for each in tools]),
        on_list_prompts=_list(types.ListPromptsResult, "prompts", [(each.scopes, each.listed) for each in prompts]),
        on_list_resources=_list(
            types.ListResourcesResult, "resources", [(each.scopes, each.listed) for each in resources if each.listed]
        ),
        on_list_resource_templates=_list(
            types.ListResourceTemplatesResult,
            "resource_templates",
            [(each.scopes, each.listed_template) for each in resources if each.listed_template],
        ),
    )


def _list(
    result: Callable[..., _ListT], member: str, listed: Sequence[tuple[frozenset[str], Any]]
) -> Callable[[ServerRequestContext[Opened], types.PaginatedRequestParams | None], Awaitable[_ListT]]:
    """What this caller may use, on one page: no cursor was ever given out, so none is valid."""

    async def handle(ctx: ServerRequestContext[Opened], params: types.PaginatedRequestParams | None) -> _ListT:
        if params is not None and params.cursor is not None:
            raise InvalidRequest("This cursor is unknown. Start again without one.", types.INVALID_PARAMS)
        granted = current_principal.get().scopes
        return result(**{member: [each for needed, each in listed if needed <= granted]}, cache_scope="private")

    return handle
