"""Bytes over time, against a second parser: `uv run tests/proofs/bytes.py [--seconds N] [--seed N]`.

One server gets requests that are split at every boundary, pipelined, framed in odd ways and full of headers that it looks
at, directly and through nginx and HAProxy with a relay behind them, while another client calls the same way without a
pause. h11 reads the same bytes: what is a message, and whose answer is whose, has to be the same to both. Prints what was
sent and what they disagreed on, keeps inputs that did something new in `tests/edge/corpus/`, and exits 1 at a disagreement.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.append(str(Path(__file__).resolve().parent.parent))

from corpus import Corpus, upgrades
from fronts import FRONTS, pieces_of
from installed import install_edge
from judge import HONEST, call, headers, request
from pieces import DIRECT, INVENTED, Bench, decoy
from raw import LEGACY, MODERN

WAYS = (DIRECT, *FRONTS)
SHARE = {DIRECT: 6, "nginx": 1, "nginx, unbuffered": 1, "haproxy": 2}
"""Of the time; what goes directly is several times as fast."""
TURN = 2.0  # seconds of one way at a time

SPLIT = [
    "Content-Length: 5\r\n",
    "Transfer-Encoding: chunked\r\n",
    "\r\nupgrade:",
    "\r\nUpgrade: h2c",
    "\r\n\r\n",
    "\r\n",
]


class Drawn(NamedTuple):
    """One request of an input. `odd`: what is odd about it."""

    data: bytes
    odd: str


def plain(draw: random.Random, name: str) -> Drawn:
    """One that has to be served."""
    return Drawn(request(call(HONEST + name, draw.choice(NOTES))), "nothing")


def headed(draw: random.Random, name: str) -> Drawn:
    """One or two headers, or the first line, are something else."""
    body = call("head-" + name, draw.choice(NOTES))
    lines = [f"{field}: {value}" for field, value in headers().items()]
    for _ in range(draw.randint(1, 2)):
        odd = draw.choice(LINES)
        if draw.random() < 0.4:
            lines = [line for line in lines if line.partition(":")[0].lower() != odd.partition(":")[0].lower()]
        elif draw.random() < 0.2:
            lines.remove(draw.choice(lines))
        lines.insert(draw.randint(0, len(lines)), odd)
    first = draw.choice(FIRST) if draw.random() < 0.4 else "POST /mcp HTTP/1.1"
    is_bodiless = first.startswith(("GET", "HEAD", "OPTIONS", "CONNECT")) and draw.random() < 0.7
    lines.insert(draw.choice([0, len(lines)]), f"Content-Length: {0 if is_bodiless else len(body)}")
    return Drawn(head(first, lines) + (b"" if is_bodiless else body), "headers")


def framed(draw: random.Random, name: str) -> Drawn:
    """The end of the body is told in an odd way."""
    body = draw.choice([call("frame-" + name, draw.choice(NOTES)), call("frame-" + name), decoy(name)])
    lines = [f"{field}: {value}" for field, value in headers().items()]
    kind = draw.choice(["chunks", "odd chunks", "length", "lengths", "coding", "both", "short", "long", "none"])
    sent = body
    if kind in ("chunks", "odd chunks"):
        lines.append("Transfer-Encoding: chunked")
        sent = chunked(draw, body, kind == "odd chunks")
    elif kind == "length":
        lines.append(f"Content-Length: {draw.choice(LENGTHS).format(len(body), len(body), n=len(body))}")
    elif kind == "lengths":
        lines += [f"Content-Length: {draw.choice(['{n}', '0', *LENGTHS]).format(len(body), n=len(body))}" for _ in "12"]
    elif kind == "coding":
        lines.append(f"Transfer-Encoding: {draw.choice(CODINGS)}")
        sent = chunked(draw, body, draw.random() < 0.3)
    elif kind == "both":
        lines += [f"Content-Length: {draw.choice([0, 5, len(body)])}", "Transfer-Encoding: chunked"]
        sent = chunked(draw, body, False)
    elif kind == "short":
        lines.append(f"Content-Length: {len(body) - draw.choice([1, 2, 5, len(body) // 2])}")
    elif kind == "long":
        lines.append(f"Content-Length: {len(body) + draw.choice([1, 2, 30, 5000])}")
    draw.shuffle(lines)
    return Drawn(head("POST /mcp HTTP/1.1", lines) + sent, "framing")


def bodied(draw: random.Random, name: str) -> Drawn:
    """The body looks like something else; its length is right."""
    kind = draw.choice(["decoy", "upgrades", "blank", "json"])
    lines = dict(headers())
    if kind == "upgrades":
        times = draw.randint(1, 60)
        tail = (decoy(name) + b"X" * 600)[: 2 * times] if draw.random() < 0.5 else b"GET /livez HTTP/1.1\r\n\r\n" * 9
        body = b" " + draw.choice([b"\r\nupgrade:", b"\r\nUPGRADE:", b"\r\nUpgrade :"]) * times + tail[: 2 * times]
    elif kind == "decoy":
        body = draw.choice([b"", b" ", b"\r\n\r\n", b"\r\nupgrade:\r\n\r\n"]) + decoy(name) * draw.randint(1, 3)
    elif kind == "blank":
        body = b"\r\n" * draw.randint(1, 30) + call("blank-" + name) + b"\r\n" * draw.randint(0, 30)
    else:
        note = "".join(draw.choices(SPLIT, k=draw.randint(1, 20)))
        body = call("body-" + name, note)
    if draw.random() < 0.3:
        lines.update(Connection=draw.choice(["Upgrade", "Upgrade, HTTP2-Settings"]), Upgrade="h2c")
    fields = [f"{field}: {value}" for field, value in lines.items()]
    if draw.random() < 0.3:
        return Drawn(
            head("POST /mcp HTTP/1.1", [*fields, "Transfer-Encoding: chunked"]) + chunked(draw, body, False), "body"
        )
    return Drawn(head("POST /mcp HTTP/1.1", [*fields, f"Content-Length: {len(body)}"]) + body, "body")


def mangled(draw: random.Random, name: str) -> Drawn:
    """A byte or two of a good one are something else."""
    data = bytearray(request(call("byte-" + name, draw.choice(NOTES))))
    at = draw.choice([draw.randint(0, len(data) - 1), draw.randint(0, data.index(b"\r\n\r\n") + 3)])
    match draw.choice(["insert", "insert", "drop", "replace", "swap ends"]):
        case "insert":
            data[at:at] = draw.choice(BYTES)
        case "drop":
            del data[at]
        case "replace":
            data[at : at + 1] = draw.choice(BYTES)
        case "swap ends":
            data = bytearray(bytes(data).replace(b"\r\n", draw.choice([b"\n", b"\r", b"\r\r\n", b"\n\r"])))
    return Drawn(bytes(data), "bytes")


KINDS: list[tuple[int, Callable[[random.Random, str], Drawn]]] = [
    (6, plain),
    (6, headed),
    (6, framed),
    (5, bodied),
    (3, mangled),
]
BETWEEN = [b"", b"", b"", b"", b"", b"", b"\r\n", b"\r\n\r\n", b"\n", b" ", b"\0", b"X", b"\r", b"0\r\n\r\n", b"GET / "]
BYTES = [b"\0", b"\r", b"\n", b" ", b"\t", b":", b"\x7f", b"\xff", b"\x0b", b"\r\n", b"\r\n\r\n", b"\xe2\x80\xa8", b";"]
NOTES = [
    *("", "note", "\r\nupgrade:", "GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", "é🔩\u2028", "\0", "x" * 900),
    *("\r\n\r\n", "0\r\n\r\n", "\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n"),
]
FIRST = [
    *(
        "GET /mcp HTTP/1.1",
        "GET /livez HTTP/1.1",
        "HEAD /livez HTTP/1.1",
        "OPTIONS /mcp HTTP/1.1",
        "OPTIONS * HTTP/1.1",
    ),
    *("DELETE /mcp HTTP/1.1", "CONNECT 127.0.0.1:443 HTTP/1.1", "HEAD /mcp HTTP/1.1", "GET / HTTP/1.1"),
    *("POST http://127.0.0.1/mcp HTTP/1.1", "POST http://evil.example.com/mcp HTTP/1.1", "POST /mcp HTTP/1.0"),
    *("POST  /mcp HTTP/1.1", "POST /mcp  HTTP/1.1", "POST\t/mcp HTTP/1.1", "POST /mcp HTTP/2.0", "POST /mcp HTTP/1.2"),
    *(
        "POST /mcp",
        "post /mcp HTTP/1.1",
        "PRI * HTTP/2.0",
        "POST /mcp?a HTTP/1.1",
        "POST /m\xffcp HTTP/1.1",
        "POST /mcp#a",
    ),
    *("GET /readyz HTTP/1.0", "BREW /mcp HTTP/1.1", "POST /mcp HTTP/1.1 ", " POST /mcp HTTP/1.1", "GET //mcp HTTP/1.1"),
]
LINES = [
    *("Host: evil.example.com", "Host:", "Host: 127.0.0.1:80", "Host : 127.0.0.1", "Host: 127.0.0.1, a", "X: y"),
    *("Connection: close", "Connection: keep-alive", "Connection: Upgrade\r\nUpgrade: h2c", "Connection: x, close"),
    *(
        "Upgrade: websocket",
        "upgrade: h2c",
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA",
    ),
    *("Expect: 100-continue", "Expect: 200-ok", "Content-Type: text/plain", "Content-Type: application/json;charset=x"),
    *("Content-Encoding: gzip", "Accept: application/json", "Accept: */*", "Accept: text/html", "Accept:"),
    *("Origin: null", "Origin: https://evil.example.com", "Origin: http://localhost", "Authorization: Bearer nobody"),
    *("Authorization: Basic QQ==", "Authorization:", "Authorization: Bearer " + "A" * 9000, "Cookie: a=b"),
    *(f"X-Forwarded-For: {INVENTED}", f"X-Forwarded-For: {INVENTED}, 127.0.0.1", "X-Forwarded-Proto: https, http"),
    *(f"MCP-Protocol-Version: {LEGACY}", f"MCP-Protocol-Version: {MODERN}", "MCP-Protocol-Version: 9999-99-99"),
    *("Mcp-Method: tools/list", "Mcp-Method:", "Mcp-Name: wait", "Mcp-Name: \xff", "Mcp-Session-Id: none"),
    *("traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "traceparent: x", "Last-Event-ID: 1"),
    *("X: a\r\n folded", "X:\r\n\tfolded", "X: a\rb", "X: a\nb", "X: \0", "X y: z", "Content-Length : 3", ": x", "X"),
    *("Transfer-Encoding\t: chunked", "Transfer-Encoding:\r\n chunked", "X: \x7f", f"X: {'a' * 9000}", "\x0bX: y"),
    *("Content-Length: 0", "Content_Length: 3", "Trailer: Host", "TE: trailers", "Keep-Alive: 300", "Via: 1.0 x"),
]
LENGTHS = [
    "+{n}",
    "0x{n:x}",
    "{n}, {n}",
    "{n},{n}",
    "-{n}",
    "{n} ",
    " {n}",
    "0{n}",
    "000000000000000000000{n}",
    "{n}.0",
]
LENGTHS += ["", "{n};", "1_0", "{n} {n}", "\x0b{n}", "9" * 20, "18446744073709551616", "\u00b2"]
CODINGS = [
    "chunked",
    "Chunked",
    "CHUNKED",
    "chunked ",
    "\x0bchunked",
    "xchunked",
    "chunked, chunked",
    "chunked, identity",
]
CODINGS += ["identity, chunked", "gzip, chunked", "identity", "", "chunked\r\nTransfer-Encoding: identity", ",chunked"]
CODINGS += ['"chunked"', "chunked;a=b", "identity\r\nTransfer-Encoding: chunked", "chunked,"]


def chunked(draw: random.Random, body: bytes, is_odd: bool) -> bytes:
    """The body in chunks, all of them right or one of them odd."""
    size = draw.choice([1, 3, 40, 10_000]) if len(body) < 2000 else 500
    whole = [body[at : at + size] for at in range(0, len(body), size)]
    odd = draw.randrange(len(whole) + 1) if is_odd else -1
    made = b""
    for number, each in enumerate(whole):
        line, end = f"{len(each):x}", b"\r\n"
        if number == odd:
            line, end = draw.choice([
                (f"000000{line}", end), (f"{'0' * 14}{line}", end), (f"{line};a=b", end), (f'{line};a="\r\n"', end),
                (f"{line} ", end), (f" {line}", end), (f"+{line}", end), (f"0x{line}", end), (f"{line}\n", b""),
                (line, b"\n"), (line, b""), (line, b"\r"), (f"{line};{'a' * 5000}", end), (f"{len(each) + 2:x}", end),
                (f"{len(each) - 1:x}", end), (f"-{line}", end), ("F" * 17, end), (f"{line};\n", end), (line.upper(), end),
                (f"{line};a\rb", end), (f"{line}\0", end), (f"{line};\xff", end),
            ])  # fmt: skip
        made += line.encode("latin-1") + b"\r\n" + each + end
    trailer = draw.choice([b"", b"", b"X: y\r\n", b"Host: evil\r\n", b"Content-Length: 3\r\n"])
    trailer = draw.choice([trailer, b"Transfer-Encoding: chunked\r\n", b"Upgrade: h2c\r\n"]) if is_odd else trailer
    last = b"0\r\n" + trailer + b"\r\n"
    if odd == len(whole):
        last = draw.choice(
            [b"0\r\n", b"0\n\n", b"00000\r\n\r\n", b"0;a=b\r\n\r\n", b"", b"0\r\n\r", b"0\r\nX\r\n\r\n", b"0 \r\n\r\n"]
        )
    return made + last


def head(first: str, lines: list[str]) -> bytes:
    """The first line, header lines and a blank one."""
    return "\r\n".join([first, *lines, "", ""]).encode("latin-1", "replace")


def drawn(draw: random.Random, number: int) -> tuple[list[bytes], list[str]]:
    """An input in pieces, and what is odd about it."""
    weights = [weight for weight, _ in KINDS]
    many = draw.random()
    times = 1 if many < 0.3 else draw.randint(2, 4) if many < 0.85 else draw.randint(5, 40)
    made: list[Drawn] = []
    for each in range(times):
        kind = draw.choices([kind for _, kind in KINDS], weights)[0] if times < 5 or draw.random() < 0.1 else plain
        made.append(kind(draw, f"{number}-{each}"))
    # What comes after an odd one shows whether it was taken for what it is.
    made.append(plain(draw, f"{number}-last"))
    odd = [each.odd for each in made if each.odd != "nothing"] or ["nothing"]
    data = bytearray()
    for each in made:
        between = draw.choice(BETWEEN) if draw.random() < 0.1 else b""
        odd += ["between"] if between else []
        data += between + each.data
    if draw.random() < 0.05:
        data = data[: draw.randint(1, len(data) - 1)]
        odd.append("cut")
    return pieces_of(bytes(data), places(draw, bytes(data))), odd


def places(draw: random.Random, data: bytes) -> list[int]:
    """Where the server's reads are to end."""
    inside = [at + draw.choice([1, 2, 3, 4]) for at in found(data, b"\r\n\r\n")]
    match draw.choice(["whole", "whole", "blank", "blank", "one", "few", "lines", "bytes"]):
        case "blank" if inside:
            return draw.sample(inside, min(len(inside), draw.randint(1, 3)))
        case "one":
            return [draw.randint(1, len(data))]
        case "few":
            return [draw.randint(1, len(data)) for _ in range(draw.randint(2, 6))]
        case "lines":
            ends = [at + 1 for at in found(data, b"\r\n")]
            return draw.sample(ends, min(len(ends), 8))
        case "bytes":
            at = draw.randint(0, len(data) - 1)
            return list(range(at, at + 12))
    return []


