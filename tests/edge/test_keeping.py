"""What one call may keep and cost: the bounds of its envelope, what is held while it runs, the price of a refusal, and
the share of the calls in flight that one caller may take."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from installed import Installed
from raw import (
    HELLO,
    LEGACY,
    MODERN,
    SERVE_HTTP,
    Connection,
    Json,
    Response,
    Server,
    headers_of,
    message,
    post,
    resident,
)

pytestmark = [pytest.mark.install, pytest.mark.timeout(300)]

MUCH = [{"": 0}] * 90_000  # a megabyte, and thirty times as much as objects
PATIENCE = 60  # seconds: a megabyte of objects takes its time on a busy machine
WAYS = [("http", MODERN), ("http", LEGACY), ("stdio", MODERN), ("stdio", LEGACY)]


def asked(era: str, method: str, params: Json, meta: Json | None = None, rpc_id: Any = 1) -> Json:
    """A request of this era with more in its envelope."""
    made = message(era, rpc_id, method, params)
    if meta:
        made["params"]["_meta"] = {**made["params"].get("_meta", {}), **meta}
    return made


class Client:
    """One client over either transport, in either era. `sent`: bytes."""

    def __init__(self, server: Server, transport: str, era: str, stack: ExitStack) -> None:
        self.server, self.transport, self.era, self._stack = server, transport, era, stack
        self.sent = self.begun = 0
        self._session: dict[str, str] = {}
        if transport == "http":
            self._port = server.port
            if era == LEGACY:
                with Connection(self._port, PATIENCE) as connection:
                    self._session = connection.shake_hands()
        elif era == LEGACY:
            server.send({"jsonrpc": "2.0", "id": "hello", "method": "initialize", "params": HELLO})
            server.receive()

    def begin(self, sent: Json, body: Json | bytes | None = None, **headers: str) -> Connection:
        """Send over HTTP without waiting for the answer. `body`: what is sent in place of the message."""
        body = sent if body is None else body
        body = body if isinstance(body, bytes) else json.dumps(body, separators=(",", ":")).encode()
        self.sent += len(body)
        connection = self._stack.enter_context(Connection(self._port, PATIENCE))
        connection.send(post(headers_of(sent, self.era) | self._session | headers, body))
        return connection

    def hold(self, tool: str = "hold", items: Any = (), **headers: str) -> Connection | None:
        """Begin a call that holds, and wait until it runs."""
        held = sum(event["event"] == "held" for event in self.server.events())
        self.begun += 1
        call = {"name": tool, "arguments": {"seconds": 60, "items": list(items)}}
        sent = asked(self.era, "tools/call", call, rpc_id=f"held-{self.begun}")
        connection = None
        if self.transport == "http":
            connection = self.begin(sent, **headers)
        else:
            self._send(sent)
        self.server.wait_for("held", held + 1)
        return connection

    def ask(self, sent: Json, **headers: str) -> Json:
        """Send, and read the answer."""
        if self.transport == "http":
            response = self.begin(sent, **headers).receive()
            assert response is not None
            found: Json = response.messages[-1]
            return found
        self._send(sent)
        while str((found := json.loads(self.server.receive())).get("id")).startswith("held-") or "method" in found:
            pass
        return found

    def _send(self, sent: Json) -> None:
        body = json.dumps(sent, separators=(",", ":")).encode()
        self.sent += len(body)
        self.server.send(body)


Connect = Callable[..., Client]


@pytest.fixture(scope="module")
def client(installed: Installed) -> Iterator[Connect]:
    """A factory of clients; those with the same settings share a server, but for each era a pipe is a server's own."""
    with ExitStack() as stack:
        servers: dict[object, Server] = {}

        def connect(transport: str, era: str, **settings: str) -> Client:
            key = (transport, era if transport == "stdio" else "", *sorted(settings.items()))
            is_new = key not in servers
            if is_new:
                arguments = SERVE_HTTP if transport == "http" else ()
                named = {f"MCP_{name.upper()}": value for name, value in settings.items()}
                made = Server([installed.command, *arguments], named, patience=PATIENCE)
                servers[key] = stack.enter_context(made)
            if transport == "stdio" and not is_new:
                return pipes[key]
            found = Client(servers[key], transport, era, stack)
            pipes[key] = found
            return found

        pipes: dict[object, Client] = {}
        yield connect


