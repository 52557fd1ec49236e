"""Any text is a good answer where text is asked for; a wrong name is refused, says why, and leaves nothing behind."""

import contextlib
import io
import json
import keyword
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from cookiecutter.exceptions import FailedHookException
from hypothesis import event, example, given, settings
from hypothesis import strategies as st
from jinja2 import Environment

from bootstrap import ROOT
from hooks.jinja import Filters, toml_string
from hooks.pre_gen_project import CHOICES as CHECKED_CHOICES
from hooks.pre_gen_project import EXAMPLES, MAX_LENGTH, problems, slug_taken
from rendering import CHOICES, QUESTIONS, command, files, metadata, parse, render

GOOD = {
    "project_name": "Spare Parts",
    "project_slug": "spare-parts",
    "package_name": "spare_parts",
    "description": "Finds parts.",
    "author_name": "Your Name",
    "author_email": "you@example.com",
} | {name: choices[0] for name, choices in CHOICES.items()}

# Each would leave a file called `ran` behind if something ran it: Jinja, Python or a shell.
CODE = [
    "{{ lipsum.__globals__['os'].system('touch ran') }}",
    "{{ cycler.__init__.__globals__.os.popen('touch ran').read() }}",
    '"""; __import__("pathlib").Path("ran").touch(); """',
    "'); import pathlib; pathlib.Path('ran').touch() #",
    "$(touch ran) `touch ran` ; touch ran",
]

TEXTS = [
    "{{ 7 * 7 }}",
    "{{",
    "}} {% raw %} {# not a comment",
    "{% endraw %}{% endif %}",
    "{{ cookiecutter.no_such_thing }}",
    "{{ cookiecutter.project_name }}",
    'a "quoted" word',
    "\"\"\" and '''",
    "O'Neill & Sons <parts>",
    "back\\slash \\n \\u0041 \\",
    "emoji 🔩 and é, ß, 日本",
    "right-to-left \u05d0\u05d1\u05d2 \u200f and \u202eoverride\u202c",
    "${HOME} %(name)s {name} %s",
    "# comment: yes, [x] = - * & ! | >",
]


OWN = [
    "{{cookiecutter.project_slug}}",
    "{{cookiecutter.project_slug}}/README.md",
    "src",
    "src/{{cookiecutter.package_name}}",
    "src/{{cookiecutter.package_name}}/py.typed",
    ".github/workflows/ci.yml",
    "{{ cookiecutter.project_name | slug }}",
    "{{ cookiecutter | checked }}",
    "{{ 'LicenseRef-Proprietary' if cookiecutter.license == 'Proprietary' else cookiecutter.license }}",
]
"""What the template renders itself: in an answer it is text."""


def assert_parses(project: Path) -> None:
    """Check that every file of a project is what its name says."""
    for path in files(project):
        parse(path)


