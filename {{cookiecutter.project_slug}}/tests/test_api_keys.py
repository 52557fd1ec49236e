"""API keys: how they are made and kept, how a change of their file is picked up, and the credential of stdio."""

import asyncio
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from {{ cookiecutter.package_name }}.auth.api_keys import ApiKeys, new_key
from {{ cookiecutter.package_name }}.auth.credentials import Rejected
from {{ cookiecutter.package_name }}.errors import StartError
from {{ cookiecutter.package_name }}.settings import load_settings

from .conftest import Start
from .harness import HTTP, SERVE_HTTP, STDIO, Json, Peer, Way, run_command, until
from .test_auth import bearer, id_of
from .test_listen import events

SCOPES = ["probe:use", "probe:more"]
KEY = re.compile(r"mcp_[0-9a-f]{12}_[A-Za-z0-9_-]{43}")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where keys are kept; nothing is there yet."""
    return tmp_path / "keys.json"


def kept(file: Path) -> list[Json]:
    """What stands in the file."""
    found: list[Json] = json.loads(file.read_text(encoding="utf-8"))["keys"]
    return found


def keys_new(file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """One `keys new`."""
    return run_command("keys", "new", *arguments, settings={"MCP_API_KEYS_FILE": str(file)})


def problems(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What stderr says: one event a line."""
    return [json.loads(line)["event"] for line in done.stderr.splitlines()]


# `keys new`


def test_new_key(file: Path) -> None:
    """It is printed once; the file, which nobody else may read, has its hash, its scopes and its expiry."""
    done = keys_new(file, "--name", "ada", "--scopes", " b:write, a:read,b:write,", "--expires-days", "0.5")
    assert (done.returncode, done.stderr) == (0, "")
    assert KEY.fullmatch(done.stdout.removesuffix("\n"))
    (made,) = kept(file)
    assert (made["id"], made["name"], made["scopes"]) == (id_of(done.stdout), "ada", ["a:read", "b:write"])
    created, expires = (datetime.fromisoformat(made[name]) for name in ("created", "expires"))
    assert expires - created == timedelta(hours=12)
    assert done.stdout.strip().split("_", 2)[2] not in file.read_text(encoding="utf-8")
    if sys.platform != "win32":
        assert file.stat().st_mode & 0o777 == 0o600
    assert os.listdir(file.parent) == [file.name]


def test_two_keys_of_one_name(file: Path) -> None:
    """Both are valid, so that one can take the other's place."""
    old, new = (new_key(file, "ada", SCOPES, None) for _ in range(2))
    keys = ApiKeys(file)
    assert [keys.check(key).client for key in (old, new)] == ["ada", "ada"]
    assert keys.check(old).name != keys.check(new).name
    assert len(keys.live) == 2


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["--name", ""], "--name"),
        (["--name", "ada", "--scopes", "a,canary b"], "--scopes"),
        (["--name", "ada", "--expires-days", "1e9"], "--expires-days"),
        (["--scopes", "canary"], "--name"),
    ],
)
def test_bad_options(file: Path, arguments: list[str], option: str) -> None:
    """One line names the option, exit 2, and no file is made."""
    done = keys_new(file, *arguments)
    (problem,) = problems(done)
    assert (done.returncode, done.stdout) == (2, "")
    assert option in problem
    assert "canary" not in problem
    assert not file.exists()


@pytest.mark.parametrize(
    ("name", "scopes", "days"),
    [
        ("x" * 101, [], None),
        ("\udcff", [], None),
        *(("ada", [scope], None) for scope in ("a b", 'a"', "a,b", "a\\", "\xe9", "a\n", "a\r\nX: y", "")),
        *(("ada", [], days) for days in (0, -1, math.nan, math.inf, -math.inf)),
    ],
)
def test_bad_keys(file: Path, name: str, scopes: list[str], days: float | None) -> None:
    """A key with a scope that breaks a header, or without an end in this world, is not made."""
    with pytest.raises(StartError, match="^--"):
        new_key(file, name, scopes, days)
    assert os.listdir(file.parent) == []