def processor(server: Server) -> float:
    """Seconds that the process has computed."""
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


SERVED = [*((*way, {}) for way in WAYS), ("http", LEGACY, {"http_sessions": "stateful"})]
SERVED_NAMES = [*map("-".join, WAYS), "http-sessions"]


@pytest.mark.parametrize(("transport", "era", "settings"), SERVED, ids=SERVED_NAMES)
def test_a_running_call_keeps_nothing_of_its_message(
    client: Connect, transport: str, era: str, settings: dict[str, str]
) -> None:
    """Only its validated arguments are held; the message, as bytes and as objects, has gone when the tool begins."""
    peer = client(transport, era, **settings)
    call = {"name": "hold", "arguments": {"seconds": 0, "items": MUCH}}
    for number in range(2):  # what reading one takes in passing is there before
        assert "result" in peer.ask(asked(era, "tools/call", call, rpc_id=number))
    before, peer.sent = (resident(peer.server.process.pid) << 10), 0
    for _ in range(6):
        peer.hold(items=MUCH)
    assert (resident(peer.server.process.pid) << 10) - before < 5 * peer.sent


@pytest.mark.parametrize("transport", ["http", "stdio"])
def test_a_call_that_asks_keeps_nothing_either(client: Connect, transport: str) -> None:
    """What it remembers is bound to its arguments all the same: with others, the state is of no use."""
    peer = client(transport, MODERN)
    call: Json = {"name": "hold_and_ask", "arguments": {"seconds": 0, "items": MUCH}}

    def outcome(**params: Any) -> Any:
        answer = peer.ask(asked(MODERN, "tools/call", {**call, **params}))
        return answer["error"]["code"] if "error" in answer else answer["result"]

    state = outcome()["requestState"]
    same = {"items": MUCH, "seconds": 0}
    assert outcome(requestState=state, arguments=same)["structuredContent"] == {"result": "remembered"}
    assert outcome(requestState=state, arguments={"seconds": 1, "items": MUCH}) == -32602
    before, peer.sent = (resident(peer.server.process.pid) << 10), 0
    call["arguments"]["seconds"] = 5
    state = outcome()["requestState"]
    held = len([event for event in peer.server.events() if event["event"] == "held"])
    for number in range(4):
        sent = asked(MODERN, "tools/call", {**call, "requestState": state}, rpc_id=f"held-again-{number}")
        peer.begin(sent) if transport == "http" else peer._send(sent)
    peer.server.wait_for("held", held + 4)
    assert (resident(peer.server.process.pid) << 10) - before < 5 * peer.sent


@pytest.mark.parametrize("transport", ["http", "stdio"])
def test_a_stream_keeps_nothing_of_its_envelope(client: Connect, transport: str) -> None:
    """Whatever fits the bounds of the envelope is let go too, as a stream may be open for ever."""
    peer = client(transport, MODERN)
    listen = {"notifications": {"toolsListChanged": True}, "x": [{}] * 200, "long": "x" * 12_000}
    capabilities = {"experimental": {"z": {"": [{}] * 200}}}
    meta = {"y": [{"": {}}] * 150, "io.modelcontextprotocol/clientCapabilities": capabilities}

    def listening(rpc_id: str) -> None:
        sent = asked(MODERN, "subscriptions/listen", listen, meta, rpc_id)
        if transport == "http":
            stream = peer.begin(sent).socket.makefile("rb")
            while b"acknowledged" not in stream.readline():
                pass
        else:
            peer._send(sent)
            while b"acknowledged" not in peer.server.receive():
                pass

    for number in range(20):
        listening(f"held-first-{number}")
    before, peer.sent = (resident(peer.server.process.pid) << 10), 0
    for number in range(80):
        listening(f"held-then-{number}")
    assert (resident(peer.server.process.pid) << 10) - before < 10 * peer.sent


