"""Who may call over HTTP: every refusal in each revision, what lists show, guessing, and callers side by side."""

import copy
import json
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Self

import httpx2
import pytest

from {{ cookiecutter.package_name }} import NAME
from {{ cookiecutter.package_name }}.auth.api_keys import new_key
from {{ cookiecutter.package_name }}.auth.principal import ANONYMOUS, Principal
from {{ cookiecutter.package_name }}.auth.remembered import Remembered
from {{ cookiecutter.package_name }}.calls import Call
from {{ cookiecutter.package_name }}.errors import Unauthenticated
from {{ cookiecutter.package_name }}.guards.authorize import Authorize

from .conftest import Start
from .harness import HTTP, LEGACY, PATIENCE, SERVE_HTTP, STDIO, Json, Peer, Server, Way, answer_of
from .test_contract import registry
from .test_http import raw, request

SCOPES = {"both": ["probe:use", "probe:more"], "one": ["probe:use"], "none": []}
NEEDED = "probe:more probe:use"  # what `caller_acts` takes
HELLO = {"protocolVersion": LEGACY, "capabilities": {}, "clientInfo": {"name": "raw", "version": "0"}}


@dataclass(frozen=True)
class Keys:
    """A file of keys, and one key of each kind: by the scopes it grants, or by what is wrong with it."""

    file: Path
    of: Mapping[str, str]

    def settings(self, **more: str) -> dict[str, str]:
        """What a server that asks for them is started with; it logs all it can."""
        asked = {"auth_mode": "api_key", "api_keys_file": str(self.file), "log_level": "DEBUG"}
        return {f"MCP_{name.upper()}": value for name, value in (asked | more).items()}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    """Shared, as nothing changes the file; all are of one name, which says nothing of who calls."""
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    made = {kind: new_key(file, "ada", scopes, None) for kind, scopes in SCOPES.items()}
    made["expired"] = new_key(file, "ada", SCOPES["both"], 1e-9)
    made["wrong"] = made["both"][:-1] + ("x" if made["both"][-1] != "x" else "y")
    made["unknown"] = made["both"].replace(id_of(made["both"]), "0" * 12)
    return Keys(file, made)


def id_of(key: str) -> str:
    """The part of a key that is no secret."""
    return key.split("_")[1]


def bearer(credential: str) -> dict[str, str]:
    """The header that carries it."""
    return {"Authorization": f"Bearer {credential}"}


class Door(Peer):
    """A way to a server that asks for keys. `sent`: headers of every request, as those of a session that "both" opened."""

    def __init__(self, way: Way, server: Server, keys: Keys, *, has_session: bool) -> None:
        super().__init__(way, server)
        self.keys = keys
        self.sent: dict[str, str] = {}
        if has_session:
            self.sent = self.session(bearer(keys.of["both"]))

    def session(self, credential: Mapping[str, str]) -> dict[str, str]:
        """The header of a new session."""
        opened = super().post(self.message("initialize", HELLO), credential)
        session = {"Mcp-Session-Id": opened.headers["mcp-session-id"]}
        begun = super().post({"jsonrpc": "2.0", "method": "notifications/initialized"}, {**credential, **session})
        assert begun.status_code == 202
        return session

    def holding(self, key: str) -> Self:
        """The same way, with a key; in a session of that key's own."""
        other = copy.copy(self)
        credential = bearer(self.keys.of[key])
        if self.sent and key != "both":
            other.sent = self.session(credential)
        other.sent = other.sent | credential
        return other

    def post(self, body: Json | bytes, headers: Mapping[str, str] | None = None) -> httpx2.Response:
        """As every peer's, with what is always sent."""
        return super().post(body, self.sent | dict(headers or {}))

    def acts(self) -> Json:
        """The message that calls the privileged tool."""
        return self.message("tools/call", {"name": "caller_acts", "arguments": {}})

    def count(self) -> object:
        """How often that tool has run."""
        return self.holding("both").call("caller_count")["result"]["structuredContent"]["result"]