@pytest.mark.parametrize("text", [*TEXTS, *CODE, *OWN])
def test_any_text_is_text(tmp_path: Path, text: str) -> None:
    """Whatever is typed as a name or a description arrives in the metadata letter by letter; nothing of it runs."""
    folder = tmp_path / "here"
    run = command(
        folder, f"project_name={text}", "project_slug=spare-parts", f"description={text}", f"author_name={text}"
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    assert_parses(folder / "spare-parts")
    assert metadata(folder / "spare-parts")["description"] == text
    assert metadata(folder / "spare-parts")["authors"] == [{"name": text, "email": "you@example.com"}]
    assert text in (folder / "spare-parts" / "LICENSE").read_text(encoding="utf-8")
    assert text in (folder / "spare-parts" / "README.md").read_text(encoding="utf-8")
    assert list(tmp_path.rglob("ran")) == []


@pytest.mark.parametrize("end", ["src", OWN[0], OWN[4], ".github/workflows/ci.yml", "hooks/jinja.py"])
def test_text_that_ends_in_a_path_of_the_template_is_text(tmp_path: Path, end: str) -> None:
    """As any other: it is when a text is rendered that tells a path from an answer. The folder may be called as it likes."""
    text, folder = f"{CODE[0]}/{end}", tmp_path / "{{ 7 * 7 }}" / "src" / "here"
    folder.mkdir(parents=True)
    run = command(folder, f"description={text}", "project_slug=spare-parts")
    assert (run.returncode, run.stderr) == (0, "")
    assert metadata(folder / "spare-parts")["description"] == text
    assert_parses(folder / "spare-parts")
    assert list(tmp_path.rglob("ran")) == []


def test_text_typed_at_the_prompts_is_text(tmp_path: Path) -> None:
    """Answering the questions by hand gives the same as passing the answers."""
    text = 'Turns {{ name }} into "text" \\ 🔩'
    typed = {"project_name": "Typed by Hand", "description": text, "author_name": text}
    run = command(tmp_path / "here", typed="".join(f"{typed.get(question, '')}\n" for question in QUESTIONS))
    assert run.returncode == 0, run.stderr
    project = tmp_path / "here" / "typed-by-hand"
    assert_parses(project)
    assert metadata(project)["description"] == text
    assert metadata(project)["authors"] == [{"name": text, "email": "you@example.com"}]


def test_a_description_may_have_several_lines(tmp_path: Path) -> None:
    """Only a program can pass one, and then it is kept."""
    project = render(tmp_path, description='First "line".\nSecond \\ line.')
    assert_parses(project)
    assert metadata(project)["description"] == 'First "line".\nSecond \\ line.'


@pytest.mark.parametrize(
    ("name", "slug", "package"),
    [
        ("Spare Parts", "spare-parts", "spare_parts"),
        ("Café Crème", "cafe-creme", "cafe_creme"),
        ("  C++ & Rust: tools!  ", "c-rust-tools", "c_rust_tools"),
        ("spare_parts", "spare-parts", "spare_parts"),
        ("日本", "ri-ben", "ri_ben"),
        ("3D Printer", "mcp-3d-printer", "mcp_3d_printer"),
        ("🔩🔧", "my-mcp-server", "my_mcp_server"),
        ("Redis", "mcp-redis", "mcp_redis"),
        ("Calendar", "calendar", "calendar_server"),
        ("Class", "class", "class_server"),
    ],
)
def test_names_derived_from_the_project_name_are_good(tmp_path: Path, name: str, slug: str, package: str) -> None:
    """A person who only types the project's name gets a project."""
    project = render(tmp_path, project_name=name)
    assert project.name == slug
    assert [path.name for path in (project / "src").iterdir()] == [package]


@given(st.text(min_size=1, max_size=100))
def test_names_are_derived_from_any_text(name: str) -> None:
    """Whatever the project is called, the names offered for it are accepted."""
    environment = Environment(extensions=["cookiecutter.extensions.SlugifyExtension", Filters])
    slug = environment.from_string("{{ name | slug }}").render(name=name)
    package = environment.from_string("{{ slug | package }}").render(slug=slug)
    assert problems(GOOD | {"project_slug": slug, "package_name": package}) == []


@given(st.text())
@example('\x7f \x00 \r\n\t \U0001f529 " \\ \u2028')
def test_toml_string_holds_any_text(text: str) -> None:
    """The filter gives back through TOML what went in."""
    assert tomllib.loads(f"text = {toml_string(text)}") == {"text": text}


WRONG = [
    ("project_slug", "Spare Parts"),
    ("project_slug", "spare_parts"),
    ("project_slug", "spare--parts"),
    ("project_slug", "-spare"),
    ("project_slug", "3d"),
    ("project_slug", "a/b/c"),
    ("project_slug", ".."),
    ("project_slug", ""),
    ("project_slug", "p" * 51),
    ("project_slug", "mcp"),
    ("project_slug", "pytest"),
    ("project_slug", "café"),
    ("project_slug", "{{ 7 * 7 }}"),
    ("package_name", "spare-parts"),
    ("package_name", "Spare"),
    ("package_name", "class"),
    ("package_name", "json"),
    ("package_name", "mcp_types"),
    ("package_name", "jwt"),
    ("package_name", "tests"),
    ("package_name", "__init__"),
    ("package_name", 'x"); __import__("pathlib").Path("ran").touch(); ("'),
    ("project_name", " "),
    ("project_name", "n" * 101),
    ("project_name", "two\nlines"),
    ("author_name", ""),
    ("author_name", "bell\x07"),
    ("author_email", "nobody"),
    ("author_email", "a@b, c@d"),
    ("author_email", ""),
    ("description", ""),
    ("description", "d" * 501),
    ("description", "tab\tulator"),
]


@pytest.mark.parametrize(("field", "value"), WRONG)
def test_a_wrong_answer_is_refused(tmp_path: Path, field: str, value: str) -> None:
    """One line on stderr names the answer and shows a right one; nothing is left behind."""
    folder = tmp_path / "here"
    # The package's name is given, or a wrong slug would be reported twice.
    run = command(folder, *([] if field == "package_name" else ["package_name=spare_parts"]), f"{field}={value}")
    assert run.returncode != 0
    lines = run.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"{field}: ")
    assert "for example " in lines[0]
    assert list(folder.iterdir()) == []
    assert list(tmp_path.rglob("ran")) == []