META = "io.modelcontextprotocol/"
WIDE = {"x": [0] * 1_001}
TOO_MUCH: dict[str, tuple[str, Json, Json, str]] = {
    "envelope": ("tools/call", {"name": "take", "arguments": {}}, {"x": "y" * 16_384}, "params._meta"),
    "many values": ("tools/call", {"name": "take", "arguments": {}}, WIDE, "params._meta"),
    "a long name": ("tools/call", {"name": "take", "arguments": {}}, {"x" * 2_000: 0}, "params._meta"),
    "icons": ("tools/list", {}, {f"{META}clientInfo": {"name": "a", "version": "1", "icons": [0] * 400_000}}, "params._meta"),
    "capabilities": ("tools/list", {}, {f"{META}clientCapabilities": {"experimental": {"a": MUCH}}}, "params._meta"),
    "token": ("tools/list", {}, {"progressToken": "x" * 2_000}, "params._meta.progressToken"),
    "unknown member": ("tools/call", {"name": "take", "arguments": {}, "x": MUCH}, {}, "params"),
    "cursor": ("tools/list", {"cursor": "x" * 20_000}, {}, "params.cursor"),
    "name": ("tools/call", {"name": "x" * 20_000, "arguments": {}}, {}, "params.name"),
    "uri": ("resources/read", {"uri": "x:" + "y" * 20_000}, {}, "params.uri"),
    "arguments of what takes none": ("tools/list", {"arguments": WIDE}, {}, "params"),
    "answers": ("tools/call", {"name": "take", "inputResponses": {"a": {"content": [{}] * 2_000}}}, {}, "params.inputResponses"),
    "a long name in an answer": ("tools/call", {"name": "take", "inputResponses": {"a" * 2_000: {}}}, {}, "params.inputResponses"),
    "context": ("completion/complete", {"ref": {}, "argument": {}, "context": {"arguments": {"a": "x" * 20_000}}}, {}, "params.context"),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_what_is_said_beside_the_arguments_is_bounded(client: Connect, way: tuple[str, str]) -> None:
    """It is refused before the SDK's models or a guard look at it, with a text that names the field, bound and remedy."""
    peer = client(*way)
    for case, (method, params, meta, field) in TOO_MUCH.items():
        error = peer.ask(asked(way[1], method, params, meta, rpc_id=case))["error"]
        assert (error["code"], error["data"]["code"]) == (-32600, "invalid_request"), case
        assert error["message"].startswith(f"{field}: "), case
        assert "at most" in error["message"], case
        assert "Send" in error["message"], case
    assert "result" in peer.ask(asked(way[1], "tools/list", {}))


@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_an_id_is_bounded(client: Connect, way: tuple[str, str]) -> None:
    """As it is told again with every answer; the refusal does not repeat it."""
    peer = client(*way)
    for rpc_id in ("x" * 1_025, 10**2_000):
        answer = peer.ask(asked(way[1], "tools/list", {}, rpc_id=rpc_id))
        assert (answer["id"], answer["error"]["message"][:3]) == (None, "id:")
    assert peer.ask(asked(way[1], "tools/list", {}, rpc_id="x" * 1_024))["id"] == "x" * 1_024


@pytest.mark.parametrize("way", [*WAYS, ("http", "sessions")], ids="-".join)
def test_a_handshake_is_bounded(client: Connect, way: tuple[str, str]) -> None:
    """What a client says of itself is kept for as long as it is connected."""
    settings = {"http_sessions": "stateful"} if way[1] == "sessions" else {}
    peer = client(way[0], way[1] if way[1] in (MODERN, LEGACY) else LEGACY, **settings)
    for field in ("capabilities", "clientInfo"):
        hello = {**HELLO, field: {**HELLO[field], "experimental": {"a": MUCH}}}
        sent = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}
        assert peer.ask(sent)["error"]["message"].startswith(f"params.{field}: ")


# Refusals


def cost_of(peer: Client, bodies: list[Json]) -> float:
    """Processor time of the server for a byte of these, all refused or answered."""
    before, peer.sent = processor(peer.server), 0
    for body in bodies:
        peer.ask(body)
    return (processor(peer.server) - before) / peer.sent


