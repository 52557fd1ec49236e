"""The official conformance suite, on Node: the scenarios that need no tool, resource or prompt made for them.

It calls the first tool that is listed, without arguments.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from .harness import LEGACY, MODERN, SERVE_HTTP, Server

SUITE = "@modelcontextprotocol/conformance@0.2.0-alpha.12"
BOTH = ["tools-list", "resources-list", "prompts-list", "dns-rebinding-protection", "server-sse-multiple-streams"]
SCENARIOS = {
    LEGACY: [*BOTH, "server-initialize", "ping", "server-session-lifecycle"],
    MODERN: [
        *BOTH,
        *("server-stateless", "caching", "http-header-validation", "sep-2164-resource-not-found"),
        "input-required-result-unsupported-methods",
    ],
}
# Checks of `server-stateless` that call tools of the suite's own.
NEED_TOOLS = {
    "sep-2575-server-rejects-undeclared-capability",
    "sep-2575-missing-capability-http-400",
    "sep-2575-http-server-no-independent-requests-on-stream",
    "sep-2575-server-no-log-without-loglevel",
    "sep-2575-server-sends-tools-list-changed-on-subscription",
    "sep-2575-server-sends-prompts-list-changed-on-subscription",
}


@pytest.mark.timeout(240)  # npm may have to fetch the suite
def test_server_conforms(tmp_path: Path) -> None:
    """No scenario has anything to find fault with, in either revision."""
    node, npm = shutil.which("node"), shutil.which("npm")
    version = run([node, "--version"]).stdout.strip() if node else "none"
    if npm is None or not version.startswith("v") or int(version[1:].partition(".")[0]) < 22:
        pytest.skip(f"the conformance suite needs npm and Node 22 or newer on PATH; Node there: {version}")
    # One test for both revisions: two npm at once would fetch the suite into the same place.
    fetch = [npm, "exec", "--yes", "--prefer-offline", "--fetch-retries=0", f"--package={SUITE}", "--"]
    fetched = run([*fetch, "node", "--print", "process.env.PATH"])
    if fetched.returncode != 0:
        pytest.skip(f"npm cannot fetch {SUITE}: {' '.join(re.findall('code (.+)', fetched.stderr))}")
    suite = shutil.which("conformance", path=fetched.stdout.strip())
    assert suite is not None
    with Server(*SERVE_HTTP, settings={"MCP_HTTP_SESSIONS": "stateful"}) as server:
        for revision in SCENARIOS:
            options = ("--url", server.url, "--requirements", revision, "--output-dir", str(tmp_path / revision))
            run([suite, "server", *options])  # it runs more than is asked for here, so its exit code says nothing
    problems = []
    for revision, scenarios in SCENARIOS.items():
        for scenario in scenarios:
            (folder,) = (tmp_path / revision).glob(f"server-{scenario}-[0-9]*")
            checks = json.loads((folder / "checks.json").read_text(encoding="utf-8"))
            assert any(check["status"] == "SUCCESS" for check in checks), checks
            problems += [
                f"{revision} {scenario}: {check['status']} {check['id']}: {check.get('errorMessage')}"
                for check in checks
                if check["status"] in ("FAILURE", "WARNING") and check["id"] not in NEED_TOOLS
            ]
    assert problems == []


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """A command, run to its end."""
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", timeout=120, check=False
    )
