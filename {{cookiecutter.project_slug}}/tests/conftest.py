"""Fixtures: `connect()` for the tests of your tools, raw peers for the tests of the server."""

import os
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Protocol

import httpx2
import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

import {{ cookiecutter.package_name }}
from {{ cookiecutter.package_name }}.auth.api_keys import new_key

from .authorization_server import AuthorizationServer
from .faulty_upstream import FaultyUpstream
from .harness import MODERN, PACKAGE, PATIENCE, SERVE_HTTP, WAYS, Peer, Server, Way, environment

PACKAGE_FOLDER = Path({{ cookiecutter.package_name }}.__file__).parent
ROOT = Path(__file__).parent.parent


def pytest_xdist_auto_num_workers() -> int | None:
    """Two for each core, as the tests mostly wait for processes; pytest-xdist's own variable wins."""
    return None if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ else 2 * (os.cpu_count() or 1)


class Connect(Protocol):
    """`async with connect() as client:` starts the server and connects the SDK's client to it.

    `scopes`: what the client is granted, over stdio as the local user, over HTTP by an API key.
    """

    def __call__(
        self, settings: Mapping[str, str] | None = None, *, scopes: Iterable[str] = ()
    ) -> AbstractAsyncContextManager[Client]: ...


@pytest.fixture(params=WAYS, ids=str)
def way(request: pytest.FixtureRequest) -> Way:
    """Each of the four ways; narrow it with `parametrize("way", STDIO, ids=str)`."""
    found: Way = request.param
    return found


@pytest.fixture(scope="session")
def http_server() -> Iterator[Server]:
    """One HTTP server with the default settings, shared: starting one for each test would take most of the time."""
    with Server(*SERVE_HTTP) as server:
        yield server


@pytest.fixture
def connect(way: Way, request: pytest.FixtureRequest, tmp_path: Path) -> Connect:
    """A factory of connected clients; the test runs once for each of the four ways.

    It is entered inside the test: a client that a fixture has entered fails when it is left, in another task.
    """
    mode = MODERN if way.version == MODERN else "legacy"

    @asynccontextmanager
    async def connected(
        settings: Mapping[str, str] | None = None, *, scopes: Iterable[str] = ()
    ) -> AsyncIterator[Client]:
        if way.transport == "stdio":
            granted = {"MCP_LOCAL_SCOPES": ",".join(scopes), **(settings or {})}
            command = StdioServerParameters(
                command=sys.executable, args=["-m", PACKAGE], env=environment(settings=granted)
            )
            async with Client(command, mode=mode) as client:
                yield client
        elif scopes:
            file = tmp_path / "keys.json"
            headers = {"Authorization": f"Bearer {new_key(file, 'tests', scopes, None)}"}
            granted = {"MCP_AUTH_MODE": "api_key", "MCP_API_KEYS_FILE": str(file), **(settings or {})}
            with Server(*SERVE_HTTP, settings=granted) as guarded:
                async with (
                    httpx2.AsyncClient(headers=headers, timeout=PATIENCE) as http,
                    Client(streamable_http_client(guarded.url, http_client=http), mode=mode) as client,
                ):
                    yield client
        elif settings is None:
            server: Server = request.getfixturevalue("http_server")
            async with Client(server.url, mode=mode) as client:
                yield client
        else:
            with Server(*SERVE_HTTP, settings=settings) as server:
                async with Client(server.url, mode=mode) as client:
                    yield client

    return connected


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source with the tools of `fixtures/` dropped in, as a user would."""
    copy = tmp_path_factory.mktemp("source")
    shutil.copytree(PACKAGE_FOLDER, copy / PACKAGE)
    shutil.copytree(ROOT / "tests" / "fixtures", copy / PACKAGE, dirs_exist_ok=True)
    return copy


Start = Callable[..., Server]


@pytest.fixture
def start(source: Path) -> Iterator[Start]:
    """A factory of server processes that are ended with the test."""
    started: list[Server] = []

    def start_one(*arguments: str, settings: Mapping[str, str] | None = None, source: Path = source) -> Server:
        started.append(Server(*arguments, settings=settings, source=source))
        return started[-1]

    yield start_one
    for server in started:
        server.__exit__()


class StartPeer(Protocol):
    """`start_peer(way, drain_timeout_seconds="0.2")`: a raw peer of a server of its own, with these settings."""

    def __call__(self, way: Way, /, **settings: str) -> Peer: ...


@pytest.fixture
def start_peer(start: Start) -> Iterator[StartPeer]:
    """A factory of peers, each with a server of its own that is ended with the test."""
    made: list[Peer] = []

    def start_one(way: Way, /, **settings: str) -> Peer:
        arguments = SERVE_HTTP if way.transport == "http" else ()
        named = {f"MCP_{name.upper()}": value for name, value in settings.items()}
        made.append(Peer(way, start(*arguments, settings=named)))
        return made[-1]

    yield start_one
    for peer in made:
        if peer.way.transport == "http":
            peer.http.close()


@pytest.fixture
def issuer() -> Iterator[AuthorizationServer]:
    """An authorization server of the test's own."""
    with AuthorizationServer() as server:
        yield server


@pytest.fixture
def upstream() -> Iterator[FaultyUpstream]:
    """A service that the server calls, of the test's own, which fails as it is told to."""
    with FaultyUpstream() as server:
        yield server


@pytest.fixture(scope="session")
def peers(source: Path) -> Iterator[Callable[[Way], Peer]]:
    """One long-lived server for each way, shared by the tests that leave it as it was."""
    made: dict[Way, Peer] = {}
    servers: dict[object, Server] = {}

    def peer(way: Way) -> Peer:
        if way not in made:
            key = "http" if way.transport == "http" else way  # both eras share one HTTP server, as they do in the field
            arguments = SERVE_HTTP if way.transport == "http" else ()
            if key not in servers:
                servers[key] = Server(*arguments, source=source, settings={"MCP_LOG_LEVEL": "DEBUG"})
            made[way] = Peer(way, servers[key])
        return made[way]

    yield peer
    for each in made.values():
        if each.way.transport == "http":
            each.http.close()
    for server in servers.values():
        server.__exit__()


@pytest.fixture
def peer(way: Way, peers: Callable[[Way], Peer]) -> Peer:
    """A raw peer; the test runs once for each of the four ways."""
    return peers(way)
