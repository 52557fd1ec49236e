"""Every way a call can end, over both transports and in both eras: on the wire and in the log."""

import pytest

from .conftest import StartPeer
from .harness import ERROR, HTTP, LEGACY, STDIO, Json, Peer, Way


def assert_outcome(peer: Peer, error: Json, code: str, *, retryable: bool = False) -> None:
    """The wire error and the log line say the same."""
    assert (error["code"], error["retryable"]) == (code, retryable)
    line = peer.logged(error["request_id"])
    assert (line["outcome"], line["transport"]) == (code, peer.way.transport)
    assert line["protocol_version"] == peer.way.version


TABLE: dict[str, tuple[str, Json, bool]] = {
    "invalid_arguments": ("probe_arguments", {"count": "3"}, False),
    "forbidden": ("probe_privileged", {}, False),
    "rate_limited": ("probe_raises", {"code": "rate_limited"}, True),
    "unavailable": ("probe_raises", {"code": "unavailable"}, True),
    "timeout": ("probe_slow", {}, True),
    "shutting_down": ("probe_raises", {"code": "shutting_down"}, True),
    "upstream_unavailable": ("probe_raises", {"code": "upstream_unavailable"}, True),
    "upstream_rejected": ("probe_raises", {"code": "upstream_rejected"}, False),
    "failed": ("probe_raises", {"code": "failed"}, False),
    "result_too_large": ("probe_large", {"size": 2_000_000}, False),
    "internal": ("probe_crashes", {"secret": "s3cret-value"}, False),
}


@pytest.mark.parametrize("code", TABLE)
def test_outcome_of_a_tool_call(peer: Peer, code: str) -> None:
    """A call that does not succeed is a result the model reads, with the outcome's members in `_meta`."""
    tool, arguments, retryable = TABLE[code]
    error = peer.error(tool, **arguments)
    assert_outcome(peer, error, code, retryable=retryable)
    assert set(error) - {"retry_after_ms"} == {"code", "message", "retryable", "request_id"}
    assert peer.logged(error["request_id"])["tool"] == tool


def test_retry_after_is_in_milliseconds(peer: Peer) -> None:
    """Where the wait is known, it is told."""
    assert peer.error("probe_raises", code="rate_limited")["retry_after_ms"] == 3000


def test_answer_that_cannot_be_written(peer: Peer) -> None:
    """It is a crash of this call, and of nothing else."""
    error = peer.call("probe_unwritable")["error"]
    assert (error["code"], error["data"]["code"]) == (-32603, "internal")
    assert peer.call("probe_reached")["result"]["isError"] is False


def test_success_is_ok(peer: Peer) -> None:
    """A call that succeeds has structured content, text, and one line in the log."""
    answer = peer.call("probe_list")
    assert answer["result"]["structuredContent"] == {"result": [{"sku": "a", "quantity": 1}]}
    assert answer["result"]["isError"] is False
    line = peer.server.wait_for("request", rpc_id=answer["id"], tool="probe_list")
    assert line["outcome"] == "ok"
    assert set(line) == {
        *("timestamp", "level", "event", "request_id", "rpc_id", "method", "tool", "principal", "transport"),
        *("protocol_version", "outcome", "duration_ms", *(["client"] if peer.way.transport == "http" else [])),
    }


