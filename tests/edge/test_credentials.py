"""Credentials at the edge: who is asked for one, how long that takes, what the answer tells, and who is held up by whom.

A shared address (a proxy that nobody has named) must not lock out who is known; a body must not be waited for, and a tool
not be told of, before its sender is; what proxies, issuers and clients write in several ways must be read in all of them.
"""

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from bootstrap import free_port
from installed import Installed
from raw import HELLO, LEGACY, MODERN, SERVE_HTTP, Connection, Json, Response, Server, headers_of, message, post
from rendering import render

pytestmark = [pytest.mark.install, pytest.mark.timeout(300)]

ERAS = [MODERN, LEGACY]
FIRST = "datasheets:check lasting:read"  # what reading takes, in the worked example and in `fixtures/`
UNNAMED = "proxy_not_named"

MINT = """
import base64, json, sys, time
import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from jwt.algorithms import ECAlgorithm, OKPAlgorithm

def text(data):
    return base64.urlsafe_b64encode(data).decode().rstrip("=")

issuer, audience = sys.argv[1:]
good, other, stranger = (ed25519.Ed25519PrivateKey.generate() for _ in range(3))
odd = ec.generate_private_key(ec.SECP256R1())
jwk = json.loads(OKPAlgorithm.to_jwk(good.public_key()))
usable = json.loads(ECAlgorithm.to_jwk(odd.public_key()))

def token(key=good, kid="good", alg="Ed25519", **more):
    said = {"iss": issuer, "aud": audience, "sub": "user", "client_id": "app", "exp": int(time.time()) + 3600} | more
    parts = [text(json.dumps(each).encode()) for each in ({"alg": alg, "kid": kid, "typ": "at+jwt"}, said)]
    return ".".join([*parts, text(key.sign(".".join(parts).encode()))])

big = token(groups=["CN=group %03d,OU=teams,OU=Europe,DC=corp,DC=example,DC=com" % n for n in range(380)])
keys = [
    *({"kty": "XYZ"}, {"kty": "AKP", "alg": "ML-DSA-44", "pub": "A" * 1000}, {"kty": "RSA"}, {}, [], None, 1, "key"),
    *({"kty": "OKP", "crv": "Ed448", "x": "A" * 76, "alg": "Ed448"}, {"kty": "OKP", "crv": "Ed25519", "x": 7}),
    *(usable | {"kid": "k" * 10240}, usable | {"use": {}}, usable | {"alg": ["ES256"]}, usable | {"key_ops": 1}),
    *(usable | {"kid": 1}, usable | {"kid": None}, usable | {"d": "AQAB"}, {"kty": "oct", "k": "AAAA", "kid": "good"}),
    *(json.loads(OKPAlgorithm.to_jwk(other.public_key())) | {"kid": "good"}, jwk | {"kid": "good", "alg": "Ed25519"}),
    jwk | {"kid": "good", "alg": "EdDSA", "use": "sig", "key_ops": ["verify"]},
]
print(json.dumps({
    "keys": keys, "good": token(), "old name": token(alg="EdDSA"), "another": token(jti="2"), "big": big,
    "slash": token(aud=audience + "/"), "wrong": token(stranger), "unknown": token(kid="none"),
    "expired": token(exp=1), "other audience": token(aud=audience + "/mcp"),
    "garbage": token().rpartition(".")[0].partition(".")[0] + "." + "A" * 32000 + "." + "A" * 86,
}))
"""


class Issuer(NamedTuple):
    """Where it is, and tokens of it by what is right or wrong with them."""

    url: str
    tokens: dict[str, str]
    documents: dict[str, Any]

    def settings(self, **more: str) -> dict[str, str]:
        """Those of a server that takes its tokens."""
        named = {"transport": "http", "auth_mode": "jwt", "jwt_issuer": self.url, "public_url": AUDIENCE} | more
        return {f"MCP_{name.upper()}": value for name, value in named.items()}


AUDIENCE = "https://x.example"


