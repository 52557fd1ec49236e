"""The issuer's keys: where they come from, which are used, and when they are fetched."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from {{ cookiecutter.package_name }}.auth.credentials import Rejected
from {{ cookiecutter.package_name }}.auth.jwt import JwtAuthenticator
from {{ cookiecutter.package_name }}.auth.principal import Principal
from {{ cookiecutter.package_name }}.errors import StartError, Unavailable
from {{ cookiecutter.package_name }}.settings import load_settings

from .authorization_server import AuthorizationServer, Fault, SigningKey, base64url
from .harness import Json

AUDIENCE = "https://tools.example.com/mcp"
STRANGER = SigningKey(kid="stranger")


class Clock:
    """A time that the test moves."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def opened(
    issuer: AuthorizationServer, clock: Callable[[], float] = time.monotonic, jwks_url: str | None = None
) -> AsyncIterator[JwtAuthenticator]:
    """An authenticator for this issuer's tokens."""
    named = {"jwt_issuer": issuer.issuer, "jwt_audience": AUDIENCE, "jwt_jwks_url": jwks_url}
    settings = load_settings({"auth_mode": "jwt", **named})
    async with JwtAuthenticator(settings, clock).open(settings) as authenticator:
        yield authenticator


async def reason_of(authenticator: JwtAuthenticator, token: str) -> str:
    """Why a token is refused."""
    with pytest.raises(Rejected) as refused:
        await authenticator.authenticate(token)
    return refused.value.reason


# Where keys come from


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("", "/.well-known/oauth-authorization-server"),
        ("", "/.well-known/openid-configuration"),
        ("/tenant", "/.well-known/oauth-authorization-server/tenant"),
        ("/tenant", "/.well-known/openid-configuration/tenant"),
        ("/tenant", "/tenant/.well-known/openid-configuration"),
    ],
)
async def test_discovery(path: str, place: str) -> None:
    """The keys are found from the issuer, at each of the places where its metadata may be."""
    with AuthorizationServer(path) as issuer:
        issuer.documents = {place: issuer.metadata | {"jwks_uri": f"{issuer.issuer}/jwks?of=all"}}
        async with opened(issuer) as authenticator:
            assert await authenticator.authenticate(issuer.token(AUDIENCE))
            assert issuer.fetched[place] == 1


async def test_address_of_the_keys(issuer: AuthorizationServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is set nothing is discovered; what is on this machine is asked without a proxy."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    async with opened(issuer, jwks_url=f"{issuer.issuer}/jwks") as authenticator:
        assert await authenticator.authenticate(issuer.token(AUDIENCE))
    assert dict(issuer.fetched) == {"/jwks": 1}


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        ({"issuer": "https://else.example.com"}, "metadata of another issuer"),
        ({"issuer": None}, "metadata of another issuer"),
        ({"jwks_uri": "http://keys.example.com/jwks"}, "jwks_uri is neither https nor on this machine"),
        ({"jwks_uri": "http://127.0.0.1@keys.example.com/"}, "jwks_uri is neither https nor on this machine"),
        ({"jwks_uri": "file:///etc/passwd"}, "jwks_uri is neither https nor on this machine"),
        ({"jwks_uri": ["a"]}, "jwks_uri is neither https nor on this machine"),
    ],
)
async def test_metadata_that_is_not_followed(issuer: AuthorizationServer, metadata: Json, problem: str) -> None:
    """It must be the issuer's own, and lead to where nobody else can answer."""
    wrong = issuer.metadata | metadata
    issuer.documents = {"/.well-known/openid-configuration": wrong}
    assert await problem_of(issuer) == problem
    assert issuer.jwks_fetches == 0


async def problem_of(issuer: AuthorizationServer, jwks_url: str | None = None) -> str:
    """Why no keys could be loaded."""
    with capture_logs() as log:
        async with opened(issuer, jwks_url=jwks_url) as authenticator:
            with pytest.raises(Unavailable, match="Retry after 2 s"):
                await authenticator.check()
            with pytest.raises(Unavailable):
                await authenticator.authenticate(issuer.token(AUDIENCE))
    (event,) = [event for event in log if event["event"] == "jwks_unavailable"]
    problem: str = event["problem"]
    return problem


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ("down", "RemoteProtocolError"),
        ("error", "status 500"),
        ("redirect", "status 302"),
        ("huge", "too large"),
        ("slow", "TimeoutError"),
    ],
)
async def test_keys_that_cannot_be_fetched(issuer: AuthorizationServer, fault: Fault, problem: str) -> None:
    """The server waits five seconds, reads 256 KiB, and follows no redirect."""
    issuer.fault = fault
    began = time.monotonic()
    assert await problem_of(issuer, jwks_url=f"{issuer.issuer}/jwks") == problem
    assert time.monotonic() - began < 8


