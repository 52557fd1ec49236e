"""The files in `surface/`: what clients depend on is broken knowingly, or not at all."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from {{ cookiecutter.package_name }} import surface
from {{ cookiecutter.package_name }}.errors import StartError
from {{ cookiecutter.package_name }}.server import build_server
from {{ cookiecutter.package_name }}.settings import Settings
from {{ cookiecutter.package_name }}.subschema import gaps

from .conftest import PACKAGE_FOLDER, ROOT
from .harness import PACKAGE, Json, run_command


def test_nothing_that_callers_rely_on_is_broken() -> None:
    """What is served has all that the files say. To break it knowingly: the command `surface --accept`, and a new version."""
    now = surface.published(build_server(Settings.model_construct()).registry)
    assert surface.breaks(surface.read(ROOT), now) == []


TEXT, NUMBER, TRUTH = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}
PAIR = {"type": "array", "prefixItems": [TEXT, NUMBER], "minItems": 2, "maxItems": 2}


def objects(required: tuple[str, ...] = (), /, **fields: Any) -> Json:
    """A closed object with these fields, as an argument of a model's type is."""
    return {"type": "object", "properties": fields, "required": [*required], "additionalProperties": False}


def either(*kinds: Json) -> Json:
    """Any of these."""
    return {"anyOf": [*kinds]}


def tree(leaf: Json) -> Json:
    """A type that has itself in it."""
    node = objects(leaf=leaf, children={"type": "array", "items": {"$ref": "#/$defs/Node"}})
    return {"$ref": "#/$defs/Node", "$defs": {"Node": node}}


