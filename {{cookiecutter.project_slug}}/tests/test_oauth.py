"""The whole way to a tool, as the SDK's own OAuth client goes it: from a bare address to a call that needs a scope."""

import hashlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from mcp import Client
from mcp.client.auth import OAuthClientProvider
from mcp.client.auth.extensions.client_credentials import ClientCredentialsOAuthProvider
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import AuthorizationCodeResult, OAuthClientInformationFull, OAuthClientMetadata, OAuthToken
from pydantic import AnyUrl

from {{ cookiecutter.package_name }}.auth.principal import Principal

from .authorization_server import AuthorizationServer, base64url
from .conftest import Start
from .harness import HTTP, MODERN, PATIENCE, Json, Server, Way

SCOPES = "probe:more probe:use"  # what the guarded tool needs


@pytest.fixture(params=HTTP, ids=str)
def way(request: pytest.FixtureRequest) -> Way:
    """Each era, over HTTP only."""
    found: Way = request.param
    return found


@pytest.fixture
def server(start: Start, issuer: AuthorizationServer) -> Server:
    """A server that takes this issuer's tokens, and whose own address is their audience."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    settings = {"MCP_JWT_ISSUER": issuer.issuer, "MCP_PUBLIC_URL": f"http://127.0.0.1:{port}/mcp"}
    return start("serve", "--transport", "http", "--port", port, settings={"MCP_AUTH_MODE": "jwt", **settings})


class Memory:
    """What a client keeps, and the browser that it sends its user to. `asked`: what each authorization was asked for."""

    def __init__(self) -> None:
        self.tokens: OAuthToken | None = None
        self.client: OAuthClientInformationFull | None = None
        self.asked: list[dict[str, str]] = []
        self._came_back = ""

    async def get_tokens(self) -> OAuthToken | None:
        return self.tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self.tokens = tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return self.client

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        self.client = client_info

    async def browse(self, url: str) -> None:
        """Go to the address as a browser does, up to the redirect to the client."""
        self.asked.append(query_of(url))
        async with httpx2.AsyncClient(trust_env=False) as browser:
            self._came_back = (await browser.get(url)).headers["location"]

    async def came_back(self) -> AuthorizationCodeResult:
        """What the redirect carried."""
        return AuthorizationCodeResult(**query_of(self._came_back))


def query_of(url: str) -> dict[str, str]:
    """The parameters in an address."""
    return {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}


@asynccontextmanager
async def connected(server: Server, way: Way, provider: httpx2.Auth) -> AsyncIterator[Client]:
    """The SDK's client, which gets its tokens by itself."""
    async with httpx2.AsyncClient(auth=provider, trust_env=False, timeout=PATIENCE) as http:
        transport = streamable_http_client(server.url, http_client=http)
        async with Client(transport, mode=MODERN if way.version == MODERN else "legacy") as client:
            yield client


async def test_client_that_knows_only_the_address(server: Server, way: Way, issuer: AuthorizationServer) -> None:
    """Challenge, metadata, registration, code with PKCE, call; then a call that needs more, and is let through."""
    memory = Memory()
    metadata = OAuthClientMetadata(client_name="test", redirect_uris=[AnyUrl("http://127.0.0.1:9/callback")])
    provider = OAuthClientProvider(server.url, metadata, memory, memory.browse, memory.came_back)
    async with connected(server, way, provider) as client:
        assert (await client.call_tool("probe_reached", {})).structured_content == {"result": 0}
        assert len(memory.asked) == 1
        assert (await client.call_tool("probe_privileged", {})).structured_content == {"result": "done"}
    first, second = memory.asked
    assert first["resource"] == second["resource"] == server.url
    assert not set(SCOPES.split()) <= set(first["scope"].split())
    assert set(SCOPES.split()) <= set(second["scope"].split())
    assert memory.client is not None
    assert memory.client.client_id in issuer.clients
    server.wait_for("request", tool="probe_privileged", outcome="ok")  # lines are gathered for some milliseconds
    outcomes = [event["outcome"] for event in server.log if event["event"] == "request"]
    assert (outcomes.count("unauthenticated"), outcomes.count("forbidden")) == (1, 1)


async def test_client_with_credentials_of_its_own(server: Server, way: Way, issuer: AuthorizationServer) -> None:
    """A machine gets its token without a person, and more with the first call that needs it; the log tells it from others."""
    secret = issuer.clients["machine"] or ""
    provider = ClientCredentialsOAuthProvider(server.url, Memory(), "machine", secret, issuer=issuer.issuer)
    async with connected(server, way, provider) as client:
        await client.list_tools()  # the SDK's client (2.3) looks at one challenge for each request
        assert (await client.call_tool("probe_privileged", {})).structured_content == {"result": "done"}
    line = server.wait_for("request", tool="probe_privileged", outcome="ok")
    assert line["principal"] == Principal("jwt", frozenset(), issuer.issuer, "machine", "machine").name


def test_authorization_server_checks_what_it_is_given(issuer: AuthorizationServer) -> None:
    """A code is good once, for who began, and with the secret behind its challenge: else the tests above say little."""
    client = issuer.register({})["client_id"]
    challenge = base64url(hashlib.sha256(b"verifier").digest())
    asked = {"response_type": "code", "client_id": client, "redirect_uri": "http://127.0.0.1:9/", "resource": "a:b"}
    asked |= {"code_challenge": challenge, "code_challenge_method": "S256"}
    assert issuer.authorize(asked | {"code_challenge_method": "plain"}) is None
    assert issuer.authorize(asked | {"client_id": "nobody"}) is None

    def grant(**more: str) -> Json | None:
        code = query_of(issuer.authorize(asked) or "")["code"]
        given = asked | {"grant_type": "authorization_code", "code": code, "code_verifier": "verifier"} | more
        granted = issuer.grant(given)
        assert issuer.grant(given) is None
        return granted

    assert grant() is not None
    assert grant(code_verifier="guess") is None
    assert grant(resource="a:c") is None
    assert grant(redirect_uri="http://127.0.0.1:9/else") is None
    assert issuer.grant({"grant_type": "client_credentials", "client_id": "machine", "client_secret": "guess"}) is None