REFUSED: dict[str, Json] = {
    "unknown names": {**{f"k{number}": 1 for number in range(50_000)}, "limit": 1.5},
    "union members": {"rows": [[{}] * 900] * 100},
    "objects of objects": {"by_name": {f"k{n}": {f"{m}": 1.5 for m in range(100)} for n in range(900)}},
    "lists in objects of objects": {"by_name": {f"k{n}": {f"{m}": [] for m in range(100)} for n in range(900)}},
    "a long name over many errors": {"by_name": {"k" * 400_000: {f"{number}": 1.5 for number in range(40_000)}}},
    "whole floats": {"numbers": [3.0] * 150_000 + ["x"]},
}


def test_a_refusal_costs_little_more_than_reading(client: Connect) -> None:
    """However many problems there are, and however the schema multiplies them; counted in processor time for each byte."""
    peer = client("http", MODERN)
    plain = [asked(MODERN, "tools/call", {"name": "take", "arguments": {"numbers": list(range(150_000))}})] * 3
    valid = cost_of(peer, plain)
    for case, arguments in REFUSED.items():
        call = asked(MODERN, "tools/call", {"name": "take", "arguments": arguments})
        assert peer.ask(call)["result"]["isError"], case
        assert cost_of(peer, [call] * 2) < 20 * valid, case
    answers = {"a": {"role": "user", "model": "m", "content": [{}] * 300_000}}
    assert cost_of(peer, [asked(MODERN, "tools/call", {"name": "take", "inputResponses": answers})]) < 20 * valid
    deep = json.loads("[" + ",".join(["[" * 150 + "]" * 150] * 3_000) + "]")
    assert cost_of(peer, [asked(MODERN, "tools/list", {"x": deep})]) < 20 * valid


@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_problems_told_are_few(client: Connect, way: tuple[str, str]) -> None:
    """The first twenty, and how many more there are."""
    peer = client(*way)
    call = asked(way[1], "tools/call", {"name": "take", "arguments": REFUSED["unknown names"]})
    lines = peer.ask(call)["result"]["content"][0]["text"].splitlines()
    assert lines[:2] == [
        "limit: must be an integer",
        "k0: is unknown; remove it (there is limit, rows, by_name, numbers)",
    ]
    assert (len(lines), lines[-1]) == (21, "… and 49981 more problems")


def test_large_arguments_that_fit_are_taken(client: Connect) -> None:
    """What makes few errors of large arguments judges them as strictly, and as mildly, as small ones are."""
    peer = client("http", MODERN)
    names = {f"k{n}": {f"{m}": None for m in range(100)} for n in range(200)}
    for arguments in (
        {"limit": 3.0, "rows": [[1, 1.5, "x", True, None]] * 1_000, "numbers": [1.0] * 10_000},
        {"by_name": names, "numbers": [2.0] * 10},
        {"by_name": {**names, "x" * 300: {"a": 1.0}}},
    ):
        answer = peer.ask(asked(MODERN, "tools/call", {"name": "take", "arguments": arguments}))
        assert answer["result"]["isError"] is False, answer["result"]["content"]
    for arguments, problem in (
        ({"rows": [["x" * 10_001]] + [[1]] * 100, "numbers": [1] * 9_000}, "rows.0.0: does not fit its schema"),
        ({"by_name": {**names, "x": {"y": 1.5}}}, "by_name: does not fit its schema"),
    ):
        answer = peer.ask(asked(MODERN, "tools/call", {"name": "take", "arguments": arguments}))
        assert problem in answer["result"]["content"][0]["text"]


# The limit


@pytest.mark.parametrize(("transport", "era", "settings"), SERVED, ids=SERVED_NAMES)
def test_a_large_message_costs_more(client: Connect, transport: str, era: str, settings: dict[str, str]) -> None:
    """Each started 64 kB after the first is one more, whatever the request is; never more than the burst."""
    limit = {"rate_limit_burst": "12", "rate_limit_per_minute": "1", "trusted_proxies": "127.0.0.1"}
    peer, whose = client(transport, era, **settings, **limit), {"X-Forwarded-For": f"203.0.113.{era[3]}"}
    spent = transport == "stdio" and era == LEGACY  # over HTTP another address has shaken hands

    def codes(size: int, count: int) -> list[str]:
        large = asked(era, "tools/call", {"name": "take", "arguments": {"x": "y" * size}})
        return [peer.ask(large, **whose)["result"]["_meta"]["plinth/error"]["code"] for _ in range(count)]

    assert codes(200_000, 3 - spent) == ["invalid_arguments"] * (3 - spent)
    assert codes(200_000 if not spent else 300_000, 1) == ["rate_limited"]
    if transport == "http":
        whose["X-Forwarded-For"] += "0"
        assert codes(1_000_000, 2) == ["invalid_arguments", "rate_limited"]