def test_names_of_dependencies_are_refused(rendered: Path) -> None:
    """A project called like one of its dependencies would depend on itself."""
    table = tomllib.loads((rendered / "pyproject.toml").read_text(encoding="utf-8"))
    groups = [table["project"]["dependencies"], *table["project"].get("optional-dependencies", {}).values()]
    lines = [line for group in (*groups, *table["dependency-groups"].values()) for line in group]
    names = {re.match(r"[a-z0-9-]+", line)[0] for line in lines}
    assert "mcp" in names
    assert {name for name in names if not slug_taken(name)} == set()


def test_all_wrong_answers_are_named_at_once(tmp_path: Path) -> None:
    """Nobody has to run the command four times."""
    run = command(tmp_path / "here", "project_slug=Bad", "package_name=class", "author_email=x", "description= ")
    assert run.returncode != 0
    fields = [line.partition(":")[0] for line in run.stderr.splitlines()]
    assert fields == ["project_slug", "package_name", "description", "author_email"]


def test_a_choice_that_is_not_offered_is_refused(tmp_path: Path) -> None:
    """cookiecutter itself refuses these; the message names the choices."""
    run = command(tmp_path / "here", "license=GPL")
    assert run.returncode != 0
    assert "the choices are ['MIT', 'Apache-2.0', 'Proprietary']" in run.stderr
    assert list((tmp_path / "here").iterdir()) == []


