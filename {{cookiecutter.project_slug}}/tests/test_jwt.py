"""Access tokens: who is let in, who is not, and what the refused are told, with a real authorization server."""

import base64
import hashlib
import hmac
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from cryptography.hazmat.primitives import serialization

from {{ cookiecutter.package_name }} import NAME
from {{ cookiecutter.package_name }}.auth.credentials import Rejected
from {{ cookiecutter.package_name }}.auth.jwt import JwtAuthenticator
from {{ cookiecutter.package_name }}.auth.principal import Principal
from {{ cookiecutter.package_name }}.settings import load_settings

from .authorization_server import AuthorizationServer, SigningKey, base64url
from .conftest import StartPeer
from .harness import HTTP, SERVE_HTTP, Json, Peer, Server, Way, until
from .test_auth import what_reading_takes
from .test_listen import events

AUDIENCE = "https://tools.example.com/mcp"
SCOPES = "probe:use probe:more"  # what the guarded tool needs
STRANGER = SigningKey(kid="stranger")
NOW, LATER = int(time.time()), 4102444800  # the year 2100


def trusting(issuer: AuthorizationServer) -> dict[str, str]:
    """The settings of a server that takes its tokens."""
    return {
        "auth_mode": "jwt",
        "jwt_issuer": issuer.issuer,
        "jwt_audience": AUDIENCE,
        "auth_failures_per_minute": "1000",
        "log_level": "DEBUG",
    }


@pytest.fixture
async def authenticator(issuer: AuthorizationServer) -> AsyncIterator[JwtAuthenticator]:
    """What tells who holds this issuer's tokens."""
    settings = load_settings(trusting(issuer))
    async with JwtAuthenticator(settings).open(settings) as found:
        yield found


async def reason_of(authenticator: JwtAuthenticator, token: str) -> str:
    """Why a token is refused."""
    with pytest.raises(Rejected) as refused:
        await authenticator.authenticate(token)
    return refused.value.reason


# What a token says


@pytest.mark.parametrize(
    ("claims", "client", "subject", "scopes"),
    [
        ({"scope": "a b"}, "app", "user", {"a", "b"}),
        ({"scope": None}, "app", "user", set()),
        ({"scope": "", "scp": "c"}, "app", "user", set()),
        ({"scp": "a  b "}, "app", "user", {"a", "b"}),
        ({"scp": ["a", "b"]}, "app", "user", {"a", "b"}),
        ({"client_id": None, "azp": "other"}, "other", "user", set()),
        ({"client_id": None}, None, "user", set()),
        ({"sub": None}, "app", None, set()),
        ({"aud": ["https://else.example.com", AUDIENCE]}, "app", "user", set()),
        ({"exp": LATER + 0.5, "nbf": 0, "iat": 0.5}, "app", "user", set()),
    ],
)
async def test_token_names_a_principal(
    authenticator: JwtAuthenticator,
    issuer: AuthorizationServer,
    claims: Json,
    client: str | None,
    subject: str | None,
    scopes: set[str],
) -> None:
    """Issuer, client, subject and scopes, as issuers in the field write them."""
    found = await authenticator.authenticate(issuer.token(AUDIENCE, **claims))
    assert found == Principal("jwt", frozenset(scopes), issuer.issuer, client, subject)


@pytest.mark.parametrize("algorithm", ["RS256", "PS384", "ES256", "ES384", "ES512", "EdDSA"])
async def test_signatures(authenticator: JwtAuthenticator, issuer: AuthorizationServer, algorithm: str) -> None:
    """All asymmetric kinds are served, with the key's own algorithm and no other."""
    key = SigningKey(algorithm)
    issuer.keys = [key, *issuer.keys]
    assert (await authenticator.authenticate(issuer.token(AUDIENCE))).subject == "user"
    header = {"kid": key.kid, "alg": "RS512" if algorithm != "RS512" else "RS256"}
    assert await reason_of(authenticator, forged(header, issuer, b"x")) == "algorithm"


@pytest.mark.parametrize("typ", ["at+jwt", "application/at+JWT", "JWT", None])
async def test_types_of_tokens(authenticator: JwtAuthenticator, issuer: AuthorizationServer, typ: str | None) -> None:
    """The header may say that it is an access token, in any case, or nothing."""
    assert await authenticator.authenticate(issuer.token(AUDIENCE, headers={"typ": typ}))