@pytest.mark.parametrize(
    ("method", "params", "rpc_code", "code"),
    [
        ("resources/read", {"uri": "probe://files/..%2F..%2Fetc"}, -32602, "invalid_arguments"),
        ("resources/read", {"uri": "probe://files/%2Fetc%2Fpasswd"}, -32602, "invalid_arguments"),
        ("tools/call", {"name": "no_such_tool", "arguments": {}}, -32602, "unknown_tool"),
        ("prompts/get", {"name": "no_such_prompt"}, -32602, "not_found"),
        ("prompts/get", {"name": "probe_prompt", "arguments": {"count": "x"}}, -32602, "invalid_arguments"),
        ("resources/read", {"uri": "probe://nowhere"}, -32602, "not_found"),
        ("resources/read", {"uri": "probe://numbers/10"}, -32602, "invalid_arguments"),
        ("resources/read", {"uri": "probe://secret"}, 403, "forbidden"),
        ("prompts/get", {"name": "probe_privileged_prompt"}, 403, "forbidden"),
        ("tools/list", {"cursor": "made-up"}, -32602, "invalid_request"),
        ("tools/call", {"name": "probe_list", "arguments": []}, -32602, "invalid_request"),
        ("no/such/method", {}, -32601, "invalid_request"),
    ],
)
def test_protocol_error(peer: Peer, method: str, params: Json, rpc_code: int, code: str) -> None:
    """What is no tool result is a JSON-RPC error, with the same members in its `data`."""
    error = peer.request(method, params)["error"]
    assert error["code"] == rpc_code
    assert error["data"]["message"] == error["message"]
    assert_outcome(peer, error["data"], code)


def test_unknown_resource_names_its_uri_without_secrets(peer: Peer) -> None:
    """The specification shows the URI in the error's data; a credential in it is not given back."""
    error = peer.request("resources/read", {"uri": "https://user:hunter22@example.com/x?token=hunter22"})["error"]
    assert error["data"]["uri"].startswith("https://")
    assert "hunter22" not in str(error)


@pytest.mark.parametrize(
    ("tool", "effect", "retryable"),
    [
        ("probe_slow", "Nothing was changed", True),
        ("probe_slow_idempotent", "repeating the same call is safe", True),
        ("probe_blocks", "not known whether it took effect", False),
    ],
)
def test_timeout_says_whether_it_may_have_taken_effect(peer: Peer, tool: str, effect: str, retryable: bool) -> None:
    """A timeout is answered on time, by blocking tools too, and says what is known of the effect."""
    error = peer.error(tool)
    assert_outcome(peer, error, "timeout", retryable=retryable)
    assert effect in error["message"]
    assert peer.logged(error["request_id"])["duration_ms"] < 900


def test_refused_call_never_reaches_the_tool(peer: Peer) -> None:
    """Neither a call without the scope nor one with wrong arguments runs the function."""
    before = peer.call("probe_reached")["result"]["structuredContent"]
    peer.error("probe_privileged")
    peer.error("probe_arguments", count=True)
    assert peer.call("probe_reached")["result"]["structuredContent"] == before


def test_refusal_for_scopes_comes_before_anything_else(peer: Peer) -> None:
    """A caller who may not use a tool learns nothing else about it."""
    assert peer.error("probe_privileged", nonsense=1)["code"] == "forbidden"


def test_own_error_result_is_completed(peer: Peer) -> None:
    """A tool that returns the SDK's own error result gets the outcome's members too."""
    assert_outcome(peer, peer.error("probe_own_error"), "failed")


def test_wrong_result_is_an_internal_error(peer: Peer) -> None:
    """A result that does not fit its own schema is not sent."""
    assert_outcome(peer, peer.error("probe_wrong"), "internal")


@pytest.mark.parametrize(
    "tool",
    [
        *("probe_refused_inside", "probe_stray_cancel", "probe_exits", "probe_exits_in_a_thread"),
        *("probe_panics", "probe_panics_in_a_thread"),
    ],
)
def test_whatever_a_tool_raises_is_its_own_crash(peer: Peer, tool: str) -> None:
    """It is not taken for the caller's fault, and does not end the server."""
    assert_outcome(peer, peer.error(tool), "internal")
    assert peer.call("probe_list")["result"]["isError"] is False


def test_the_sdks_own_exception_shows_nothing_of_it(peer: Peer) -> None:
    """An `MCPError` from some client library inside a tool is a crash like any other."""
    error = peer.error("probe_sdk_error", secret="hunter22")
    assert_outcome(peer, error, "internal")
    assert "hunter22" not in str(error)


def test_failure_inside_a_task_group_is_still_that_failure(peer: Peer) -> None:
    """The group around it is unwrapped."""
    error = peer.error("probe_group")
    assert (error["code"], error["message"]) == ("failed", "from inside")


