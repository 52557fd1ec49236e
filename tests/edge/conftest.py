"""What the tests of the edge share: an installed project with tools of the tests' own, and servers of it."""

import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from checklist import rows
from installed import Installed, install_edge
from raw import SERVE_HTTP, Server, Start


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The default project with what is in `fixtures/` dropped in, installed once for each worker.

    `SABOTAGE` in the environment names one of the checklist's, which is done to it (`tests/proofs/teeth.py`).
    """
    project = install_edge(tmp_path_factory.mktemp("edge"))
    for sabotage in (each for row in rows() for each in row.sabotages if each.name == os.environ.get("SABOTAGE")):
        file = sabotage.path(project.path)
        file.write_text(sabotage.applied(file.read_text(encoding="utf-8")), encoding="utf-8")
    return project


@pytest.fixture
def start(installed: Installed) -> Iterator[Start]:
    """A factory of servers that are ended with the test: `start("http", auth_mode="api_key")`, or `start("stdio")`."""
    with ExitStack() as stack:

        def start_one(transport: str = "http", /, **settings: str) -> Server:
            arguments = SERVE_HTTP if transport == "http" else ()
            named = {f"MCP_{name.upper()}": value for name, value in settings.items()}
            return stack.enter_context(Server([installed.command, *arguments], named))

        yield start_one
