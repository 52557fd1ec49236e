"""The official conformance suite, against a server with the tools, resources and prompts that its scenarios call."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import yaml

from bootstrap import ROOT
from installed import PACKAGE, Installed, install
from node import Node, install_packages
from proxy import authorized
from raw import SERVE_HTTP, Server
from rendering import render, run

pytestmark = [pytest.mark.install, pytest.mark.timeout(300)]

SUITE = "@modelcontextprotocol/conformance"
VERSION = "0.2.0-alpha.12"

LOGGING = "protocol logging is deprecated: logs go to stderr"
SUBSCRIBE = "replaced by subscriptions/listen"
NOT_SERVED = {
    "logging-set-level": LOGGING,
    "tools-call-with-logging": LOGGING,
    "resources-subscribe": SUBSCRIBE,
    "resources-unsubscribe": SUBSCRIBE,
}
ASKS = "a server without sessions has no way to ask a client of the handshake revisions"
NOT_WITHOUT_SESSIONS = {
    "tools-call-sampling": ASKS,
    "tools-call-elicitation": ASKS,
    "elicitation-sep1034-defaults": ASKS,
    "elicitation-sep1330-enums": ASKS,
    "server-sse-multiple-streams": "there is no session to open several streams in",
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The default project with the suite's tools, resources and prompts dropped in, installed."""
    path = render(tmp_path_factory.mktemp("server"), project_name="Spare Parts")
    shutil.copytree(ROOT / "tests" / "conformance", path / "src" / PACKAGE, dirs_exist_ok=True)
    return install(path)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Node:
    """Node with the suite."""
    return install_packages(tmp_path_factory.mktemp("suite"), f"{SUITE}@{VERSION}")


@pytest.mark.parametrize("mode", ["none", "api_key"])
@pytest.mark.parametrize(
    ("revision", "sessions", "scenarios", "failing"),
    [
        pytest.param("2026-07-28", "stateless", 37, {}, id="2026-07-28"),
        pytest.param("2025-11-25", "stateful", 30, NOT_SERVED, id="2025-11-25 with sessions"),
        pytest.param("2025-11-25", "stateless", 30, NOT_SERVED | NOT_WITHOUT_SESSIONS, id="2025-11-25"),
    ],
)
def test_server_meets_the_requirements(
    installed: Installed,
    node: Node,
    tmp_path: Path,
    mode: str,
    revision: str,
    sessions: str,
    scenarios: int,
    failing: dict[str, str],
) -> None:
    """Every scenario that a revision requires passes, in all its checks, but those named here with a reason."""
    results = tmp_path / "results"
    serving = installed.http if mode == "none" else partial(guarded, installed, tmp_path)
    with serving(MCP_HTTP_SESSIONS=sessions) as url:
        options = ("--url", url, "--requirements", revision, "--output-dir", results)
        done = node.run(node.command(f"{SUITE}/dist/index.js", "server", *options))
    listed = node.folder / "node_modules" / SUITE / "requirements" / f"{revision}.yaml"
    required = yaml.safe_load(listed.read_text(encoding="utf-8"))["server"]
    assert len(required) == scenarios
    assert any(results.iterdir()), done.stdout + done.stderr
    # Not by the suite's own list of expected failures, which lets misspelt names through.
    problems = {name: found for name in required if (found := problems_of(name, results))}
    unexpected = {name: found for name, found in problems.items() if name not in failing}
    assert not unexpected, json.dumps(unexpected, indent=1)
    assert failing.keys() <= problems.keys(), "one that is named as failing passes"


@contextmanager
def guarded(installed: Installed, folder: Path, **settings: str) -> Iterator[str]:
    """The address of a server that wants an API key, by way of a proxy that sends one; it served nobody without."""
    file = folder / "keys.json"
    key = installed.new_key(file)
    settings |= {"MCP_AUTH_MODE": "api_key", "MCP_API_KEYS_FILE": str(file)}
    with Server([installed.command, *SERVE_HTTP], settings) as server:
        with authorized(server.port, key) as url:
            yield url
        requests = [event for event in server.events() if event["event"] == "request"]
    served = {event["principal"] for event in requests if event["outcome"] != "invalid_request"}
    assert len(served) == 1
    assert served.pop().startswith("api_key:")


@pytest.mark.parametrize("examples", ["yes", "no"])
def test_fresh_project_runs_the_suite_itself(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, examples: str
) -> None:
    """Its own test of what needs no tools of the suite passes where there is a Node, with the examples and without."""
    for name in ("PATH", "NODE_OPTIONS"):
        monkeypatch.setenv(name, node.environment()[name])
    done = run(render(tmp_path, examples=examples), "uv run pytest -n 0 -rs tests/test_conformance.py")
    assert " 1 passed" in done.stdout, done.stdout + done.stderr


def problems_of(scenario: str, results: Path) -> list[str]:
    """What kept a scenario from passing, from the one folder that it has among the results."""
    (folder,) = results.glob(f"server-{scenario}-[0-9]*")
    checks = json.loads((folder / "checks.json").read_text(encoding="utf-8"))
    # The schema of messages is checked in every scenario; alone it means that nothing was tried.
    assert any(check["status"] != "INFO" for check in checks if check["id"] != "wire-schema-valid"), scenario
    return [
        f"{check['status']} {check['id']}: {check.get('errorMessage') or check.get('details')}"
        for check in checks
        if check["status"] not in ("SUCCESS", "INFO")
    ]