def test_keys_made_at_once(file: Path) -> None:
    """None is lost: the file has each key that was printed, and whoever did not get one is told why."""
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda number: keys_new(file, "--name", f"caller {number}"), range(8)))
    printed = {id_of(done.stdout) for done in made if done.returncode == 0}
    assert printed
    assert {each["id"] for each in kept(file)} == printed
    for done in made:
        if done.returncode != 0:
            (problem,) = problems(done)
            assert (done.returncode, done.stdout) == (2, "")
            assert "another `keys new` is running" in problem
    assert os.listdir(file.parent) == [file.name]


def test_interrupted_write_is_in_the_way_until_it_is_removed(file: Path) -> None:
    """The message names what to remove; the keys that are there stay."""
    first = new_key(file, "ada", [], None)
    left = file.with_name("keys.json.new")
    left.write_text("{", encoding="utf-8")
    with pytest.raises(StartError, match=f"^MCP_API_KEYS_FILE: {left.name} is there"):
        new_key(file, "bob", [], None)
    left.unlink()
    new_key(file, "bob", [], None)
    assert ApiKeys(file).check(first).client == "ada"
    assert [each["name"] for each in kept(file)] == ["ada", "bob"]


@pytest.mark.parametrize("text", ["{", '{"keys": [{}]}', '{"keys": [], "extra": 1}', ""])
def test_file_that_is_broken_is_not_written_over(file: Path, text: str) -> None:
    """Whoever repairs it finds it as it was."""
    file.write_text(text, encoding="utf-8")
    with pytest.raises(StartError, match=r"^MCP_API_KEYS_FILE: (must be JSON|keys\.0\.id: is|extra: is unknown)"):
        new_key(file, "ada", [], None)
    assert (file.read_text(encoding="utf-8"), os.listdir(file.parent)) == (text, [file.name])


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other permissions, and links need a right")
def test_link_stays_one(file: Path) -> None:
    """What it leads to is replaced, and keeps who may read it."""
    target = file.with_name("target.json")
    target.write_text('{"keys": []}', encoding="utf-8")
    target.chmod(0o640)
    file.symlink_to(target.name)
    new_key(file, "ada", [], None)
    assert file.is_symlink()
    assert (target.stat().st_mode & 0o777, len(kept(target))) == (0o640, 1)


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """Nothing is printed, and one line says why, without the path; so too without the setting."""
    folders = [tmp_path / "nowhere"]
    if sys.platform != "win32" and os.geteuid() != 0:  # root may write anywhere
        folders.append(tmp_path / "closed")
        folders[1].mkdir(mode=0o500)
    for folder in folders:
        with pytest.raises(StartError, match=r"^MCP_API_KEYS_FILE: the file cannot be written \(") as refused:
            new_key(folder / "keys.json", "ada", [], None)
        assert str(tmp_path) not in str(refused.value)
    done = run_command("keys", "new", "--name", "ada")
    (problem,) = problems(done)
    assert (done.returncode, done.stdout, problem.partition(":")[0]) == (2, "", "MCP_API_KEYS_FILE")


# The file


def made_of(*kept: object) -> str:
    """A file with these keys."""
    return json.dumps({"keys": kept})