@pytest.mark.parametrize("published", ["EdDSA", "Ed25519", None])
@pytest.mark.parametrize("written", ["EdDSA", "Ed25519"])
async def test_two_names_of_one_algorithm(issuer: AuthorizationServer, published: str | None, written: str) -> None:
    """The curve's old name and that of RFC 9864 mean the same, in a key and in a token."""
    key = SigningKey("EdDSA")
    issuer.keys = [key]
    issuer.documents["/jwks"] = {"keys": [{k: v for k, v in (key.jwk | {"alg": published}).items() if v is not None}]}
    settings = load_settings(trusting(issuer))
    async with JwtAuthenticator(settings).open(settings) as authenticator:
        assert await authenticator.authenticate(issuer.token(AUDIENCE, headers={"alg": written}))


async def test_token_with_150_groups(authenticator: JwtAuthenticator, issuer: AuthorizationServer) -> None:
    """As issuers in the field make them, with names of groups for people: it fits."""
    token = issuer.token(
        AUDIENCE,
        groups=[f"CN=group {number:03},OU=teams,OU=Europe,DC=corp,DC=example,DC=com" * 2 for number in range(150)],
    )
    assert 20_000 < len(token) < 32_768
    assert (await authenticator.authenticate(token)).subject == "user"


@pytest.mark.parametrize(
    ("named", "taken", "refused"),
    [
        (
            "https://x.example",
            ["https://x.example", "https://x.example/"],
            ["https://x.example//", "https://x.example/mcp"],
        ),
        (
            "https://x.example/",
            ["https://x.example", "https://x.example/"],
            ["http://x.example/", "https://x.example:8443"],
        ),
        (
            "https://X.Example:443/mcp",
            ["https://X.Example:443/mcp", "https://x.example/mcp"],
            ["https://x.example/mcp/"],
        ),
        ("https://x.example/mcp/", ["https://x.example/mcp/"], ["https://x.example/mcp", "https://x.example"]),
        ("tools", ["tools"], ["tools/", "Tools"]),
    ],
)
async def test_spellings_of_an_audience(
    issuer: AuthorizationServer, named: str, taken: list[str], refused: list[str]
) -> None:
    """What equals the address (RFC 3986, section 6.2) is the address, as clients write it; nothing else is."""
    settings = load_settings(trusting(issuer) | {"jwt_audience": named})
    async with JwtAuthenticator(settings).open(settings) as authenticator:
        for audience in taken:
            assert await authenticator.authenticate(issuer.token(audience))
        for audience in refused:
            assert await reason_of(authenticator, issuer.token(audience)) == "wrong audience"


async def test_token_without_a_key_id(authenticator: JwtAuthenticator, issuer: AuthorizationServer) -> None:
    """It is accepted if one key only can have signed it."""
    token = issuer.token(AUDIENCE, headers={"kid": None})
    assert await authenticator.authenticate(token)
    assert await authenticator.authenticate(issuer.token(AUDIENCE, issuer.rotate(keep=True)))
    assert await reason_of(authenticator, token) == "ambiguous key"


@pytest.mark.parametrize(
    "claims",
    [
        {"sub": 7},
        {"sub": ""},
        {"sub": "a\0b"},
        {"sub": "\ud800"},
        {"client_id": ["app"]},
        {"sub": None, "client_id": None},
        {"scope": {"a": 1}},
        {"scope": 1},
        {"scope": "a \ud800"},
        {"scp": ["a", 1]},
        {"scp": ["a", None]},
        {"exp": "soon"},
        {"exp": str(LATER)},
        {"exp": True},
        {"exp": float("nan")},
        {"exp": float("inf")},
        {"exp": [LATER]},
        {"nbf": "now"},
        {"iat": {}},
        {"jti": 1},
        {"aud": {AUDIENCE: 1}},
        {"aud": [AUDIENCE, 1]},
        {"aud": []},
    ],
    ids=str,
)
async def test_claims_of_the_wrong_kind(
    authenticator: JwtAuthenticator, issuer: AuthorizationServer, claims: Json
) -> None:
    """They are refused, although the issuer has signed them, and nothing breaks."""
    assert await reason_of(authenticator, issuer.token(AUDIENCE, **claims))