@pytest.fixture(scope="module")
def issuer(installed: Installed) -> Iterator[Issuer]:
    """A metadata document and a set of keys, most of them odd, on a loopback port."""
    documents: dict[str, Any] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(documents.get(self.path)).encode()
            self.send_response(200 if self.path in documents else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing on stderr."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        python = installed.command.parent / "python"
        made = json.loads(subprocess.check_output([python, "-c", MINT, url, AUDIENCE], text=True))
        documents["/jwks"] = {"keys": made.pop("keys")}
        documents["/.well-known/oauth-authorization-server"] = {"issuer": url, "jwks_uri": f"{url}/jwks"}
        yield Issuer(url, made, documents)
        server.shutdown()
        thread.join()


class Keys(NamedTuple):
    """A file of API keys, and keys of it by their names."""

    file: Path
    of: dict[str, str]

    def settings(self, **more: str) -> dict[str, str]:
        """Those of a server that takes them."""
        named = {"auth_mode": "api_key", "api_keys_file": str(self.file)} | more
        return {f"MCP_{name.upper()}": value for name, value in named.items()}


@pytest.fixture(scope="module")
def keys(installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> Keys:
    """One key that may order, and two that may nothing in particular."""
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    made = {
        name: installed.new_key(file, *scopes) for name, scopes in {"may": ["orders:write"], "a": [], "b": []}.items()
    }
    return Keys(file, made | {"wrong": made["a"][:-1] + ("x" if made["a"][-1] != "x" else "y")})


@pytest.fixture(scope="module")
def serve(installed: Installed) -> Iterator[Callable[[Mapping[str, str]], Server]]:
    """A factory of servers that are ended with the module; the same settings are the same server."""
    with ExitStack() as stack:
        made: dict[str, Server] = {}

        def one(settings: Mapping[str, str]) -> Server:
            name = json.dumps(dict(settings))
            if name not in made:
                made[name] = stack.enter_context(Server([installed.command, *SERVE_HTTP], settings))
            return made[name]

        yield one


def ask(server: Server, body: Json | bytes, era: str = MODERN, **headers: str) -> Response:
    """The answer to one message on a connection of its own; `Content_Type` is written as `Content-Type`."""
    sent = headers_of(body if isinstance(body, dict) and "method" in body else LISTING, era)
    with Connection(server.port) as connection:
        return connection.ask(post(sent | {name.replace("_", "-"): value for name, value in headers.items()}, body))


LISTING = message(MODERN, 1, "tools/list")


def bearer(credential: str) -> dict[str, str]:
    """The header that carries it."""
    return {"Authorization": f"Bearer {credential}"}


def error_of(answer: Response) -> Json:
    """The error in it."""
    found: Json = answer.messages[0]["error"]
    return found


def challenge(answer: Response) -> dict[str, str]:
    """What `WWW-Authenticate` says."""
    return dict(re.findall(r'(\w+)="([^"]*)"', answer.headers["www-authenticate"]))


# Who is held up by whom


@pytest.mark.parametrize("mode", ["api_key", "jwt"])
@pytest.mark.parametrize("era", ERAS)
def test_flood_from_a_shared_address(
    serve: Callable[[Mapping[str, str]], Server], keys: Keys, issuer: Issuer, mode: str, era: str
) -> None:
    """Who was let in a short while ago is let in all along; who was not yet, and who guesses, waits."""
    most = 20 + ERAS.index(era)  # a server for each case: what it remembers stays with it
    if mode == "jwt":
        server = serve(issuer.settings(auth_failures_per_minute=str(most)))
        known, late, bad = (issuer.tokens[name] for name in ("good", "another", "wrong"))
    else:
        server = serve(keys.settings(auth_failures_per_minute=str(most)))
        known, late, bad = (keys.of[name] for name in ("a", "b", "wrong"))
    listing = message(era, 1, "tools/list")
    assert ask(server, listing, era, **bearer(known)).status == 200
    statuses = [
        ask(server, listing, era, **bearer(bad), **{"X-Forwarded-For": "192.0.2.1"}).status for _ in range(most + 9)
    ]
    assert statuses[:most] == [401] * most
    assert 429 in statuses
    while ask(server, listing, era, **bearer(bad)).status != 429:
        pass
    refused = ask(server, listing, era, **bearer(late))
    assert (refused.status, refused.messages[0]["id"], error_of(refused)["data"]["code"]) == (429, None, "rate_limited")
    assert [ask(server, listing, era, **bearer(known)).status for _ in range(5)] == [200] * 5
    assert ask(server, listing, era).status == 401
    assert len([each for each in server.events() if each["event"] == UNNAMED]) == 1


def test_what_was_withdrawn_is_remembered_no_more(installed: Installed, tmp_path: Path) -> None:
    """A removed key is refused, and then waits like any other that is not known."""
    file = tmp_path / "keys.json"
    key, stays = installed.new_key(file), installed.new_key(file)
    settings = Keys(file, {}).settings(auth_failures_per_minute="3", log_level="INFO")
    with Server([installed.command, *SERVE_HTTP], settings) as server:
        assert [ask(server, LISTING, **bearer(each)).status for each in (key, stays)] == [200, 200]
        kept = json.loads(file.read_text(encoding="utf-8"))
        kept["keys"] = kept["keys"][1:]
        file.write_text(json.dumps(kept), encoding="utf-8")
        while ask(server, LISTING, **bearer(key)).status == 200:  # the file is looked at once a second
            pass
        statuses = [ask(server, LISTING, **bearer(key)).status for _ in range(5)]
        assert statuses[-1] == 429
        assert ask(server, LISTING, **bearer(stays)).status == 200


# What is told to whom, and when


def asked_of(era: str) -> dict[str, Json | bytes]:
    """Messages for what is there, what is not, and what is none."""
    call = {"name": "place_order", "arguments": {"sku": "ABC-1234", "quantity": 1, "idempotency_key": "12345678"}}
    asked: dict[str, Json | bytes] = {
        "a tool with scopes": message(era, 1, "tools/call", call),
        "a tool without": message(era, 2, "tools/call", {"name": "get_part", "arguments": {"sku": "ABC-1234"}}),
        "no tool": message(era, "3", "tools/call", {"name": "no_such_tool", "arguments": {}}),
        "a prompt": message(era, 4, "prompts/get", {"name": "reorder", "arguments": {}}),
        "no resource": message(era, 5, "resources/read", {"uri": "no://where"}),
        "no method": message(era, 6, "no/such"),
        "initialize": message(era, 7, "initialize", HELLO),
        "a notification": {"jsonrpc": "2.0", "method": "tools/call", "params": call},
        "a response": {"jsonrpc": "2.0", "id": 8, "result": {}},
        "no JSON": b"{",
        "no message": b"[]",
        "nothing": b"",
    }
    return asked


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("mode", ["stateless", "stateful"])
@pytest.mark.parametrize("credential", [None, "Bearer {wrong}", "Basic {may}", "Bearer", ""])
def test_all_is_refused_alike(
    serve: Callable[[Mapping[str, str]], Server], keys: Keys, era: str, mode: str, credential: str | None
) -> None:
    """Status, headers and body are the same, whatever is asked for, and name no scope of a tool that changes something."""
    server = serve(keys.settings(auth_failures_per_minute="100000", http_sessions=mode))
    sent = {} if credential is None else {"Authorization": credential.format(**keys.of)}
    told = set()
    for body in asked_of(era).values():
        answer = ask(server, body, era, **sent)
        shown = answer.messages[0]
        request_id = shown["error"]["data"].pop("request_id")
        assert server.wait_for("request", request_id=request_id, outcome="unauthenticated")[0]["tool"] is None
        headers = {name: value for name, value in answer.headers.items() if name != "date"}
        told.add(json.dumps([answer.status, headers, shown]))
    (only,) = told
    status, headers, shown = json.loads(only)
    assert (status, shown["id"], shown["error"]["code"]) == (401, None, 401)
    assert challenge(Response(status, headers, b""))["scope"] == FIRST
    assert "orders" not in only


@pytest.mark.parametrize("era", ERAS)
def test_who_is_known_is_told_all_that_is_needed(
    serve: Callable[[Mapping[str, str]], Server], keys: Keys, era: str
) -> None:
    """In the 403, with the request's id and its line in the log."""
    server = serve(keys.settings(auth_failures_per_minute="100000", http_sessions="stateless"))
    answer = ask(server, asked_of(era)["a tool with scopes"], era, **bearer(keys.of["a"]))
    assert (answer.status, answer.messages[0]["id"]) == (403, 1)
    assert challenge(answer)["scope"] == "orders:write"
    (line,) = server.wait_for("request", request_id=error_of(answer)["data"]["request_id"])
    assert (line["tool"], line["outcome"]) == ("place_order", "forbidden")


@pytest.mark.parametrize("era", ERAS)
def test_callers_without_a_credential_where_they_may_come_in(
    serve: Callable[[Mapping[str, str]], Server], keys: Keys, era: str
) -> None:
    """What needs none is served; for the rest the body tells that one is needed, and the answer still names no more."""
    server = serve(keys.settings(auth_failures_per_minute="100000", auth_allow_anonymous="true"))
    asked = asked_of(era)
    answer = ask(server, asked["a tool with scopes"], era)
    assert (answer.status, answer.messages[0]["id"], challenge(answer)["scope"]) == (401, 1, FIRST)
    assert ask(server, asked["a tool without"], era).status == 200
    assert ask(server, asked["a tool without"], era, **bearer(keys.of["wrong"])).messages[0]["id"] is None


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("length", ["Content-Length: 900000", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize(
    ("credential", "status"), [(None, 401), ("Bearer {wrong}", 401), ("Bearer\t{may}", 401), ("Bearer {b}", 429)]
)
def test_body_is_not_waited_for(
    serve: Callable[[Mapping[str, str]], Server], keys: Keys, era: str, length: str, credential: str | None, status: int
) -> None:
    """Where the headers decide the answer is complete before a byte of the body has come."""
    server = serve(
        keys.settings(auth_failures_per_minute="1" if status == 429 else "100000", http_sessions="stateless")
    )
    if status == 429:
        while ask(server, LISTING, **bearer("wrong")).status != 429:
            pass
    sent = headers_of(LISTING, era) | ({"Authorization": credential.format(**keys.of)} if credential else {})
    head = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
    with Connection(server.port) as connection:
        connection.send(f"POST /mcp HTTP/1.1\r\n{head}{length}\r\n\r\n".encode())
        answer = connection.receive()
        assert answer is not None
        assert (answer.status, answer.messages[0]["id"]) == (status, None)


# Other ways to write a credential


SPELT: dict[str, tuple[int, str | None]] = {
    "Authorization: Bearer {a}": (200, None),
    "authorization:bEaReR   {a}  ": (200, None),
    "Authorization: Bearer Bearer {a}": (401, "malformed header"),
    "Authorization: Bearer\t{a}": (401, "malformed header"),
    "Authorization: Bearer  ": (401, "malformed header"),
    "Authorization:": (401, "malformed header"),
    "Authorization: {a}": (401, "malformed header"),
    "Authorization: Bearer={a}": (401, "malformed header"),
    "Authorization: Bearer {a},": (401, "unknown key"),
    "Authorization: Bearer {a}\xa0": (401, "unknown key"),
    "Authorization: Bearer \xe9\xff\x80": (401, "unknown key"),
    "Authorization: Bearer %6dcp": (401, "unknown key"),
    "Proxy-Authorization: Bearer {a}": (401, None),
    "Authorization: Bearer {a}\r\nAuthorization: Bearer {a}": (400, None),
    "Authorization: Bearer {a}\r\nAUTHORIZATION:": (400, None),
    "Authorization: Bearer {long}": (401, "unknown key"),
    "Authorization: Bearer {longer}": (401, "too long"),
}


@pytest.mark.parametrize("line", SPELT)
def test_spellings_of_a_credential(serve: Callable[[Mapping[str, str]], Server], keys: Keys, line: str) -> None:
    """One is taken in the form that RFC 6750 gives it; in any other it is refused, with a reason in the log."""
    server = serve(keys.settings(auth_failures_per_minute="100000", http_sessions="stateless"))
    status, reason = SPELT[line]
    written = line.format(**keys.of, long="x" * 32768, longer="x" * 32769)
    body = json.dumps(LISTING).encode()
    head = "".join(f"{name}: {value}\r\n" for name, value in headers_of(LISTING, MODERN).items())
    request = f"POST /mcp HTTP/1.1\r\n{head}{written}\r\nContent-Length: {len(body)}\r\n\r\n".encode("latin-1")
    with Connection(server.port) as connection:
        answer = connection.ask(request + body)
    assert answer.status == status
    if reason is not None:
        server.wait_for("request", request_id=error_of(answer)["data"]["request_id"], reason=reason)


# Tokens


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize(
    ("token", "reason"),
    [
        *((name, None) for name in ("good", "old name", "big", "slash")),
        *(("wrong", "bad signature"), ("unknown", "unknown key"), ("expired", "expired"), ("garbage", "bad signature")),
        ("other audience", "wrong audience"),
    ],
)
def test_tokens_of_an_odd_issuer(
    serve: Callable[[Mapping[str, str]], Server], issuer: Issuer, era: str, token: str, reason: str | None
) -> None:
    """Beside a dozen odd keys the good ones serve; both names of Ed25519, 30 kB, and both spellings of an address."""
    server = serve(issuer.settings(auth_failures_per_minute="100000"))
    credential = issuer.tokens[token]
    assert len(credential) > 30_000 or token not in ("big", "garbage")
    answer = ask(server, message(era, 1, "tools/list"), era, **bearer(credential))
    assert answer.status == (200 if reason is None else 401)
    if reason is not None:
        server.wait_for("request", request_id=error_of(answer)["data"]["request_id"], reason=reason)
        assert challenge(answer)["resource_metadata"] == f"{AUDIENCE}/.well-known/oauth-protected-resource"


def test_long_token_comes_through_the_balancer(
    serve: Callable[[Mapping[str, str]], Server], issuer: Issuer, tmp_path: Path
) -> None:
    """What compose.yaml puts before the server lets the longest credential through, with what else a head holds."""
    program = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
    if program is None:
        pytest.skip("haproxy is not on PATH; `apt-get install haproxy` installs it")
    server = serve(issuer.settings(auth_failures_per_minute="100000"))
    compose = yaml.safe_load((render(tmp_path / "project") / "compose.yaml").read_text(encoding="utf-8"))
    port = free_port()
    text = compose["services"]["balancer"]["environment"]["CONFIGURATION"].replace(":8000\n", f"127.0.0.1:{port}\n", 1)
    text = re.sub(r"server-template .*", f"server one 127.0.0.1:{server.port} no-check", text)
    (tmp_path / "haproxy.cfg").write_text(text, encoding="ascii")
    with subprocess.Popen(
        [program, "-db", "-f", tmp_path / "haproxy.cfg"], stderr=subprocess.PIPE, text=True
    ) as balancer:
        try:
            assert balancer.stderr is not None
            while True:
                try:
                    connection = Connection(port)
                    break
                except ConnectionRefusedError:
                    assert balancer.poll() is None, balancer.stderr.read()
            with connection:
                more = {"X-Padding": "x" * 8000} | bearer(issuer.tokens["big"])
                assert connection.ask(post(headers_of(LISTING, MODERN) | more, LISTING)).status == 200
        finally:
            balancer.kill()


# What proxies say, and what depends on it


SCHEMES: dict[tuple[str, ...], str] = {
    (): "http",
    ("X-Forwarded-Proto: https",): "https",
    ("X-Forwarded-Proto: https, http",): "https",
    ("X-Forwarded-Proto: https,http,http",): "https",
    ("X-Forwarded-Proto: http, https",): "http",
    ("X-Forwarded-Proto: HTTPS",): "https",
    ("x-forwarded-proto:  https\t, http",): "https",
    ("X-Forwarded-Proto: https", "X-Forwarded-Proto: http"): "https",
    ("X-Forwarded-Proto: wss",): "https",
    ("X-Forwarded-Proto: ws",): "http",
    ("X-Forwarded-Proto: javascript",): "http",
    ("X-Forwarded-Proto: ",): "http",
    ("X-Forwarded-Proto: , https",): "http",
    ('X-Forwarded-Proto: https"',): "http",
    ("X-Forwarded-Proto: \xff\x80",): "http",
    ("X-Forwarded-Protocol: https", "X-Forwarded-Ssl: on", "Forwarded: proto=https", "X-Url-Scheme: https"): "http",
}


@pytest.mark.parametrize("trusted", ["127.0.0.1", "none"])
@pytest.mark.parametrize("lines", SCHEMES)
def test_scheme_that_proxies_report(
    serve: Callable[[Mapping[str, str]], Server], issuer: Issuer, lines: tuple[str, ...], trusted: str
) -> None:
    """The outermost proxy's is the one that clients use; nobody else is believed, and nothing but HTTP and HTTPS."""
    server = serve(
        issuer.settings(public_url="", jwt_audience="x", trusted_proxies=trusted, auth_failures_per_minute="1000")
    )
    scheme = SCHEMES[lines] if trusted != "none" else "http"
    more = "".join(f"{line}\r\n" for line in lines)
    host = f"127.0.0.1:{server.port}"
    with Connection(server.port) as connection:
        found = connection.ask(
            f"GET /.well-known/oauth-protected-resource/mcp HTTP/1.1\r\nHost: {host}\r\n{more}\r\n".encode("latin-1")
        )
        assert found.messages[0]["resource"] == f"{scheme}://{host}/mcp"
        head = "".join(f"{name}: {value}\r\n" for name, value in (headers_of(LISTING, MODERN) | {"Host": host}).items())
        body = json.dumps(LISTING).encode()
        request = f"POST /mcp HTTP/1.1\r\n{head}{more}Content-Length: {len(body)}\r\n\r\n".encode("latin-1")
        answer = connection.ask(request + body)
    metadata = f"{scheme}://{host}/.well-known/oauth-protected-resource/mcp"
    assert challenge(answer)["resource_metadata"] == metadata


ADDRESSES: dict[tuple[str, ...], str] = {
    ("192.0.2.1",): "192.0.2.1",
    ("6.6.6.6, 192.0.2.1",): "192.0.2.1",
    ("192.0.2.1, 127.0.0.1",): "192.0.2.1",
    ("6.6.6.6", "192.0.2.1"): "192.0.2.1",
    ("192.0.2.1:443",): "192.0.2.1",
    ("[2001:DB8::1]:443",): "2001:db8::1",
    ("2001:db8:0::1",): "2001:db8::1",
    ("::ffff:192.0.2.1",): "192.0.2.1",
    ("unknown",): "127.0.0.1",
    ("192.0.2.1, unknown",): "127.0.0.1",
    ("192.0.2.1, ",): "127.0.0.1",
    ("\x85\x9b31mred, 127.0.0.1",): "127.0.0.1",
    ("fe80::1%x y",): "127.0.0.1",
    ("x" * 50_000,): "127.0.0.1",
    ("192.0.2.1," + "127.0.0.1," * 4_000 + "127.0.0.1",): "127.0.0.1",
}


@pytest.mark.parametrize("values", ADDRESSES, ids=lambda values: values[0][:20])
def test_address_that_proxies_report(
    serve: Callable[[Mapping[str, str]], Server], issuer: Issuer, values: tuple[str, ...]
) -> None:
    """It is an address, in one spelling, or that of the proxy: limits and the log go by it."""
    server = serve(
        issuer.settings(public_url="", jwt_audience="x", trusted_proxies="127.0.0.1", auth_failures_per_minute="1000")
    )
    body = json.dumps(LISTING).encode()
    lines = [f"{name}: {value}" for name, value in headers_of(LISTING, MODERN).items()]
    lines += [f"X-Forwarded-For: {value}" for value in values]
    head = "\r\n".join(["POST /mcp HTTP/1.1", *lines, f"Content-Length: {len(body)}", "", ""])
    with Connection(server.port) as connection:
        answer = connection.ask(head.encode("latin-1") + body)
    assert answer.status == 401
    (line,) = server.wait_for("request", request_id=error_of(answer)["data"]["request_id"])
    assert line["client"] == ADDRESSES[values]


@pytest.mark.parametrize(
    ("public_url", "path"),
    [
        ("https://x.example", ""),
        ("https://x.example/", ""),
        ("https://x.example/mcp", "/mcp"),
        ("https://x.example/a/mcp/", "/a/mcp/"),
    ],
)
def test_metadata_of_the_resource(
    serve: Callable[[Mapping[str, str]], Server], issuer: Issuer, public_url: str, path: str
) -> None:
    """It is where the challenge says, without the slash that only ends a host (RFC 9728, 3.1), for allowed Hosts."""
    server = serve(issuer.settings(public_url=public_url, allowed_hosts="x.example", auth_failures_per_minute="1000"))
    well_known = "/.well-known/oauth-protected-resource"
    told = challenge(ask(server, LISTING, Host="x.example"))["resource_metadata"]
    assert told == f"https://x.example{well_known}{path}"
    with Connection(server.port) as connection:

        def status(method: str, path: str, host: str = "x.example") -> int:
            connection.send(f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            answer = connection.receive(method)
            assert answer is not None
            if (answer.status, method) == (200, "GET"):
                assert answer.messages[0]["resource"] == public_url
            return answer.status

        places = [well_known, f"{well_known}/mcp", well_known + path]
        assert {status(method, place) for place in places for method in ("GET", "HEAD")} == {200}
        assert {status(method, well_known) for method in ("OPTIONS", "POST", "PUT")} == {405}
        assert {status("GET", well_known, host) for host in ("y.example", "x.example.evil", "x.example:", ":80")} == {
            421
        }
