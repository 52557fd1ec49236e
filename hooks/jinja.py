"""What the template adds to Jinja: answers stay text, and a few filters.

cookiecutter loads this module through `_extensions` in cookiecutter.json. Unlike a hook it is imported, so it may use
Jinja, cookiecutter and the files beside it. cruft renders two versions of the template in one process, and imports stay:
each Jinja environment therefore forgets the modules it was made with. (Version 0.1.0 did not, and called this one
`hooks.extensions`: nothing here may have that name again.)
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cookiecutter.exceptions import FailedHookException
from jinja2 import Environment
from jinja2.ext import Extension

sys.modules.pop("hooks.pre_gen_project", None)  # another version's
from hooks.pre_gen_project import MAX_LENGTH, package_taken, problems, slug_taken

ROOT = Path(__file__).resolve().parent.parent

_DEFAULTS: dict[str, Any] = json.loads((ROOT / "cookiecutter.json").read_text(encoding="utf-8"))
_ASKED = [key for key in _DEFAULTS if key != "__prompts__" and (key[0] != "_" or key[:2] == "__")]  # in this order
_PROJECT = "{{cookiecutter.project_slug}}"
_LATER = (_PROJECT, *(hook.read_text(encoding="utf-8") for hook in ROOT.glob("hooks/*_gen_project.py")))
_PATHS = sorted(
    (path.relative_to(ROOT / _PROJECT).as_posix() for path in (ROOT / _PROJECT).rglob("*")), key=len, reverse=True
)


class AnswersAreText(Extension):
    """Keeps answers from being run as templates.

    cookiecutter 2.7.1 renders every answer that was not typed at a prompt (`--no-input`, `key=value`, the user's
    configuration, `.cruft.json`, the Python API) as if it were a default of the template's: `{{ 7 * 7 }}` became 49, a lone
    `{{` an error, and a hostile answer ran code. What a text is follows from when it is rendered, not from what it says:

    * before the last question is answered, it is that question's default, word for word, or an answer;
    * after it, it is a hook, the project's folder, or, as files are made, one of their paths, behind the output folder;
    * the files themselves alone have a name.
    """

    def __init__(self, environment: Environment) -> None:
        """Register the filter that says which question it is."""
        super().__init__(environment)
        environment.filters["asked"] = _asked

    def preprocess(self, source: str, name: str | None, filename: str | None = None) -> str:
        """Return the source as it is when it is the template's own, otherwise a template that yields it literally."""
        if name is not None or "{" not in source:
            return source
        if self.environment.loader is not None:
            path = "/" + source.replace(os.sep, "/")
            own = next((own for own in _PATHS if path.endswith(f"/{own}")), "")
            end = len(source) - len(own)
            return _literal(source[:end]) + source[end:]
        when = [None] if source in _LATER else [key for key in _ASKED if source == _DEFAULTS[key]]
        if not when:
            return _literal(source)
        return f"{{% if cookiecutter | asked in {when} %}}{source}{{% else %}}{_literal(source)}{{% endif %}}"


def _asked(answers: Mapping[str, object]) -> str | None:
    """The question whose answer is being rendered; None when all are answered."""
    return next((key for key in _ASKED if key not in answers), None)


def _literal(text: str) -> str:
    return "{{ " + json.dumps(text, ensure_ascii=False) + " }}"


class Filters(Extension):
    """The template's own filters."""

    def __init__(self, environment: Environment) -> None:
        """Register the filters with the environment."""
        super().__init__(environment)
        environment.filters.update(
            slug=self.slug, package=package, checked=checked, toml_string=toml_string, origin=origin
        )
        sys.modules.pop(__name__, None)

    def slug(self, project_name: str) -> str:
        """Derive the project's slug: always one that is accepted, whatever the name."""
        longest = MAX_LENGTH["project_slug"] - len("mcp-")
        name: str = self.environment.filters["slugify"](project_name, max_length=longest)
        if not name:
            return "my-mcp-server"
        return name if name[0].isalpha() and not slug_taken(name) else f"mcp-{name}"


def package(project_slug: str) -> str:
    """Derive the package's name from the slug."""
    name = project_slug.replace("-", "_")
    return f"{name}_server" if package_taken(name) else name


def checked(answers: Mapping[str, object]) -> str:
    """Refuse wrong answers, all at once on stderr, before cookiecutter has created anything."""
    lines = problems(dict(answers))
    if lines:
        print("\n".join(lines), file=sys.stderr)
        raise FailedHookException("No project was generated.")
    return ""


def toml_string(text: str) -> str:
    """Write text as a TOML basic string.

    JSON strings are TOML strings except for two things: `\\u` pairs for characters beyond U+FFFF, so those stay as they
    are, and DEL, which TOML wants escaped (TOML 1.0, section String).
    """
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")


def origin(answers: Mapping[str, object]) -> dict[str, str]:
    """Where this template comes from, as updates need it: `template`, what git clones, and `commit`.

    A clone whose commit its origin has is named by that, without credentials; any other by its folder. Without git (an
    archive), `commit` is the tag of this version.
    """
    commit = _git("rev-parse", "HEAD") if (ROOT / ".git").exists() else ""
    if not commit:
        version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
        return {"template": str(answers.get("_template", ROOT)), "commit": f"v{version[1]}" if version else ""}
    is_there = _git("branch", "--remotes", "--contains", commit)
    address = _git("config", "--get", "remote.origin.url") if is_there else ""
    return {"template": re.sub(r"^(https?://)[^/@]*@", r"\1", address) or str(ROOT), "commit": commit}


def _git(*arguments: str) -> str:
    """What git says of the template's folder; nothing if it cannot."""
    # Variables of git's own may name another repository.
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(ROOT), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
