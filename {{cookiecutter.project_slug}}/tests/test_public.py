"""The guard for addresses that callers give: nothing inside is reached in any way, and all else is bounded."""

import asyncio
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from structlog.testing import capture_logs

from {{ cookiecutter.package_name }} import NAME, errors
from {{ cookiecutter.package_name }}.outbound import public
from {{ cookiecutter.package_name }}.outbound.public import PublicWeb, Resolver, is_public

from .faulty_upstream import Answer, FaultyUpstream
from .harness import Peer

REFUSAL = "Only http and https addresses on the public internet, on ports 80, 443, 8080 and 8443, can be fetched."
TOO_LATE = "The address did not answer in time. Retry later."
HERE, THERE = ip_address("127.0.0.1"), ip_address("127.0.0.2")
MEBIBYTE = 1 << 20
NO_CERTIFICATES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # trusts none, and takes no time to make

PUBLIC = [
    *(
        "1.1.1.1",
        "8.8.8.8",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "126.255.255.255",
        "128.0.0.0",
    ),
    *("169.253.255.255", "169.255.0.0", "172.15.255.255", "172.32.0.0", "192.0.1.0", "192.167.255.255", "192.169.0.0"),
    *(
        "198.17.255.255",
        "198.20.0.0",
        "223.255.255.255",
        "2606:4700:4700::1111",
        "2001:4860:4860::8888",
        "2a00:1450::8b",
    ),
    *("::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2a00::5efe:8.8.8.8"),
]
NOT_PUBLIC = {
    "this network": ["0.0.0.0", "0.1.2.3", "::"],
    "this machine": ["127.0.0.1", "127.255.255.255", "::1"],
    "private": ["10.0.0.0", "10.255.255.255", "172.16.0.0", "172.31.255.255", "192.168.0.0", "192.168.255.255"],
    "unique local": ["fc00::1", "fd00:ec2::254", "fdff::1", "fec0::1"],
    "carriers": ["100.64.0.0", "100.100.100.200", "100.127.255.255"],
    "one link": ["169.254.0.1", "169.254.169.254", "fe80::1", "fe80::1%eth0", "2606:4700:4700::1111%eth0"],
    "clouds": ["168.63.129.16", "192.0.0.192"],
    "protocols": ["192.0.0.1", "192.0.0.9", "192.0.0.171", "192.88.99.1", "198.18.0.0", "198.19.255.255"],
    "protocols of IPv6": ["100::1", "2001:2::1", "2001:10::1", "2001:20::1", "5f00::1"],
    "documentation": ["192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1", "3fff::1"],
    "multicast": ["224.0.0.1", "239.255.255.255", "ff02::1"],
    "not assigned": ["240.0.0.1", "255.255.255.255", "4000::1"],
    "IPv4-mapped": [
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:100.64.0.1",
        "::ffff:192.0.0.192",
        "::ffff:8.8.8.8%eth0",
    ],
    "IPv4-compatible": ["::127.0.0.1", "::8.8.8.8"],
    "IPv4-translated": ["::ffff:0:127.0.0.1", "::ffff:0:8.8.8.8"],
    "NAT64": ["64:ff9b::10.0.0.1", "64:ff9b::169.254.169.254", "64:ff9b:1::10.0.0.1", "64:ff9b:1::8.8.8.8"],
    "6to4": ["2002:7f00:1::", "2002:808:808::"],
    "Teredo": ["2001::1", "2001:0:4136:e378:8000:63bf:f5ff:fffe"],
    "ISATAP": ["2a00::5efe:10.0.0.1", "2a00::200:5efe:127.0.0.1", "2a00::300:5efe:169.254.169.254"],
}

