"""Text from outside harms nobody: what hides in it reaches no reader, what is secret in it no log, and none is dear.

It guards `text.py` and `logs.py`: the cleaning of whatever tools say over each transport and in both eras, line ends in
the streams, what the log shows of others' text, and that no pattern takes more than its share of time.
"""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import pytest

from bootstrap import BIN, server_environment
from installed import Installed
from raw import HELLO, INITIALIZED, LEGACY, MODERN, SERVE_HTTP, Connection, Json, Server, headers_of, message, post

pytestmark = [pytest.mark.install, pytest.mark.timeout(300)]

WAYS = ["stdio-modern", "stdio-legacy", "http-modern", "http-legacy", "http-sessions"]
_RANGES = [
    *((0x00, 0x08), (0x0B, 0x0C), (0x0E, 0x1F), (0x7F, 0x9F), (0xAD, 0xAD), (0x34F, 0x34F), (0x61C, 0x61C)),
    *((0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F), (0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F)),
    *((0x3164, 0x3164), (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF), (0xFFA0, 0xFFA0), (0xFFF0, 0xFFFB), (0x1BCA0, 0x1BCA3)),
    *((0x1D173, 0x1D17A), (0xE0000, 0xE007F), (0xE0100, 0xE01EF)),
]
HIDDEN = [chr(code) for first, last in _RANGES for code in range(first, last + 1)]
NEEDED = {
    "farsi": "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
    "farsi after a number": "20\u200c\u0633\u0627\u0644\u0647",
    "hindi": "\u0915\u094d\u200d\u0937",
    "sinhala": "\u0dc1\u0dca\u200d\u0dbb\u0dd3",
    "malayalam": "\u0d28\u0d4d\u200d",
    "mongolian": "\u1828\u180b\u1822 \u1828\u180e\u1820",
    "family": "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "rainbow": "\U0001f3f3\ufe0f\u200d\U0001f308",
    "profession": "\U0001f469\U0001f3fd\u200d\U0001f4bb \U0001f9d1\u200d\u2695\ufe0f",
    "heart": "\u2764\ufe0f \u2764\ufe0e \u2764\ufe0f\u200d\U0001f525",
    "key": "1\ufe0f\u20e3 #\ufe0f\u20e3",
    "spaces and lines": "a\tb\r\nc\u00a0d\u202fe\u3000f\u2028g\u2029h",
    "accents": "e\u0301 \u05e9\u05c1\u05b8 \ud55c\uad6d\uc5b4 \u30ac",
}
SAID = "".join(f"z{each}" for each in HIDDEN) + "|" + "|".join(NEEDED.values()) + "\ufe0f"
READ = "z" * len(HIDDEN) + "|" + "|".join(NEEDED.values())
LINE_ENDS = "\x85\u2028\u2029"
TOKEN = f"token\u200b{LINE_ENDS}"


