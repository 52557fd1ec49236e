"""What lasts longer than a request: listen streams, streams without a request, sessions. Whose they are is asked again
for as long as they last, one caller has only its share of them, and what each holds is bounded."""

import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

import pytest

from installed import Installed
from raw import (
    HELLO,
    INITIALIZED,
    LEGACY,
    MODERN,
    PATIENCE,
    Connection,
    Json,
    Response,
    Start,
    headers_of,
    message,
    post,
    resident,
)

pytestmark = [pytest.mark.install, pytest.mark.timeout(300)]

SECRET, OPEN = "lasting://secret", "lasting://open"


class Keys:
    """A file of API keys, as its operator edits it."""

    def __init__(self, installed: Installed, file: Path) -> None:
        self._installed = installed
        self.file = file

    def new(self, *scopes: str) -> str:
        """A key with these scopes."""
        return self._installed.new_key(self.file, *scopes)

    def edit(self, key: str, **changes: object) -> None:
        """Change what is kept of a key; `gone=True`: remove it."""
        kept = json.loads(self.file.read_text(encoding="utf-8"))["keys"]
        (found,) = [each for each in kept if each["id"] == key.split("_")[1]]
        if changes.pop("gone", False):
            kept.remove(found)
        found.update(changes)
        self.file.write_text(json.dumps({"keys": kept}), encoding="utf-8")

    @property
    def settings(self) -> dict[str, str]:
        """Of a server that takes them."""
        return {"auth_mode": "api_key", "api_keys_file": str(self.file), "rate_limit_burst": "1000000"}


@pytest.fixture
def keys(installed: Installed, tmp_path: Path) -> Keys:
    """A file with no key yet."""
    return Keys(installed, tmp_path / "keys.json")


class Stream:
    """A response of events that lasts. `messages`: what has come."""

    def __init__(self, port: int, sent: bytes) -> None:
        self.connection = Connection(port)
        self.connection.send(sent)
        self._file = self.connection.socket.makefile("rb")
        self.status = int(self._file.readline().split(None, 2)[1])
        head = (line.decode().partition(":") for line in iter(self._file.readline, b"\r\n"))
        self.headers = {name.lower(): value.strip() for name, _, value in head}

    def read(self) -> Json | None:
        """The next message; None at the end of the response."""
        pings = 0  # one each 15 s
        for line in iter(self._file.readline, b"0\r\n"):
            assert line, "the connection has ended in the middle of the response"
            pings += line.startswith(b": ping")
            assert pings < 3, "nothing comes, and it does not end"
            if line.startswith(b"data: {"):
                found: Json = json.loads(line.removeprefix(b"data: "))
                return found
        return None

    def close(self) -> None:
        """Leave."""
        self._file.close()
        self.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def bearer(key: str | None) -> dict[str, str]:
    """The header with this credential."""
    return {"Authorization": f"Bearer {key}"} if key else {}


def listening(*uris: str, rpc_id: int = 1) -> Json:
    """A message that listens to resources."""
    return message(MODERN, rpc_id, "subscriptions/listen", {"notifications": {"resourceSubscriptions": list(uris)}})


def listen(port: int, key: str | None, *uris: str) -> Stream:
    """A listen stream, of which the acknowledgement has come if it was opened."""
    body = listening(*uris)
    stream = Stream(port, post(headers_of(body, MODERN) | bearer(key), body))
    if "event-stream" in stream.headers["content-type"]:
        first = stream.read()
        assert first is not None
        assert first["method"] == "notifications/subscriptions/acknowledged"
    return stream


def get(port: int, key: str | None, more: dict[str, str] | None = None) -> Stream:
    """A stream without a request."""
    headers = {"Host": "127.0.0.1", "Accept": "text/event-stream", "MCP-Protocol-Version": LEGACY}
    return Stream(port, post(headers | bearer(key) | (more or {}), b"", "GET"))


def ask(port: int, key: str | None, body: Json, era: str = MODERN) -> Response:
    """The answer to one message on a connection of its own."""
    with Connection(port) as connection:
        return connection.ask(post(headers_of(body, era) | bearer(key), body))


def tell(port: int, key: str, uri: str, times: int = 1) -> None:
    """Have listeners told of a resource."""
    call = message(MODERN, 1, "tools/call", {"name": "tell", "arguments": {"uri": uri, "times": times}})
    assert ask(port, key, call).messages[-1]["result"]["isError"] is False


def error_of(answer: Response) -> Json:
    """The error's own members."""
    found: Json = answer.messages[-1]["error"]["data"]
    return found


WITHDRAWN: dict[str, dict[str, object]] = {
    "removed": {"gone": True},
    "expired": {"expires": "2026-01-01T00:00:00Z"},
    "another secret under its id": {"sha256": "0" * 64},
    "without its scope": {"scopes": []},
}