KINDS = {"modern": (HTTP[0], "stateless"), "legacy": (HTTP[1], "stateless"), "session": (HTTP[1], "stateful")}


@pytest.fixture(scope="module")
def doors(source: Path, keys: Keys) -> Iterator[Callable[[str], Door]]:
    """Long-lived servers, with and without sessions."""
    servers: dict[str, Server] = {}
    made: dict[str, Door] = {}

    def door(kind: str) -> Door:
        way, sessions = KINDS[kind]
        if sessions not in servers:
            more = keys.settings(http_sessions=sessions, auth_failures_per_minute="100000")
            servers[sessions] = Server(*SERVE_HTTP, source=source, settings=more)
        if kind not in made:
            made[kind] = Door(way, servers[sessions], keys, has_session=kind == "session")
        return made[kind]

    yield door
    for each in made.values():
        each.http.close()
    for server in servers.values():
        server.__exit__()


@pytest.fixture(params=KINDS)
def door(request: pytest.FixtureRequest, doors: Callable[[str], Door]) -> Door:
    """Each way in: 2026-07-28, and the handshake revisions with and without sessions."""
    return doors(request.param)


def challenge(answer: httpx2.Response) -> dict[str, str]:
    """The parts of the one challenge in `WWW-Authenticate`."""
    scheme, _, rest = answer.headers["www-authenticate"].partition(" ")
    assert scheme == "Bearer"
    parts = re.findall(r'(\w+)="([^"]*)"', rest)
    assert rest == ", ".join(f'{name}="{value}"' for name, value in parts)
    return dict(parts)


def what_reading_takes() -> str:
    """The scopes that are named to whoever asks for nothing in particular: the fixtures' and yours."""
    own = [each.scopes for each in registry().served if each.read_only]
    return " ".join(sorted({"probe:use"}.union(*own)))


def assert_refused(door: Door, answer: httpx2.Response, status: int, error: str | None, scope: str | None) -> Json:
    """The refusal is complete, on the wire and in the log, which shows no key; returns the log's line."""
    assert answer.status_code == status
    shown = answer.json()["error"]
    code = {401: "unauthenticated", 403: "forbidden"}[status]
    assert (shown["code"], shown["data"]["code"], shown["data"]["message"]) == (status, code, shown["message"])
    said = {"realm": NAME, "error": error, "error_description": shown["message"] if error else None, "scope": scope}
    assert challenge(answer) == {name: value for name, value in said.items() if value}
    line = door.logged(shown["data"]["request_id"])
    assert (line["outcome"], line["client"], line["level"]) == (code, "127.0.0.1", "warning")
    assert_no_key(door, answer)
    return line


def assert_no_key(door: Door, answer: httpx2.Response) -> None:
    """Neither the answer nor the whole log gives one away, not in part either."""
    told = b"".join(door.server.stderr).decode() + str(answer.headers) + answer.text
    assert not [kind for kind, key in door.keys.of.items() if key[-12:] in told]


MALFORMED = (401, "invalid_token", "malformed header")
REFUSED: dict[str, tuple[str | None, int, str | None, str | None]] = {
    "nothing": (None, 401, None, None),
    "no scheme": ("{both}", *MALFORMED),
    "no key": ("Bearer", *MALFORMED),
    "another scheme": ("Basic {both}", *MALFORMED),
    "two keys": ("Bearer {both} {both}", *MALFORMED),
    "a list": ("Bearer {both}, Bearer {one}", *MALFORMED),
    "a tab": ("Bearer\t{both}", *MALFORMED),
    "quotes": ('Bearer "{both}"', 401, "invalid_token", "unknown key"),
    "too long": ("Bearer {both}" + "x" * 32768, 401, "invalid_token", "too long"),
    "wrong secret": ("Bearer {wrong}", 401, "invalid_token", "wrong key"),
    "unknown id": ("Bearer {unknown}", 401, "invalid_token", "unknown key"),
    "expired": ("Bearer {expired}", 401, "invalid_token", "expired key"),
    "some scopes": ("Bearer {one}", 403, "insufficient_scope", None),
    "no scopes": ("Bearer {none}", 403, "insufficient_scope", None),
}