GOOD = {"id": "0" * 12, "name": "n", "sha256": "0" * 64, "scopes": [], "created": "2026-01-01T00:00:00Z"}
BROKEN = {
    "no JSON": '{"keys": [canary]}',
    "half of it": made_of(GOOD)[:60],
    "empty": "",
    "a list": json.dumps([GOOD]),
    "no keys": "{}",
    "unknown member": json.dumps({"keys": [], "extra": "canary"}),
    "unknown member of a key": made_of(GOOD | {"extra": "canary"}),
    "id": made_of(GOOD | {"id": "canary"}),
    "hash": made_of(GOOD | {"sha256": "canary"}),
    "scope": made_of(GOOD | {"scopes": ["a canary"]}),
    "time": made_of(GOOD | {"expires": "canary"}),
    "time without a zone": made_of(GOOD | {"expires": "2026-01-01T00:00:00"}),
    "twice": made_of(GOOD, GOOD | {"name": "canary"}),
}


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in BROKEN.items()])
def test_file_that_is_not_valid(file: Path, text: str) -> None:
    """It is said in lines that name the setting, and what is wrong, and show nothing of it."""
    file.write_text(text, encoding="utf-8")
    with pytest.raises(StartError) as refused:
        ApiKeys(file)
    assert refused.value.problems
    assert all(problem.startswith("MCP_API_KEYS_FILE: ") for problem in refused.value.problems)
    assert "canary" not in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "lines"),
    [
        ({"MCP_AUTH_MODE": "api_key"}, 1),
        ({"MCP_AUTH_MODE": "api_key", "MCP_API_KEYS_FILE": "nowhere"}, 1),
        ({"MCP_AUTH_MODE": "api_key", "MCP_API_KEYS_FILE": "broken"}, 3),
        ({"MCP_API_KEY": "canary"}, 1),
    ],
)
def test_start_without_valid_keys(tmp_path: Path, settings: dict[str, str], lines: int) -> None:
    """It is no start: a line for each problem names the setting, exit 2."""
    (tmp_path / "broken").write_text(made_of({"id": "0" * 12}), encoding="utf-8")
    transport = "http" if "MCP_AUTH_MODE" in settings else "stdio"
    done = run_command("serve", "--transport", transport, "--port", "0", settings=settings, folder=tmp_path)
    found = problems(done)
    assert (done.returncode, done.stdout, len(found)) == (2, "", lines)
    assert all(problem.startswith("MCP_API_KEYS_FILE: ") for problem in found)
    assert "canary" not in done.stderr


def test_expiry(file: Path) -> None:
    """A key that has expired is told so, but only to who has it."""
    key = new_key(file, "ada", SCOPES, 1e-9)
    keys = ApiKeys(file)
    assert keys.live == []
    for credential, reason in [(key, "expired key"), (key[:-1] + "-_"[key[-1] == "-"], "wrong key")]:
        with pytest.raises(Rejected) as refused:
            keys.check(credential)
        assert (refused.value.reason, "expired" in refused.value.message) == (reason, reason == "expired key")


# Changes while the server runs


@pytest.mark.skipif(sys.platform == "win32", reason="descriptors are not bounded there")
async def test_a_removed_key_ends_once_the_file_can_be_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However short a time it could not be, for whatever reason, and however much the file looks as it did then."""
    import resource

    now = [time.monotonic()]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    removed, kept_one = new_key(file, "ada", SCOPES, None), new_key(file, "bob", SCOPES, None)
    keys = ApiKeys(file)
    remaining = [each for each in kept(file) if each["id"] != id_of(removed)]
    file.write_text(json.dumps({"keys": remaining}), encoding="utf-8")
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limit[1]))  # it can be looked at, and not opened
    try:
        with capture_logs() as log:
            for _ in range(3):
                now[0] += 1
                assert keys.check(removed).client == "ada"
                with pytest.raises(StartError, match="cannot be read"):
                    await keys.check_file()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    assert [event["event"] for event in log] == ["api_keys_not_read"]
    now[0] += 1
    with pytest.raises(Rejected):
        keys.check(removed)
    assert keys.check(kept_one).client == "bob"
    await keys.check_file()


def test_a_file_that_is_as_it_was_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its folder was moved away, and back: nothing of the file has changed."""
    now = [time.monotonic()]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    folder, away = tmp_path / "folder", tmp_path / "away"
    folder.mkdir()
    key = new_key(folder / "keys.json", "ada", SCOPES, None)
    keys = ApiKeys(folder / "keys.json")
    folder.rename(away)
    now[0] += 1
    assert keys.check(key).client == "ada"
    with pytest.raises(StartError, match="cannot be read"):
        asyncio.run(keys.check_file())
    away.rename(folder)
    now[0] += 1
    asyncio.run(keys.check_file())
    assert keys.check(key).client == "ada"


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such files")
def test_a_pipe_is_no_file_of_keys(tmp_path: Path) -> None:
    """Nobody may ever write to it: the start does not wait."""
    os.mkfifo(tmp_path / "pipe")
    done = run_command("serve", settings={"MCP_API_KEYS_FILE": str(tmp_path / "pipe"), "MCP_AUTH_MODE": "api_key"})
    assert done.returncode == 2
    assert "MCP_API_KEYS_FILE: is no regular file" in done.stderr