@pytest.mark.parametrize(
    "payload",
    [b"", b"null", b"[]", b"[" * 4000, b'{"exp":' + b"9" * 5000 + b"}", b"\xff\xfe", b"{" * 9],
    ids=lambda payload: repr(payload[:9]),
)
async def test_payload_that_is_no_object(
    authenticator: JwtAuthenticator, issuer: AuthorizationServer, payload: bytes
) -> None:
    """It is refused, although the issuer has signed it."""
    assert await reason_of(authenticator, issuer.keys[0].sign(payload)) == "malformed"


@pytest.mark.parametrize(
    "token",
    [
        *("", ".", "..", "a.b.c", "a.b.c.d.e", "\ud800.a.b", "é.a.b", "=.=.=", "bnVsbA.e30.", "W10.e30.", "\0" * 99),
        f"{base64url(b'[' * 4000)}.e30.",
    ],
    ids=lambda token: repr(token[:9]),
)
async def test_what_is_no_token(authenticator: JwtAuthenticator, issuer: AuthorizationServer, token: str) -> None:
    """It is refused before a key is looked for."""
    assert await reason_of(authenticator, token) == "malformed"


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"kid": 1}, "malformed"),
        ({"kid": ["a"]}, "malformed"),
        ({"typ": 1}, "type"),
        ({"typ": ["JWT"]}, "type"),
        ({"alg": ["ES256"]}, "algorithm"),
        ({"alg": {}}, "algorithm"),
        ({"crit": "exp"}, "malformed"),
        ({"crit": []}, "malformed"),
        ({"padding": "x" * 16384}, "malformed"),
        ({"padding": "x" * 32768}, "too long"),
    ],
)
async def test_header_of_the_wrong_kind(
    authenticator: JwtAuthenticator, issuer: AuthorizationServer, header: Json, reason: str
) -> None:
    """It is refused, although the issuer has signed it, and nothing breaks."""
    assert await reason_of(authenticator, issuer.token(AUDIENCE, headers=header)) == reason


# Over HTTP


@pytest.fixture(params=HTTP, ids=str)
def way(request: pytest.FixtureRequest) -> Way:
    """Each era, over HTTP only."""
    found: Way = request.param
    return found


Guarded = tuple[AuthorizationServer, dict[Way, Peer]]


@pytest.fixture(scope="module")
def guarded(source: Path) -> Iterator[Guarded]:
    """An issuer, and a server that takes its tokens, shared by the tests that leave both as they were."""
    with AuthorizationServer() as issuer:
        settings = {f"MCP_{name.upper()}": value for name, value in trusting(issuer).items()}
        server = Server(*SERVE_HTTP, source=source, settings=settings)
        peers = {way: Peer(way, server) for way in HTTP}
        yield issuer, peers
        for peer in peers.values():
            peer.http.close()
        server.__exit__()


def call(peer: Peer, token: str, tool: str = "probe_privileged") -> httpx2.Response:
    """The answer to a call with this token."""
    message = peer.message("tools/call", {"name": tool, "arguments": {}})
    return peer.post(message, {"Authorization": f"Bearer {token}"})


def forged(header: Json, issuer: AuthorizationServer, secret: bytes | None) -> str:
    """A token with any header and good claims, signed with HMAC or not at all."""
    claims = issuer.token(AUDIENCE, scope=SCOPES).split(".")[1]
    signed = f"{base64url(json.dumps(header).encode())}.{claims}"
    return f"{signed}.{base64url(hmac.digest(secret, signed.encode(), hashlib.sha256)) if secret else ''}"


def public_pem(key: SigningKey) -> bytes:
    """What everybody can know of a key."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    pem: bytes = key.private.public_key().public_bytes(serialization.Encoding.PEM, form)
    return pem


def tampered(token: str) -> str:
    """A token whose claims were changed after it was signed."""
    header, claims, signature = token.split(".")
    more = json.loads(base64.urlsafe_b64decode(claims + "==")) | {"sub": "root"}
    return f"{header}.{base64url(json.dumps(more).encode())}.{signature}"


Mint = Callable[[AuthorizationServer], str]


def minted(*, key: SigningKey | None = None, headers: Json | None = None, **claims: Any) -> Mint:
    """A token of the issuer with something wrong in it, and the scopes that are needed."""
    return lambda issuer: issuer.token(
        **{"audience": AUDIENCE, "key": key, "headers": headers, "scope": SCOPES} | claims
    )


def posing(key: SigningKey, **headers: Any) -> Mint:
    """A token that somebody else has signed, with the id of the issuer's key."""
    return lambda issuer: minted(key=replace(key, kid=issuer.keys[0].kid), headers=headers)(issuer)