@pytest.mark.parametrize("credential", REFUSED)
def test_refused_credential(door: Door, credential: str) -> None:
    """The log names the reason, and the tool does not run. Only who is known learns what it takes, all at once."""
    header, status, error, reason = REFUSED[credential]
    before, message = door.count(), door.acts()
    answer = door.post(message, {"Authorization": header.format_map(door.keys.of)} if header else {})
    is_known = status == 403  # else the body was not waited for
    line = assert_refused(door, answer, status, error, NEEDED if is_known else what_reading_takes())
    assert answer.json()["id"] == (message["id"] if is_known else None)
    method = "unknown" if door.way.version == LEGACY and not is_known else "tools/call"
    assert (line["method"], line["tool"], line.get("reason")) == (method, "caller_acts" if is_known else None, reason)
    holder = id_of(door.keys.of["one" if credential == "some scopes" else "none"])
    assert line["principal"] == ("anonymous" if status == 401 else f"api_key:{holder}")
    assert door.count() == before


def test_right_key(door: Door) -> None:
    """Its holder is served and named in the log by the key's id; the scheme is written in any case."""
    name = f"api_key:{id_of(door.keys.of['both'])}"
    message = door.acts()
    answer = door.post(message, {"Authorization": f"bEARER  {door.keys.of['both']}"})
    assert answer_of(answer)["result"]["structuredContent"] == {"result": name}
    assert door.server.wait_for("request", rpc_id=message["id"], tool="caller_acts", outcome="ok")["principal"] == name


def test_key_in_the_address(door: Door) -> None:
    """It is not taken, and the message says where it belongs."""
    url = f"{door.url}?access_token={door.keys.of['both']}&token={door.keys.of['both']}"
    message = door.acts()
    answer = door.http.post(url, json=message, headers=door.headers(message) | door.sent)
    assert_refused(door, answer, 401, None, what_reading_takes())
    assert "in the address is not accepted" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "lines",
    [
        ("Authorization: Bearer {both}", "Authorization: Bearer {both}"),
        ("Authorization: Bearer {one}", "authorization: Bearer {both}"),
        ("Authorization: Bearer\r\n {both}",),
        ("Authorization : Bearer {both}",),
        ("Authorization: Bearer {both}\x01",),
        ("Authorization: Bearer {both}\x00",),
        ("Authorization: Bearer {both}\x7f",),
    ],
)
def test_header_that_can_be_read_in_two_ways(door: Door, lines: tuple[str, ...]) -> None:
    """Twice, folded, or with control characters: it is no request."""
    before = door.count()
    sent = [f"{name}: {value}" for name, value in door.headers(door.acts()).items() if name.startswith(("M", "m"))]
    sent += [f"{name}: {value}" for name, value in door.sent.items()]
    body = json.dumps(door.acts()).encode()
    told = raw(door, request(body, *sent, *(line.format_map(door.keys.of) for line in lines), "Connection: close"))
    assert told.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert json.loads(told.partition(b"\r\n\r\n")[2])["error"]["data"]["code"] == "invalid_request"
    assert door.count() == before


@pytest.mark.parametrize(
    "headers",
    [
        {"Mcp-Name": "caller_count"},
        {"Mcp-Method": "tools/list"},
        {"MCP-Protocol-Version": "2026-07-28"},
        {"MCP-Protocol-Version": "2025-06-18"},
        {"MCP-Protocol-Version": "1999-01-01"},
        None,
    ],
)
def test_routing_headers_decide_nothing(door: Door, headers: dict[str, str] | None) -> None:
    """The body does: they can be wrong, or left out."""
    before, message = door.count(), door.acts()
    plain = {"Accept": "*/*", **door.sent, **bearer(door.keys.of["one"])}
    if headers is None:
        answer = door.http.post(door.url, json=message, headers=plain)
    else:
        answer = door.post(message, plain | headers)
    assert_refused(door, answer, 403, "insufficient_scope", NEEDED)
    assert door.count() == before


