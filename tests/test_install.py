"""A fresh project installs, and passes its own lint, format check, type check and tests, without a warning."""

import sys
import tarfile
import zipfile
from pathlib import Path
from typing import ClassVar, NamedTuple

import pytest

from bootstrap import ROOT, interpreter
from rendering import CHECKS, metadata, render, run

sys.path.append(str(ROOT / "tests" / "proofs"))
import matrix

pytestmark = [pytest.mark.install, pytest.mark.timeout(600)]

HOSTILE = (
    "\"quotes\", 'apostrophes', \\back\\slashes, 🔩, {{ 7 * 7 }}, {% raw %}, \u05d0\u05d1 \u200f, <b>, $HOME, %s, # x"
    ", 100%, %(x)d"
)

# Secrets that lie about while a wheel and an sdist are built; the whole list is tried with git, which decides.
PLANTED = ("prod.env", "secrets/redis", "{package}/secrets.json", "{package}/tools/ID_RSA", "{package}/Server.PEM~")

TYPES = "uv run mypy"


class Installed(NamedTuple):
    """An installed project, the Python it was installed for, and what that printed."""

    path: Path
    python: str
    output: str


@pytest.fixture(scope="class")
def project(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The project of the class that asks, rendered and installed with `uv sync`."""
    python = interpreter(request.cls.version)
    if python is None:
        pytest.skip(f"there is no Python {request.cls.version} on PATH or in pyenv")
    path = render(tmp_path_factory.mktemp("installed"), **request.cls.answers)
    sync = run(path, "uv sync", python)
    assert sync.returncode == 0, sync.stderr
    return Installed(path, python, sync.stdout + sync.stderr)


def suite(*names: str) -> str:
    """These files of a project's own tests.

    Each class has those that its answers can break. The whole suite takes minutes, and is run once, on the Python at hand and
    with a user's tools, by tests/test_planted_faults.py; on every Python, for all combinations, by tests/proofs/matrix.py.
    """
    return " ".join(f"tests/test_{name}.py" for name in ("architecture", "contract", "settings", *names))


class Checks:
    """What holds for every combination of answers; a class each, so that each is installed once, by one worker."""

    version: str
    answers: ClassVar[dict[str, str]]
    tests: ClassVar[str]
    """Which of its tests are run."""

    def test_installs_without_a_warning(self, project: Installed) -> None:
        """`uv sync` has nothing to complain about, and locks the versions."""
        assert "warning" not in project.output.lower()
        assert (project.path / "uv.lock").exists()

    @pytest.mark.parametrize("check", [check for check in CHECKS if check != TYPES])
    def test_passes_its_own_checks(self, project: Installed, check: str) -> None:
        """Each command a user is told to run succeeds in a project nobody has touched."""
        passes(project, f"{check} {self.tests}" if check.endswith("pytest") else check)

    def test_wheel_holds_all_it_needs(self, project: Installed) -> None:
        """The built distribution carries every file of the package, and the licence, but no secret that lies about, and serves
        when installed on its own."""
        planted = [project.path / name.format(package=next((project.path / "src").iterdir())) for name in PLANTED]
        for path in planted:
            path.parent.mkdir(exist_ok=True)
            path.write_text("hunter22", encoding="ascii")
        built = run(project.path, "uv build --quiet --out-dir dist", project.python)
        for path in planted:
            path.unlink()
        assert built.returncode == 0, built.stdout + built.stderr
        (sdist,) = (project.path / "dist").glob("*.tar.gz")
        with tarfile.open(sdist) as archive:
            packed = {member.name.partition("/")[2] for member in archive if member.isfile()}
        assert "pyproject.toml" in packed
        assert not packed & {path.relative_to(project.path).as_posix() for path in planted}
        (wheel,) = (project.path / "dist").glob("*.whl")
        names = zipfile.ZipFile(wheel).namelist()
        source = project.path / "src"
        package = {
            path.relative_to(source).as_posix()
            for path in source.rglob("*")
            if path.is_file() and path.suffix != ".pyc"
        }
        assert package <= set(names)
        assert not {path.name for path in planted} & {name.rpartition("/")[2] for name in names}
        assert any(name.endswith("licenses/LICENSE") for name in names)
        slug = metadata(project.path)["name"]
        listed = run(
            project.path.parent, f"uv run --isolated --no-project --with '{wheel}' {slug} tools --json", project.python
        )
        assert listed.returncode == 0, listed.stderr
        offered = {path.stem for path in source.glob("*/tools/[a-z]*.py")}
        assert offered
        assert all(f'"{name}"' in listed.stdout for name in offered)


class Typed(Checks):
    """And what holds for every set of files: no type depends on a name or a text."""

    def test_types_hold(self, project: Installed) -> None:
        """So does the strict check of types."""
        passes(project, TYPES)


def passes(project: Installed, line: str) -> None:
    """A command line succeeds, and has nothing to complain about."""
    done = run(project.path, line, project.python)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in (done.stdout + done.stderr).lower()


class TestDefaults(Typed):
    """Every question answered with return; here tests that drive the real process run on another Python."""

    version = "3.13"
    tests = suite("cli", "doctor", "drain", "outcomes", "shop")
    answers: ClassVar[dict[str, str]] = {}

    def test_types_hold_on_the_newest_python(self, project: Installed) -> None:
        """The standard library's own types change with it, and a project's CI checks them there."""
        checked = run(project.path, "uv run mypy --python-version 3.14", project.python)
        assert checked.returncode == 0, checked.stdout


class TestSmallest(Typed):
    """All that can be left out, left out: what is served, and what the files of a platform are held to."""

    version = "3.11"
    tests = suite("deployment", "doctor")
    answers: ClassVar[dict[str, str]] = {"examples": "no", "ci": "none", "kubernetes": "no", "python_version": "3.11"}


class TestHostileText(Checks):
    """Text that breaks templates, and a short package name, which moves line breaks and the order of imports.

    Modules of its own begin with the letter: nothing may take them for it.
    """

    version = "3.11"
    tests = suite("cli")
    answers: ClassVar[dict[str, str]] = {
        "project_name": HOSTILE[:100],
        "project_slug": "s",
        "description": f"{HOSTILE}\nand a second line",
        "author_name": HOSTILE[:100],
        "license": "Proprietary",
        "kubernetes": "yes",
    }


def test_installed_wheel_passes_the_suite(tmp_path: Path) -> None:
    """On a third Python, a row of tests/proofs/matrix.py: the wheel, not the source tree, and it says so if it is not."""
    python = interpreter("3.12")
    if python is None:
        pytest.skip("there is no Python 3.12 on PATH or in pyenv")
    answers = {"author_name": HOSTILE[:100], "description": HOSTILE, "license": "Apache-2.0"}
    said, is_green = matrix.tried(tmp_path, python, answers, ["test_contract.py", "test_settings.py", "test_stdio.py"])
    assert is_green, said
    assert "passed" in said