def found(data: bytes, what: bytes) -> Iterator[int]:
    """Where it begins."""
    at = -1
    while (at := data.find(what, at + 1)) >= 0:
        yield at


def every_boundary() -> Iterator[tuple[str, list[bytes]]]:
    """Inputs of each form, cut at each boundary once, and what they are."""
    draw = random.Random(0)
    offer = [*(f"{n}: {v}" for n, v in headers().items()), "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c"]
    body = call("offer", "\r\nupgrade:")
    forms = {
        "plain": request(call(f"{HONEST}a", "note")),
        "chunks": head("POST /mcp HTTP/1.1", [*offer[:-2], "Transfer-Encoding: chunked"])
        + chunked(draw, body[:90], False),
        "an offer of another protocol": head("POST /mcp HTTP/1.1", [*offer, f"Content-Length: {len(body)}"]) + body,
        "a body of requests": head("POST /mcp HTTP/1.1", [*offer[:-2], "Content-Length: 400"]) + decoy("x")[:400],
        "a GET": b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n",
        "what is no HTTP": b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03GET / HTTP/1.1\r\n\r\n",
        "upgrades": b"".join(upgrades(12)),
    }
    for name, data in forms.items():
        for at in range(1, len(data)):
            yield name, [data[:at], data[at:] + request(call(f"{HONEST}after"))]