def test_body_that_is_written_another_way(door: Door) -> None:
    """Whoever decides and whoever runs read it alike."""
    before, message = door.count(), door.acts()
    body = json.dumps(message).replace("caller_acts", r"caller\u005facts")
    answer = door.post(body.encode(), door.headers(message) | bearer(door.keys.of["one"]))
    assert_refused(door, answer, 403, "insufficient_scope", NEEDED)
    assert door.count() == before


@pytest.mark.parametrize(
    ("written", "instead"),
    [
        ('"name": "caller_acts"', '"name": "caller_count", "name": "caller_acts"'),
        ('"method": "tools/call"', '"method": "ping", "method": "tools/call"'),
        ('"params": {', '"params": {"name": "caller_count"}, "params": {'),
        ('"id": ', '"id": null, "id": '),
    ],
)
def test_body_that_can_be_read_in_two_ways(door: Door, written: str, instead: str) -> None:
    """A member that stands twice: it is no request."""
    before, message = door.count(), door.acts()
    body = json.dumps(message).replace(written, instead)
    assert body != json.dumps(message)
    for key in ("one", "both"):
        answer = door.post(body.encode(), door.headers(message) | bearer(door.keys.of[key]))
        assert (answer.status_code, answer.json()["error"]["data"]["code"]) == (400, "invalid_request")
    assert door.count() == before


@pytest.mark.parametrize("key", [None, "one"])
def test_call_without_an_id(door: Door, key: str | None) -> None:
    """A notification is no way to a tool either."""
    before, message = door.count(), door.acts()
    del message["id"]
    answer = door.post(message, bearer(door.keys.of[key]) if key else {})
    if key:
        assert_refused(door, answer, 403, "insufficient_scope", NEEDED)
    else:
        assert_refused(door, answer, 401, None, what_reading_takes())
    assert answer.json()["id"] is None
    assert door.holding("both").post(message).status_code == 202
    assert door.count() == before


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("resources/read", {"uri": "probe://secret"}),
        ("resources/read", {"uri": "caller://ada/notes"}),
        ("resources/read", {"uri": "caller://%61da/notes"}),
        ("prompts/get", {"name": "probe_privileged_prompt"}),
        (
            "completion/complete",
            {"ref": {"type": "ref/prompt", "name": "probe_privileged_prompt"}, "argument": {"name": "a", "value": ""}},
        ),
        (
            "completion/complete",
            {
                "ref": {"type": "ref/resource", "uri": "caller://{name}/notes"},
                "argument": {"name": "name", "value": ""},
            },
        ),
    ],
)
def test_scopes_of_resources_and_prompts(door: Door, method: str, params: Json) -> None:
    """They hold as those of tools do."""
    message = door.message(method, params)
    assert_refused(door, door.post(message), 401, None, what_reading_takes())
    answer = door.holding("none").post(message)
    assert_refused(door, answer, 403, "insufficient_scope", "probe:use")
    assert answer.json()["id"] == message["id"]
    assert "result" in door.holding("one").request(method, params)


@pytest.mark.parametrize("uri", ["probe://secret", "caller://ada/notes"])
def test_listening_to_what_one_may_not_read(doors: Callable[[str], Door], uri: str) -> None:
    """That it changes is not told either."""
    door = doors("modern")
    message = door.message("subscriptions/listen", {"notifications": {"resourceSubscriptions": ["probe://text", uri]}})
    assert_refused(door, door.post(message), 401, None, what_reading_takes())
    assert_refused(door, door.holding("none").post(message), 403, "insufficient_scope", "probe:use")
    headers = door.headers(message) | bearer(door.keys.of["one"])
    with door.http.stream("POST", door.url, json=message, headers=headers) as listening:
        assert listening.status_code == 200
        assert any("subscriptions/acknowledged" in line for line in listening.iter_lines() if line.startswith("data:"))