def test_messages_are_cleaned_and_bounded(peer: Peer) -> None:
    """A refusal is no way around what holds for results."""
    assert peer.error("probe_long_failure")["message"] == "[31m" + "y" * 3996


def test_model_that_cannot_read_what_it_writes(peer: Peer) -> None:
    """The published schema judges, not the round trip."""
    written = peer.call("probe_written")["result"]["structuredContent"]
    assert written == {"day": "31.01.2026", "year": 2026}


def test_tool_that_asks_back(peer: Peer) -> None:
    """Its state is sealed on the way out and opened on the way in; an era that cannot be asked is told so."""
    if peer.way.version == LEGACY:
        assert peer.error("probe_asks")["code"] == "failed"
        return
    asked = peer.call("probe_asks")["result"]
    assert asked["resultType"] == "input_required"
    assert "remembered" not in str(asked)
    params = {"name": "probe_asks", "arguments": {}, "requestState": asked["requestState"]}
    assert peer.request("tools/call", params)["result"]["structuredContent"] == {"result": "remembered"}
    error = peer.request("tools/call", params | {"requestState": "made-up"})["error"]
    assert (error["code"], error["data"]["code"]) == (-32602, "invalid_request")


@pytest.mark.parametrize("way", [STDIO[0], HTTP[0]], ids=str)
def test_state_is_good_for_one_round(start_peer: StartPeer, way: Way) -> None:
    """A tool that acts is not run twice on the same state; one that is idempotent is,
    as a client may ask again whose answer was lost."""
    peer = start_peer(way)
    for tool, ends in (("probe_asks", ["done", "used"]), ("probe_asks_again", ["done", "done"])):
        asked = peer.call(tool)["result"]
        params = {"name": tool, "arguments": {}, "requestState": asked["requestState"]}
        answers = [peer.request("tools/call", params) for _ in range(2)]
        assert ["done" if "result" in answer else "used" for answer in answers] == ends
        if ends[1] == "used":
            error = answers[1]["error"]
            assert (error["code"], error["data"]["code"]) == (-32602, "invalid_request")
            assert "Call it again without one" in error["message"]
            assert peer.call(tool)["result"]["resultType"] == "input_required"


def test_results_are_stripped_of_deceiving_characters(peer: Peer) -> None:
    """Control characters, bidirectional overrides and invisible tags go; tab and line end stay."""
    result = peer.call("probe_dirty")["result"]
    assert result["structuredContent"] == {"result": "a[31mredgnp.exe tab\tend\n"}
    assert result["content"][0]["text"] == "a[31mredgnp.exe tab\tend\n"
    read = peer.request("resources/read", {"uri": "probe://text"})["result"]["contents"][0]
    assert read["text"] == "plain text"
    got = peer.request("prompts/get", {"name": "probe_prompt", "arguments": {"count": "2"}})["result"]
    assert got["messages"][0]["content"]["text"] == "2 none"


def test_results_are_stripped_of_what_nobody_sees(peer: Peer) -> None:
    """Selectors, zero-width characters and fillers could carry words past a reader; what scripts and pictures need stays."""
    hidden = [0xAD, 0x34F, 0x115F, 0x200B, 0x200C, 0x200D, 0x200E, 0x2060, 0x2065, 0x3164, 0xFE00, 0xFE0F, 0xE0100]
    farsi, hindi = "\u0645\u06cc\u200c\u062e\u0648", "\u0915\u094d\u200d\u0937"
    family, heart, key = "\U0001f468\u200d\U0001f469", "\u2764\ufe0f", "1\ufe0f\u20e3"
    needed = f"{farsi} {hindi} {family} {heart} {key}"
    found = peer.call("probe_says", text="".join(f"a{chr(each)}" for each in hidden) + f"b {needed}\ufe0f")["result"]
    assert found["structuredContent"] == {"result": "a" * len(hidden) + f"b {needed}"}
    assert found["content"][0]["text"] == found["structuredContent"]["result"]