class Tally:
    """What was sent by one way, and what it led to."""

    def __init__(self) -> None:
        self.inputs = self.asked = self.answers = self.refused = 0
        self.signatures: set[str] = set()
        self.kinds: Counter[str] = Counter()
        self.odd: Counter[str] = Counter()


def main() -> int:
    """Run it; returns 1 at a disagreement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    chosen = parser.parse_args()
    print(f"{chosen.seconds:.0f} s, seed {chosen.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="plinth-") as name:
        folder = Path(name)
        installed = install_edge(folder / "project")
        with Bench(installed, folder / "bench", WAYS, chosen.seed) as bench:
            tallies = run(bench, chosen.seconds, chosen.seed)
        # Relays judge what is left on their connections when these end.
        return told(bench, tallies)


def run(bench: Bench, seconds: float, seed: int) -> dict[str, Tally]:
    """Every boundary, and what is drawn, until the time is over."""
    tallies = {way: Tally() for way in WAYS}
    corpus, draw = Corpus(), random.Random(seed)
    until = time.monotonic() + seconds
    boundaries = every_boundary()
    number, turns = 0, [way for way, share in SHARE.items() for _ in range(share)]
    while time.monotonic() < until:
        way = draw.choice(turns)
        with bench.by(way):
            over = min(until, time.monotonic() + TURN)
            while time.monotonic() < over:
                number += 1
                if way == DIRECT and number % 2 and (cut := next(boundaries, None)) is not None:
                    play(bench, way, cut[1], ["every boundary", cut[0]], tallies, corpus)
                pieces, odd = drawn(draw, number)
                play(bench, way, pieces, odd, tallies, corpus)
    for relay in bench.relays.values():
        for kind, data in relay.found:
            corpus.keep(DIRECT, [data], kind)
    return tallies


def play(
    bench: Bench, way: str, pieces: list[bytes], odd: list[str], tallies: dict[str, Tally], corpus: Corpus
) -> None:
    """One input."""
    tally, played = tallies[way], bench.play(way, pieces)
    tally.inputs += 1
    tally.asked += len(played.verdict.asked)
    tally.answers += len(played.found)
    tally.refused += sum(each.status >= 400 for each in played.found)
    tally.signatures.add(played.signature)
    tally.odd.update(odd)
    for kind in set(played.kinds):
        if not tally.kinds[kind]:
            print(f"{way}: {kind}: {played.signature}\n  {json.dumps([each.decode('latin-1') for each in pieces])}")
        tally.kinds[kind] += 1
        corpus.keep(way, pieces, kind)
    corpus.keep(way, pieces, played.signature)


def told(bench: Bench, tallies: dict[str, Tally]) -> int:
    """Print the tables; returns 1 at a disagreement."""
    print(
        "\n| way | inputs | requests (h11) | answers | refusals | behaviours | other client: own, none, another's | disagree |"
    )
    print("| --- " * 8 + "|")
    wrong: Counter[str] = Counter()
    for way, tally in tallies.items():
        wrong.update({f"{way}: {kind}": times for kind, times in tally.kinds.items()})
        seen = bench.others[way]
        own, others = seen["own"], seen["another's"]
        cells = [way, tally.inputs, tally.asked, tally.answers, tally.refused, len(tally.signatures)]
        cells += [f"{own}, {seen.total() - own - others}, {others}", tally.kinds.total()]
        print(f"| {' | '.join(map(str, cells))} |")
    for way, relay in bench.relays.items():
        wrong.update(f"behind {way}: {kind}" for kind, _ in relay.found)
        print(f"\nBehind {way}: {relay.judged['requests']} requests, {relay.judged['answers']} answers.", end="")
    wrong.update(bench.rest())
    odd = sum((tally.odd for tally in tallies.values()), Counter())
    print(f"\nOdd: {', '.join(f'{what} {times}' for what, times in odd.most_common())}.")
    if not wrong:
        print("No disagreement.")
        return 0
    print("\n| disagreement | times |\n| --- | --- |")
    print("\n".join(f"| {kind} | {times} |" for kind, times in wrong.most_common()))
    return 1


if __name__ == "__main__":
    sys.exit(main())