UNUSABLE: dict[str, Callable[[], Any]] = {
    "symmetric": lambda: {"kty": "oct", "k": "c2VjcmV0", "alg": "HS256"},
    "for encryption": lambda: SigningKey().jwk | {"use": "enc"},
    "of another algorithm": lambda: SigningKey().jwk | {"alg": "ES384"},
    "of an algorithm for encryption": lambda: SigningKey("RS256").jwk | {"alg": "RSA-OAEP"},
    "weak": lambda: {"kty": "RSA", "n": base64url(b"\xff" * 128), "e": "AQAB"},
    "private": lambda: SigningKey().jwk | {"d": SigningKey().jwk["x"]},
    "with a number as id": lambda: SigningKey().jwk | {"kid": 1},
    "not on its curve": lambda: SigningKey().jwk | {"x": "A" * 43},
    "of unknown type": lambda: {"kty": "XYZ"},
    "no object": lambda: "key",
    "odd": lambda: {"kty": ["EC"], "alg": {}, "crv": [], "x": 1},
    "with a list of algorithms": lambda: SigningKey().jwk | {"alg": ["ES256"]},
    "for signing": lambda: SigningKey().jwk | {"key_ops": ["sign"]},
    "with a number of operations": lambda: SigningKey().jwk | {"key_ops": 1},
    "with an object as use": lambda: SigningKey().jwk | {"use": {}},
    "of an unknown curve": lambda: {"kty": "OKP", "crv": "X25519", "x": "A" * 43, "alg": "Ed25519"},
    "without its coordinates": lambda: {"kty": "EC", "crv": "P-256"},
    "null": lambda: None,
}


@pytest.mark.parametrize("kind", UNUSABLE)
async def test_keys_that_are_not_used(issuer: AuthorizationServer, kind: str) -> None:
    """Each is left out; alone it makes a document without keys, beside a good one it does no harm."""
    bad = UNUSABLE[kind]()
    issuer.documents["/jwks"] = {"keys": [bad]}
    assert await problem_of(issuer) == "no key to use"
    issuer.documents["/jwks"] = {"keys": [bad, issuer.keys[0].jwk]}
    async with opened(issuer) as authenticator:
        assert await authenticator.authenticate(issuer.token(AUDIENCE))


async def test_key_that_says_little(issuer: AuthorizationServer) -> None:
    """Its type is enough, without an id, a use or an algorithm; a token that names an id is not for it."""
    issuer.documents["/jwks"] = {"keys": [{name: issuer.keys[0].jwk[name] for name in ("kty", "crv", "x", "y")}]}
    async with opened(issuer) as authenticator:
        assert await authenticator.authenticate(issuer.token(AUDIENCE, headers={"kid": None}))
        assert await reason_of(authenticator, issuer.token(AUDIENCE)) == "unknown key"


@pytest.mark.parametrize("document", [{"keys": "x"}, {"keys": {}}, {"key": []}, ["keys"]], ids=str)
async def test_document_that_is_no_key_set(issuer: AuthorizationServer, document: Any) -> None:
    """It is no document."""
    issuer.documents["/jwks"] = document
    assert await problem_of(issuer) in ("no JWK set", "no JSON object")


async def test_only_so_many_keys(issuer: AuthorizationServer) -> None:
    """A hundred that are of use are kept, and that there are more is logged, once."""
    clock, key = Clock(), issuer.keys[0]
    good = [key.jwk | {"kid": f"{number}"} for number in range(99)]
    issuer.documents["/jwks"] = {"keys": [{"kty": "XYZ"}] * 300 + good + [key.jwk, STRANGER.jwk]}
    with capture_logs() as log:
        async with opened(issuer, clock) as authenticator:
            for _ in range(2):
                assert await authenticator.authenticate(issuer.token(AUDIENCE))
                assert await reason_of(authenticator, issuer.token(AUDIENCE, STRANGER)) == "unknown key"
                clock.now += 3600
    assert [event["event"] for event in log] == ["jwks_cut", "jwks_loaded"]


async def test_keys_that_stand_twice(issuer: AuthorizationServer) -> None:
    """The same one counts once; of two with one id either may have signed."""
    key = issuer.keys[0]
    issuer.documents["/jwks"] = {"keys": [STRANGER.jwk | {"kid": key.kid}, key.jwk, key.jwk, key.jwk | {"alg": None}]}
    async with opened(issuer) as authenticator:
        assert await authenticator.authenticate(issuer.token(AUDIENCE))
        other = SigningKey(kid=key.kid)
        assert await reason_of(authenticator, issuer.token(AUDIENCE, other)) == "bad signature"
        assert await reason_of(authenticator, issuer.token(AUDIENCE, exp=1)) == "expired"


# When they are fetched