ATTACKS = {
    "address": [
        *("http://127.0.0.1:PORT/", "HTTP://127.0.0.1:PORT", "https://127.0.0.1:PORT/", "http://127.0.0.1.:PORT/"),
        *("http://0.0.0.0:PORT/", "http://127。0。0。1:PORT/", "http://127．0｡0．1:PORT/"),
        *("http://[::1]:PORT/", "http://[0:0:0:0:0:0:0:1]:PORT/", "http://[::]:PORT/", "http://[::1%25lo]:PORT/"),
        *("http://[::ffff:127.0.0.1]:PORT/", "http://[::ffff:7f00:1]:PORT/", "http://[::127.0.0.1]:PORT/"),
        *("http://[::ffff:0:127.0.0.1]:PORT/", "http://[64:ff9b::7f00:1]:PORT/", "http://[64:ff9b:1::7f00:1]:PORT/"),
        *("http://[2002:7f00:1::]:PORT/", "http://[2001:0:4136:e378:8000:63bf:80ff:fffe]:PORT/"),
        *("http://[2a00::5efe:7f00:1]:PORT/", "http://[fe80::1%25eth0]:PORT/", "http://[fe80::1%eth0]:PORT/"),
        *("http://127.0.0.1:PORT#@shop.example.com/", "http://127.0.0.1:PORT?@shop.example.com/"),
        *("http://169.254.169.254/latest/meta-data/", "http://[::ffff:a9fe:a9fe]/", "http://[fd00:ec2::254]/"),
        *("http://100.100.100.200/", "http://192.0.0.192/", "http://168.63.129.16/", "http://[fe80::a9fe:a9fe]/"),
        *("http://10.0.0.1/", "http://172.16.0.1/", "http://192.168.0.1/", "http://224.0.0.1/", "http://[ff02::1]/"),
    ],
    "name": [
        *("http://127.1:PORT/", "http://127.0.1:PORT/", "http://2130706433:PORT/", "http://0x7f000001:PORT/"),
        *("http://0x7f.1:PORT/", "http://0X7F.0.0.1:PORT/", "http://0177.1:PORT/", "http://017700000001:PORT/"),
        *("http://0:PORT/", "http://0x0:PORT/", "http://127.0.0.0x1:PORT/", "http://0x7f.0x0.0x0.0x1.:PORT/"),
        *("http://2852039166/", "http://0xa9fea9fe/", "http://1.2.3.4.5/", "http://example.1/", "http://example.0xa/"),
        *("http://localhost:PORT/", "http://LOCALHOST:PORT/", "http://localhost.:PORT/", "http://a.localhost:PORT/"),
        *("http://ip6-localhost:PORT/", "http://redis:PORT/", "http://intranet/", "http://printer.local/"),
        *("http://metadata.google.internal/", "http://router.home.arpa/", "http://hidden.onion/", "http://a.test/"),
        *("http://127%2e0%2e0%2e1:PORT/", "http://%31%32%37.0.0.1:PORT/", "http://%6cocalhost:PORT/"),
        *("http://127.0.0.1%00.example.com:PORT/", "http://127.0.0.1%20:PORT/", "http:// 127.0.0.1:PORT/"),
        *("http://127.0.0.1\\.example.com:PORT/", "http://shop.example.com\\:PORT/", "http://[127.0.0.1:PORT/"),
        *("http:/127.0.0.1:PORT/", "http:127.0.0.1:PORT/", "http:\\\\127.0.0.1:PORT/", "http:\\/127.0.0.1:PORT/"),
        *("http:///127.0.0.1:PORT/", "http:////127.0.0.1:PORT/", "http://", "http:", "http://:PORT/", "http://./"),
        *("http://../", "http://.example.com/", "http://a..example.com/", "http://shop.example.com../"),
        *("http://-a.example.com/", "http://a-.example.com/", "http://a,b.example.com/", "http://*.example.com/"),
        *(f"http://{'a' * 64}.example.com/", f"http://{'a.' * 122}example.com/"),
    ],
    "url": [
        *("http://①②⑦.⓪.⓪.①:PORT/", "http://１２７.０.０.１:PORT/", "http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ:PORT/"),
        *("http://loc\u00adalhost:PORT/", "http://127.0.0.1\u2028:PORT/", "http://127.0.0.1\u00a0:PORT/"),
        *(
            "http://0177.0.0.1:PORT/",
            "http://127.000.000.001:PORT/",
            "http://256.256.256.256/",
            "http://127.0.0.00001/",
        ),
        *(
            "http://127.0.0.1\t:PORT/",
            "ht\ntp://127.0.0.1:PORT/",
            "http://127.0.0.1:PORT/\r\nX: y",
            "http://a\x00.com/",
        ),
        *("http://[::1:PORT/", "http://::1/", "http://[127.0.0.1]:PORT/", "http://[v7.1]/", "http://[::1]a:PORT/"),
        *("http://shop.example.com:80:80/", "http://shop.example.com:x/", "http://\u202e1.0.0.721:PORT/"),
        "http://shop.example.com/" + "a" * 2048,
    ],
    "user": [
        *("http://shop.example.com@127.0.0.1:PORT/", "http://127.0.0.1@shop.example.com/", "http://a:b@8.8.8.8/"),
        *("http://shop.example.com\\@127.0.0.1:PORT/", "http://127.0.0.1\\@shop.example.com/", "http://:@8.8.8.8/"),
        *("http://a@b@127.0.0.1:PORT/", "http://[::1]@8.8.8.8/", "http://shop.example.com:80@127.0.0.1:PORT/"),
        "http://shop.example.com:80@/",
    ],
    "scheme": [
        *("file:///etc/passwd", "file://127.0.0.1/etc/passwd", "ftp://127.0.0.1:PORT/", "gopher://127.0.0.1:PORT/_x"),
        *("ws://127.0.0.1:PORT/", "dict://127.0.0.1:PORT/x", "http+unix://%2Frun%2Fdocker.sock/", "data:text/plain,x"),
        *("//127.0.0.1:PORT/", "/etc/passwd", "shop.example.com", "", "?", ":", "http", " http://127.0.0.1:PORT/"),
        *("127.0.0.1:PORT/", "://127.0.0.1:PORT/", "https+http://127.0.0.1:PORT/", "HTTPſ://127.0.0.1:PORT/"),
    ],
}
PORT_ATTACKS = [f"http://8.8.8.8:{port}/" for port in ("0", "1", "22", "25", "6379", "81", "65535", "65536", "-1")]


