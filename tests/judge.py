"""A second opinion of where a message begins and ends, and whose answer is whose: h11 reads the same bytes.

The server's parser is not asked: what it took for a message shows in what it answered.
"""

import json
import re
from hashlib import sha256
from typing import Any, NamedTuple

import h11

from raw import MODERN, Json, headers_of, message, post

_LARGEST = 1 << 24  # bytes of one event: h11's own bound on a head is no part of the question
KEY = "mcp_0123456789ab_" + "k" * 43
"""The API key of every server that is judged: inputs are kept, and have to be the same tomorrow."""
HONEST, DECOY = "ok-", "decoy-"
"""What the ids of JSON-RPC begin with: of requests that have to be served, and of what lies in a body."""


class Asked(NamedTuple):
    """One request, as h11 sees it. `raw`: its bytes; `is_flawed`: it is whole, and still is to be refused."""

    method: str
    version: bytes
    body: bytes
    raw: bytes
    is_flawed: bool

    @property
    def call(self) -> Json:
        """The JSON in its body, if that is an object."""
        found = _json(self.body)
        return found if isinstance(found, dict) else {}

    @property
    def is_honest(self) -> bool:
        """Whether it is, byte for byte, one that has to be served."""
        rpc_id = self.call.get("id")
        is_own = isinstance(rpc_id, str) and rpc_id.startswith(HONEST)
        return is_own and self.raw == request(self.body)


class Verdict(NamedTuple):
    """What h11 makes of all that came on a connection.

    `end`: `whole`, or what is after the last whole request: a part of a `head` or of a `body`, what is `refused`, or what
    comes after the connection was to be `closed`.
    """

    asked: list[Asked]
    end: str


class Answer(NamedTuple):
    """One answer, as h11 sees it; not `whole`: more of it is to come."""

    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool

    @property
    def rpc_id(self) -> Any:
        """Which request it says that it answers."""
        return self.json.get("id")

    @property
    def json(self) -> Json:
        """The JSON-RPC message in it."""
        text = self.body
        if self.is_stream:
            events = [line for line in text.split(b"\n") if line.startswith(b"data:")]
            text = events[-1].removeprefix(b"data:") if events else b""
        found = _json(text)
        return found if isinstance(found, dict) else {}

    @property
    def is_stream(self) -> bool:
        """Whether it may go on for ever."""
        return self.headers.get("content-type", "").startswith("text/event-stream")

    @property
    def closes(self) -> bool:
        """Whether it says that nothing more will be answered."""
        return "close" in self.headers.get("connection", "")


def call(rpc_id: str, note: str = "") -> bytes:
    """The body of a call whose answer names it."""
    return json.dumps(message(MODERN, rpc_id, "tools/call", _params(rpc_id, note))).encode()


def headers() -> dict[str, str]:
    """Those of a call that has to be served."""
    sent = message(MODERN, "", "tools/call", _params("", ""))
    return headers_of(sent, MODERN) | {"Authorization": f"Bearer {KEY}"}


def request(body: bytes) -> bytes:
    """A call that has to be served."""
    return post(headers(), body)


def judge(data: bytes) -> Verdict:
    """Read what came on a connection as a server. Line ends before a request are no part of it (RFC 9112, section 2.2)."""
    asked: list[Asked] = []
    while data := data.lstrip(b"\r\n"):
        found, rest, end = _one(data, False)
        if found is None:
            return Verdict(asked, end)
        asked.append(found)
        if end == "closed":
            return Verdict(asked, end)
        data = rest
    return Verdict(asked, "whole")