def test_listening_to_more_than_is_looked_at(doors: Callable[[str], Door]) -> None:
    """Nobody listens to more than a hundred resources, so that finding out what a request takes costs little."""
    door = doors("modern")
    uris = ["probe://text"] * 100 + ["probe://secret"]
    message = door.message("subscriptions/listen", {"notifications": {"resourceSubscriptions": uris}})
    assert_refused(door, door.post(message), 401, None, what_reading_takes())
    for key in SCOPES:
        error = door.holding(key).request("subscriptions/listen", message["params"])["error"]
        assert (error["code"], error["data"]["code"]) == (-32602, "invalid_request")


@pytest.mark.parametrize(
    "body",
    [
        {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": HELLO},
        {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}},
        {"jsonrpc": "2.0", "id": 1, "method": "no/such/method", "params": {}},
        {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "no_such_tool"}},
        {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": ["caller_acts"]}},
        {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}},
        {"jsonrpc": "2.0", "id": "server-1", "result": {}},
        {"jsonrpc": "2.0", "id": "server-1", "error": {"code": 1, "message": "no"}},
    ],
)
def test_nothing_is_answered_without_a_credential(door: Door, body: Json) -> None:
    """Neither lists nor the handshake, a notification, or a response; and what is not there is refused as what is."""
    answer, other = (door.post(json.dumps(each).encode(), door.headers(door.acts())) for each in (body, door.acts()))
    assert_refused(door, answer, 401, None, what_reading_takes())
    told = [
        {**each.json()["error"], "data": {**each.json()["error"]["data"], "request_id": 0}} for each in (answer, other)
    ]
    assert told[0] == told[1]
    assert answer.headers["www-authenticate"] == other.headers["www-authenticate"]
    assert answer.json()["id"] is None


@pytest.mark.parametrize("credential", [None, "wrong", "both"])
def test_body_of_who_is_not_known_is_not_waited_for(door: Door, credential: str | None) -> None:
    """Where the headers decide, the answer is there before the body; whoever is known is asked for it."""
    sent = {**door.headers(door.acts()), **door.sent, "Host": "127.0.0.1", "Expect": "100-continue"}
    sent |= bearer(door.keys.of[credential]) if credential else {}
    lines = [f"{name}: {value}" for name, value in sent.items() if credential or name != "Authorization"]
    head = "\r\n".join(["POST /mcp HTTP/1.1", *lines, "Content-Length: 1000", "", ""])
    with socket.create_connection(("127.0.0.1", int(door.url.split(":")[2].partition("/")[0])), PATIENCE) as connection:
        connection.sendall(head.encode())
        assert connection.recv(12) == (b"HTTP/1.1 100" if credential == "both" else b"HTTP/1.1 401")


def test_streams_and_sessions_without_a_credential(doors: Callable[[str], Door]) -> None:
    """A stream is not opened, and a session not ended."""
    headers = {"Accept": "text/event-stream", "MCP-Protocol-Version": LEGACY}
    for kind, method in [("legacy", "GET"), ("session", "GET"), ("session", "DELETE")]:
        door = doors(kind)
        answer = door.http.request(method, door.url, headers=headers | door.sent)
        assert_refused(door, answer, 401, None, what_reading_takes())
    assert doors("session").holding("both").call("caller_count")["result"]["isError"] is False


# Sessions