class Names:
    """In place of the DNS: the addresses that every name has, one list for each time that one is asked for."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.asked: list[str] = []
        self._answers = answers

    async def __call__(self, name: str) -> list[public.Address]:
        self.asked.append(name)
        assert len(self.asked) <= len(self._answers), f"{name}: asked for too often"
        return [ip_address(each) for each in self._answers[len(self.asked) - 1]]


def guard(*answers: Sequence[str], **options: Any) -> tuple[PublicWeb, Names]:
    """A guard that takes 127.0.0.1 for public and all else on this machine for private, and its names."""
    names = Names(*answers)
    usual: dict[str, Any] = {
        "is_allowed": HERE.__eq__,
        "ports": range(1, 65536),
        "resolve": names,
        "verify": NO_CERTIFICATES,
    }
    return PublicWeb(**(usual | options)), names


def port_of(server: FaultyUpstream) -> str:
    """Where it listens."""
    return server.base_url.rpartition(":")[2]


def named(server: FaultyUpstream, path: str = "/") -> str:
    """An address there, by name."""
    return f"http://shop.example.com:{port_of(server)}{path}"


@pytest.fixture
def server() -> Iterator[FaultyUpstream]:
    """What may be reached."""
    with FaultyUpstream() as running:
        running.play(Answer(body=b"found"))
        yield running


@pytest.fixture
def canary() -> Iterator[FaultyUpstream]:
    """What must not be: on another address of this machine."""
    try:
        running = FaultyUpstream(str(THERE))
    except OSError:
        pytest.skip("127.0.0.2 is no address of this machine; on macOS: ifconfig lo0 alias 127.0.0.2")
    with running:
        yield running
        assert running.connections == 0


async def error_of(kind: type[errors.CallError], web: PublicWeb, url: str) -> str:
    """The message with which an address is not fetched."""
    with pytest.raises(kind) as refused:
        await web.get(url)
    return refused.value.message


# Which addresses are public


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address: str) -> None:
    """They can be fetched from, also where they are inside an address of IPv6."""
    assert is_public(ip_address(address))


@pytest.mark.parametrize("address", [each for addresses in NOT_PUBLIC.values() for each in addresses])
def test_addresses_that_are_not_public(address: str) -> None:
    """Whatever lies within a network, or leads there, is none; the same on every Python."""
    assert not is_public(ip_address(address))


# Which URLs are fetched


@pytest.mark.parametrize(("rule", "url"), [(rule, url) for rule, urls in ATTACKS.items() for url in urls])
async def test_refused_urls(rule: str, url: str) -> None:
    """They are refused before a name is looked up, all with the same words, and the log says which rule it was."""
    web = PublicWeb(resolve=Names(), verify=NO_CERTIFICATES)
    with capture_logs() as log:
        assert await error_of(errors.Failed, web, url.replace("PORT", "80")) == REFUSAL
    assert log == [{"event": "address_refused", "rule": rule, "log_level": "warning"}]


async def test_half_a_character() -> None:
    """It is in no URL."""
    web = PublicWeb(resolve=Names(), verify=NO_CERTIFICATES)
    assert await error_of(errors.Failed, web, "http://shop.example.com/\ud800") == REFUSAL


@pytest.mark.parametrize("url", PORT_ATTACKS)
async def test_refused_ports(url: str) -> None:
    """Ports that web servers are not on are none to try."""
    web = PublicWeb(resolve=Names(), verify=NO_CERTIFICATES)
    with capture_logs() as log:
        assert await error_of(errors.Failed, web, url) == REFUSAL
    assert [line["rule"] for line in log] == ["port"]


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("port", ["", ":80", ":443", ":8080", ":8443"])
async def test_usual_ports(scheme: str, port: str) -> None:
    """They are allowed, said or not: what is refused here is where the name leads."""
    web = PublicWeb(resolve=Names(["10.0.0.1"]), verify=NO_CERTIFICATES)
    with capture_logs() as log:
        assert await error_of(errors.Failed, web, f"{scheme}://shop.example.com{port}/") == REFUSAL
    assert [line["rule"] for line in log] == ["address"]


def test_message_names_the_ports() -> None:
    """It says what is allowed, in place of what was found."""
    assert all(str(port) in REFUSAL for port in public.PORTS)


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("SHOP.Example.COM", "shop.example.com"),
        ("shop.example.com.", "shop.example.com"),
        ("bücher.example.com", "xn--bcher-kva.example.com"),
        ("xn--bcher-kva.example.com", "xn--bcher-kva.example.com"),
        ("bücher。example。com", "xn--bcher-kva.example.com"),
        ("a_b.3com.example.com", "a_b.3com.example.com"),
        ("127.0.0.1.nip.io", "127.0.0.1.nip.io"),
    ],
)
async def test_names(server: FaultyUpstream, written: str, name: str) -> None:
    """A name is looked up, and told to the server, in the one form that the DNS has."""
    web, names = guard(["127.0.0.1"])
    response = await web.get(named(server).replace("shop.example.com", written))
    assert (response.upstream, response.status, response.body) == ("web", 200, b"found")
    assert names.asked == [name]
    assert server.requests[0].headers["host"].partition(":")[0] == name


@pytest.mark.parametrize("status", [200, 201, 204, 300, 302, 304, 404, 429, 500, 503])
async def test_every_status_is_an_answer(server: FaultyUpstream, status: int) -> None:
    """What it means is for the tool to say, and what is no redirect, or has no address, leads nowhere else."""
    server.play(Answer(status, headers={} if status == 302 else {"Location": "http://10.0.0.1/"}))
    web, _ = guard()
    assert (await web.get(server.base_url)).status == status
    assert (await web.head(server.base_url)).status == status
    assert [each.method for each in server.requests] == ["GET", "HEAD"]


# Names that lead inside


@pytest.mark.parametrize(
    "answer",
    [["10.0.0.1"], ["127.0.0.1", "10.0.0.1"], ["10.0.0.1", "127.0.0.1"], ["127.0.0.1", "::1"], ["::ffff:a00:1"], []],
    ids=str,
)
async def test_one_private_address_refuses_the_name(server: FaultyUpstream, answer: list[str]) -> None:
    """It is not enough that the others are public."""
    web, names = guard(answer)
    assert await error_of(errors.Failed, web, named(server)) == REFUSAL
    assert names.asked == ["shop.example.com"]
    assert server.connections == 0


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (socket.gaierror(socket.EAI_NONAME, "secret"), errors.Failed),
        (socket.gaierror(socket.EAI_FAIL, "secret"), errors.Failed),
        (socket.gaierror(socket.EAI_AGAIN, "secret"), errors.UpstreamUnavailable),
    ],
)
async def test_name_without_address(error: OSError, kind: type[errors.CallError]) -> None:
    """It cannot be told from one that is private, lest callers find out which names there are inside."""

    async def resolve(name: str) -> list[public.Address]:
        raise error

    web, _ = guard(resolve=resolve)
    told = await error_of(kind, web, "http://shop.example.com/")
    assert told == (REFUSAL if kind is errors.Failed else "The address cannot be reached. Retry later.")


async def test_name_is_looked_up_once(server: FaultyUpstream, canary: FaultyUpstream) -> None:
    """The connection goes to the address that was judged: a second answer, which leads inside, is never asked for."""
    web, names = guard(["127.0.0.1"], ["127.0.0.2"])
    assert (await web.get(named(server))).body == b"found"
    assert names.asked == ["shop.example.com"]
    assert server.connections == 1


async def test_name_that_changes_between_redirects(server: FaultyUpstream, canary: FaultyUpstream) -> None:
    """It is looked up for each of them, and judged anew."""
    server.play(Answer.redirect("/next"))
    web, names = guard(["127.0.0.1"], ["127.0.0.2"])
    assert await error_of(errors.Failed, web, named(server)) == REFUSAL
    assert names.asked == ["shop.example.com"] * 2
    assert len(server.requests) == 1


def test_resolver_asks_for_whole_names() -> None:
    """No search list makes another name of them, and addresses of one link alone are seen as such."""
    asked = []

    def ask(*arguments: object, **named: object) -> list[Any]:
        asked.append(arguments[0])
        return [(0, 0, 0, "", ("127.0.0.1", 0)), (0, 0, 0, "", ("fe80::1%lo", 0, 0, 1))]

    assert asyncio.run(Resolver(ask)("shop.example.com")) == [HERE, ip_address("fe80::1%lo")]
    assert asked == ["shop.example.com."]


async def test_resolver_that_hangs() -> None:
    """Names that nobody waits for any more still count, as their threads cannot be stopped."""
    release, asking = threading.Event(), threading.Semaphore(0)

    def ask(*arguments: object, **named: object) -> list[Any]:
        asking.release()
        release.wait()
        raise socket.gaierror(socket.EAI_NONAME)

    resolver = Resolver(ask)
    try:
        async with anyio.create_task_group() as tasks:
            for _ in range(16):
                tasks.start_soon(resolver, "shop.example.com")
            for _ in range(16):
                await anyio.to_thread.run_sync(asking.acquire)
            tasks.cancel_scope.cancel()
        with pytest.raises(errors.Overloaded):
            await resolver("shop.example.com")
    finally:
        release.set()


# Redirects


@pytest.mark.parametrize(
    "to",
    [
        *("http://127.0.0.2:PORT/", "//127.0.0.2:PORT/", "http://[::ffff:127.0.0.2]:PORT/", "http://0x7f000002:PORT/"),
        *("http:////127.0.0.2:PORT/", "http://169.254.169.254/latest/", "http://localhost:PORT/", "http://a.internal/"),
        *("file:///etc/passwd", "gopher://127.0.0.2:PORT/", "ftp://shop.example.com/", "mailto:a@shop.example.com"),
        *("http://a@shop.example.com:PORT/", "http://xn--a..b/", "http://[::1", "/" + "a" * 2048),
    ],
)
async def test_redirect_to_what_is_refused(server: FaultyUpstream, canary: FaultyUpstream, to: str) -> None:
    """Where an answer leads is checked as what the caller gave was."""
    server.play(Answer.redirect(to.replace("PORT", port_of(canary))))
    web, names = guard(["127.0.0.1"])
    assert await error_of(errors.Failed, web, named(server)) == REFUSAL
    assert names.asked == ["shop.example.com"]
    assert len(server.requests) == 1


async def test_redirect_to_a_port_that_is_refused(server: FaultyUpstream) -> None:
    """The port is checked too."""
    server.play(Answer.redirect("http://shop.example.com:22/"))
    web, _ = guard(["127.0.0.1"], ports={int(port_of(server))})
    assert await error_of(errors.Failed, web, named(server)) == REFUSAL
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_followed(server: FaultyUpstream, status: int) -> None:
    """Five of them, relative ones by the name and not by the address that was connected to; the method stays."""
    elsewhere = ("next", "/other?a=b", named(server, "/c"), "?d", f"//SHOP.example.com:{port_of(server)}/e")
    server.play(*(Answer.redirect(to, status) for to in elsewhere), Answer())
    web, names = guard(*[["127.0.0.1"]] * 6)
    assert (await web.head(named(server, "/a/b"))).status == 200
    assert names.asked == ["shop.example.com"] * 6
    assert [each.path for each in server.requests] == ["/a/b", "/a/next", "/other", "/c", "/c", "/e"]
    assert {each.headers["host"] for each in server.requests} == {f"shop.example.com:{port_of(server)}"}
    assert {each.method for each in server.requests} == {"HEAD"}


async def test_redirects_without_an_end(server: FaultyUpstream) -> None:
    """The sixth is not followed."""
    server.play(Answer.redirect("/"))
    web, _ = guard()
    told = await error_of(errors.UpstreamRejected, web, server.base_url)
    assert told == "The address redirects without an end. Retrying does not help."
    assert len(server.requests) == 6


# Names and certificates


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfound"


class TlsServer:
    """A server with a certificate for one name, which gives every request the same answer.

    `asked`: the heads of its requests; `names`: what its clients wanted to talk to; `trust`: what to check it with.
    """

    def __init__(self, folder: Path, name: str, answer: bytes = OK, host: str = "127.0.0.1") -> None:
        self._answer = answer
        self._host = host
        self.asked: list[bytes] = []
        self.names: list[str | None] = []
        file = folder / "certificate.pem"
        self.trust = ssl.create_default_context(cadata=certify(name, file))
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(file)
        self._context.sni_callback = lambda _, name, __: self.names.append(name)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """Its port."""
        async with await asyncio.start_server(self._serve, self._host, 0, ssl=self._context) as server:
            yield str(server.sockets[0].getsockname()[1])

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(self._answer)
        await writer.drain()
        writer.close()
        await writer.wait_closed()


def certify(name: str, file: Path) -> str:
    """Write a key and its own certificate for a name or an address; the certificate as PEM."""
    key, subject = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    alternative = x509.DNSName(name) if name[-1].isalpha() else x509.IPAddress(ip_address(name))
    now, identifier = datetime.now(UTC), x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    usage = {use: False for use in ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")}
    signs = x509.KeyUsage(True, key_cert_sign=True, crl_sign=False, encipher_only=False, decipher_only=False, **usage)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(signs, critical=True)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    plain = serialization.NoEncryption()
    file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain) + certificate
    )
    return certificate.decode()


async def test_certificate_is_that_of_the_name(tmp_path: Path) -> None:
    """The connection goes to the address, and everything in it to the name: TLS, the certificate, and `Host`."""
    server = TlsServer(tmp_path, "shop.example.com")
    web, _ = guard(["127.0.0.1"], verify=server.trust)
    async with server.running() as port:
        assert (await web.get(f"https://SHOP.example.com.:{port}/a?b#c")).body == b"found"
    assert server.names == ["shop.example.com"]
    assert server.asked[0].startswith(b"GET /a?b HTTP/1.1\r\nHost: shop.example.com:%s\r\n" % port.encode())


@pytest.mark.parametrize(("address", "written"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")])
async def test_certificate_of_an_address(tmp_path: Path, address: str, written: str) -> None:
    """An address in place of a name is what the certificate must be for."""
    server = TlsServer(tmp_path, address, host=address)
    web, _ = guard(verify=server.trust, is_allowed=lambda address: address.is_loopback)
    try:
        async with server.running() as port:
            assert (await web.get(f"https://{written}:{port}/")).body == b"found"
    except OSError:
        pytest.skip(f"{address} is no address of this machine")
    assert server.names == [None]
    assert f"\r\nHost: {written}:{port}\r\n".encode() in server.asked[0]


async def test_certificate_of_another_name(tmp_path: Path) -> None:
    """The address is right, and the server is not: it is told nothing, and three of a name's addresses are tried."""
    server = TlsServer(tmp_path, "other.example.com")
    web, _ = guard(["127.0.0.1"] * 5, verify=server.trust)
    async with server.running() as port:
        told = await error_of(errors.UpstreamUnavailable, web, f"https://shop.example.com:{port}/")
    assert told == "The address cannot be reached. Retry later."
    assert server.names == ["shop.example.com"] * 3
    assert server.asked == []