ATTACKS: dict[str, tuple[str, Mint]] = {
    "no signature": ("algorithm", lambda i: forged({"alg": "none", "kid": i.keys[0].kid}, i, None)),
    "no signature, in other letters": ("algorithm", lambda i: forged({"alg": "nOnE", "kid": i.keys[0].kid}, i, None)),
    "public key as secret": (
        "algorithm",
        lambda i: forged({"alg": "HS256", "kid": i.keys[0].kid}, i, public_pem(i.keys[0])),
    ),
    "secret of no key": ("algorithm", lambda i: forged({"alg": "HS256", "kid": "none"}, i, b"\0")),
    "no algorithm": ("algorithm", lambda i: forged({"kid": i.keys[0].kid}, i, None)),
    "algorithm of another key": ("algorithm", posing(SigningKey("RS256"))),
    "key of a stranger": ("bad signature", posing(SigningKey())),
    "key in the header": ("bad signature", posing(STRANGER, jwk=STRANGER.jwk)),
    "address of keys in the header": ("bad signature", posing(STRANGER, jku="http://127.0.0.1:9/jwks")),
    "id of no key": ("unknown key", minted(key=STRANGER)),
    "changed claims": ("bad signature", lambda i: tampered(minted()(i))),
    "wrong audience": ("wrong audience", minted(aud="https://else.example.com/mcp")),
    "audience that begins the same": ("wrong audience", minted(aud=f"{AUDIENCE}/other")),
    "audiences without ours": ("wrong audience", minted(aud=["https://else.example.com", "https://tools.example.com"])),
    "no audience": ("missing claim", minted(aud=None)),
    "wrong issuer": ("wrong issuer", minted(iss="https://else.example.com")),
    "issuer with a slash": ("wrong issuer", lambda i: minted(iss=f"{i.issuer}/")(i)),
    "no issuer": ("missing claim", minted(iss=None)),
    "expired": ("expired", minted(exp=NOW - 10)),
    "no expiry": ("missing claim", minted(exp=None)),
    "not yet valid": ("not yet valid", minted(nbf=NOW + 3600)),
    "issued in the future": ("not yet valid", minted(iat=NOW + 3600)),
    "critical header": ("malformed", minted(headers={"crit": ["exp"], "exp": 1})),
    "critical header that PyJWT knows": ("malformed", minted(headers={"crit": ["b64"], "b64": True})),
    "not an access token": ("type", minted(headers={"typ": "dpop+jwt"})),
    "longer than any token": ("too long", minted(padding="x" * 32768)),
    "no token": ("malformed", lambda _: "eyJhbGciOiJFUzI1NiJ9"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_attack(guarded: Guarded, way: Way, attack: str) -> None:
    """It is answered with 401 and a challenge, logged with its reason and no more, and the tool is not reached."""
    issuer, peer = guarded[0], guarded[1][way]
    reason, mint = ATTACKS[attack]
    token, good = mint(issuer), issuer.token(AUDIENCE)
    reached = call(peer, good, "probe_reached").json()["result"]["structuredContent"]
    answer = call(peer, token)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["data"]["code"]) == (401, 401, "unauthenticated")
    challenge = answer.headers["www-authenticate"]
    assert challenge.startswith("Bearer ")
    assert 'error="invalid_token"' in challenge
    assert "/.well-known/oauth-protected-resource" in challenge
    line = peer.logged(error["data"]["request_id"])
    assert (line["outcome"], line["principal"], line["reason"]) == ("unauthenticated", "anonymous", reason)
    assert call(peer, good, "probe_reached").json()["result"]["structuredContent"] == reached
    shown = answer.text + challenge + b"".join(peer.server.stderr).decode()
    assert not [part for part in token.split(".") if len(part) > 16 and part in shown]


def test_metadata_of_the_resource(guarded: Guarded) -> None:
    """Where a challenge says, for whoever asks: the resource, its issuer, and the scopes to begin with (RFC 9728)."""
    issuer, peer = guarded[0], guarded[1][HTTP[0]]
    found = re.search('resource_metadata="([^"]+)"', call(peer, "none").headers["www-authenticate"])
    assert found is not None
    answer = peer.http.get(found[1])
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json() == {
        "resource": peer.url,
        "authorization_servers": [issuer.issuer],
        "bearer_methods_supported": ["header"],
        "resource_name": NAME,
        "scopes_supported": what_reading_takes().split(),
    }


def test_token_that_is_good(guarded: Guarded, way: Way) -> None:
    """It is let in, until a little after it has expired, and a scope that it lacks is named."""
    issuer, peer = guarded[0], guarded[1][way]
    for claims in ({}, {"aud": ["https://else.example.com", AUDIENCE]}, {"exp": int(time.time()) - 2}):
        answer = call(peer, issuer.token(AUDIENCE, scope=SCOPES, **claims))
        assert answer.json()["result"]["structuredContent"] == {"result": "done"}
    lacking = call(peer, issuer.token(AUDIENCE, scope="probe:use"))
    assert lacking.status_code == 403
    assert 'error="insufficient_scope", ' in lacking.headers["www-authenticate"]
    assert 'scope="probe:more probe:use"' in lacking.headers["www-authenticate"]


def test_token_of_a_megabyte(guarded: Guarded, way: Way) -> None:
    """It is refused in JSON before it is all read."""
    answer = call(guarded[1][way], "x" * 1_000_000)
    assert (answer.status_code, answer.json()["error"]["data"]["code"]) == (431, "invalid_request")


def test_listener_whose_token_ends(start_peer: StartPeer, issuer: AuthorizationServer) -> None:
    """Its stream ends with its result: at the token's `exp`, and when its key has left the issuer's document."""
    peer = start_peer(HTTP[0], **trusting(issuer))
    message = peer.message("subscriptions/listen", {"notifications": {"resourceSubscriptions": ["probe://secret"]}})

    def listen(end: Callable[[], object], **claims: Any) -> str:
        token = issuer.token(AUDIENCE, scope=SCOPES, **claims)
        headers = peer.headers(message) | {"Authorization": f"Bearer {token}"}
        with peer.http.stream("POST", peer.url, json=message, headers=headers) as response:
            stream = events(response)
            next(stream)
            end()
            (last,) = stream
        assert (last["id"], last["result"]["resultType"]) == (message["id"], "complete")
        return token

    listen(lambda: None, exp=int(time.time()) + 2)

    def replace_the_key() -> None:
        issuer.rotate(keep=False)
        assert call(peer, issuer.token(AUDIENCE, scope=SCOPES)).status_code == 200  # a key that is not known is fetched

    token = listen(replace_the_key)
    assert peer.post(message, {"Authorization": f"Bearer {token}"}).status_code == 401


def test_issuer_that_is_down(start_peer: StartPeer, way: Way, issuer: AuthorizationServer) -> None:
    """At the start: nobody is let in, and the server is not ready until it has keys. Later: it goes on with them."""
    issuer.fault = "down"
    peer = start_peer(way, **trusting(issuer))
    ready, token = peer.url.replace("/mcp", "/readyz"), issuer.token(AUDIENCE, scope=SCOPES)
    answer = call(peer, token)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    assert answer.json()["error"]["data"]["code"] == "unavailable"
    assert answer.json()["error"]["data"]["retry_after_ms"] == 2000
    assert peer.http.get(ready).json()["checks"]["jwt_keys"] == "failed"
    assert peer.http.get(ready).status_code == 503
    issuer.fault = None
    until(lambda: peer.http.get(ready).status_code == 200)
    assert call(peer, token).json()["result"]["structuredContent"] == {"result": "done"}
    issuer.fault = "down"
    assert call(peer, issuer.token(AUDIENCE, STRANGER)).status_code == 401
    assert call(peer, token).status_code == 200
    assert peer.http.get(ready).status_code == 200


def test_flood_and_rotation(start_peer: StartPeer, way: Way, issuer: AuthorizationServer) -> None:
    """Fifty tokens with unknown keys are worth one fetch, in which a key that is new comes, and one that is gone goes."""
    peer = start_peer(way, **trusting(issuer))
    old = issuer.token(AUDIENCE, scope=SCOPES)
    assert call(peer, old).status_code == 200
    new = issuer.token(AUDIENCE, issuer.rotate(keep=False), scope=SCOPES)
    tokens = [issuer.token(AUDIENCE, replace(STRANGER, kid=f"{number}")) for number in range(50)]
    with ThreadPoolExecutor(10) as pool:
        assert {answer.status_code for answer in pool.map(lambda token: call(peer, token), tokens)} == {401}
    assert call(peer, new).status_code == 200
    assert call(peer, old).status_code == 401
    assert issuer.jwks_fetches == 2
