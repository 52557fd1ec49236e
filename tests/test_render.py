"""Every combination of options renders to a clean project that holds exactly the files the manifest leaves in it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from bootstrap import ROOT, UV_VERSION
from hooks.post_gen_project import MANIFEST, removed
from rendering import CHOICES, combinations, files, metadata, parse, render

pytestmark = pytest.mark.timeout(300)  # the first one waits for all projects: half a minute on a machine at rest

TEMPLATE = ROOT / "{{cookiecutter.project_slug}}"
PACKAGE = "my_mcp_server"

# GitHub's own expressions are `${{ ... }}`, and Prometheus's begin with a variable, as `{{ $labels.job }}` does.
JINJA = re.compile(r"(?<!\$)\{\{(?! \$)|\{%|\{#|cookiecutter\.")


@pytest.fixture(scope="module")
def renders(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[dict[str, str], Path]]:
    """Every combination of the options, with its project."""
    folder = tmp_path_factory.mktemp("renders")
    return [(options, render(folder / str(number), **options)) for number, options in enumerate(combinations())]


@pytest.fixture(scope="module")
def texts(renders: list[tuple[dict[str, str], Path]]) -> list[tuple[Path, str]]:
    """Every rendered file with its text; where several projects hold the same file, one of them."""
    distinct = {
        (path.relative_to(project), path.read_bytes()): path for _, project in renders for path in files(project)
    }
    return [(path, content.decode("utf-8")) for (_, content), path in distinct.items()]


def sources() -> list[Path]:
    """List the files of the template itself."""
    return [path for path in files(TEMPLATE) if "__pycache__" not in path.parts]


def expected(options: dict[str, str]) -> set[str]:
    """List the files a project with these options holds: all of the template's but what the manifest removes, and the
    record of the answers."""
    gone = removed(options | {"package_name": PACKAGE})
    names = {
        path.relative_to(TEMPLATE).as_posix().replace("{{cookiecutter.package_name}}", PACKAGE) for path in sources()
    }
    left = {name for name in names if not any(name == path or name.startswith(f"{path}/") for path in gone)}
    return left | {".cruft.json"}


def test_manifest_knows_every_answer() -> None:
    """Each option that removes files says so for each of its answers."""
    assert {option: set(choices) for option, choices in MANIFEST.items()} == {
        option: set(CHOICES[option]) for option in MANIFEST
    }


def test_manifest_names_files_that_exist() -> None:
    """A path in the manifest that no longer exists in the template is a mistake."""
    paths = [path for choices in MANIFEST.values() for removed_by in choices.values() for path in removed_by]
    missing = [path for path in paths if not (TEMPLATE / path.format(package="{{cookiecutter.package_name}}")).exists()]
    assert missing == []


def test_each_project_holds_exactly_what_the_manifest_leaves(renders: list[tuple[dict[str, str], Path]]) -> None:
    """No combination of options misses a file or has one too many."""
    for options, project in renders:
        found = {path.relative_to(project).as_posix() for path in files(project)}
        assert found == expected(options), options


def test_no_empty_folder_is_left(renders: list[tuple[dict[str, str], Path]]) -> None:
    """A folder whose files an option removed goes with them."""
    folders = [path for _, project in renders for path in project.rglob("*") if path.is_dir()]
    assert [str(path) for path in folders if not any(path.iterdir())] == []


def test_no_jinja_is_left(texts: list[tuple[Path, str]]) -> None:
    """Nothing of the template language reaches a project."""
    assert [f"{path}: {line}" for path, text in texts for line in text.splitlines() if JINJA.search(line)] == []


def test_every_file_parses(texts: list[tuple[Path, str]]) -> None:
    """Python, TOML, YAML and JSON files are what their names say."""
    assert {path.suffix for path, _ in texts} >= {".py", ".toml", ".json", ".yaml", ".yml"}
    for path, _ in texts:
        parse(path)


def test_lines_end_cleanly(texts: list[tuple[Path, str]]) -> None:
    """LF line ends, one at the end of the file, and no white space before any."""
    for path, text in texts:
        assert "\r" not in text, path
        assert [line for line in text.split("\n") if line != line.rstrip()] == [], path
        assert text == "" or (text.endswith("\n") and not text.endswith("\n\n")), path


def test_python_files_of_the_template_hold_no_jinja_blocks() -> None:
    """Whole files come and go by the manifest; Python files stay readable as Python."""
    assert [path for path in sources() if path.suffix == ".py" and "{%" in path.read_text(encoding="utf-8")] == []


@pytest.mark.parametrize("arguments", [["check"], ["format", "--check"]], ids=" ".join)
def test_every_project_passes_ruff(renders: list[tuple[dict[str, str], Path]], arguments: list[str]) -> None:
    """Each render is linted and formatted by its own configuration; those that are alike to ruff only once."""
    alike = {
        tuple(
            (path, content) for path, content in contents(project).items() if path.suffix in {".md", ".py", ".toml"}
        ): project
        for _, project in renders
    }
    ruff(*arguments, "--no-cache", "--output-format", "concise", *alike.values())


@pytest.mark.parametrize("name", ["a", "z" * 50])
def test_lint_does_not_depend_on_the_name(tmp_path: Path, name: str) -> None:
    """Imports stay sorted and lines short enough, wherever the package's name sorts and however long it is."""
    project = render(tmp_path, project_slug=name)
    ruff("check", "--no-cache", project)
    ruff("format", "--check", "--no-cache", project)