@pytest.mark.parametrize("changes", [pytest.param(changes, id=name) for name, changes in WITHDRAWN.items()])
def test_stream_ends_with_its_key(start: Start, keys: Keys, changes: dict[str, object]) -> None:
    """It ends with its result although nothing is told, and listening anew is refused."""
    key, other = keys.new("lasting:read"), keys.new("lasting:read")
    port = start("http", **keys.settings).port
    with listen(port, key, SECRET) as stream, listen(port, other, SECRET) as kept:
        keys.edit(key, **changes)
        last = stream.read()
        assert last is not None
        assert (last["id"], last["result"]["resultType"]) == (1, "complete")
        assert stream.read() is None
        body = listening(SECRET)
        assert ask(port, key, body).status == (403 if "scopes" in changes else 401)
        tell(port, other, SECRET)
        told = kept.read()
        assert told is not None
        assert told["params"]["uri"] == SECRET


def test_stream_that_needs_no_scope_keeps_on(start: Start, keys: Keys) -> None:
    """A scope that none of its subscriptions needs may go."""
    key = keys.new("lasting:read", "other")
    port = start("http", **keys.settings).port
    with listen(port, key, OPEN) as plain, listen(port, key, SECRET) as scoped:
        keys.edit(key, scopes=[])
        last = scoped.read()
        assert last is not None
        assert "result" in last
        tell(port, key, OPEN)
        told = plain.read()
        assert told is not None
        assert told["params"]["uri"] == OPEN


def test_stream_ends_when_its_key_expires(start: Start, keys: Keys) -> None:
    """At its time, though nothing is told and nobody asks."""
    key = keys.new("lasting:read")
    port = start("http", **keys.settings).port
    with listen(port, key, SECRET) as stream:
        keys.edit(key, expires=(datetime.now(UTC) + timedelta(seconds=3)).isoformat())
        last = stream.read()
        assert last is not None
        assert "result" in last


def test_each_event_is_asked_for(start: Start, keys: Keys) -> None:
    """Not only once a second: no event is told that happened after the key had expired."""
    key, other = keys.new("lasting:read"), keys.new()
    port = start("http", **keys.settings).port
    with listen(port, key, SECRET) as stream:
        end, early = datetime.now(UTC) + timedelta(seconds=3.5), 0
        keys.edit(key, expires=end.isoformat())
        while datetime.now(UTC) < end + timedelta(seconds=0.5):
            early += datetime.now(UTC) < end
            tell(port, other, SECRET)
        events = list(iter(stream.read, None))
    assert "result" in events[-1]
    assert 0 < len(events) - 1 <= early


def test_stream_of_a_pipe_ends_with_its_key(start: Start, keys: Keys) -> None:
    """The same for the key that the environment gives; and nobody listens with a key that is not valid."""
    key = keys.new("lasting:read")
    server = start("stdio", api_keys_file=str(keys.file), api_key=key)
    server.send(listening(SECRET))
    assert json.loads(server.receive())["method"] == "notifications/subscriptions/acknowledged"
    keys.edit(key, gone=True)
    assert json.loads(server.receive())["result"]["resultType"] == "complete"
    for uris in ((SECRET,), (OPEN,), ()):
        server.send(listening(*uris, rpc_id=2))
        error = json.loads(server.receive())["error"]
        assert (error["code"], error["data"]["code"]) == (401, "unauthenticated")
    assert server.finish() == (0, [])


@pytest.mark.parametrize("sessions", ["stateless", "stateful"])
def test_stream_without_a_request_ends_with_its_key(start: Start, keys: Keys, sessions: str) -> None:
    """It ends although nothing is told, and the session's stream tells nothing more."""
    key, other = keys.new(), keys.new()
    port = start("http", http_sessions=sessions, **keys.settings).port
    session = shake_hands(port, key) if sessions == "stateful" else {}
    theirs = shake_hands(port, other) if sessions == "stateful" else {}
    with get(port, key, session) as stream, get(port, other, theirs) as kept:
        assert (stream.status, kept.status) == (200, 200)
        if session:
            call(port, key, session)
            told = stream.read()
            assert told is not None
            assert told["method"] == "notifications/tools/list_changed"
        keys.edit(key, gone=True)
        assert stream.read() is None
        if session:
            call(port, other, theirs)
            told = kept.read()
            assert told is not None
            assert told["method"] == "notifications/tools/list_changed"