class Heard(NamedTuple):
    """What came for one request, the answer last; `raw`: its bytes."""

    messages: list[Json]
    raw: bytes

    @property
    def strings(self) -> list[str]:
        """Every text in it."""
        return list(_strings(self.messages))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for each in [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []:
        yield from _strings(each)


class Peer:
    """A client of one server, in one era; it says that the user declines when it is asked."""

    def __init__(self, way: str, server: Server) -> None:
        self.way, self.server = way, server
        self.era = MODERN if way.endswith("modern") else LEGACY
        self._serial = 0
        self._session: dict[str, str] = {}
        if way == "stdio-legacy":
            hello = message(LEGACY, "hello", "initialize", HELLO | {"capabilities": {"elicitation": {}}})
            server.send(hello, INITIALIZED)
            server.receive()
        elif way == "http-sessions":
            with Connection(server.port) as connection:
                self._session = connection.shake_hands()

    def request(self, method: str, params: Json | None = None, rpc_id: str | None = None) -> Heard:
        """One request; progress and log messages are asked for, under a token that has to come back as it is."""
        self._serial += 1
        sent = message(self.era, rpc_id or f"{self.way} {self._serial}", method, params)
        sent["params"]["_meta"] = {
            **sent["params"].get("_meta", {}),
            "progressToken": TOKEN,
            "io.modelcontextprotocol/logLevel": "debug",
        }
        if self.way.startswith("http"):
            with Connection(self.server.port) as connection:
                found = connection.ask(post(headers_of(sent, self.era) | self._session, sent))
            return Heard(found.messages, found.body)
        self.server.send(sent)
        lines = [self.server.receive()]
        while (last := json.loads(lines[-1])).get("id") != sent["id"]:
            if "id" in last:
                self.server.send({"jsonrpc": "2.0", "id": last["id"], "result": {"action": "decline"}})
            lines.append(self.server.receive())
        return Heard([json.loads(line) for line in lines], b"".join(lines))

    def call(self, tool: str, /, **arguments: str) -> Heard:
        """One `tools/call`."""
        return self.request("tools/call", {"name": tool, "arguments": arguments})


@pytest.fixture(scope="module")
def peers(installed: Installed) -> Iterator[Callable[[str], Peer]]:
    """Peers of a few servers, which all tests share."""
    with ExitStack() as stack:
        servers: dict[str, Server] = {}
        made: dict[str, Peer] = {}

        def peer(way: str) -> Peer:
            if way not in made:
                key = "http" if way in ("http-modern", "http-legacy") else way
                if key not in servers:
                    settings = {"MCP_LOG_LEVEL": "DEBUG", "MCP_RATE_LIMIT_PER_MINUTE": "0"}
                    settings |= {"MCP_HTTP_SESSIONS": "stateful"} if key == "http-sessions" else {}
                    arguments = SERVE_HTTP if key.startswith("http") else ()
                    server = Server([installed.command, *arguments], settings, patience=60)
                    servers[key] = stack.enter_context(server)
                made[way] = Peer(way, servers[key])
            return made[way]

        yield peer


@pytest.fixture(params=WAYS)
def peer(request: pytest.FixtureRequest, peers: Callable[[str], Peer]) -> Peer:
    """One peer; the test runs once for each way."""
    return peers(request.param)


@pytest.fixture
def run(installed: Installed) -> Callable[[str], Any]:
    """Runs lines of Python with the installed package, and returns the JSON that they print."""

    def run_lines(lines: str) -> Any:
        python = installed.path / ".venv" / BIN / "python"
        return json.loads(subprocess.check_output([python, "-c", lines], env=server_environment({}), text=True))

    return run_lines


@pytest.mark.parametrize(
    "tool",
    [
        *("text_returned", "text_listed", "text_failed", "text_required", "text_told", "text_asked", "text_asked_back"),
    ],
)
def test_nothing_that_is_hidden_reaches_a_reader(peer: Peer, tool: str) -> None:
    """However a tool says it, what nobody sees is gone and what scripts and pictures need is there."""
    if tool == "text_asked" and peer.way != "stdio-legacy":
        pytest.skip("no other way asks so without a second connection")
    if tool == "text_asked_back" and peer.era != MODERN:
        pytest.skip("the handshake revisions have no such result")
    heard = peer.call(tool, text=SAID)
    said = [text for text in heard.strings if "zzz" in text]
    assert said
    for text in said:
        assert READ in text.replace("\\t", "\t").replace("\\r", "\r").replace("\\n", "\n")
    if tool == "text_told":
        told = [each["params"] for each in heard.messages[:-1]]
        assert {"message", "data", "logger"} <= {name for params in told for name in params}
        assert [params.get("progressToken") for params in told] == [TOKEN, TOKEN, None], "it comes back as it went"
    if tool == "text_asked_back":
        answer = heard.messages[-1]["result"]
        params = {"name": tool, "arguments": {"text": SAID}, "requestState": answer["requestState"]}
        again = peer.request("tools/call", params).messages[-1]
        assert again["result"]["structuredContent"] == {"result": "True"}, "its state is as it was"


@pytest.mark.parametrize(("method", "params"), [("resources/read", {"uri": "text://asks"}), ("prompts/get", {})])
@pytest.mark.parametrize("way", ["stdio-modern", "http-modern"])
def test_resources_and_prompts_that_ask_are_cleaned_too(
    peers: Callable[[str], Peer], way: str, method: str, params: Json
) -> None:
    """A question hides nothing, whoever asks it."""
    answer = peers(way).request(method, params or {"name": "text_asks_too"}).messages[-1]
    assert answer["result"]["inputRequests"]["a"]["params"]["message"] == "hidden"


def test_each_hidden_character_goes_wherever_it_stands(run: Callable[[str], Any]) -> None:
    """Alone, twice, at an end, between letters and digits; cleaned text stays as it is when it is cleaned again."""
    found = run(f"""
import json, random
from spare_parts.text import clean

hidden = {[ord(each) for each in HIDDEN]} + list(range(0xD800, 0xE000))
frames = ["%s", "a%sb", "a%s%sb", " %s ", "1%s2", "\\xe9%s\\xe9", "\\u6f22%s\\u5b57", "%s\\u2764a", "a%s\\u0628"]
left = [hex(each) for each in hidden for frame in frames
        if clean(frame.replace("%s", chr(each))) != frame.replace("%s", "")]
more = [hex(each) for each in hidden for frame in ("\\u2764%s%sx", "\\u0628%s%s\\u0628", "\\u0915\\u094d%s%s%sa")
        if clean(frame.replace("%s", chr(each))).count(chr(each)) > 1]
pool, unstable = "a1#\\u2764\\U0001f468\\u0628\\u0915\\u094d\\u1828\\u20e3\\u200b\\u200c\\u200d\\ufe0e\\ufe0f\\u180b\\u180e", []
random.seed(1)
for _ in range(20_000):
    once = clean("".join(random.choices(pool, k=7)))
    if clean(once) != once:
        unstable.append(ascii(once))
print(json.dumps([left, more, unstable]))
""")
    assert found == [[], [], []]


def test_names_that_nobody_can_tell_apart_are_told_to_nobody(peer: Peer) -> None:
    """One of them would be lost: the call fails, and the log says why."""
    heard = peer.call("text_told_in_names", first="total", second="to\u2060tal")
    error = heard.messages[-1]["result"]["_meta"]["plinth/error"]
    assert (len(heard.messages), error["code"]) == (1, "internal")
    (crash,) = peer.server.wait_for("crash", request_id=error["request_id"])
    assert "two keys" in str(crash["problems"])


def test_no_line_ends_before_its_end(peer: Peer) -> None:
    """Lines of events end with LF alone, and what some readers take for a line's end is escaped, ids and tokens too."""
    heard = peer.request("tools/call", {"name": "text_told", "arguments": {"text": LINE_ENDS}}, f"id {LINE_ENDS}")
    assert heard.messages[-1]["id"] == f"id {LINE_ENDS}"
    assert [each["params"]["data"]["said"] for each in heard.messages if "data" in each.get("params", {})] == [
        LINE_ENDS.replace("\x85", "")
    ]
    assert b"\r" not in heard.raw
    assert not set(LINE_ENDS) & set(heard.raw.decode())
    failed = peer.call("text_failed", text=LINE_ENDS)
    assert failed.messages[-1]["result"]["content"][0]["text"] == "\u2028\u2029"
    if peer.way.startswith("stdio"):
        assert not set(LINE_ENDS) & set(failed.raw.decode())


def test_a_crash_can_be_found_by_what_its_caller_sees(peer: Peer) -> None:
    """The id stands in the text that people see, in the error's members, and in both lines of the log."""
    result = peer.call("text_crash", text="hunter22").messages[-1]["result"]
    error = result["_meta"]["plinth/error"]
    assert result["content"] == [{"type": "text", "text": error["message"]}]
    assert error["request_id"] in error["message"]
    peer.server.wait_for("crash", request_id=error["request_id"])
    peer.server.wait_for("request", request_id=error["request_id"], outcome="internal")


def test_others_text_cannot_disguise_a_line_of_the_log(peer: Peer) -> None:
    """Whatever is logged, printed, or the id of a request: it is escaped, and reads as what it was."""
    said = "".join(sorted({*HIDDEN, *LINE_ENDS} - {"\0"}))
    rpc_id = f"{peer.way} {LINE_ENDS}\u202e\u2066\u200b\x9b"
    heard = peer.request("tools/call", {"name": "text_noted", "arguments": {"text": said}}, rpc_id)
    assert "result" in heard.messages[-1]
    (line,) = peer.server.wait_for("request", rpc_id=rpc_id)
    (noted,) = peer.server.wait_for(said, request_id=line["request_id"], note=said)
    assert noted["deep"] == {said[:64]: [said, {"text": said}]}
    peer.server.wait_for(said, logger="library", request_id=line["request_id"])
    peer.call("text_noise", text=f"{peer.way} {said[60:]}".replace("\n", ""))
    peer.server.wait_for("stdout_noise")
    raw = b"\n".join(peer.server.stderr).decode()
    assert not ({*HIDDEN, *LINE_ENDS} - {"\n"}) & set(raw)


def test_an_event_of_the_log_is_bounded(peers: Callable[[str], Peer]) -> None:
    """Texts, lists, names: each is cut, and says so; of many printed lines the rest is counted."""
    peer = peers("stdio-modern")
    peer.call("text_noted", text="long " + "x" * 100_000)
    (line,) = peer.server.wait_for("request", tool="text_noted", rpc_id=f"{peer.way} {peer._serial}")
    (noted,) = [
        each for each in peer.server.events() if each.get("request_id") == line["request_id"] and "note" in each
    ]
    assert noted["note"] == ("long " + "x" * 100_000)[:8192] + "[cut]"
    peer.call("text_heaped", text="y" * 50)
    (heap,) = peer.server.wait_for("heap")
    assert heap["many"][-1] == "[cut]"
    assert heap["names"]["[cut]"] > 0
    peer.call("text_noise", text="z\n" * 50_000)
    (dropped,) = peer.server.wait_for("stdout_noise_dropped")
    assert 0 < dropped["count"] < 50_000
    peer.call("text_noise", text="w" * 200_000)
    peer.call("text_noise", text="after the long line")
    peer.server.wait_for("stdout_noise_dropped")
    assert max(map(len, peer.server.stderr)) < 300_000


SECRET = "correct-horse-battery-staple-0123456789-tr0ub4dor"


def test_no_secret_is_cut_in_two(run: Callable[[str], Any]) -> None:
    """Wherever the cut falls, neither half of a secret is shown: of a known one, a token, a password in a URL, a query."""
    found = run(f"""
import json
from spare_parts.logs import LONGEST_TEXT, Redaction

secret, leaks = {SECRET!r}, []
shapes = ["%s", "Bearer %s", "basic \\t %s", "https://user:%s@example.com/", "https://example.com/?k=%s"]
shapes += ["https://example.com/x#%s", "eyJhbGciOiJub25lIn0.%s.x", "redis://:%s@host:6379/0", "https://u:%s%s%s@host/"]
for shape in shapes:
    hidden = Redaction([secret] if shape == "%s" else [])
    for longest in (64, 2048, LONGEST_TEXT):
        for start in range(longest - len(secret) - 40, longest + 4):
            if start < 0:
                continue
            secrets = shape.replace("%s", secret)
            often = "." * (start % 100) + f" {{secrets}}" * (longest // 20)
            texts = ["." * (start - 1) + f" {{secrets}}{{tail}}" for tail in ("", " ", "/", " end", "x" * 40, " y" * 4000)]
            for text in [often, *texts]:
                shown = hidden.hide(text, longest)
                if len(shown) > longest + 5 + 20 or any(secret[at : at + 7] in shown for at in range(len(secret) - 7)):
                    leaks.append([shape, longest, start, text[-9:], shown[-60:]])
print(json.dumps(leaks[:5]))
""")
    assert found == []


@pytest.mark.skipif(os.name == "nt", reason="Windows counts processor time too coarsely")
def test_patterns_take_time_in_proportion_to_the_text(run: Callable[[str], Any]) -> None:
    """Eight times the text takes about eight times as long, and not sixty-four times, in the log and in results."""
    pieces = [
        *("a://", "a.a.", "-a-a", "://@", "a:// ", "eyJ", "eyJ-", "eyJaaaaaaaa-", "eyJaaaaaaaa.", "bearer ", "basic\t\n"),
        *("://a?", "@://", "a\u200d", "\u200d", "\ufe0f\u200d", "\u2764\ufe0f\u200d", "\u0915\u094d\u200d", "\x85"),
    ]  # fmt: skip
    steep = run(f"""
import json, time
from spare_parts.logs import Redaction
from spare_parts.text import clean, escaped

hidden = Redaction({[SECRET]!r})

def cost(text):
    least = float("inf")
    for _ in range(5):
        began = time.process_time()
        for _ in range(10):
            hidden.hide(text, 10**9), clean(text), escaped(text)
            if time.process_time() - began > 1:
                return float("inf")  # a text of a hundred thousand characters
        least = min(least, time.process_time() - began)
    return least

print(json.dumps([each for each in {pieces!r} if cost(each * 8_000) > 8 * 4 * cost(each * 1_000)]))
""")
    assert steep == []


@pytest.mark.skipif(os.name == "nt", reason="Windows counts processor time too coarsely")
def test_every_pattern_takes_time_in_proportion_to_the_text(run: Callable[[str], Any]) -> None:
    """The same of each pattern of the package, used as its module does, over whatever two pieces can be repeated."""
    pieces = [*"\"\\':/.@?#=-_;,[]{} 0aA\u0915", '\\"', '":', "://", "eyJ", "bearer ", "q=", "1.", "\u200d", "\ufe0f"]
    tried, steep = run(f"""
import importlib, inspect, json, pkgutil, re, time
import spare_parts

def cost(use, text, times):
    least = float("inf")
    for _ in range(times):
        began = time.process_time()
        use(text)
        least = min(least, time.process_time() - began)
    return least

tried, steep = 0, []
for module in pkgutil.walk_packages(spare_parts.__path__, "spare_parts."):
    if module.name.endswith("__main__"):
        continue
    found = importlib.import_module(module.name)
    source = inspect.getsource(found)
    for name, pattern in vars(found).items():
        if not isinstance(pattern, re.Pattern) or f"{{name}} = " not in source:
            continue
        uses = set(re.findall(rf"\\b{{name}}\\.(fullmatch|match|search|sub|finditer|split)\\b", source)) or {{"search"}}
        tried += 1
        for use in uses:
            call = getattr(pattern, use if use in ("fullmatch", "match") else "findall")
            for text in [a + b for a in {pieces!r} for b in {pieces!r}]:
                few, many = (text * n for n in (250, 4_000))
                if isinstance(pattern.pattern, bytes):
                    few, many = few.encode(), many.encode()
                if cost(call, many, 1) > 0.02 and cost(call, many, 3) > 4 * 16 * cost(call, few, 3):
                    steep.append([module.name, name, use, text])
                    break
print(json.dumps([tried, steep]))
""")
    assert tried > 20
    assert steep == []


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="this system does not tell what a process has used")
@pytest.mark.parametrize("piece", ["a://", "a.a.", "eyJ-", "://@", "bearer "])
@pytest.mark.parametrize("way", ["http-modern", "http-legacy"])
def test_hostile_text_costs_the_server_what_plain_text_does(peers: Callable[[str], Peer], way: str, piece: str) -> None:
    """An unknown URI, a printed line, a logged text, an id: each may be 50 kB of whatever one likes."""
    peer = peers(way)

    def used(text: str) -> int:
        before = _ticks(peer.server.process.pid)
        for _ in range(3):
            assert "error" in peer.request("resources/read", {"uri": text}).messages[-1]
            peer.call("text_noise", text=text)
            peer.call("text_noted", text=text)
            peer.request("ping", {}, text)
        return _ticks(peer.server.process.pid) - before

    plain = used("p" * 20_000)
    assert used((piece * 20_000)[:20_000]) <= 4 * plain + 20


def _ticks(pid: int) -> int:
    """Processor time of a process so far, in hundredths of a second."""
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        fields = file.read().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