async def test_certificate_that_nobody_knows(tmp_path: Path) -> None:
    """Certificates are checked unless something else is asked for."""
    server = TlsServer(tmp_path, "shop.example.com")
    web, _ = guard(["127.0.0.1"], verify=True)
    async with server.running() as port:
        await error_of(errors.UpstreamUnavailable, web, f"https://shop.example.com:{port}/")
    assert server.asked == []


async def test_redirect_out_of_tls(server: FaultyUpstream, tmp_path: Path) -> None:
    """What began as https stays so: otherwise whoever listens could change what is read."""
    answer = f"HTTP/1.1 302 Found\r\nLocation: {named(server)}\r\nContent-Length: 0\r\n\r\n"
    secure = TlsServer(tmp_path, "shop.example.com", answer.encode())
    web, _ = guard(["127.0.0.1"], verify=secure.trust)
    async with secure.running() as port:
        told = await error_of(errors.UpstreamRejected, web, f"https://shop.example.com:{port}/")
    assert told == "The address redirects from https to http, which is not followed. Retrying does not help."
    assert server.connections == 0


@pytest.mark.parametrize(
    "answer",
    [
        ["::1", "::1", "::1", "127.0.0.1"],
        ["127.0.0.1", "::1", "::1", "::1"],
        ["127.0.0.2", "127.0.0.3", "127.0.0.1", "127.0.0.4"],
    ],
    ids=str,
)
async def test_address_without_a_server(server: FaultyUpstream, answer: list[str]) -> None:
    """The next one is tried, and the first of each kind before all of one kind have been."""
    web, _ = guard(answer, is_allowed=lambda address: True)
    assert (await web.get(named(server))).body == b"found"