def shake_hands(port: int, key: str | None, hello: Json = HELLO, more: dict[str, str] | None = None) -> dict[str, str]:
    """Open a session; its header."""
    answer = initialize(port, key, hello, more)
    assert answer.status == 200, answer
    session = {"Mcp-Session-Id": answer.headers["mcp-session-id"]}
    with Connection(port) as connection:
        sent = headers_of(INITIALIZED, LEGACY) | bearer(key) | session | (more or {})
        assert connection.ask(post(sent, INITIALIZED)).status == 202
    return session


def initialize(port: int, key: str | None, hello: Json = HELLO, more: dict[str, str] | None = None) -> Response:
    """The answer to the message that opens a session."""
    body = message(LEGACY, 1, "initialize", hello)
    with Connection(port) as connection:
        return connection.ask(post(headers_of(body, LEGACY) | bearer(key) | (more or {}), body))


def call(port: int, key: str | None, session: dict[str, str]) -> None:
    """Call a tool that tells the session's own stream."""
    body = message(LEGACY, 1, "tools/call", {"name": "tell", "arguments": {"uri": OPEN}})
    with Connection(port) as connection:
        answer = connection.ask(post(headers_of(body, LEGACY) | bearer(key) | session, body))
    assert answer.messages[-1]["result"]["isError"] is False


def delete(port: int, key: str | None, session: dict[str, str]) -> int:
    """End a session; the status."""
    with Connection(port) as connection:
        return connection.ask(post(headers_of({}, LEGACY) | bearer(key) | session, b"", "DELETE")).status


FEW = {"caller_share": "0.003"}  # three of about a thousand


def test_share_of_listen_streams(start: Start, keys: Keys) -> None:
    """A caller has its share of them and no more, others are served, and what ends is free again."""
    key, other = keys.new(), keys.new()
    port = start("http", **FEW, **keys.settings).port
    with ExitStack() as stack:
        mine = [stack.enter_context(listen(port, key, OPEN)) for _ in range(3)]
        assert stack.enter_context(listen(port, key, OPEN)).headers["content-type"] != EVENTS
        refused = error_of(ask(port, key, listening(OPEN)))
        assert (refused["code"], refused["retryable"], refused["retry_after_ms"]) == ("overloaded", True, 60_000)
        assert stack.enter_context(listen(port, other, OPEN)).status == 200
        mine[0].close()
        until(lambda: stack.enter_context(listen(port, key, OPEN)).headers["content-type"] == EVENTS)


def test_share_of_streams_without_a_request(start: Start, keys: Keys) -> None:
    """The same for them; the refusal is 429, in JSON, and says when to come again."""
    key, other = keys.new(), keys.new()
    port = start("http", **FEW, **keys.settings).port
    with ExitStack() as stack:
        mine = [stack.enter_context(get(port, key)) for _ in range(3)]
        assert {each.status for each in mine} == {200}
        with Connection(port) as connection:
            headers = {"Host": "127.0.0.1", "Accept": "text/event-stream", "MCP-Protocol-Version": LEGACY}
            assert_share(connection.ask(post(headers | bearer(key), b"", "GET")))
        assert stack.enter_context(get(port, other)).status == 200
        mine[0].close()
        until(lambda: stack.enter_context(get(port, key)).status == 200)


def test_share_of_sessions(start: Start, keys: Keys) -> None:
    """The same for sessions, with or without a connection; one that was not opened takes no place."""
    key, other = keys.new(), keys.new()
    port = start("http", http_sessions="stateful", **FEW, **keys.settings).port
    for _ in range(5):
        body = message(LEGACY, 1, "tools/list")
        assert ask(port, key, body, LEGACY).status == 400
    mine = [shake_hands(port, key) for _ in range(3)]
    assert_share(initialize(port, key))
    theirs = shake_hands(port, other)
    assert delete(port, other, mine[0]) == 404
    assert_share(initialize(port, key))
    assert delete(port, key, mine[0]) == 200
    shake_hands(port, key)
    assert_share(initialize(port, key))
    call(port, key, mine[1])
    call(port, other, theirs)


def assert_share(answer: Response) -> None:
    """A refusal as there is no place left for this caller."""
    assert (answer.status, answer.headers["retry-after"]) == (429, "60"), answer
    (found,) = answer.messages
    error = found["error"]["data"]
    assert (found["error"]["code"], error["code"], error["retry_after_ms"]) == (429, "overloaded", 60_000)


def test_share_without_a_credential(start: Start) -> None:
    """It is the address's; callers on this machine have no share where nobody is asked for a credential."""
    settings = FEW | {"http_sessions": "stateful", "trusted_proxies": "127.0.0.1"}
    port = start("http", **settings).port
    ada, bob = {"X-Forwarded-For": "192.0.2.1"}, {"X-Forwarded-For": "2001:db8::1"}
    for _ in range(3):
        shake_hands(port, None, more=ada)
        shake_hands(port, None, more=bob)
    assert_share(initialize(port, None, more=ada))
    assert_share(initialize(port, None, more={"X-Forwarded-For": "2001:db8::2"}))
    for _ in range(5):
        shake_hands(port, None)


