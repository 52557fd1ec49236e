"""A small OAuth 2.1 authorization server for the tests: real, on a free loopback port, and it consents to everything.

It publishes metadata (RFC 8414, OpenID Connect Discovery) and keys (RFC 7517), registers clients (RFC 7591), and issues
tokens for the resource a client names (RFC 8707): for a code with PKCE (RFC 7636), or for a client's own credentials.
"""

import base64
import contextlib
import hashlib
import json
import secrets
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Self
from urllib.parse import parse_qsl, urlencode, urlsplit

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import get_default_algorithms

Json = dict[str, Any]
Fault = Literal["down", "error", "slow", "huge", "redirect"]

_CURVES = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}


def base64url(data: bytes) -> str:
    """RFC 7515, section 2."""
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


@dataclass(frozen=True)
class SigningKey:
    """A key of the issuer, or of somebody else."""

    algorithm: str = "ES256"
    kid: str = field(default_factory=lambda: secrets.token_hex(4))

    @cached_property
    def private(self) -> Any:
        """The key itself."""
        if self.algorithm == "EdDSA":
            return ed25519.Ed25519PrivateKey.generate()
        if self.algorithm in _CURVES:
            return ec.generate_private_key(_CURVES[self.algorithm])
        return rsa.generate_private_key(65537, 2048)

    @property
    def jwk(self) -> Json:
        """Its public half, as it is published."""
        public = get_default_algorithms()[self.algorithm].to_jwk(self.private.public_key(), as_dict=True)
        return public | {"kid": self.kid, "use": "sig", "alg": self.algorithm}

    def sign(self, payload: bytes, headers: Mapping[str, Any] | None = None) -> str:
        """Any payload as a signed token, under any headers; one that is None is left out."""
        header = {"alg": self.algorithm, "kid": self.kid, "typ": "at+jwt", **(headers or {})}
        said = json.dumps({name: value for name, value in header.items() if value is not None})
        signed = f"{base64url(said.encode())}.{base64url(payload)}"
        signature = get_default_algorithms()[self.algorithm].sign(signed.encode(), self.private)
        return f"{signed}.{base64url(signature)}"