async def test_callers_share_a_fetch(issuer: AuthorizationServer) -> None:
    """One fetch serves all who wait for it, also when the first of them leaves."""
    issuer.gate.clear()
    async with opened(issuer) as authenticator:
        waiting = [asyncio.create_task(authenticator.authenticate(issuer.token(AUDIENCE))) for _ in range(20)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        issuer.gate.set()
        found = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(found[0], asyncio.CancelledError)
    assert {type(each) for each in found[1:]} == {Principal}
    assert issuer.jwks_fetches == 1


async def test_stop_does_not_wait_for_a_fetch(issuer: AuthorizationServer) -> None:
    """A fetch that hangs ends with the server."""
    issuer.gate.clear()
    began = time.monotonic()
    async with opened(issuer):
        await asyncio.sleep(0)
    assert time.monotonic() - began < 2


async def test_old_keys_are_replaced_behind_the_scenes(issuer: AuthorizationServer) -> None:
    """After an hour a caller is served with what is there, and the next one with what has come."""
    clock = Clock()
    async with opened(issuer, clock) as authenticator:
        token = issuer.token(AUDIENCE)
        assert await authenticator.authenticate(token)
        issuer.rotate(keep=False)
        clock.now += 3599
        assert await authenticator.authenticate(token)
        assert issuer.jwks_fetches == 1
        clock.now += 1
        issuer.gate.clear()
        assert await authenticator.authenticate(token)
        issuer.gate.set()
        assert await authenticator.authenticate(issuer.token(AUDIENCE))
        assert await reason_of(authenticator, token) == "unknown key"
    assert issuer.jwks_fetches == 3  # the last token names a key that is not known any more


@pytest.mark.parametrize("fault", ["down", "error"])
async def test_good_keys_stay(issuer: AuthorizationServer, fault: Fault) -> None:
    """Neither a failed fetch nor a document without keys takes them away; what changes is logged, and no more."""
    clock = Clock()
    with capture_logs() as log:
        async with opened(issuer, clock) as authenticator:
            token = issuer.token(AUDIENCE)
            assert await authenticator.authenticate(token)
            issuer.fault = fault
            for _ in range(3):
                clock.now += 3600
                assert await reason_of(authenticator, issuer.token(AUDIENCE, STRANGER)) == "unknown key"
            issuer.fault, issuer.documents["/jwks"] = None, {"keys": []}
            clock.now += 3600
            assert await reason_of(authenticator, issuer.token(AUDIENCE, STRANGER)) == "unknown key"
            assert await authenticator.authenticate(token)
            del issuer.documents["/jwks"]
            for seconds in (10, 3600):
                clock.now += seconds
                assert await reason_of(authenticator, issuer.token(AUDIENCE, STRANGER)) == "unknown key"
                assert await authenticator.authenticate(token)
    assert [event["event"] for event in log] == ["jwks_loaded", "jwks_unavailable", "jwks_loaded"]


async def test_unknown_keys_are_asked_for_now_and_then(issuer: AuthorizationServer) -> None:
    """Once in ten seconds, however many tokens name them."""
    clock = Clock()
    async with opened(issuer, clock) as authenticator:
        await authenticator.check()
        for seconds, fetches in [(0, 2), (9, 2), (1, 3), (0, 3)]:
            clock.now += seconds
            refused = [reason_of(authenticator, issuer.token(AUDIENCE, SigningKey())) for _ in range(5)]
            assert set(await asyncio.gather(*refused)) == {"unknown key"}
            assert issuer.jwks_fetches == fetches
        token = issuer.token(AUDIENCE, issuer.rotate(keep=True))
        assert await reason_of(authenticator, token) == "unknown key"
        clock.now += 10
        assert await authenticator.authenticate(token)


async def test_issuer_that_comes_late(issuer: AuthorizationServer) -> None:
    """Without any key a fetch is tried again after two seconds, and not before."""
    clock = Clock()
    issuer.fault = "error"
    url = f"{issuer.issuer}/jwks"
    with capture_logs() as log:
        async with opened(issuer, clock, jwks_url=url) as authenticator:
            for seconds, fetches in [(0, 1), (1.9, 1), (0.1, 2)]:
                clock.now += seconds
                with pytest.raises(Unavailable):
                    await authenticator.authenticate(issuer.token(AUDIENCE))
                assert issuer.jwks_fetches == fetches
            issuer.fault = None
            clock.now += 2
            await authenticator.check()
            assert await authenticator.authenticate(issuer.token(AUDIENCE))
    assert log == [
        {"event": "jwks_unavailable", "log_level": "error", "url": url, "problem": "status 500", "kept": 0},
        {"event": "jwks_loaded", "log_level": "info", "url": url, "keys": 1},
    ]


@pytest.mark.parametrize(
    "url",
    [
        *("http://keys.example.com/jwks", "https://u:p@keys.example.com/", "file:///jwks", "x"),
        *('https://keys.example.com/"', "https://k\u00e9ys.example.com/", "https://keys.example.com/<x>"),
    ],
)
@pytest.mark.parametrize("setting", ["jwt_jwks_url", "jwt_issuer"])
def test_addresses_that_are_not_safe(setting: str, url: str) -> None:
    """They are refused at the start: whoever sits between could answer with a key of their own."""
    with pytest.raises(StartError, match=f"MCP_{setting.upper()}"):
        load_settings({"auth_mode": "jwt", "jwt_issuer": "https://issuer.example.com", setting: url})