async def test_addresses_beyond_the_third(server: FaultyUpstream) -> None:
    """They are not tried: a name may have any number."""
    web, _ = guard(["127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.1"], is_allowed=lambda address: True)
    await error_of(errors.UpstreamUnavailable, web, named(server))
    assert server.connections == 0


async def test_address_whose_server_is_silent() -> None:
    """It is left in time to try the next one."""
    with socket.create_server((str(HERE), 0)) as silent:
        web, _ = guard(["127.0.0.1", "127.0.0.1"], seconds=0.6)
        told = await error_of(errors.UpstreamUnavailable, web, f"https://shop.example.com:{silent.getsockname()[1]}/")
        assert told == "The address cannot be reached. Retry later."
        silent.setblocking(False)
        for _ in range(2):
            silent.accept()[0].close()


async def test_address_whose_server_fails(server: FaultyUpstream) -> None:
    """It was reached: no other is tried."""
    server.play(Answer.reset())
    web, _ = guard(["127.0.0.1", "127.0.0.1"])
    await error_of(errors.UpstreamUnavailable, web, named(server))
    assert server.connections == 1


# What is sent


async def test_nothing_is_sent_that_is_not_needed(server: FaultyUpstream, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cookie of another answer, no credential, nothing of the environment; and each request has its own connection."""
    with FaultyUpstream() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.base_url)
        server.play(Answer(headers={"Set-Cookie": "session=1; Path=/"}))
        web, _ = guard()
        await web.get(server.base_url)
        await web.get(server.base_url)
        assert proxy.connections == 0
    assert server.connections == 2
    for request in server.requests:
        assert set(request.headers) == {"host", "accept", "accept-encoding", "connection", "user-agent"}
        assert request.headers["accept-encoding"] == "identity"
        assert request.headers["user-agent"].startswith(f"{NAME}/")


# Bounds


@pytest.mark.parametrize(
    "answer",
    [Answer.huge(2 * MEBIBYTE), Answer.huge(MEBIBYTE - 1), Answer.gzip_bomb(64 * MEBIBYTE), Answer.endless()],
    ids=["huge", "one-byte-more", "gzip-bomb", "endless"],
)
async def test_large_answers(server: FaultyUpstream, answer: Answer) -> None:
    """No more than 1 MiB is read, decompressed or not."""
    server.play(answer)
    web, _ = guard()
    told = await error_of(errors.UpstreamRejected, web, server.base_url)
    assert told == "The address gave an answer larger than 1048576 bytes. Retrying does not help."


async def test_answer_of_one_mebibyte(server: FaultyUpstream) -> None:
    """It is not too large, and one that is none is if only its head is asked for."""
    web, _ = guard()
    server.play(Answer.huge(MEBIBYTE - 2))
    assert len((await web.get(server.base_url)).body) == MEBIBYTE
    server.play(Answer.huge(2 * MEBIBYTE))
    assert (await web.head(server.base_url)).headers["content-length"] == str(2 * MEBIBYTE + 2)


@pytest.mark.parametrize("answer", [Answer.hang(), Answer(body=b"a" * 1000, pace=(1, 0.05))], ids=["hang", "slow"])
async def test_answer_that_does_not_come(server: FaultyUpstream, answer: Answer) -> None:
    """It is given up after the guard's own time."""
    server.play(answer)
    web, _ = guard(seconds=0.2)
    assert await error_of(errors.UpstreamUnavailable, web, server.base_url) == TOO_LATE


async def test_answer_that_does_not_come_before_the_tools_end(server: FaultyUpstream) -> None:
    """There is time left to say so, and to say what it was."""
    server.play(Answer.hang())
    web, _ = guard()
    with anyio.fail_after(2):
        assert await error_of(errors.UpstreamUnavailable, web, server.base_url) == TOO_LATE


async def test_name_that_takes_too_long() -> None:
    """To look it up is part of the time."""

    async def resolve(name: str) -> list[public.Address]:
        await anyio.sleep_forever()
        return []

    web, _ = guard(resolve=resolve, seconds=0.05)
    assert await error_of(errors.UpstreamUnavailable, web, "http://shop.example.com/") == TOO_LATE


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (Answer.reset(), "broke off before its answer was whole"),
        (Answer.truncated(b"found"), "broke off before its answer was whole"),
        (Answer(None, body=b"SSH-2.0-OpenSSH_9.6\r\n", cut="close"), "broke off before its answer was whole"),
        (Answer(body=b"no gzip", headers={"Content-Encoding": "gzip"}), "gave an answer that cannot be read"),
    ],
)
async def test_broken_answers(server: FaultyUpstream, answer: Answer, problem: str) -> None:
    """Fixed words say what is wrong, with nothing of what came."""
    server.play(answer)
    web, _ = guard()
    with capture_logs() as log:
        assert (
            await error_of(errors.UpstreamUnavailable, web, server.base_url) == f"The address {problem}. Retry later."
        )
    assert [set(line) for line in log] == [{"event", "upstream", "reason", "log_level"}]


