"""A generated project's bundle and registry entry, held against what others publish: schemas, validator, and a client's
own way to start a bundle."""

import json
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator

from bootstrap import ROOT, environment, uv
from installed import install, modern
from node import Node, install_packages
from rendering import render, run

pytestmark = [pytest.mark.install, pytest.mark.timeout(300)]

MCPB = "@anthropic-ai/mcpb@2.1.2"
DESCRIPTION = 'Finds "spare" parts\\, 日本 🚀 and orders them. ' * 8

Json = dict[str, Any]


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the one command of a project makes, once its repository is known."""
    project = render(tmp_path_factory.mktemp("bundle"), project_name="Spare Parts", description=DESCRIPTION.strip())
    install(project)
    with (project / "pyproject.toml").open("a", encoding="utf-8") as file:
        file.write('\n[project.urls]\nRepository = "https://github.com/octo-org/spare-parts"\n')
    done = run(project, "uv run --frozen spare-parts bundle --registry")
    assert (done.returncode, done.stdout) == (0, "wrote dist/spare-parts-0.1.0.mcpb\nwrote dist/server.json\n"), (
        done.stderr
    )
    return project / "dist"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Node:
    """Node with the bundles' own tools."""
    return install_packages(tmp_path_factory.mktemp("mcpb"), MCPB)


@pytest.fixture(scope="module")
def unpacked(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle, as a client unpacks it."""
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(dist / "spare-parts-0.1.0.mcpb") as archive:
        archive.extractall(folder)
    return folder


def test_registry_entry_fits_the_published_schema(dist: Path) -> None:
    """Whatever the description; and the schema is one that refuses."""
    schema = json.loads((ROOT / "tests" / "server.schema.json").read_text(encoding="utf-8"))
    Draft7Validator.check_schema(schema)
    entry = json.loads((dist / "server.json").read_text(encoding="utf-8"))
    assert entry["$schema"] == schema["$id"]
    Draft7Validator(schema).validate(entry)
    (package,) = entry["packages"]
    for wrong in ({"name": "spare-parts"}, {"description": DESCRIPTION}, {"packages": [package | {"transport": {}}]}):
        assert not Draft7Validator(schema).is_valid(entry | wrong)


def test_manifest_fits_the_published_schema(node: Node, unpacked: Path) -> None:
    """As the bundles' own validator says, which reads the schema of the manifest's version."""
    done = node.run(node.command("@anthropic-ai/mcpb/dist/cli/cli.js", "validate", unpacked / "manifest.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passes" in done.stdout


def test_bundle_starts_as_its_manifest_says(node: Node, unpacked: Path, tmp_path: Path) -> None:
    """A client's own code fills in the manifest; uv installs what is locked, and the server answers over stdio with what
    a person has answered."""
    script = shutil.copy(ROOT / "tests" / "clients" / "bundle.mjs", node.folder)  # imports from where it lies
    filled = node.run([node.program, script, unpacked, json.dumps({"local_scopes": "orders:write"})])
    assert filled.returncode == 0, filled.stderr
    how = json.loads(filled.stdout)
    assert how["command"] == "uv"
    assert (
        how["args"][-1] == json.loads((unpacked / "manifest.json").read_text(encoding="utf-8"))["server"]["entry_point"]
    )
    messages = [
        modern(1, "tools/list"),
        modern(2, "tools/call", name="get_part", arguments={"sku": "BRG-6204"}),
    ]
    done = subprocess.run(
        [uv(), *how["args"]],
        input="".join(json.dumps(message) + "\n" for message in messages),
        capture_output=True,
        encoding="utf-8",
        cwd=tmp_path,
        env=environment() | how["env"] | {"UV_LINK_MODE": "copy"},
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = {each["id"]: each["result"] for each in map(json.loads, done.stdout.splitlines())}
    assert "place_order" in {tool["name"] for tool in answers[1]["tools"]}  # for the scope that was answered
    assert answers[2]["structuredContent"]["aisle"] == "A1"