@pytest.mark.parametrize("key", ["one", "none"])
def test_session_of_another(doors: Callable[[str], Door], key: str) -> None:
    """It is not there for any other key, which cannot use, hear or end it; its owner notices nothing."""
    door = doors("session")
    headers = {"Accept": "text/event-stream", "MCP-Protocol-Version": LEGACY} | door.sent | bearer(door.keys.of[key])
    is_me = door.message("tools/call", {"name": "caller_is", "arguments": {}})
    answers = [door.post(is_me, headers | {"Accept": "*/*"})]
    answers += [door.http.request(method, door.url, headers=headers) for method in ("GET", "DELETE")]
    for answer in answers:
        assert (answer.status_code, answer.json()["error"]["data"]["code"]) == (404, "invalid_request")
        assert_no_key(door, answer)
    named = door.holding("both").call("caller_is")["result"]["structuredContent"]["result"]
    assert set(named) == {f"api_key:{id_of(door.keys.of['both'])}"}


# Callers without a credential, where they may come in


@pytest.mark.parametrize("sessions", ["stateless", "stateful"])
def test_anonymous_callers(start: Start, keys: Keys, sessions: str) -> None:
    """They use and see what needs no scope, and nothing else; a bad credential is not overlooked."""
    server = start(*SERVE_HTTP, settings=keys.settings(http_sessions=sessions, auth_allow_anonymous="true"))
    for way in HTTP:
        door = Door(way, server, keys, has_session=False)
        has_session = sessions == "stateful" and way.version == LEGACY
        door.sent = door.session({}) if has_session else {}
        assert set(door.call("caller_is")["result"]["structuredContent"]["result"]) == {"anonymous"}
        assert not seen(door) & PRIVILEGED
        assert_refused(door, door.post(door.acts()), 401, None, what_reading_takes())
        secret = door.message("resources/read", {"uri": "probe://secret"})
        assert_refused(door, door.post(secret), 401, None, what_reading_takes())
        harmless = door.message("tools/call", {"name": "caller_is", "arguments": {}})
        for key in ("wrong", "expired"):
            answer = door.post(harmless, bearer(keys.of[key]))
            assert_refused(door, answer, 401, "invalid_token", what_reading_takes())
        if has_session:
            assert door.post(harmless, bearer(keys.of["both"])).status_code == 404, "a session opened without a key"
            door.sent = door.session(bearer(keys.of["both"]))
            assert door.post(harmless).status_code == 404, "a session opened with one"
        assert door.holding("both").call("caller_count")["result"]["structuredContent"] == {"result": 0}
        door.http.close()


# Lists

PRIVILEGED = {"caller_acts", "probe_privileged", "probe_privileged_prompt", "probe_secret", "caller_notes"}
VISIBLE = {
    "both": PRIVILEGED,
    "one": {"probe_privileged_prompt", "probe_secret", "caller_notes"},
    "none": set[str](),
}


def seen(peer: Peer) -> set[str]:
    """The names of all that is listed to a caller, who is alone to keep the list."""
    found = set()
    for method in ("tools/list", "prompts/list", "resources/list", "resources/templates/list"):
        result = peer.request(method)["result"]
        assert result.get("cacheScope") == ("private" if peer.way.version != LEGACY else None)
        (listed,) = [value for value in result.values() if isinstance(value, list)]
        found |= {each["name"] for each in listed}
    assert {"caller_is", "probe_prompt", "probe_text", "probe_number"} <= found
    return found


@pytest.mark.parametrize("key", VISIBLE)
def test_lists_over_http(door: Door, key: str) -> None:
    """They show what this caller may use."""
    assert seen(door.holding(key)) & PRIVILEGED == VISIBLE[key]


@pytest.mark.parametrize("way", STDIO, ids=str)
def test_lists_over_stdio(start: Start, keys: Keys, way: Way) -> None:
    """There too, with a key or with the scopes of the local user."""
    with_key = start(settings={"MCP_API_KEYS_FILE": str(keys.file), "MCP_API_KEY": keys.of["one"]})
    with_scopes = start(settings={"MCP_LOCAL_SCOPES": "probe:use"})
    for server in (with_key, with_scopes):
        assert seen(Peer(way, server)) & PRIVILEGED == VISIBLE["one"]


