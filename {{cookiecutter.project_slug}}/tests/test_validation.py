"""Arguments are held against the published schema, strictly; messages name the field, the rule and the remedy."""

import json

import pytest

from .harness import Json, Peer, answer_of

SECRET = "hunter22-is-a-value"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({}, "count: is required"),
        ({"count": "3"}, "count: must be an integer"),
        ({"count": 3.5}, "count: must be an integer"),
        ({"count": True}, "count: must be an integer"),
        ({"count": None}, "count: must be an integer"),
        ({"count": 1, "ratio": "1"}, "ratio: must be a number"),
        ({"count": 1, "flag": 1}, "flag: must be true or false"),
        ({"count": 1, "flag": "true"}, "flag: must be true or false"),
        ({"count": 1, "day": SECRET}, "day: must be a date, as in 2026-01-31"),
        ({"count": 1, "key": SECRET}, "key: must be a UUID"),
        ({"count": 1, "colour": SECRET}, "colour: must be 'red' or 'blue'"),
        ({"count": 1, "size": SECRET}, "size: must be 's' or 'm'"),
        ({"count": 1, "words": SECRET}, "words: must be a list"),
        ({"count": 1, "words": [1]}, "words.0: must be a string"),
        ({"count": 1, "words": ["x"] * 1001}, "words: must have at most 1000 items"),
        ({"count": 1, "words": [[[[[[[[[[]]]]]]]]]] * 900}, "words: must not be nested deeper than its schema"),
        ({"count": 1, "words": ["x" * 10_001]}, "words.0: must have at most 10000 characters"),
        ({"count": 1, "lines": [{"sku": "a", "quantity": 0}]}, "lines.0.quantity: must be at least 1"),
        ({"count": 1, "lines": [{"sku": "a", "quantity": 1, "colour": 1}]}, "lines.0.colour: is unknown; remove it"),
        ({"count": 1, "json": SECRET}, "json: must have at most 5 characters"),
        ({"count": 1, "kount": 1}, "kount: is unknown; remove it (there is count, ratio, "),
        ({"count": 1, f"{SECRET} <>\n": 1}, "(name): is unknown; remove it"),
    ],
)
def test_wrong_argument(peer: Peer, arguments: Json, problem: str) -> None:
    """The message says what is wrong with which field, and never gives the value back."""
    error = peer.error("probe_arguments", **arguments)
    assert error["code"] == "invalid_arguments"
    assert problem in error["message"]
    assert SECRET not in error["message"]


def test_every_problem_at_once(peer: Peer) -> None:
    """A model that reads the message can put everything right in one go."""
    error = peer.error("probe_arguments", count="x", ratio="x", unknown=1)
    assert [line.split(":")[0] for line in error["message"].splitlines()] == ["count", "ratio", "unknown"]


def test_problems_told_are_bounded(peer: Peer) -> None:
    """The first twenty, and how many more: the message, and what it costs to make, do not grow with the arguments."""
    unknown = {f"k{number}": 1 for number in range(50_000)}
    lines = peer.error("probe_arguments", count=1.5, **unknown)["message"].splitlines()
    assert (len(lines), lines[0], lines[-1]) == (21, "count: must be an integer", "… and 49981 more problems")
    lines = peer.error("probe_arguments", **dict.fromkeys(unknown, 1) | {"count": 1, "words": [1] * 9_000})["message"]
    assert "words" in lines


def test_envelope_is_bounded(peer: Peer) -> None:
    """What a message says beside its arguments is refused when it is large, before anything looks at it or keeps it."""
    for meta in ({"x": "y" * 16_384}, {"x": [0] * 1_001}, {"x" * 2_000: 0}, {"progressToken": "x" * 1_025}):
        error = peer.request("tools/list", {"_meta": meta})["error"]
        assert (error["data"]["code"], error["message"].split(":")[0].split(".")[:2]) == (
            "invalid_request",
            ["params", "_meta"],
        )
    assert "result" in peer.request("tools/list", {"_meta": {"x": "y" * 10_000}})


@pytest.mark.parametrize("value", [[], "x", 1])
def test_arguments_that_are_no_object(peer: Peer, value: object) -> None:
    """Then the request itself is malformed."""
    error = peer.request("tools/call", {"name": "probe_list", "arguments": value})["error"]
    assert (error["code"], error["data"]["code"]) == (-32602, "invalid_request")
    assert error["message"] == "params.arguments: must be an object"