async def test_too_many_at_once(server: FaultyUpstream) -> None:
    """The seventeenth is refused at once, and those that are over make room."""
    server.play(Answer.hang())
    web, _ = guard()
    async with anyio.create_task_group() as tasks:
        for _ in range(16):
            tasks.start_soon(web.get, server.base_url)
        await anyio.to_thread.run_sync(server.wait_for, 16)
        with pytest.raises(errors.UpstreamUnavailable, match="Too many addresses") as refused:
            await web.get(server.base_url)
        assert refused.value.retry_after == 1
        tasks.cancel_scope.cancel()
    server.play(Answer(body=b"found"))
    assert (await web.get(server.base_url)).body == b"found"


# Through a tool, over all four ways


@pytest.fixture
def canaries() -> Iterator[str]:
    """The port of servers on 127.0.0.1 and, where there is one, on ::1, to which nothing may connect."""
    with FaultyUpstream() as running:
        port = port_of(running)
        try:
            other: socket.socket | None = socket.create_server(("::1", int(port)), family=socket.AF_INET6)
        except OSError:  # no IPv6 on this machine
            other = None
        try:
            yield port
            assert running.connections == 0
            if other is not None:
                other.setblocking(False)
                with pytest.raises(BlockingIOError):
                    other.accept()
        finally:
            if other is not None:
                other.close()


