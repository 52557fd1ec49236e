"""`surface`: what clients depend on, kept in the project as files, and what of it a change breaks.

`surface/` has a file for each tool, resource and prompt: its schemas without texts, its scopes, its promises. What is
served now is held against them. An addition is allowed; a caller who knows only the files must find all that they say.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .errors import StartError
from .registry import Registry
from .subschema import Gap, gaps

Entry = dict[str, Any]
Surface = dict[str, dict[str, Entry]]
"""`tools`, `resources`, `prompts` -> name, or a resource's URI -> what is promised."""

FOLDER = "surface"
_TEXTS = {"title", "description", "examples"}
_PROMISES = {"read_only": True, "destructive": False, "idempotent": True, "open_world": False}
"""Each with the value that a client may rely on."""


def published(registry: Registry) -> Surface:
    """What is served now."""
    found: Surface = {"tools": {}, "resources": {}, "prompts": {}}
    for tool in registry.tools.values():
        found["tools"][tool.name] = {
            **_entry(tool.name, tool.scopes, tool.signature.schema),
            "result": without_texts(tool.listed.output_schema),
            **{promise: getattr(tool.declaration, promise) for promise in _PROMISES},
        }
    for resource in registry.resources.values():
        declared = resource.declaration
        entry = _entry(resource.name, resource.scopes, resource.signature.schema)
        found["resources"][declared.uri] = {**entry, "uri": declared.uri, "mime_type": declared.mime_type}
    for prompt in registry.prompts.values():
        found["prompts"][prompt.name] = _entry(prompt.name, prompt.scopes, prompt.signature.schema)
    return found


def breaks(locked: Surface, now: Surface) -> list[str]:
    """A line for each thing that a caller who knows only `locked` can no longer rely on."""
    return [
        f"{kind.removesuffix('s')} {name}: {problem}"
        for kind, entries in locked.items()
        for name, entry in entries.items()
        for problem in _broken(entry, now[kind].get(name))
    ]


def additions(locked: Surface, now: Surface) -> list[str]:
    """What is served and has no file, or differs from it."""
    return [
        f"{kind.removesuffix('s')} {name}: {'differs' if name in locked[kind] else 'is new'}"
        for kind, entries in now.items()
        for name, entry in entries.items()
        if locked[kind].get(name) != entry
    ]


def read(root: Path) -> Surface:
    """What the files say.

    Raises:
        StartError: there are none, or one cannot be read.
    """
    found: Surface = {"tools": {}, "resources": {}, "prompts": {}}
    if not (root / FOLDER).is_dir():
        raise StartError([f"{FOLDER}/ is not there; `surface --accept` makes it"])
    for kind, entries in found.items():
        for path in sorted((root / FOLDER / kind).glob("*.json")):
            try:
                entry = json.loads(path.read_text(encoding="utf-8"))
                entries[entry["uri" if kind == "resources" else "name"]] = entry
            except (ValueError, KeyError, TypeError):
                place = path.relative_to(root).as_posix()
                raise StartError([f"{place}: is not as `surface --accept` writes it; it makes it anew"]) from None
    return found


def write(root: Path, surface: Surface) -> list[Path]:
    """Make the files say this; returns those that are new, changed or gone."""
    wanted = {
        root / FOLDER / kind / f"{entry['name']}.json": json.dumps(entry, indent=2, sort_keys=True) + "\n"
        for kind, entries in surface.items()
        for entry in entries.values()
    }
    there = {path: path.read_text(encoding="utf-8") for path in (root / FOLDER).glob("*/*.json")}
    for path in there.keys() - wanted.keys():
        path.unlink()
    changed = {path: text for path, text in wanted.items() if there.get(path) != text}
    for path, text in changed.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
    return sorted(path.relative_to(root) for path in {*changed, *(there.keys() - wanted.keys())})


def source_root() -> Path:
    """The project's folder.

    Raises:
        StartError: this is an installed package.
    """
    root = Path(__file__).parents[2]
    if not (root / "pyproject.toml").is_file():
        raise StartError(["surface: works in the project's source tree only; run it there with `uv run`"])
    return root


def _entry(name: str, scopes: frozenset[str], arguments: Mapping[str, Any]) -> Entry:
    return {"name": name, "scopes": sorted(scopes), "arguments": without_texts(arguments)}


def without_texts(schema: Any) -> Any:
    """A schema without what only people and models read."""
    if isinstance(schema, list):
        return [without_texts(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: value for key, value in schema.items() if key not in _TEXTS}
    for key, value in kept.items():
        if key in ("properties", "$defs", "patternProperties"):  # whose keys are names
            kept[key] = {name: without_texts(each) for name, each in value.items()}
        elif key not in ("default", "enum", "const"):
            kept[key] = without_texts(value)
    return kept


def _broken(locked: Entry, now: Entry | None) -> Iterator[str]:
    if now is None:
        yield "is gone; under another name it is another one"
        return
    for scope in sorted({*now["scopes"]} - {*locked["scopes"]}):
        yield f"needs the scope {scope} now"
    for promise, kept in _PROMISES.items():
        if locked.get(promise) is kept and now[promise] is not kept:
            yield f"{promise} was {str(kept).lower()}, is {str(now[promise]).lower()}"
    if locked.get("mime_type") != now.get("mime_type"):
        yield f"mime_type was {locked.get('mime_type')}, is {now.get('mime_type')}"
    for gap in gaps(locked["arguments"], now["arguments"]):
        yield f"{'argument ' + gap.path if gap.path else 'arguments'}: {_argument(gap)}"
    yield from _defaults(locked["arguments"], now["arguments"])
    if locked.get("result") is None:
        return
    if now["result"] is None:
        yield "result: has no schema any more"
        return
    for gap in gaps(now["result"], locked["result"], of_results=True):
        yield f"{'result ' + gap.path if gap.path else 'result'}: {_result(gap)}"


def _argument(gap: Gap) -> str:
    match gap:
        case Gap(keyword="properties"):
            return "is gone"
        case Gap(keyword="required", narrow=None):
            return "is new, and required"
        case Gap(keyword="required"):
            return "is required now"
        case Gap(keyword="enum", wide=None):
            return f"takes no longer {gap.narrow}"
        case Gap(keyword="enum"):
            return f"takes only {gap.wide} now"
        case Gap(keyword="additionalProperties", wide="false"):
            return "takes no other keys any more"
    return f"{gap.keyword} was {gap.narrow or 'not there'}, is {gap.wide or 'not there'}"


def _result(gap: Gap) -> str:
    match gap:
        case Gap(keyword="properties"):
            return "is gone"
        case Gap(keyword="required"):
            return "may be missing now"
        case Gap(keyword="enum", wide=None):
            return f"may be {gap.narrow} now"
        case Gap(keyword="enum"):
            return f"was one of {gap.wide}, and may be anything else now"
    return f"{gap.keyword} was {gap.wide or 'not there'}, is {gap.narrow or 'not there'}"


def _defaults(locked: Entry, now: Entry) -> Iterator[str]:
    """A call that leaves an argument out means the same as before."""
    for name, before in locked["properties"].items():
        after = now["properties"].get(name, before)
        stays_optional = name not in (*locked.get("required", ()), *now.get("required", ()))
        if stays_optional and before.get("default") != after.get("default"):
            shown = [json.dumps(each["default"]) if "default" in each else "not there" for each in (before, after)]
            yield f"argument {name}: default was {shown[0]}, is {shown[1]}"