async def test_guard_holds_without_the_way_in() -> None:
    """Whatever way a call came by, nobody without a credential reaches a tool of a server that asks for one."""

    async def reached(call: Call) -> str:
        return call.method

    tool = next(iter(registry().tools.values()))
    call = Call("id", 1, "tools/call", tool, frozenset(), ANONYMOUS, "http", "2026-07-28")
    assert await Authorize(is_open=True)(call, reached) == "tools/call"
    with pytest.raises(Unauthenticated):
        await Authorize(is_open=False)(call, reached)


@pytest.mark.parametrize("way", STDIO, ids=str)
@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("tools/call", {"name": "no_such_tool", "arguments": {}}),
        ("prompts/get", {"name": "no_such_prompt"}),
        ("resources/read", {"uri": "probe://nowhere"}),
    ],
)
def test_wrong_key_learns_nothing_over_stdio(start: Start, keys: Keys, way: Way, method: str, params: Json) -> None:
    """Not even that there is no such thing."""
    peer = Peer(way, start(settings={"MCP_API_KEYS_FILE": str(keys.file), "MCP_API_KEY": "mcp_000000000000_wrong"}))
    answer = peer.request(method, params)
    error = answer["error"]["data"] if "error" in answer else answer["result"]["_meta"]["plinth/error"]
    assert error["code"] == "unauthenticated"


# Callers side by side