def test_right_arguments_arrive_as_their_types(peer: Peer) -> None:
    """JSON's strings become dates, UUIDs and enum members; a whole number written 3.0 is an integer, as in the schema."""
    key = "12345678-1234-5678-1234-567812345678"
    answer = peer.call(
        "probe_arguments",
        count=3.0,
        ratio=2,
        flag=True,
        day="2026-01-31",
        key=key,
        colour="blue",
        size="m",
        words=["a"],
        lines=[{"sku": "a", "quantity": 1.0}],
        json="five5",
    )
    shown = answer["result"]["structuredContent"]["result"]
    assert shown == f"3 2.0 True 2026-01-31 {key} blue m ['a'] [Line(sku='a', quantity=1)] five5"


def test_deep_nesting_and_broken_unicode_are_refused(peer: Peer) -> None:
    """Absurd arguments cost little and leave the server well."""
    nested: list[object] = []
    for _ in range(150):
        nested = [nested]
    assert peer.error("probe_arguments", count=1, words=nested)["code"] == "invalid_arguments"
    assert peer.call("probe_reached")["result"]["isError"] is False


def test_lists_and_objects_of_a_message_are_bounded(peer: Peer) -> None:
    """Each is a hundred times its bytes in memory. Brackets in texts are none."""
    call = {"name": "probe_arguments", "arguments": {"count": 1, "words": [[]] * 100_001}}
    error = peer.request("tools/call", call)["error"]
    assert (error["data"]["code"], "at most 100000 lists and objects" in error["message"]) == ("invalid_request", True)
    assert peer.call("probe_arguments", count=1, words=['[\\"{' * 200] * 500)["result"]["isError"] is False


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"name": "x" * 10_001}, "node.name: must have at most 10000 characters"),
        ({"name": "x", "parents": [{"name": "x" * 10_001}]}, "node.parents.0.name: must have at most 10000 characters"),
        ({"name": "x", "parents": [{"name": "x"}] * 1001}, "node.parents: must have at most 1000 items"),
    ],
)
def test_default_bounds_hold_at_every_depth(peer: Peer, arguments: Json, problem: str) -> None:
    """In models, in models of models, and in collections of any kind."""
    assert peer.error("probe_nested", node=arguments)["message"] == problem


@pytest.mark.parametrize(
    ("argument", "problem"),
    [
        ({"queue": ["x"] * 1001}, "queue: must have at most 1000 items"),
        ({"order": {f"k{number}": 1 for number in range(1001)}}, "order: must have at most 1000 items"),
        ({"address": f"https://example.com/{'x' * 10_000}"}, "address: must be a URL of at most 10000 characters"),
    ],
)
def test_default_bounds_hold_for_rarer_types(peer: Peer, argument: Json, problem: str) -> None:
    """Which have kinds of their own in pydantic."""
    assert peer.error("probe_nested", node={"name": "x"}, **argument)["message"] == problem


def test_own_bound_wins_wherever_it_is_written(peer: Peer) -> None:
    """In the annotation or in the default."""
    error = peer.error("probe_nested", node={"name": "x"}, mark="abcd")
    assert error["message"] == "mark: must have at most 3 characters"


def test_union_is_named_by_its_field(peer: Peer) -> None:
    """Not by what pydantic calls its members."""
    lines = peer.error("probe_nested", node={"name": "x"}, either=None)["message"].splitlines()
    assert lines == ["either: must be an integer", "either: must be a string"]


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"1e999"])
def test_number_that_is_none(peer: Peer, number: bytes) -> None:
    """It is refused wherever it is noticed: JSON has no such number."""
    message = peer.message("tools/call", {"name": "probe_nested", "arguments": {"node": {"name": "x"}, "ratio": 7.5}})
    body = json.dumps(message).encode().replace(b"7.5", number)
    if peer.way.transport == "http":
        answer = answer_of(peer.post(body, {"Mcp-Method": "tools/call", "Mcp-Name": "probe_nested"}))
    else:
        peer.server.send(body)
        answer = peer.server.receive()
    assert "error" in answer or answer["result"]["isError"] is True


def test_schema_publishes_the_defaults_that_bound(peer: Peer) -> None:
    """A string or list without a bound of its own is published with the default one; unknown keys are forbidden."""
    listed = peer.request("tools/list")["result"]["tools"]
    schema = next(tool for tool in listed if tool["name"] == "probe_arguments")["inputSchema"]
    words = schema["properties"]["words"]["anyOf"][0]
    assert (words["maxItems"], words["items"]["maxLength"]) == (1000, 10_000)
    assert schema["properties"]["json"]["maxLength"] == 5
    nested = next(tool for tool in listed if tool["name"] == "probe_nested")["inputSchema"]["properties"]
    queue, order, address = (nested[name]["anyOf"][0] for name in ("queue", "order", "address"))
    assert (queue["maxItems"], order["maxProperties"], address["maxLength"]) == (1000, 1000, 10_000)
    assert schema["additionalProperties"] is False
    assert schema["$defs"]["Line"]["additionalProperties"] is False