def test_a_file_that_cannot_be_read_degrades(start: Start, file: Path) -> None:
    """Who looks at readiness is told, and told when it is over; the keys that were read last are taken on."""
    key = new_key(file, "ada", SCOPES, None)
    settings = {"MCP_AUTH_MODE": "api_key", "MCP_API_KEYS_FILE": str(file)}
    peer = Peer(HTTP[0], start(*SERVE_HTTP, settings=settings))

    def ready() -> tuple[int, str, str]:
        answer = peer.http.get(peer.url.replace("/mcp", "/readyz"))
        found = answer.json()
        return answer.status_code, found["status"], found["checks"]["api_keys"]

    well = (200, "ok", "ok")
    assert ready() == well
    away = file.rename(file.with_name("away"))
    until(lambda: ready() == (200, "degraded", "failed"))
    assert peer.post(peer.message("tools/list"), bearer(key)).status_code == 200
    away.rename(file)
    until(lambda: ready() == well)
    peer.http.close()


def test_rotation(start: Start, file: Path) -> None:
    """A key that is added is taken, and one that is removed is refused, without a restart."""
    old = new_key(file, "ada", SCOPES, None)
    settings = {"MCP_AUTH_MODE": "api_key", "MCP_API_KEYS_FILE": str(file), "MCP_AUTH_FAILURES_PER_MINUTE": "10000"}
    peer = Peer(HTTP[0], start(*SERVE_HTTP, settings=settings))

    def status(key: str) -> int:
        return peer.post(peer.message("tools/list"), bearer(key)).status_code

    assert status(old) == 200
    new = keys_new(file, "--name", "ada").stdout.strip()
    began = time.monotonic()
    until(lambda: status(new) == 200)
    assert time.monotonic() - began < 3, "it is said to take a second"
    assert status(old) == 200
    remaining = [each for each in kept(file) if each["id"] != id_of(old)]
    file.write_text(json.dumps({"keys": remaining}), encoding="utf-8")
    until(lambda: status(old) == 401)
    assert status(new) == 200
    peer.server.wait_for("api_keys_read", keys=1)
    assert [event["keys"] for event in peer.server.log if event["event"] == "api_keys_read"] == [2, 1]
    peer.http.close()