def answers(data: bytes, asked: list[Asked], *, is_over: bool) -> tuple[list[Answer], bool]:
    """Read what came back as the client of these requests, and whether it is HTTP. `is_over`: no more will come."""
    found: list[Answer] = []
    while data:
        method = asked[len(found)].method if len(found) < len(asked) else "POST"
        parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=_LARGEST)
        parser.send(h11.Request(method=method, target="*", headers=[("Host", "x")]))
        parser.send(h11.EndOfMessage())
        head: h11.Response | None = None
        body, whole = bytearray(), False
        try:
            parser.receive_data(data)
            if is_over:
                parser.receive_data(b"")
            while (event := parser.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
                if isinstance(event, h11.Response):
                    head = event
                elif isinstance(event, h11.Data):
                    body += event.data
                elif isinstance(event, h11.EndOfMessage):
                    whole = True
                    break
                elif isinstance(event, h11.ConnectionClosed):
                    break
        except h11.RemoteProtocolError:
            # An answer may be cut by the end of the connection; who is refused and left hears no second one.
            return found, is_over and (head is not None or (bool(found) and found[-1].closes))
        if head is not None:
            named = {name.decode(): value.decode("latin-1") for name, value in head.headers}
            found.append(Answer(head.status_code, named, bytes(body), whole))
        if not whole:
            break
        data = parser.trailing_data[0]
    return found, True


def disagreements(verdict: Verdict, found: list[Answer], end: str) -> list[str]:
    """In which ways the answers say something else than h11 about what the messages were.

    Args:
        end: how it stands with the connection once the server has had its time: `open`, `closed`, or `reset`.
    """
    asked, kinds = verdict.asked, []
    extra = found[len(asked) :]
    if len(extra) > (verdict.end not in ("whole", "closed")):
        kinds.append("more answers than requests")
    elif any(each.status < 400 for each in extra):
        kinds.append("served what is no request")
    sent = {str(one.call.get("id")) for one in asked}
    if any(str(each.rpc_id).startswith(DECOY) and str(each.rpc_id) not in sent for each in found):
        kinds.append("answered what lies in a body")
    for one, answer in zip(asked, found, strict=False):
        kinds += _disagreements(one, answer)
    if len(found) < len(asked):
        last = found[-1] if found else None
        if end == "open" and not (last is not None and last.is_stream):
            kinds.append("no answer")
        if end == "closed" and not (last is not None and (last.status >= 400 or last.closes or last.is_stream)):
            kinds.append("closed without a word")
    return kinds


def _disagreements(one: Asked, answer: Answer) -> list[str]:
    kinds = []
    sent = one.call.get("id")
    if answer.rpc_id is not None and answer.rpc_id != sent:
        kinds.append("another request's answer")
    arguments = (one.call.get("params") or {}).get("arguments") if isinstance(one.call.get("params"), dict) else None
    said = (answer.json.get("result") or {}).get("structuredContent")
    if said is not None and isinstance(arguments, dict):
        note = str(arguments.get("note", ""))
        digest = sha256(note.encode("utf-8", "surrogatepass")).hexdigest()
        if said != {"result": f"{_shown(str(arguments.get('mark')))} {len(note)} {digest}"}:
            kinds.append("another body than was sent")
    if one.is_flawed and answer.status < 400:
        kinds.append("served what is to be refused")
    if one.is_honest and (answer.status != 200 or "result" not in answer.json):
        kinds.append("refused what is to be served")
    if one.version == b"1.0" and "transfer-encoding" in answer.headers:
        kinds.append("chunks for HTTP/1.0")
    return kinds


def _one(data: bytes, is_flawed: bool) -> tuple[Asked | None, bytes, str]:
    """The first request, what comes after it, and how it stands with the connection then."""
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=_LARGEST)
    head: h11.Request | None = None
    body = bytearray()
    try:
        parser.receive_data(data)
        while (event := parser.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
            if isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                break
        else:
            return None, b"", "head" if head is None else "body"
    except h11.RemoteProtocolError as error:
        # A wrong Host makes a request one to refuse, and is no doubt about its end.
        if "Host" in str(error) and not is_flawed:
            found, rest, end = _one(_with_host(data), True)
            return (found._replace(raw=b"") if found is not None else None), rest, end
        if (other := _with_single_spaces(data)) != data:
            return _one(other, is_flawed)
        return None, b"", "refused"
    assert head is not None
    rest = parser.trailing_data[0]
    raw = data[: len(data) - len(rest)]
    options = [o.strip().lower() for n, v in head.headers if n == b"connection" for o in v.split(b",")]
    ends = b"close" in options or head.http_version < b"1.1"
    made = Asked(head.method.decode(), head.http_version, bytes(body), raw, is_flawed)
    return made, rest, "closed" if ends else "open"


def _with_single_spaces(data: bytes) -> bytes:
    """The same request with one space between the words of its first line (RFC 9112, section 3: it may be read so)."""
    line, end, rest = data.partition(b"\n")
    return re.sub(rb"(?<=[^ ]) {2,}(?=[^ \r])", b" ", line) + end + rest


def _with_host(data: bytes) -> bytes:
    """The same request with one Host."""
    line, _, rest = data.partition(b"\n")
    if rest.startswith((b"\r\n", b"\n")):
        return line + b"\nHost: x\r\n" + rest
    head, blank, body = rest.partition(b"\n\r\n") if b"\n\r\n" in rest else rest.partition(b"\n\n")
    kept = [each for each in head.split(b"\n") if not each.lower().startswith(b"host:")]
    return line + b"\nHost: x\r\n" + b"\n".join(kept) + blank + body


def _shown(text: str) -> str:
    """As results are cleaned, where only bytes of ASCII were changed."""
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", "", text)


def _params(rpc_id: str, note: str) -> Json:
    return {"name": "echo_digest", "arguments": {"mark": rpc_id, "note": note}}


def _json(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