# Each is narrower the second time: refused where it is an argument, and allowed where it is a result.
NARROWED = {
    "number to integer": ({"type": "number"}, NUMBER, 'type was "number", is "integer"'),
    "no null": (either(TEXT, {"type": "null"}), TEXT, 'type was "null", is "string"'),
    "one type less": ({"type": ["string", "integer"]}, NUMBER, 'type was "string", is "integer"'),
    "one alternative less": (either(TEXT, NUMBER, TRUTH), either(TEXT, TRUTH), 'type was "integer", is '),
    "any type": ({}, TEXT, 'type was not there, is "string"'),
    "no boolean": (either(TRUTH, TEXT), TEXT, 'type was "boolean", is "string"'),
    "choice gone": ({"enum": ["a", "b", "c"]}, {"enum": ["a", "c"]}, 'takes no longer ["b"]'),
    "choices": (TEXT, {"type": "string", "enum": ["a"]}, 'takes only ["a"] now'),
    "constant": ({"enum": ["a", "b"]}, {"const": "a"}, 'takes no longer ["b"]'),
    "constant of a boolean": (TRUTH, {"const": True}, "takes no longer [false]"),
    "minimum": ({**NUMBER, "minimum": 0}, {**NUMBER, "minimum": 1}, "minimum was 0, is 1"),
    "new minimum": (NUMBER, {**NUMBER, "minimum": 1}, "minimum was not there, is 1"),
    "maximum": ({**NUMBER, "maximum": 50}, {**NUMBER, "maximum": 10}, "maximum was 50, is 10"),
    "exclusive minimum": (
        {"type": "number", "minimum": 0},
        {"type": "number", "exclusiveMinimum": 0},
        "minimum was 0, is 0",
    ),
    "exclusive maximum": (
        {"type": "number", "maximum": 9},
        {"type": "number", "exclusiveMaximum": 9},
        "maximum was 9, is 9",
    ),
    "step": ({**NUMBER, "multipleOf": 5}, {**NUMBER, "multipleOf": 10}, "multipleOf was 5, is 10"),
    "longest text": (TEXT, {**TEXT, "maxLength": 9}, "maxLength was not there, is 9"),
    "shorter text": ({**TEXT, "maxLength": 9}, {**TEXT, "maxLength": 8}, "maxLength was 9, is 8"),
    "shortest text": (TEXT, {**TEXT, "minLength": 1}, "minLength was not there, is 1"),
    "new pattern": (TEXT, {**TEXT, "pattern": "^a"}, 'pattern was not there, is "^a"'),
    "new format": (TEXT, {**TEXT, "format": "date"}, 'format was not there, is "date"'),
    "most items": ({"type": "array", "maxItems": 9}, {"type": "array", "maxItems": 8}, "maxItems was 9, is 8"),
    "least items": ({"type": "array"}, {"type": "array", "minItems": 1}, "minItems was not there, is 1"),
    "unique items": ({"type": "array"}, {"type": "array", "uniqueItems": True}, "uniqueItems was not there, is true"),
    "items' type": ({"type": "array"}, {"type": "array", "items": TEXT}, '[]: type was not there, is "string"'),
    "items' bound": (
        {"type": "array", "items": NUMBER},
        {"type": "array", "items": {**NUMBER, "maximum": 3}},
        "[]: maximum was not there, is 3",
    ),
    "one of a pair": (PAIR, {**PAIR, "prefixItems": [TEXT, {**NUMBER, "minimum": 0}]}, "[1]: minimum was not there"),
    "field required": (objects(a=TEXT), objects(("a",), a=TEXT), ".a: is required now"),
    "field's bound": (objects(a=TEXT), objects(a={**TEXT, "maxLength": 1}), ".a: maxLength was not there, is 1"),
    "values of a map": (
        {"type": "object", "additionalProperties": True},
        {"type": "object", "additionalProperties": NUMBER},
        '.*: type was not there, is "integer"',
    ),
    "most keys": ({"type": "object"}, {"type": "object", "maxProperties": 3}, "maxProperties was not there, is 3"),
    "keys": ({"type": "object"}, {"type": "object", "propertyNames": {"pattern": "^a"}}, "propertyNames was not there"),
    "recursive type": (tree(NUMBER), tree({**NUMBER, "minimum": 0}), ".leaf: minimum was not there, is 0"),
    "in a list of objects": (
        {"type": "array", "items": objects(a=TEXT)},
        {"type": "array", "items": objects(("a",), a=TEXT)},
        "[].a: is required now",
    ),
    "anything's items": ({}, {"items": TEXT}, '[]: type was not there, is "string"'),
    "anything's fields": ({}, {"required": ["a"]}, ".a: is new, and required"),
    "a key of any": ({"type": "object"}, {"type": "object", "properties": {"a": TEXT}}, ".a: type was not there"),
    "field that may not be": (objects(a=TEXT), objects(a=False), ".a: not was not there, is {}"),
    "beside a reference": (
        {"$ref": "#/$defs/T", "$defs": {"T": TEXT}},
        {"$ref": "#/$defs/T", "maxLength": 1, "$defs": {"T": TEXT}},
        "maxLength was not there, is 1",
    ),
    "beside alternatives": (
        either(TEXT, NUMBER),
        {**either(TEXT, NUMBER), "maximum": 3},
        "maximum was not there, is 3",
    ),
    "in an alternative": (
        either(NUMBER, {**TEXT, "maxLength": 9}),
        either({**TEXT, "maxLength": 8}, NUMBER),
        "maxLength was 9, is 8",
    ),
}

# The same both ways round: nothing is refused that was not.
SAME = {
    "other order": ({"enum": ["a", "b"]}, {"enum": ["b", "a"]}),
    "order of alternatives": (either(TEXT, NUMBER), {"type": ["integer", "string"]}),
    "constant and choice": ({"const": "a"}, {"enum": ["a"]}),
    "written out": ({"$ref": "#/$defs/T", "$defs": {"T": TEXT}}, TEXT),
    "another name": ({"$ref": "#/$defs/T", "$defs": {"T": TEXT}}, {"$ref": "#/$defs/U", "$defs": {"U": TEXT}}),
    "texts": ({**TEXT, "title": "A", "examples": ["a"]}, {**TEXT, "description": "B"}),
    "integers over 0": ({**NUMBER, "exclusiveMinimum": 0}, {**NUMBER, "minimum": 1}),
    "integers under 9": ({**NUMBER, "exclusiveMaximum": 9}, {**NUMBER, "maximum": 8}),
    "oneOf": ({"oneOf": [TEXT, NUMBER], "discriminator": {"propertyName": "a"}}, either(TEXT, NUMBER)),
    "both booleans": (TRUTH, {"enum": [True, False]}),
    "recursive": (tree(NUMBER), tree(NUMBER)),
    "integers of step 1": (NUMBER, {**NUMBER, "multipleOf": 1}),
    "no third of a pair": (PAIR, {**PAIR, "items": TEXT}),
    "any items": ({"type": "array"}, {"type": "array", "items": {}}),
}