class AuthorizationServer:
    """The server, while it is entered.

    `fault`: what it answers to every GET instead. `gate`: while it is closed, GETs wait. `fetched`: how often each path was
    asked for. `keys`: what it publishes; the first one signs. `documents`: what is at other paths, or at that of the keys
    instead. `clients`: id to secret.
    """

    def __init__(self, path: str = "") -> None:
        """`path`: of the issuer, where a host has several."""
        self.fault: Fault | None = None
        self.gate, self.closing = threading.Event(), threading.Event()
        self.gate.set()
        self.fetched: Counter[str] = Counter()
        self.keys = [SigningKey()]
        self.clients: dict[str, str | None] = {"machine": "swordfish"}
        self._codes: dict[str, dict[str, str]] = {}
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,))
        self.issuer = f"http://127.0.0.1:{self._http.server_address[1]}{path}"
        endpoints = {f"{name}_endpoint": f"{self.issuer}/{name}" for name in ("authorization", "token", "registration")}
        self.metadata: Json = endpoints | {
            "issuer": self.issuer,
            "jwks_uri": f"{self.issuer}/jwks",
            "code_challenge_methods_supported": ["S256"],
            "authorization_response_iss_parameter_supported": True,
        }
        self.documents: dict[str, Any] = {f"/.well-known/oauth-authorization-server{path}": self.metadata}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.gate.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    @property
    def jwks_fetches(self) -> int:
        """How often the keys were asked for."""
        return sum(count for path, count in self.fetched.items() if path.endswith("/jwks"))

    def rotate(self, *, keep: bool) -> SigningKey:
        """Sign with a new key from now on, and `keep` the old ones beside it or not."""
        self.keys = [SigningKey(), *(self.keys if keep else [])]
        return self.keys[0]

    def token(self, audience: object, key: SigningKey | None = None, headers: Json | None = None, **claims: Any) -> str:
        """A token, as it should be but for what is given; a claim that is None is left out."""
        now = int(time.time())
        usual = {"iss": self.issuer, "aud": audience, "sub": "user", "client_id": "app", "iat": now, "exp": now + 300}
        said = {name: value for name, value in (usual | claims).items() if value is not None}
        return (key or self.keys[0]).sign(json.dumps(said).encode(), headers)

    def document(self, path: str) -> Any:
        """What is published at this path; None: nothing."""
        published = {"keys": [key.jwk for key in self.keys]} if path.endswith("/jwks") else None
        return self.documents.get(path, published)

    def register(self, asked: Json) -> Json:
        """A public client (RFC 7591), as a program on a person's machine keeps no secret."""
        client = secrets.token_hex(4)
        self.clients[client] = None
        return asked | {"client_id": client, "token_endpoint_auth_method": "none"}

    def authorize(self, asked: dict[str, str]) -> str | None:
        """Where the browser goes with its code (RFC 6749, section 4.1.2; RFC 9207); None is a refusal."""
        right = {"response_type": "code", "code_challenge_method": "S256"}
        if asked.get("client_id") not in self.clients or not right.items() <= asked.items():
            return None
        code = secrets.token_urlsafe()
        self._codes[code] = asked
        return (
            f"{asked['redirect_uri']}?{urlencode({'code': code, 'state': asked.get('state', ''), 'iss': self.issuer})}"
        )

    def grant(self, asked: dict[str, str]) -> Json | None:
        """A token (RFC 6749, section 5.1); None is a refusal."""
        client, kind, subject = asked.get("client_id", ""), asked.get("grant_type"), "user"
        if client not in self.clients or self.clients[client] != asked.get("client_secret"):
            return None
        if kind == "authorization_code":
            begun = self._codes.pop(asked.get("code", ""), {})
            answer = base64url(hashlib.sha256(asked.get("code_verifier", "").encode()).digest())
            same = all(begun.get(name) == asked.get(name) for name in ("client_id", "redirect_uri", "resource"))
            if not begun or not same or begun["code_challenge"] != answer:
                return None
            asked = begun
        elif kind == "client_credentials" and self.clients[client] is not None:
            subject = client
        else:
            return None
        scope = asked.get("scope", "")
        token = self.token(asked["resource"], sub=subject, client_id=client, scope=scope)
        return {"access_token": token, "token_type": "Bearer", "expires_in": 300, "scope": scope}


def _handler(server: AuthorizationServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = urlsplit(self.path)
            server.fetched[found.path] += 1
            server.gate.wait()
            document = server.document(found.path)
            if found.path.endswith("/authorization"):
                address = server.authorize(dict(parse_qsl(found.query)))
                self.answer(302 if address else 400, {}, address)
            elif server.fault == "redirect" and found.query != "again":
                self.answer(302, {}, f"{self.path}?again")
            elif server.fault in ("slow", "huge"):
                self.drag_on(document, at_once=server.fault == "huge")
            elif server.fault != "down":
                self.answer(500 if server.fault else 404 if document is None else 200, document)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.path.endswith("/registration"):
                return self.answer(201, server.register(json.loads(body)))
            asked = dict(parse_qsl(body.decode()))
            if basic := self.headers.get("authorization", "").removeprefix("Basic "):
                asked["client_id"], _, asked["client_secret"] = base64.b64decode(basic).decode().partition(":")
            granted = server.grant(asked)
            return self.answer(200 if granted else 400, granted or {"error": "invalid_grant"})

        def answer(self, status: int, document: Any, location: str | None = None) -> None:
            self.send_response(status)
            if location is not None:
                self.send_header("Location", location)
            self.end_headers()
            self.wfile.write(json.dumps(document).encode())

        def drag_on(self, document: Any, *, at_once: bool) -> None:
            """A right answer behind white space: eight megabytes of it, or a byte every now and then."""
            with contextlib.suppress(OSError):  # the other side has had enough
                self.send_response(200)
                self.end_headers()
                for _ in range(128):
                    self.wfile.write(b" " * (65536 if at_once else 1))
                    if not at_once and server.closing.wait(0.1):
                        return
                self.wfile.write(json.dumps(document).encode())

        def log_message(self, format: str, *args: object) -> None:
            """Nothing on stderr."""

    return Handler