def test_all_listen_streams_of_a_pipe(start: Start) -> None:
    """A pipe has one caller, who has no share: it may have all that there are, and is told when they are taken."""
    server = start("stdio", **FEW)
    server.send(*(listening(OPEN, rpc_id=number) for number in range(1025)))
    answers = [json.loads(server.receive()) for _ in range(1025)]
    (refused,) = [each for each in answers if "error" in each]
    assert (refused["id"], refused["error"]["data"]["code"]) == (1024, "overloaded")
    code, left = server.finish()
    assert (code, len(left)) == (0, 1024)


def test_what_is_listened_to_is_bounded(start: Start) -> None:
    """One URI, and all of them; a resource whose scopes are not looked up is not told of."""
    server = start("stdio", local_scopes="")
    for uris in (["lasting://files/" + "x" * 2048], [f"lasting://open/{number:0>300}" for number in range(60)]):
        server.send(listening(*uris))
        error = json.loads(server.receive())["error"]
        assert error["data"]["code"] == "invalid_request"
        assert "notifications" in error["message"]
    server.send(listening(*(f"lasting://open/{number:0>100}" for number in range(100))))
    assert json.loads(server.receive())["method"] == "notifications/subscriptions/acknowledged"


HELLOS: dict[str, Json] = {
    "large": {"capabilities": {"experimental": {"a": {"b": "x" * 16_384}}}},
    "many values": {"capabilities": {"experimental": {"a": {"b": [{"": 0}] * 1000}}}},
    "many unknown values": {"capabilities": {}, "else": [0] * 2000},
    "large client": {"clientInfo": {"name": "x" * 20_000, "version": "0"}},
}


def test_what_opens_a_session_is_bounded(start: Start) -> None:
    """Most of it is kept as long as the session: it is small, when the session is opened and later."""
    port = start("http", http_sessions="stateful").port
    session = shake_hands(port, None, HELLO | {"capabilities": {"experimental": {"a": {"b": "x" * 15_000}}}})
    for hello in HELLOS.values():
        for more in ({}, session):
            answer = initialize(port, None, HELLO | hello, more)
            assert answer.status == 400
            assert error_of(answer)["code"] == "invalid_request"
            assert error_of(answer)["message"].startswith("params")


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_sessions_do_not_keep_their_last_message(start: Start) -> None:
    """What a client has sent or been sent is let go, though nothing comes after it."""
    server = start("http", http_sessions="stateful")
    large = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "tools/call",
        "params": {"name": "no_tool", "arguments": {"x": [{"": 0}] * 30_000}},
    }

    def open_one() -> None:
        session = shake_hands(server.port, None)
        with Connection(server.port) as connection:
            answer = connection.ask(post(headers_of(large, LEGACY) | session, large))
            assert answer.messages[-1]["error"]["code"] == -32602

    open_one()
    before = resident(server.process.pid)
    for _ in range(8):
        open_one()
    assert resident(server.process.pid) - before < 20_000, "one of them takes 7,000 kB"


def test_id_that_is_in_use(start: Start) -> None:
    """In a session an id is used once at a time, whatever its type: the answers would be mixed up, and one lost."""
    server = start("http", http_sessions="stateful")
    session = shake_hands(server.port, None)
    body = message(LEGACY, 7, "tools/call", {"name": "wait", "arguments": {"seconds": 8}})
    with Connection(server.port) as first:
        first.send(post(headers_of(body, LEGACY) | session, body))
        for rpc_id in (7, "7"):
            again = message(LEGACY, rpc_id, "ping")
            with Connection(server.port) as connection:
                connection.ask(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")  # the call is read by then
                answer = connection.ask(post(headers_of(again, LEGACY) | session, again))
            assert (answer.status, answer.messages[0]["id"]) == (400, rpc_id)
            assert answer.messages[0]["error"]["message"].startswith("id: ")
        last = first.receive()
        assert last is not None
        assert last.messages[-1]["result"]["structuredContent"] == {"result": "done"}
    call(server.port, None, session)


def test_stream_that_is_to_be_resumed(start: Start) -> None:
    """No events are kept: it begins anew."""
    port = start("http", http_sessions="stateful").port
    session = shake_hands(port, None)
    with get(port, None, session | {"Last-Event-ID": "1"}) as stream:
        assert stream.status == 200
        call(port, None, session)
        told = stream.read()
        assert told is not None
        assert told["method"] == "notifications/tools/list_changed"


EVENTS = "text/event-stream"


def until(is_so: Callable[[], object]) -> None:
    """Wait for what no event tells."""
    end = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)