def entry(argument: Json | None = None, result: Json | None = None) -> Json:
    """A tool with the required argument `x`, whose result has the field `y`."""
    x, y = (dict(TEXT if schema is None else schema) for schema in (argument, result))
    definitions = {**x.pop("$defs", {}), **y.pop("$defs", {})}
    return {
        "name": "probe",
        "scopes": ["a:read"],
        "arguments": {**objects(("x",), x=x, z={**NUMBER, "default": 1}), "$defs": definitions},
        "result": {"type": "object", "properties": {"y": y}, "required": ["y"], "$defs": definitions},
        "read_only": True,
        "destructive": False,
        "idempotent": True,
        "open_world": False,
    }


def surface_of(tool: Json) -> surface.Surface:
    """A server with this tool, and no other."""
    return {"tools": {"probe": tool}, "resources": {}, "prompts": {}}


def breaks(before: Json, after: Json) -> list[str]:
    """What breaks when one tool takes the place of the other."""
    return surface.breaks(surface_of(before), surface_of(after))


@pytest.mark.parametrize(("before", "after", "problem"), NARROWED.values(), ids=NARROWED)
def test_narrowed_argument_breaks(before: Json, after: Json, problem: str) -> None:
    """A caller may send what is refused now; the line says where and what. The other way round is an addition."""
    (line,) = breaks(entry(before), entry(after))
    assert line.startswith("tool probe: argument x")
    assert problem in line
    assert breaks(entry(after), entry(before)) == []


@pytest.mark.parametrize(("after", "before", "_"), NARROWED.values(), ids=NARROWED)
def test_widened_result_breaks(before: Json, after: Json, _: str) -> None:
    """A caller may get what it does not know; narrowed, it gets what it knew."""
    (line,) = breaks(entry(result=before), entry(result=after))
    assert line.startswith("tool probe: result y")
    assert breaks(entry(result=after), entry(result=before)) == []


@pytest.mark.parametrize(("one", "other"), SAME.values(), ids=SAME)
def test_same_in_other_words_breaks_nothing(one: Json, other: Json) -> None:
    """Neither as an argument nor as a result."""
    for before, after in ((one, other), (other, one)):
        assert breaks(entry(before), entry(after)) == []
        assert breaks(entry(result=before), entry(result=after)) == []


def test_another_type_or_pattern_breaks() -> None:
    """Both ways round. Whether one pattern takes all that another does is not known: it is asked."""
    assert breaks(entry(TEXT), entry(NUMBER)) == ['tool probe: argument x: type was "string", is "integer"']
    assert breaks(entry(result=TEXT), entry(result=NUMBER)) == ['tool probe: result y: type was "string", is "integer"']
    before, after = {**TEXT, "pattern": "^a"}, {**TEXT, "pattern": "^a.*"}
    assert breaks(entry(before), entry(after)) == ['tool probe: argument x: pattern was "^a", is "^a.*"']
    assert breaks(entry(result=before), entry(result=after)) == ['tool probe: result y: pattern was "^a", is "^a.*"']


def test_same_words_for_another_definition_break() -> None:
    """What a keyword that is not looked into refers to may have changed."""
    keys = {"type": "object", "propertyNames": {"$ref": "#/$defs/T"}}
    before, after = keys | {"$defs": {"T": TEXT}}, keys | {"$defs": {"T": {**TEXT, "maxLength": 1}}}
    (line,) = breaks(entry(before), entry(after))
    assert line.startswith("tool probe: argument x: propertyNames was ")
    assert breaks(entry(before), entry(before)) == []