@pytest.mark.parametrize("arguments", [["check"], ["format", "--check"]], ids=" ".join)
def test_the_hooks_and_tests_pass_ruff(arguments: list[str]) -> None:
    """The template keeps the rules it gives to others."""
    ruff(*arguments, ROOT)


def ruff(*arguments: object) -> None:
    """Run ruff and fail with its report."""
    run = subprocess.run(
        [sys.executable, "-m", "ruff", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_hooks_pass_mypy() -> None:
    """The only code of the template that runs on users' machines is type-checked."""
    run = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize(
    ("answer", "first_line"),
    [("MIT", "MIT License"), ("Apache-2.0", "Apache License"), ("Proprietary", "All rights reserved.")],
)
def test_licence_is_the_one_chosen(tmp_path: Path, answer: str, first_line: str) -> None:
    """The licence's text, the author's name, and the metadata fit the answer."""
    project = render(tmp_path, license=answer, author_name="Spare Parts Team")
    lines = (project / "LICENSE").read_text(encoding="utf-8").strip().splitlines()
    assert first_line in lines[0]
    assert re.search(r"Copyright (\(c\) )?20\d\d Spare Parts Team", "\n".join(lines))
    assert metadata(project)["license"] == {"Proprietary": "LicenseRef-Proprietary"}.get(answer, answer)


def test_rendering_again_over_a_project_leaves_nothing_of_the_old_answers(tmp_path: Path) -> None:
    """`cookiecutter --overwrite-if-exists` with other answers gives the same project as a fresh folder."""
    before = {"ci": "github", "kubernetes": "yes", "examples": "yes"}
    after = {"ci": "none", "kubernetes": "no", "examples": "no"}
    render(tmp_path / "twice", **before)
    twice = render(tmp_path / "twice", overwrite=True, **after)
    once = render(tmp_path / "once", **after)
    assert contents(twice) == contents(once)


def contents(project: Path) -> dict[Path, bytes]:
    """Read a project."""
    return {path.relative_to(project): path.read_bytes() for path in files(project)}


def test_workflow_runs_on_every_python_version_offered(rendered: Path) -> None:
    """What a user may choose is what their continuous integration tries."""
    workflow = yaml.safe_load((rendered / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    assert set(workflow["jobs"]["test"]["strategy"]["matrix"]["python-version"]) == set(CHOICES["python_version"])


def test_image_and_ci_use_the_uv_that_the_tests_use(rendered: Path) -> None:
    """The pins move together, and no job takes whatever was released last."""
    assert f"uv=={UV_VERSION}" in (rendered / "Dockerfile").read_text(encoding="utf-8")
    workflows = [path.read_text(encoding="utf-8") for path in (rendered / ".github/workflows").glob("*.yml")]
    installs = [found for text in workflows for found in re.findall(r"astral-sh/setup-uv@.*\n +with:\n(.*)", text)]
    assert len(installs) == sum(text.count("astral-sh/setup-uv@") for text in workflows) > 0
    assert [line for line in installs if f'version: "{UV_VERSION}"' not in line] == []