def test_two_names_that_nobody_can_tell_apart_are_no_result(peer: Peer) -> None:
    """One of them would be lost without a word: it is a crash, and the log says why."""
    error = peer.error("probe_names", first="total", second="to\u200btal")
    assert_outcome(peer, error, "internal")
    assert "two keys" in str(peer.server.wait_for("crash", request_id=error["request_id"])["problems"])


def test_internal_error_says_which_request_it_was(peer: Peer) -> None:
    """Models and people see the text alone: the id to quote stands there, and it is the one of the log."""
    error = peer.error("probe_crashes", secret="s3cret-value")
    assert error["request_id"] in error["message"]
    assert peer.server.wait_for("crash", request_id=error["request_id"])["tool"] == "probe_crashes"
    error = peer.call("probe_unwritable")["error"]
    assert error["data"]["request_id"] in error["message"] == error["data"]["message"]
    peer.server.wait_for("request", request_id=error["data"]["request_id"], outcome="internal")


def test_content_blocks_pass_through(peer: Peer) -> None:
    """A tool may return the protocol's own content."""
    image = {"type": "image", "data": "aGk=", "mimeType": "image/png"}
    assert peer.call("probe_image")["result"]["content"] == [image]


def test_resources_are_text_bytes_or_json(peer: Peer) -> None:
    """Bytes are base64, and other values become JSON."""
    read = peer.request("resources/read", {"uri": "probe://bytes"})["result"]["contents"][0]
    assert (read["mimeType"], read["blob"]) == ("image/png", "iVBORw==")
    read = peer.request("resources/read", {"uri": "probe://files/index"})["result"]["contents"][0]
    assert read["text"] == "the index", "a fixed URI is not the template's to answer"
    read = peer.request("resources/read", {"uri": "probe://numbers/7"})["result"]["contents"][0]
    assert (read["mimeType"], read["text"]) == ("application/json", '{"number":7}')


def test_results_carry_what_the_era_needs(peer: Peer) -> None:
    """Modern results, errors included, are stamped; legacy ones are not."""
    for result in (peer.call("probe_list")["result"], peer.call("probe_privileged")["result"]):
        stamped = "resultType" in result and "io.modelcontextprotocol/serverInfo" in result.get("_meta", {})
        assert stamped == (peer.way.version != LEGACY)
        assert (ERROR in result.get("_meta", {})) == result["isError"]


def test_trace_context_reaches_the_log(peer: Peer) -> None:
    """The trace id of `_meta.traceparent` is in the request's line."""
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    meta = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    answer = peer.request("tools/call", {"name": "probe_list", "arguments": {}, "_meta": meta})
    assert peer.server.wait_for("request", rpc_id=answer["id"], trace_id=trace)["outcome"] == "ok"


@pytest.mark.parametrize(
    "malformed",
    [f"ff-{'a' * 32}-{'b' * 16}-01", f"00-{'0' * 32}-{'b' * 16}-01", f"00-{'a' * 32}-{'0' * 16}-01", "garbage"],
    ids=["version", "no-trace", "no-span", "garbage"],
)
def test_malformed_trace_context_does_not(peer: Peer, malformed: str) -> None:
    """What W3C calls invalid is no trace id."""
    answer = peer.request("tools/call", {"name": "probe_list", "arguments": {}, "_meta": {"traceparent": malformed}})
    fields = {"rpc_id": answer["id"], "tool": "probe_list", "protocol_version": peer.way.version}
    assert "trace_id" not in peer.server.wait_for("request", **fields)


@pytest.mark.parametrize("way", HTTP, ids=str)
def test_trace_context_of_http_reaches_the_log(peer: Peer) -> None:
    """That of the headers does, where `_meta` has none."""
    message = peer.message("tools/call", {"name": "probe_list", "arguments": {}})
    assert peer.post(message, {"traceparent": f"00-{'c' * 32}-{'b' * 16}-01"}).status_code == 200
    assert peer.server.wait_for("request", trace_id="c" * 32, protocol_version=peer.way.version)["outcome"] == "ok"