def test_field_that_a_closed_result_did_not_name_is_an_addition() -> None:
    """Readers skip what they do not know; to close a result breaks nothing, nor to open it."""
    closed, more, opened = entry(), entry(), entry()
    closed["result"], more["result"] = objects(("y",), y=TEXT), objects(("y",), y=TEXT, new=NUMBER)
    assert breaks(closed, more) == breaks(closed, opened) == breaks(opened, closed) == []


def test_what_only_people_read_is_not_kept() -> None:
    """Neither of the whole nor further in; an argument may be called `title`, and a default may have such a key."""
    shown = {"title": "A", "description": "B", "default": {"title": "kept"}, **objects(title={**TEXT, "examples": []})}
    listed = {"anyOf": [shown, {"type": "array", "items": {**TEXT, "description": "C"}}]}
    kept = {"default": {"title": "kept"}, **objects(title=TEXT)}
    assert surface.without_texts(listed) == {"anyOf": [kept, {"type": "array", "items": TEXT}]}


def put(*path: str, value: Any) -> Callable[[Json], None]:
    """A change: this value in this place."""

    def change(tool: Json) -> None:
        for key in path[:-1]:
            tool = tool[key]
        tool[path[-1]] = value

    return change


def drop(*path: str) -> Callable[[Json], None]:
    """A change: nothing in this place."""

    def change(tool: Json) -> None:
        for key in path[:-1]:
            tool = tool[key]
        del tool[path[-1]]

    return change


ARGUMENTS, FIELDS = ("arguments", "properties"), ("result", "properties")
BROKEN = {
    "scope": (put("scopes", value=["a:read", "b:write"]), "needs the scope b:write now"),
    "another scope": (put("scopes", value=["b:read"]), "needs the scope b:read now"),
    "writes": (put("read_only", value=False), "read_only was true, is false"),
    "destroys": (put("destructive", value=True), "destructive was false, is true"),
    "not to be repeated": (put("idempotent", value=False), "idempotent was true, is false"),
    "open world": (put("open_world", value=True), "open_world was false, is true"),
    "argument gone": (drop(*ARGUMENTS, "z"), "argument z: is gone"),
    "argument required": (put("arguments", "required", value=["x", "z"]), "argument z: is required now"),
    "default": (put(*ARGUMENTS, "z", "default", value=2), "argument z: default was 1, is 2"),
    "no default": (drop(*ARGUMENTS, "z", "default"), "argument z: default was 1, is not there"),
    "no schema": (put("result", value=None), "result: has no schema any more"),
    "field may be missing": (put("result", "required", value=[]), "result y: may be missing now"),
    "field's type": (put(*FIELDS, "y", value=NUMBER), 'result y: type was "string", is "integer"'),
    "field may be null": (put(*FIELDS, "y", value=either(TEXT, {"type": "null"})), "result y: type was "),
}
ALLOWED = {
    "fewer scopes": put("scopes", value=[]),
    "optional argument": put(*ARGUMENTS, "new", value=NUMBER),
    "argument with a default": put(*ARGUMENTS, "new", value={**NUMBER, "default": 3}),
    "required no more": put("arguments", "required", value=[]),
    "required with a default": put(*ARGUMENTS, "x", "default", value="a"),
    "field": put(*FIELDS, "new", value=NUMBER),
    "required field": put("result", value={**TEXT, **objects(("y", "new"), y=TEXT, new=NUMBER)}),
    "texts": put(*ARGUMENTS, "x", "description", value="Another."),
    "takes any key": drop("arguments", "additionalProperties"),
}


@pytest.mark.parametrize(("change", "problem"), BROKEN.values(), ids=BROKEN)
def test_broken_promise_is_named(change: Callable[[Json], None], problem: str) -> None:
    """One line for each: which tool, where in it, what was and what is."""
    after = copy.deepcopy(entry())
    change(after)
    (line,) = breaks(entry(), after)
    assert line.startswith(f"tool probe: {problem}")


