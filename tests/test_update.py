"""A project of the last released version, with its user's own work in it, is brought up to date as its README says."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bootstrap import ROOT, configuration
from rendering import CHECKS, command, files, render, run

pytestmark = [pytest.mark.install, pytest.mark.timeout(600)]

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
ANSWERS = {
    "project_name": "Spare Parts",
    "description": "Finds \"parts\" & {{ 7 * 7 }} 'others' \\ 日本 🔩",
    "author_name": 'Ana "Bo" {% raw %}',
    "kubernetes": "yes",
}
SLUG, PACKAGE = "spare-parts", "spare_parts"
OWN_TEXT = "## Who to call\n\nThe spare parts team, on any day.\n\n"
OWN_DEPENDENCY = '  "pyyaml>=6,<7", # reads our price list\n'
DELETED = ".github/workflows/release.yml"
IDENTITY = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "Template tests"), ("EMAIL", "tests@example.com"))
}


def git(folder: Path, *arguments: str) -> str:
    """Run git; return what it prints."""
    return subprocess.run(
        ["git", *arguments], cwd=folder, env=os.environ | IDENTITY, capture_output=True, text=True, check=True
    ).stdout


def cruft(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run cruft in a project, as its user would."""
    config = configuration(project.parent / "cruft")
    return subprocess.run(
        [sys.executable, "-m", "cruft", *arguments],
        cwd=project,
        env=os.environ | {"PYTHONUTF8": "1", "COOKIECUTTER_CONFIG": str(config)},
        capture_output=True,
        text=True,
        check=False,
    )


def last_release() -> str | None:
    """The newest tag `v1.2.3` below this version; without tags, the last commit of the version before; None if there is
    no history."""
    tags = re.findall(r"^v(\d+)\.(\d+)\.(\d+)$", git(ROOT, "tag"), re.MULTILINE)
    older = [numbers for each in tags if (numbers := tuple(map(int, each))) < tuple(map(int, VERSION.split(".")))]
    if older:
        return "v" + ".".join(map(str, max(older)))
    before = git(ROOT, "log", "-1", "--format=%P", "-G", '^version = "', "--", "pyproject.toml").split()
    return before[0] if before else None


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The template where its users find it: its history, with the files as they are here as the newest commit."""
    folder = tmp_path_factory.mktemp("published") / "plinth-mcp.git"  # cookiecutter looks for "git"
    git(ROOT, "clone", "--quiet", str(ROOT), str(folder))
    git(folder, "checkout", "--quiet", "-B", "main")
    here = git(ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    git(folder, "rm", "-r", "--quiet", ".")
    for name in filter(None, here):
        if (ROOT / name).is_file():  # not one that was deleted and is not committed yet
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", "Now")
    return folder


class Updated(NamedTuple):
    """A project after its update."""

    path: Path
    before: dict[str, str]
    """Each file as its user had it."""
    said: str


@pytest.fixture(scope="module")
def updated(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Updated:
    """A project of the last release, edited by its user, then updated."""
    tag = last_release()
    if tag is None:
        pytest.skip("the history has no version before this one: git fetch --unshallow --tags")
    folder = tmp_path_factory.mktemp("user") / "projects"
    address = published.as_uri()
    done = command(folder, *(f"{name}={answer}" for name, answer in ANSWERS.items()), template=address, checkout=tag)
    assert done.returncode == 0, done.stderr
    project = folder / SLUG
    if not (project / ".cruft.json").exists():  # 0.1.0 kept no record: CHANGELOG.md says what to do
        linked = cruft(
            project, "link", address, "--checkout", tag, "--no-input", "--extra-context", json.dumps(ANSWERS)
        )
        assert linked.returncode == 0, linked.stdout + linked.stderr
    git(project, "init", "--quiet")
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message", "From the template")
    edit(project)
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message", "Our own")
    before = texts(project)
    done = cruft(project, "update", "--skip-apply-ask")
    assert done.returncode == 0, done.stdout + done.stderr
    return Updated(project, before, done.stdout + done.stderr)


def edit(project: Path) -> None:
    """Work in a project as its user does: a tool, a default, a text, a dependency, a file that nobody needs."""
    assert run(project, "uv sync").returncode == 0
    assert run(project, f"uv run {SLUG} new-tool find_invoice").returncode == 0
    replace(
        project / "src" / PACKAGE / "settings.py", "tool_timeout_seconds: float = Field(30,", "Field(30,", "Field(20,"
    )
    replace(project / "README.md", "| `MCP_TOOL_TIMEOUT_SECONDS` | 30 |", "| 30 |", "| 20 |")
    replace(project / ".env.example", "# MCP_TOOL_TIMEOUT_SECONDS=30", "30", "20")
    replace(project / "README.md", "## Settings\n", "## Settings", OWN_TEXT + "## Settings")
    replace(project / "pyproject.toml", "dependencies = [\n", "[\n", "[\n" + OWN_DEPENDENCY)
    (project / DELETED).unlink()


def replace(path: Path, place: str, old: str, new: str) -> None:
    """Replace a text in one place of a file."""
    text = path.read_text(encoding="utf-8")
    assert text.count(place) == 1, (path.name, place)
    path.write_text(text.replace(place, place.replace(old, new)), encoding="utf-8")


def texts(project: Path) -> dict[str, str]:
    """The files that git keeps, with what they hold."""
    names = git(project, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    return {name: (project / name).read_text(encoding="utf-8") for name in names if name and (project / name).is_file()}


def test_nothing_is_left_to_merge(updated: Updated) -> None:
    """No conflict, no rejected part, nothing that cruft could not apply."""
    assert "Good work!" in updated.said
    assert git(updated.path, "diff", "--name-only", "--diff-filter=U") == ""
    assert [path for path in files(updated.path) if path.suffix in {".rej", ".orig"}] == []


def test_own_work_survives(updated: Updated) -> None:
    """Files of the user's own are as they were; edits are there, beside what the template has changed."""
    now = texts(updated.path)
    own = [name for name in updated.before if "find_invoice" in name]
    assert len(own) == 2
    assert [name for name in own if now[name] != updated.before[name]] == []
    assert OWN_TEXT in now["README.md"]
    assert "| `MCP_TOOL_TIMEOUT_SECONDS` | 20 |" in now["README.md"]
    assert "tool_timeout_seconds: float = Field(20," in now[f"src/{PACKAGE}/settings.py"]
    assert OWN_DEPENDENCY in now["pyproject.toml"]
    assert DELETED not in now