def test_the_api_refuses_too(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A program that renders the template gets an exception, and the lines on stderr."""
    with pytest.raises(FailedHookException):
        render(tmp_path / "here", package_name="class")
    assert capfd.readouterr().err.startswith("package_name: 'class' ")
    assert [path.name for path in (tmp_path / "here").iterdir()] == [".cookiecutter"]


def test_replayed_answers_are_checked_by_the_hook(tmp_path: Path) -> None:
    """A replay file goes around the prompts and cookiecutter's own checks: the hook reads it as data and refuses it."""
    code = 'x"""); __import__("pathlib").Path("ran").touch(); ("""'
    replay = tmp_path / "replay.json"
    private = {
        name: value
        for name, value in json.loads((ROOT / "cookiecutter.json").read_text(encoding="utf-8")).items()
        if name.startswith("_")
    }
    wrong = {"package_name": code, "python_version": "2.7", "license": "GPL"}
    replay.write_text(json.dumps({"cookiecutter": private | GOOD | wrong}), encoding="utf-8")
    run = command(tmp_path / "here", "--replay-file", str(replay))
    assert run.returncode != 0
    assert [line.partition(":")[0] for line in run.stderr.splitlines()[:3]] == [
        "package_name",
        "license",
        "python_version",
    ]
    assert list((tmp_path / "here").iterdir()) == []
    assert list(tmp_path.rglob("ran")) == []


def test_examples_in_the_messages_are_right() -> None:
    """What a message recommends is accepted."""
    assert problems(GOOD | EXAMPLES) == []
    for name in ("json", "class", "mcp", "redis", "tests"):
        assert problems(GOOD | {"project_slug": f"{name}-server", "package_name": f"{name}_server"}) == []


def test_longest_answers_are_accepted() -> None:
    """A limit is the last length that is good."""
    longest = {
        field: ("a" * (limit - 4) + "@b.c") if field == "author_email" else "a" * limit
        for field, limit in MAX_LENGTH.items()
    }
    assert problems(GOOD | longest) == []


@given(st.fixed_dictionaries({}, optional={name: st.text() for name in QUESTIONS}))
def test_every_answer_is_judged_without_an_error(answers: dict[str, str]) -> None:
    """Whatever the answers, the check says something about them or accepts them."""
    assert all(": " in line for line in problems(GOOD | answers))


@given(st.from_regex(r"[a-z][a-z0-9_]*", fullmatch=True))
def test_accepted_package_names_can_be_imported(name: str) -> None:
    """An accepted package name is a name in Python."""
    if not problems(GOOD | {"package_name": name}):
        assert name.isidentifier()
        assert not keyword.iskeyword(name)


def test_the_hook_offers_what_the_prompts_offer() -> None:
    """The choices stand in two places; they are the same."""
    assert {name: list(choices) for name, choices in CHECKED_CHOICES.items()} == CHOICES


PIECES = [
    *TEXTS,
    *CODE,
    *OWN,
    "/",
    '"',
    "'",
    "\\",
    "{{",
    "}}",
    "{%",
    "%}",
    "{#",
    "\n",
    "\t",
    "\x00",
    "\x7f",
    "\u2028",
    "\u202e",
    "🔩",
    "\ud800",
]
RUFF = Path(sys.executable).with_name("ruff")
HOSTILE = st.lists(st.sampled_from(PIECES) | st.text(max_size=20), min_size=1, max_size=6).map("".join)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder to be in: code that runs leaves its mark in it."""
    folder = tmp_path_factory.mktemp("hostile")
    with contextlib.chdir(folder):
        yield folder


TYPED = HOSTILE.map(lambda text: "".join(filter(str.isprintable, text)).strip()[:100])  # as far as a prompt takes it


@settings(max_examples=25, deadline=None)
@given(
    st.fixed_dictionaries(
        {}, optional=dict.fromkeys(("project_name", "description", "author_name"), TYPED.filter(bool))
    ),
    st.just({})
    | st.dictionaries(st.sampled_from([name for name in QUESTIONS if name not in CHOICES]), HOSTILE, max_size=1),
)
def test_hostile_answers_are_refused_or_harmless(here: Path, typed: dict[str, str], passed: dict[str, str]) -> None:
    """Each says why it is refused and leaves nothing, or gives a project that parses, is well formed, and holds it."""
    answers = {"project_slug": "spare-parts", "package_name": "spare_parts"} | typed | passed
    for path in here.iterdir():
        shutil.rmtree(path)
    folder = here / "out"
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            project = render(folder, **answers)
    except FailedHookException:
        event("refused")
        assert {line.partition(":")[0] for line in said.getvalue().splitlines()} <= set(QUESTIONS)
        assert said.getvalue()
        assert problems(GOOD | answers)
        assert [path.name for path in folder.iterdir()] == [".cookiecutter"]
        return
    finally:
        assert {path.name for path in here.iterdir()} <= {"out"}
    event("accepted")
    assert [path.name for path in folder.iterdir() if path.name != ".cookiecutter"] == [project.name]
    assert_parses(project)
    table = metadata(project)
    assert table["description"] == answers.get("description", QUESTIONS["description"])
    assert table["authors"][0]["name"] == answers.get("author_name", QUESTIONS["author_name"])
    for check in (["check", "--quiet"], ["format", "--check", "--quiet"]):
        done = subprocess.run([RUFF, *check, "--no-cache", project], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