def test_argument_that_is_new_and_required_breaks() -> None:
    """Those who call do not know it."""
    after = entry()
    after["arguments"] = objects(("x", "new"), new=TEXT, **after["arguments"]["properties"])
    assert breaks(entry(), after) == ["tool probe: argument new: is new, and required"]


def test_field_that_is_gone_breaks() -> None:
    """Also one that was optional, and also where the object says that it has no others."""
    before, after = entry(), entry()
    before["result"]["properties"]["maybe"] = TEXT
    assert breaks(before, after) == ["tool probe: result maybe: is gone"]
    after["result"] = objects(other=TEXT)
    assert breaks(entry(), after) == ["tool probe: result y: is gone"]


@pytest.mark.parametrize("change", ALLOWED.values(), ids=ALLOWED)
def test_additions_are_allowed(change: Callable[[Json], None]) -> None:
    """They break nothing, and are shown, to be accepted: until then nothing holds them."""
    after = copy.deepcopy(entry())
    change(after)
    if change is ALLOWED["required field"]:
        after["result"].pop("additionalProperties")
        after["result"]["type"] = "object"
    assert breaks(entry(), after) == []
    assert surface.additions(surface_of(entry()), surface_of(after)) == ["tool probe: differs"]


def test_what_is_gone_breaks() -> None:
    """A tool, resource or prompt under another name is another one; a new one breaks nothing."""
    resource: Json = {
        "name": "part",
        "uri": "a://{x}",
        "scopes": [],
        "arguments": objects(("x",), x=TEXT),
        "mime_type": None,
    }
    prompt: Json = {"name": "ask", "scopes": [], "arguments": objects(("x",), x=TEXT)}
    before: surface.Surface = {
        "tools": {"old": entry()},
        "resources": {"a://{x}": resource},
        "prompts": {"ask": prompt},
    }
    after: surface.Surface = {"tools": {"new": entry()}, "resources": {"b://{x}": resource}, "prompts": {}}
    gone = "is gone; under another name it is another one"
    assert surface.breaks(before, after) == [
        f"tool old: {gone}",
        "resource a://{x}: " + gone,
        f"prompt ask: {gone}",
    ]
    assert surface.additions(before, after) == ["tool new: is new", "resource b://{x}: is new"]
    retyped = before | {"resources": {"a://{x}": resource | {"mime_type": "text/plain", "scopes": ["a:b"]}}}
    assert surface.breaks(before, retyped) == [
        "resource a://{x}: needs the scope a:b now",
        "resource a://{x}: mime_type was None, is text/plain",
    ]
    asks_more = before | {"prompts": {"ask": prompt | {"arguments": objects(("x", "y"), x=TEXT, y=TEXT)}}}
    assert surface.breaks(before, asks_more) == ["prompt ask: argument y: is new, and required"]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 6) | st.sampled_from(["", "a", "b", "ab", "abc"]) | st.just(1.5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=4,
)


def optional(**keywords: st.SearchStrategy[Any]) -> st.SearchStrategy[Json]:
    """A schema with some of these keywords."""
    return st.fixed_dictionaries({}, optional=keywords)


SMALL = st.integers(0, 3)
NUMBERS = optional(minimum=SMALL, maximum=SMALL, exclusiveMinimum=SMALL, exclusiveMaximum=SMALL, multipleOf=st.just(2))
PLAIN = st.one_of(
    st.just({}),
    st.sampled_from([TEXT, TRUTH, {"type": "null"}, {"type": ["integer", "string"]}]),
    NUMBERS.map(lambda found: {"type": "integer"} | found),
    NUMBERS.map(lambda found: {"type": "number"} | found),
    optional(minLength=SMALL, maxLength=SMALL, pattern=st.sampled_from(["^a", "b$"])).map(lambda s: TEXT | s),
    st.lists(VALUES, min_size=1, max_size=3).map(lambda found: {"enum": found}),
)
SCHEMAS = st.recursive(
    PLAIN,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda found: {"anyOf": found}),
        optional(
            items=inner,
            prefixItems=st.lists(inner, max_size=2),
            minItems=SMALL,
            maxItems=SMALL,
            uniqueItems=st.booleans(),
        ).map(lambda found: {"type": "array"} | found),
        optional(
            properties=st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
            required=st.sets(st.sampled_from("ab")).map(sorted),
            additionalProperties=st.booleans() | inner,
            maxProperties=SMALL,
        ).map(lambda found: {"type": "object"} | found),
    ),
    max_leaves=4,
)