def test_attacks_through_a_tool(peer: Peer, canaries: str) -> None:
    """None of them gets through, and all are told the same."""
    urls = [url.replace("PORT", canaries) for urls in ATTACKS.values() for url in urls]
    told = [peer.error("probe_fetch", url=url) for url in urls]
    assert {(error["code"], error["message"], error["retryable"]) for error in told} == {("failed", REFUSAL, False)}


def test_canaries_can_be_reached(peer: Peer, server: FaultyUpstream) -> None:
    """What the attacks aim at is there for a tool that may go there."""
    assert peer.call("probe_fetch_here", url=server.base_url)["result"]["structuredContent"] == {"result": "found"}
    assert server.connections == 1


def test_addresses_are_not_logged(peer: Peer, server: FaultyUpstream) -> None:
    """Neither of what was fetched, nor of what failed, nor of what was refused, at any level."""
    server.play(Answer.redirect("/hunter33/b"), Answer(), Answer.reset(), Answer.redirect("http://hunter33.internal/"))
    path = f"{server.base_url}/hunter33?key=hunter33#hunter33"
    assert peer.call("probe_fetch_here", url=path)["result"]["isError"] is False
    errors = [peer.error("probe_fetch_here", url=path) for _ in range(2)]
    for url in ("http://hunter33.internal/", "http://a:hunter33@8.8.8.8/", "http://10.0.0.1/hunter33", "hunter33:x"):
        errors.append(peer.error("probe_fetch", url=url))
    for error in errors:
        peer.logged(error["request_id"])
    assert "hunter33" not in str(errors)
    assert b"hunter33" not in b"".join(peer.server.stderr)
    assert b"address_refused" in b"".join(peer.server.stderr)