def test_broken_edit(start: Start, file: Path) -> None:
    """The last good keys stay valid, one error is logged for each edit, and the repaired file is read."""
    key = new_key(file, "ada", SCOPES, None)
    good = file.read_text(encoding="utf-8")
    settings = {"MCP_AUTH_MODE": "api_key", "MCP_API_KEYS_FILE": str(file), "MCP_LOG_LEVEL": "DEBUG"}
    peer = Peer(HTTP[0], start(*SERVE_HTTP, settings=settings))

    def logged(event: str) -> list[Json]:
        message = peer.message("tools/list")
        assert peer.post(message, bearer(key)).status_code == 200
        peer.server.wait_for("request", rpc_id=message["id"])
        return [each for each in peer.server.log if each["event"] == event]

    def become_a_folder() -> None:
        file.unlink()
        file.mkdir()

    edits: list[Callable[[], object]] = [
        lambda: file.write_text("{", encoding="utf-8"),
        lambda: file.write_text(good[: len(good) // 2], encoding="utf-8"),
        lambda: file.write_text(good.replace(id_of(key), "canary"), encoding="utf-8"),
        become_a_folder,
        file.rmdir,
    ]
    for number, edit in enumerate(edits, start=1):
        edit()
        until(lambda number=number: len(logged("api_keys_not_read")) == number)  # type: ignore[misc]
    time.sleep(1.1)  # then it is looked at once more, and nothing is new
    errors = logged("api_keys_not_read")
    assert [(error["level"], error["kept"]) for error in errors] == [("error", 1)] * len(edits)
    assert all(line.startswith("MCP_API_KEYS_FILE: ") for error in errors for line in error["problems"])
    told = b"".join(peer.server.stderr).decode()
    assert not [secret for secret in ("canary", str(file.parent), key) if secret in told]
    file.write_text(good, encoding="utf-8")
    until(lambda: logged("api_keys_read"))
    peer.http.close()


def test_listener_whose_key_is_withdrawn(start: Start, file: Path) -> None:
    """Its stream ends with its result although nothing is told, and it listens anew in vain."""
    key = new_key(file, "ada", SCOPES, None)
    peer = Peer(HTTP[0], start(*SERVE_HTTP, settings={"MCP_AUTH_MODE": "api_key", "MCP_API_KEYS_FILE": str(file)}))
    message = peer.message("subscriptions/listen", {"notifications": {"resourceSubscriptions": ["probe://secret"]}})
    secret = peer.message("resources/read", {"uri": "probe://secret"})
    good = file.read_text(encoding="utf-8")
    for kept, status in ((good.replace('"probe:use"', '"probe:else"'), 403), ('{"keys": []}', 401)):
        file.write_text(good, encoding="utf-8")
        until(lambda: peer.post(secret, bearer(key)).status_code == 200)
        with peer.http.stream("POST", peer.url, json=message, headers=peer.headers(message) | bearer(key)) as response:
            stream = events(response)
            next(stream)
            file.write_text(kept, encoding="utf-8")
            (last,) = stream
        assert (last["id"], last["result"]["resultType"]) == (message["id"], "complete")
        assert peer.post(message, bearer(key)).status_code == status
    peer.http.close()


# The credential of stdio


@pytest.mark.parametrize("way", STDIO, ids=str)
def test_key_of_a_pipe(start: Start, file: Path, way: Way) -> None:
    """It grants its scopes until it is withdrawn; then no tool runs, and the rest is answered as before."""
    key = new_key(file, "ada", SCOPES, None)
    good = file.read_text(encoding="utf-8")
    secret = file.with_name("secret")
    secret.write_text(f"{key}\n", encoding="utf-8")
    peer = Peer(way, start(settings={"MCP_API_KEYS_FILE": str(file), "MCP_API_KEY_FILE": str(secret)}))
    name = f"api_key:{id_of(key)}"
    acted = peer.call("caller_acts")
    assert acted["result"]["structuredContent"] == {"result": name}
    assert peer.server.wait_for("request", rpc_id=acted["id"], tool="caller_acts")["principal"] == name
    file.write_text('{"keys": []}', encoding="utf-8")
    until(lambda: peer.call("caller_is")["result"]["isError"])
    for tool in ("caller_acts", "caller_is"):
        error = peer.error(tool)
        assert (error["code"], peer.logged(error["request_id"])["reason"]) == ("unauthenticated", "unknown key")
    assert "caller_is" in str(peer.request("tools/list"))
    file.write_text(good, encoding="utf-8")
    until(lambda: not peer.call("caller_is")["result"]["isError"])
    assert peer.call("caller_count")["result"]["structuredContent"] == {"result": 1}


@pytest.mark.parametrize("way", STDIO, ids=str)
@pytest.mark.parametrize("kind", ["expired", "wrong"])
def test_bad_key_of_a_pipe(start: Start, file: Path, way: Way, kind: str) -> None:
    """Nothing is run or read with it, and the reason is in the log; the handshake and lists are answered."""
    key = new_key(file, "ada", SCOPES, 1e-9 if kind == "expired" else None)
    used = {"expired": key, "wrong": key[:-4] + "AAAA"}[kind]
    settings = {"MCP_API_KEYS_FILE": str(file), "MCP_API_KEY": used, "MCP_LOG_LEVEL": "DEBUG"}
    peer = Peer(way, start(settings=settings | {"MCP_LOCAL_SCOPES": ",".join(SCOPES)}))
    read = peer.request("resources/read", {"uri": "probe://text"})["error"]["data"]
    got = peer.request("prompts/get", {"name": "probe_privileged_prompt"})["error"]["data"]
    for error in (peer.error("caller_acts"), peer.error("caller_count"), read, got):
        assert error["code"] == "unauthenticated"
        assert error["message"].endswith("Ask the server's operator for a new one.")
        assert peer.logged(error["request_id"])["reason"] == f"{kind} key"
    names = {each["name"] for each in peer.request("tools/list")["result"]["tools"]}
    assert ("caller_acts" in names, "caller_is" in names) == (False, True)
    assert not [event for event in peer.server.log if event.get("outcome") == "ok" and event.get("tool")]
    assert used.split("_", 2)[2] not in b"".join(peer.server.stderr).decode()


@pytest.mark.parametrize("way", STDIO, ids=str)
def test_secrets_reach_neither_tools_nor_what_they_start(start: Start, file: Path, way: Way) -> None:
    """They are taken out of the environment before any tool is imported; other settings stay."""
    settings = {
        "MCP_API_KEYS_FILE": str(file),
        "MCP_API_KEY": new_key(file, "ada", SCOPES, None),
        "MCP_LOCAL_SCOPES": "probe:use",
        "MCP_REQUEST_STATE_KEYS": "k" * 32,
        "MCP_RATE_LIMIT_STORE": "memory://",
    }
    peer = Peer(way, start(settings=settings))
    found = peer.call("caller_finds")["result"]["structuredContent"]["result"]
    assert set(found) & settings.keys() == {"MCP_API_KEYS_FILE"}


# Secrets of the settings

SECRETS = {
    "MCP_API_KEY": "mcp_000000000000_canary-of-the-api-key-0123456789-0123456789",
    "MCP_REQUEST_STATE_KEYS": "canary-of-the-state-key-0123456789,canary-of-the-state-key-9876543210",
    "MCP_RATE_LIMIT_STORE": "redis://user:canary-password@127.0.0.1:1/0",
}


def test_no_dump_shows_secrets(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    """Neither `repr` nor any dump of the settings."""
    for name, value in (SECRETS | {"MCP_API_KEYS_FILE": str(file)}).items():
        monkeypatch.setenv(name, value)
    # A developer's .env is not read.
    monkeypatch.setattr("{{ cookiecutter.package_name }}.settings._ROOT", file.parent)
    settings = load_settings({})
    assert settings.api_key is not None
    assert settings.api_key.get_secret_value() == SECRETS["MCP_API_KEY"]
    shown = [repr(settings), str(settings), settings.model_dump_json(), str(settings.model_dump())]
    assert "canary" not in "".join(shown)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("tools", "--json"), 0),
        (("client-config", "claude-code"), 0),
        (("serve", "--port", "x"), 2),
        (("serve", "--transport", "http", "--host", "192.0.2.1", "--port", "0"), 2),
    ],
)
def test_no_command_shows_secrets(file: Path, arguments: tuple[str, ...], code: int) -> None:
    """Nor does a command, whether it works or not."""
    file.write_text('{"keys": []}', encoding="utf-8")
    settings = SECRETS | {"MCP_API_KEYS_FILE": str(file), "MCP_RATE_LIMIT_STORE": "memory://"}
    done = run_command(*arguments, settings=settings)
    assert done.returncode == code, done.stderr
    assert "canary" not in done.stdout + done.stderr
