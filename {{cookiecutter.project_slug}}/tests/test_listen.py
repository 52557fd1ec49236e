"""What the server sends on its own account: changes to whoever listens, questions, and completions."""

import json
from collections.abc import Iterator

import httpx2
import pytest

from .conftest import Start, StartPeer
from .harness import ERROR, HTTP, LEGACY, STDIO, Json, Peer, Server

FILTER = {"notifications": {"toolsListChanged": True, "resourceSubscriptions": ["probe://text"]}}
SUBSCRIPTION = "io.modelcontextprotocol/subscriptionId"


def events(response: httpx2.Response) -> Iterator[Json]:
    """The messages of a stream of events."""
    for line in response.iter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


def read(stream: Iterator[Json], rpc_id: object) -> list[str]:
    """The methods of three messages, which all name the subscription."""
    found = [next(stream) for _ in range(3)]
    assert {message["params"]["_meta"][SUBSCRIPTION] for message in found} == {rpc_id}
    return [message["method"] for message in found]


SENT = [
    "notifications/subscriptions/acknowledged",
    "notifications/tools/list_changed",
    "notifications/resources/updated",
]


def test_listener_on_a_pipe(start_peer: StartPeer) -> None:
    """It hears what a tool tells, and gets its result when the server stops."""
    peer = start_peer(STDIO[0])
    listen = peer.message("subscriptions/listen", FILTER)
    peer.server.send(listen)
    first = peer.server.receive()
    peer.server.send(peer.message("tools/call", {"name": "probe_changes", "arguments": {"uri": "probe://text"}}))
    others = [peer.server.receive() for _ in range(3)]
    told = [message for message in others if "method" in message]
    assert read(iter([first, *told]), listen["id"]) == SENT
    code, left = peer.server.finish()
    (last,) = map(json.loads, left)
    assert (code, last["id"], last["result"]["resultType"]) == (0, listen["id"], "complete")
    assert peer.server.wait_for("stopped")["lost_calls"] == 0


def test_listener_over_http(start_peer: StartPeer) -> None:
    """The same, on a stream of events that ends as it should."""
    peer = start_peer(HTTP[0])
    listen = peer.message("subscriptions/listen", FILTER)
    with peer.http.stream("POST", peer.url, json=listen, headers=peer.headers(listen)) as response:
        stream = events(response)
        first = next(stream)
        peer.call("probe_changes", uri="probe://text")
        assert read(iter([first, next(stream), next(stream)]), listen["id"]) == SENT
        peer.server.process.terminate()
        (last,) = stream
    assert (last["id"], last["result"]["resultType"]) == (listen["id"], "complete")
    assert peer.server.process.wait(5) == 0


ELICITS = {"name": "probe_elicits", "arguments": {}}


def shake_hands(server: Server) -> None:
    """As a client that can be asked."""
    hello = {
        "protocolVersion": LEGACY,
        "capabilities": {"elicitation": {}},
        "clientInfo": {"name": "r", "version": "0"},
    }
    server.send({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": hello})
    server.send({"jsonrpc": "2.0", "method": "notifications/initialized"})
    server.receive()


def test_client_that_goes_before_it_answers(start: Start) -> None:
    """The tool is told, so that the call ends, and is not cut."""
    server = start()
    shake_hands(server)
    server.send({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": ELICITS})
    assert server.receive()["method"] == "elicitation/create"
    code, left = server.finish()
    assert code == 0
    assert [json.loads(line)["result"]["_meta"][ERROR]["code"] for line in left] == ["failed"]


def test_call_that_is_cancelled_while_it_asks(start: Start) -> None:
    """Its question is withdrawn, and an answer that comes all the same, or twice, or to no question, is dropped."""
    server = start()
    shake_hands(server)
    server.send({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": ELICITS})
    asked = server.receive()["id"]
    server.send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}})
    withdrawn = server.receive()
    assert (withdrawn["method"], withdrawn["params"]) == ("notifications/cancelled", {"requestId": asked})
    server.send({"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": ELICITS})
    second = server.receive()["id"]
    for rpc_id in (asked, "no-question", 7, second, second):
        server.send({"jsonrpc": "2.0", "id": rpc_id, "result": {"action": "decline"}})
    assert server.receive()["result"]["structuredContent"] == {"result": "decline"}
    server.send({"jsonrpc": "2.0", "id": 3, "method": "ping"})
    assert server.receive() == {"jsonrpc": "2.0", "id": 3, "result": {}}
    assert server.finish() == (0, [])


def test_question_in_the_middle_of_a_call(start: Start) -> None:
    """In the handshake revisions a tool can ask the user over the pipe; calls go on meanwhile."""
    server = start()
    shake_hands(server)
    answers: list[tuple[Json, str | None]] = [
        ({"result": {"action": "accept", "content": {"colour": "red"}}}, "red"),
        ({"result": {"action": "decline"}}, "decline"),
        ({"error": {"code": -32603, "message": "no user here"}}, None),
        ({"error": {"message": "no code"}}, None),
        ({"error": "no object"}, None),
    ]
    for rpc_id, (answer, told) in enumerate(answers, start=1):
        server.send({"jsonrpc": "2.0", "id": rpc_id, "method": "tools/call", "params": ELICITS})
        asked = server.receive()
        assert (asked["method"], asked["params"]["message"]) == ("elicitation/create", "Which colour?")
        server.send({"jsonrpc": "2.0", "id": "between", "method": "ping"})
        assert server.receive() == {"jsonrpc": "2.0", "id": "between", "result": {}}
        server.send({"jsonrpc": "2.0", "id": asked["id"], **answer})
        result = server.receive()["result"]
        assert result["isError"] is (told is None)
        if told is None:
            assert result["_meta"][ERROR]["code"] == "failed"
        else:
            assert result["structuredContent"] == {"result": told}
    assert server.finish()[0] == 0


@pytest.mark.parametrize(
    ("ref", "argument", "values"),
    [
        ({"type": "ref/prompt", "name": "probe_choice"}, ("size", ""), ["small", "medium", "large"]),
        ({"type": "ref/prompt", "name": "probe_choice"}, ("size", "m"), ["medium"]),
        ({"type": "ref/prompt", "name": "probe_choice"}, ("note", "m"), []),
        ({"type": "ref/resource", "uri": "probe://numbers/{number}"}, ("number", "1"), []),
    ],
)
def test_completion(peer: Peer, ref: Json, argument: tuple[str, str], values: list[str]) -> None:
    """Where the type of an argument lists its values, they are offered."""
    name, typed = argument
    answer = peer.request("completion/complete", {"ref": ref, "argument": {"name": name, "value": typed}})
    assert answer["result"]["completion"] == {"values": values, "total": len(values), "hasMore": False}


def test_completion_of_what_is_not_there(peer: Peer) -> None:
    """An unknown prompt is said to be unknown."""
    params = {"ref": {"type": "ref/prompt", "name": "nobody"}, "argument": {"name": "a", "value": ""}}
    error = peer.request("completion/complete", params)["error"]
    assert (error["code"], error["data"]["code"]) == (-32602, "not_found")