def test_all_else_is_as_the_template_has_it_now(updated: Updated, tmp_path: Path) -> None:
    """Down to the byte: what was not edited is what a new project holds."""
    fresh = render(tmp_path, **ANSWERS)
    now = texts(updated.path)
    edited = {"README.md", "pyproject.toml", ".env.example", f"src/{PACKAGE}/settings.py", ".cruft.json", DELETED}
    expected = {path.relative_to(fresh).as_posix(): path.read_text(encoding="utf-8") for path in files(fresh)}
    assert [name for name, text in expected.items() if name not in edited and now.get(name) != text] == []
    assert {name for name in now.keys() - expected.keys() if "find_invoice" not in name} <= {"uv.lock"}


def test_record_names_the_new_version(updated: Updated, published: Path) -> None:
    """The commit, the template's version, and the answers, letter by letter."""
    state = json.loads((updated.path / ".cruft.json").read_text(encoding="utf-8"))
    assert state["commit"] == git(published, "rev-parse", "HEAD").strip()
    assert ANSWERS.items() <= state["context"]["cookiecutter"].items()
    tools = tomllib.loads((updated.path / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    assert tools["plinth-mcp"]["version"] == VERSION


# What the update or the edits can break; the rest of the suite is held by the comparison with a new project.
TESTS = " ".join(
    f"tests/test_{name}.py"
    for name in ("find_invoice", "architecture", "contract", "settings", "surface", "deployment", "cli")
)


def test_result_passes_its_checks(updated: Updated) -> None:
    """Once what is published now is accepted, as CHANGELOG.md says: 0.1.0 had no record of it."""
    for line in ("uv sync", f"uv run {SLUG} surface --accept", *CHECKS):
        done = run(updated.path, f"{line} {TESTS}" if line.endswith("pytest") else line)
        assert done.returncode == 0, (line, done.stdout, done.stderr)


def test_second_update_changes_nothing(updated: Updated) -> None:
    """Once the first is committed."""
    git(updated.path, "add", "--all")
    git(updated.path, "commit", "--quiet", "--allow-empty", "--message", "Update from the template")
    done = cruft(updated.path, "update", "--skip-apply-ask")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "up to date" in done.stdout
    assert git(updated.path, "status", "--porcelain") == ""


@pytest.fixture
def made(published: Path, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A new project of this version, and what it records."""
    done = command(tmp_path / "new", *(f"{name}={each}" for name, each in ANSWERS.items()), template=published.as_uri())
    assert done.returncode == 0, done.stderr
    project = tmp_path / "new" / SLUG
    return project, json.loads((project / ".cruft.json").read_text(encoding="utf-8"))


def test_new_project_can_be_updated(made: tuple[Path, dict[str, Any]], published: Path) -> None:
    """As cookiecutter makes it, without another step: what changes in the template comes over."""
    project, _ = made
    assert cruft(project, "check").returncode == 0
    git(project, "init", "--quiet")
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message", "From the template")
    path = published / "{{cookiecutter.project_slug}}" / "OPERATIONS.md"
    path.write_text(path.read_text(encoding="utf-8") + "\nTomorrow's.\n", encoding="utf-8")
    added = path.with_name("TOMORROW.md")
    added.write_text("{{ cookiecutter.project_name }} of tomorrow\n", encoding="utf-8")
    hook = published / "hooks" / "post_gen_project.py"
    hook.write_text(hook.read_text(encoding="utf-8") + "    # of tomorrow\n", encoding="utf-8")
    git(published, "add", "--all")
    git(published, "commit", "--quiet", "--message", "Tomorrow")
    try:
        assert cruft(project, "check").returncode == 1
        done = cruft(project, "update", "--skip-apply-ask")
        assert done.returncode == 0, done.stdout + done.stderr
        changed = git(project, "status", "--porcelain", "--untracked-files=all").split()[1::2]
        assert sorted(changed) == [".cruft.json", "OPERATIONS.md", "TOMORROW.md"]
        assert (project / "TOMORROW.md").read_text(encoding="utf-8") == "Spare Parts of tomorrow\n"
    finally:
        git(published, "reset", "--quiet", "--hard", "HEAD~1")


def test_record_holds_answers_only(made: tuple[Path, dict[str, Any]], published: Path) -> None:
    """No path of the machine it was made on, and none of cookiecutter's own keys."""
    project, state = made
    questions = json.loads((ROOT / "cookiecutter.json").read_text(encoding="utf-8"))
    assert state["context"]["cookiecutter"].keys() == {name for name in questions if not name.startswith("_")}
    assert ANSWERS.items() <= state["context"]["cookiecutter"].items()
    assert (state["template"], state["commit"]) == (published.as_uri(), git(published, "rev-parse", "HEAD").strip())
    tools = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    assert tools["plinth-mcp"]["version"] == VERSION


def test_credentials_are_not_recorded(published: Path, tmp_path: Path) -> None:
    """Those that a clone's address may hold."""
    clone = tmp_path / "plinth-mcp"
    git(tmp_path, "clone", "--quiet", str(published), str(clone))
    git(clone, "remote", "set-url", "origin", "https://someone:secret@example.com/org/plinth-mcp.git")
    assert command(tmp_path / "new", template=str(clone)).returncode == 0
    (record,) = (tmp_path / "new").glob("*/.cruft.json")
    assert json.loads(record.read_text(encoding="utf-8"))["template"] == "https://example.com/org/plinth-mcp.git"


def test_archive_without_history_is_named_by_its_version(published: Path, tmp_path: Path) -> None:
    """Whatever is there is recorded, and nothing of another repository that holds the folder."""
    git(tmp_path, "init", "--quiet")
    shutil.copytree(published, tmp_path / "plinth-mcp", ignore=shutil.ignore_patterns(".git"))
    assert command(tmp_path / "new", template=str(tmp_path / "plinth-mcp")).returncode == 0
    (record,) = (tmp_path / "new").glob("*/.cruft.json")
    state = json.loads(record.read_text(encoding="utf-8"))
    assert (state["template"], state["commit"]) == (str(tmp_path / "plinth-mcp"), f"v{VERSION}")


def test_release_is_told() -> None:
    """CHANGELOG.md has this version first, with what its users have to do."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest, *_ = re.findall(r"^## \[?(\d+\.\d+\.\d+)", text, re.MULTILINE)
    assert newest == VERSION
    assert "### Upgrading" in text.partition(f"## {VERSION}")[2].partition("\n## ")[0]