@pytest.mark.parametrize(("era", "settings"), [(era, more) for way, era, more in SERVED if way == "http"])
def test_very_many_values_have_a_limit_of_their_own(client: Connect, era: str, settings: dict[str, str]) -> None:
    """Everybody waits while they are read: ten bursts of a call for 500 are read at once, and then as many as calls come
    back. More are refused unread, whatever they would be; nothing else is."""
    limit = {"rate_limit_burst": "6", "rate_limit_per_minute": "1", "trusted_proxies": "127.0.0.1"}
    peer, whose = client("http", era, **settings, **limit), {"X-Forwarded-For": f"198.51.100.{era[3]}"}
    many = asked(era, "tools/call", {"name": "take", "arguments": {"numbers": [1] * 15_500}})  # is 31 of 60
    if settings:
        whose["X-Forwarded-For"] += "0"

    def call(sent: Json | bytes) -> Response:
        connection = peer.begin(many if isinstance(sent, bytes) else sent, body=sent, **whose)
        response = connection.receive()
        assert response is not None
        return response

    assert call(many).messages[-1]["result"]["isError"] is False
    for body in (many, b"[" + b"1," * 15_500, b'{"a":{}}' * 15_500):
        refused = call(body)
        assert (refused.status, refused.messages[0]["id"]) == (429, None)
        assert refused.messages[0]["error"]["data"]["code"] == "rate_limited"
        assert 60 < int(refused.headers["retry-after"]) <= 3600
        assert "very many values" in refused.messages[0]["error"]["message"]
    for numbers, said in ([1] * 9_000, False), ("x" * 60_000, True):
        less = asked(era, "tools/call", {"name": "take", "arguments": {"numbers": numbers}})
        assert call(less).messages[-1]["result"]["isError"] is said
    whose["X-Forwarded-For"] = whose["X-Forwarded-For"].replace("198.51.100", "198.51.101")
    assert call(many).messages[-1]["result"]["isError"] is False


@pytest.mark.parametrize("era", [MODERN, LEGACY])
def test_who_is_alone_may_send_very_many_values(client: Connect, era: str) -> None:
    """On a pipe nobody else waits."""
    peer = client("stdio", era, rate_limit_burst="6", rate_limit_per_minute="1")
    many = asked(era, "tools/call", {"name": "take", "arguments": {"numbers": [1] * 15_000}})
    assert not any(peer.ask(many)["result"]["isError"] for _ in range(4))


# The share


def brief(peer: Client, **headers: str) -> str:
    """How a call that would end at once ends."""
    result = peer.ask(asked(peer.era, "tools/call", {"name": "hold", "arguments": {"seconds": 0}}), **headers)["result"]
    return str(result["content"][0]["text"]) if result["isError"] else "ok"


@pytest.mark.parametrize("era", [MODERN, LEGACY])
def test_one_address_takes_no_more_than_its_share(client: Connect, era: str) -> None:
    """Its calls go on when it hangs up, in the handshake revisions; others find their places all the same."""
    peer = client("http", era, max_concurrent_calls="8", trusted_proxies="127.0.0.1")
    one, other = ({"X-Forwarded-For": f"203.0.113.{era[3]}{last}"} for last in "12")
    for _ in range(2):
        connection = peer.hold(**one)
        if era == LEGACY and connection is not None:
            connection.close()
    text = brief(peer, **one)
    assert text.startswith("As many calls of yours are in flight as one caller may have (2).")
    assert "retry after 1 s" in text
    assert brief(peer, **other) == "ok"


@pytest.mark.parametrize("transport", ["http", "stdio"])
def test_who_is_alone_here_has_no_share(client: Connect, transport: str) -> None:
    """Over stdio the pipe has one caller; over HTTP without authentication this machine is one user's."""
    peer = client(transport, MODERN, max_concurrent_calls="4")
    for _ in range(4):
        peer.hold()
    assert brief(peer) == "The server is busy. Retry after 1 s."