def test_many_callers_at_once(start: Start, tmp_path: Path) -> None:
    """Each of 200 calls is answered to its own caller, in the event loop and in threads, in both revisions."""
    file = tmp_path / "keys.json"
    many = [new_key(file, f"caller {number}", [], None) for number in range(20)]
    server = start(*SERVE_HTTP, settings=Keys(file, {}).settings())
    peers = [Peer(way, server) for way in HTTP]
    calls = []
    for number in range(200):
        peer, tool = peers[number // 20 % 2], ("caller_is", "caller_is_in_a_thread")[number // 40 % 2]
        params = {"name": tool, "arguments": {"seconds": 0.05}}
        calls.append((peer, peer.message("tools/call", params), many[number % 20]))

    def call(peer: Peer, message: Json, key: str) -> tuple[str, list[str]]:
        return id_of(key), answer_of(peer.post(message, bearer(key)))["result"]["structuredContent"]["result"]

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(call, *zip(*calls, strict=True)))
    assert all(set(named) == {f"api_key:{key_id}"} for key_id, named in answers)
    assert set(Counter(key_id for key_id, _ in answers).values()) == {200 // 20}
    for peer in peers:
        peer.http.close()


def test_state_of_another(doors: Callable[[str], Door]) -> None:
    """The sealed state of a call opens for whom it was sealed."""
    door = doors("modern")
    params: Json = {"name": "probe_asks", "arguments": {}}
    params["requestState"] = door.holding("both").request("tools/call", params)["result"]["requestState"]
    error = door.holding("one").request("tools/call", params)["error"]
    assert (error["code"], error["data"]["code"]) == (-32602, "invalid_request")
    assert door.holding("both").request("tools/call", params)["result"]["structuredContent"] == {"result": "remembered"}


# Guessing


@pytest.mark.parametrize("way", HTTP, ids=str)
def test_failures_of_one_address(start: Start, keys: Keys, way: Way) -> None:
    """Exactly as many as are set are checked, and then none but what was valid before; callers without one do not count."""
    server = start(*SERVE_HTTP, settings=keys.settings(auth_failures_per_minute="3"))
    door = Door(way, server, keys, has_session=False)
    right = bearer(keys.of["both"])
    bad = [bearer("x"), {"Authorization": "Basic x"}, bearer(keys.of["wrong"])]
    assert [door.post(door.acts(), sent).status_code for sent in (*bad[:2], {}, {}, right, bad[2])] == [
        *(401, 401, 401, 401, 200, 401)
    ]
    spoofed = [{}, {"X-Forwarded-For": "192.0.2.1"}, {"Forwarded": "for=192.0.2.1"}, {"X-Real-IP": "192.0.2.1"}]
    for sent in (bearer(keys.of["one"]), *bad):
        for address in spoofed:
            assert door.post(door.acts(), right | address).status_code == 200
            answer = door.post(door.acts(), sent | address)
            error = answer.json()["error"]
            assert (answer.status_code, error["code"], answer.json()["id"]) == (429, 429, None)
            assert (error["data"]["code"], error["data"]["retryable"]) == ("rate_limited", True)
            assert 15_000 < error["data"]["retry_after_ms"] <= 20_000
            assert answer.headers["retry-after"] == str(ceil(error["data"]["retry_after_ms"] / 1000))
            assert "www-authenticate" not in answer.headers
            assert door.logged(error["data"]["request_id"])["outcome"] == "rate_limited"
            assert_no_key(door, answer)
    assert_refused(door, door.post(door.acts()), 401, None, what_reading_takes())
    assert door.http.get(door.url.replace("/mcp", "/readyz")).status_code == 200
    door.http.close()


def test_what_is_remembered_is_bounded() -> None:
    """For ten minutes from its last use, ten thousand in all and eight of one caller, whose tokens push out nobody else's."""
    now = 0.0
    remembered = Remembered(lambda: now)
    ada, bob = (Principal("api_key", subject=name) for name in ("ada", "bob"))
    remembered.add("bob's", bob)
    for number in range(100):
        remembered.add(f"ada's {number}", ada)
    assert [f"ada's {number}" in remembered for number in (0, 91, 92, 99)] == [False, False, True, True]
    assert "bob's" in remembered
    now = 599.0
    remembered.add("bob's", bob)
    now = 601.0
    assert ["ada's 99" in remembered, "bob's" in remembered] == [False, True]
    for number in range(10_100):
        remembered.add(f"{number}", Principal("api_key", subject=f"{number}"))
    assert (len(remembered), "bob's" in remembered, "10099" in remembered) == (10_000, False, True)
    remembered.discard("10099")
    remembered.discard("bob's")
    assert (len(remembered), "10099" in remembered) == (9_999, False)


def test_waiting_as_long_as_told(start: Start, keys: Keys) -> None:
    """After that a credential is checked again."""
    server = start(*SERVE_HTTP, settings=keys.settings(auth_failures_per_minute="60"))
    door = Door(HTTP[0], server, keys, has_session=False)
    assert any(door.post(door.acts(), bearer("x")).status_code == 429 for _ in range(100))
    refused = door.post(door.acts(), bearer(keys.of["both"])).json()["error"]["data"]
    time.sleep(refused["retry_after_ms"] / 1000)
    assert door.holding("both").call("caller_count")["result"]["isError"] is False
    door.http.close()


def test_failures_behind_a_trusted_proxy(start: Start, keys: Keys) -> None:
    """They count for the address that the proxy reports, or for the network where anybody has many addresses."""
    settings = keys.settings(auth_failures_per_minute="2", trusted_proxies="127.0.0.1")
    door = Door(HTTP[0], start(*SERVE_HTTP, settings=settings), keys, has_session=False)

    def status(reported: str, key: str) -> int:
        return door.post(door.acts(), {"X-Forwarded-For": reported} | bearer(keys.of[key])).status_code

    for blocked in (
        ["192.0.2.1", "6.6.6.6, 192.0.2.1", "192.0.2.1:555"],
        ["2001:db8::1", "2001:db8::2", "2001:db8::8000:0:0:3"],
    ):
        assert [status(each, "wrong") for each in blocked] == [401, 401, 429]
        assert status(blocked[0], "both") == 429
    assert [status(each, "both") for each in ("192.0.2.2", "2001:db8:0:1::1")] == [200, 200]
    door.http.close()