@given(SCHEMAS, SCHEMAS, st.lists(VALUES, min_size=5, max_size=20))
def test_no_gap_is_overlooked(narrow: Json, wide: Json, values: list[Any]) -> None:
    """Where none is found, whatever fits the one schema fits the other; none is found between equal ones."""
    assert gaps(narrow, copy.deepcopy(narrow)) == []
    if gaps(narrow, wide) == []:
        for value in filter(Draft202012Validator(narrow).is_valid, values):
            Draft202012Validator(wide).validate(value)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project with a tool of its own, and no files in `surface/`."""
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(PACKAGE_FOLDER, tmp_path / "src" / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
    run_command("new-tool", "made_by_a_test", source=tmp_path / "src")
    return tmp_path


def test_surface_says_what_breaks_and_accepts_it(project: Path) -> None:
    """Exit 1 for what breaks, 0 for additions; `--accept` writes the files, sorted, without texts, and only those."""
    source, tool = project / "src", project / "src" / PACKAGE / "tools" / "made_by_a_test.py"
    file = project / "surface" / "tools" / "made_by_a_test.json"

    def shown(*options: str) -> tuple[int, list[str]]:
        done = run_command("surface", *options, source=source)
        return done.returncode, done.stdout.splitlines()

    missing = run_command("surface", source=source)
    assert (missing.returncode, missing.stdout) == (2, "")
    assert json.loads(missing.stderr)["event"] == "surface/ is not there; `surface --accept` makes it"

    code, written = shown("--accept")
    assert code == 0
    assert "wrote surface/tools/made_by_a_test.json" in written
    assert shown() == (0, [])
    kept = json.loads(file.read_text(encoding="utf-8"))
    assert kept["arguments"]["properties"] == {"text": {"type": "string", "maxLength": 200}}
    assert file.read_text(encoding="utf-8") == json.dumps(kept, indent=2, sort_keys=True) + "\n"

    text = tool.read_text(encoding="utf-8")
    tool.write_text(text.replace("max_length=200", "max_length=300"), encoding="utf-8")
    assert shown() == (0, ["accept: tool made_by_a_test: differs"])
    tool.write_text(text.replace("max_length=200", "max_length=100"), encoding="utf-8")
    broken = "breaks: tool made_by_a_test: argument text: maxLength was 200, is 100"
    assert shown() == (1, [broken, "accept: tool made_by_a_test: differs"])
    tool.unlink()
    assert shown() == (1, ["breaks: tool made_by_a_test: is gone; under another name it is another one"])
    assert shown("--accept") == (0, ["wrote surface/tools/made_by_a_test.json"])
    assert not file.exists()


def test_file_that_was_spoilt_is_named(tmp_path: Path) -> None:
    """By hand, or by a merge."""
    (tmp_path / "surface" / "tools").mkdir(parents=True)
    (tmp_path / "surface" / "tools" / "probe.json").write_text("[]", encoding="utf-8")
    with pytest.raises(StartError, match=r"surface/tools/probe\.json: is not as `surface --accept` writes it"):
        surface.read(tmp_path)


def test_source_tree_is_needed_for_surface(tmp_path: Path) -> None:
    """An installed package has no place for the files."""
    shutil.copytree(PACKAGE_FOLDER, tmp_path / "a" / PACKAGE)
    done = run_command("surface", "--accept", source=tmp_path / "a")
    assert (done.returncode, done.stdout) == (2, "")
    assert "source tree only" in done.stderr
