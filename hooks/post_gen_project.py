"""Remove what the answers leave out, record the answers, and say what to do next.

Optional parts are whole files, chosen here in one place. cookiecutter deletes the project when a hook fails, so nothing
here depends on anything but the answers.
"""

import json
import shutil
from pathlib import Path

# option -> answer -> what that answer removes. `{package}` is the package's folder.
MANIFEST = {
    "ci": {
        "github": [],
        "none": [".github"],
    },
    "kubernetes": {
        "yes": [],
        "no": ["kubernetes"],
    },
    "examples": {
        "yes": [
            "src/{package}/tools/greet.py",
            "surface/tools/greet.json",
            "tests/test_greet.py",
        ],
        "no": [
            "src/{package}/shop.py",
            "src/{package}/data",
            "src/{package}/tools/search_parts.py",
            "src/{package}/tools/get_part.py",
            "src/{package}/tools/place_order.py",
            "src/{package}/tools/stocktake.py",
            "src/{package}/tools/convert_price.py",
            "src/{package}/tools/check_datasheet.py",
            "src/{package}/rates.py",
            "src/{package}/resources/part.py",
            "src/{package}/prompts/reorder.py",
            "surface/tools/search_parts.json",
            "surface/tools/get_part.json",
            "surface/tools/place_order.json",
            "surface/tools/stocktake.json",
            "surface/tools/convert_price.json",
            "surface/tools/check_datasheet.json",
            "surface/resources",
            "surface/prompts",
            "tests/test_shop.py",
        ],
    },
}

# In this order, by hand or by tests/test_next_steps.py. The last one serves until it is stopped.
NEXT_STEPS = [
    "cd {slug}",
    "uv sync",
    "uv run pytest",
    "uv run {slug} tools",
    "uv run {slug} serve --transport http",
]


def removed(answers: dict[str, str]) -> list[str]:
    """List the paths, relative to the project, that these answers leave out."""
    return [
        path.format(package=answers["package_name"])
        for option, choices in MANIFEST.items()
        for path in choices[answers[option]]
    ]


def record(answers: dict[str, str], origin: dict[str, str]) -> None:
    """Keep what an update needs, as cruft does (`.cruft.json`): the answers, and the template's address and commit."""
    if "_commit" in answers:  # it is cruft that renders: it keeps its own
        return
    public = {name: answer for name, answer in answers.items() if not name.startswith("_")}
    state = {**origin, "checkout": None, "context": {"cookiecutter": public}, "directory": None}
    Path(".cruft.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")


def main(answers: dict[str, str], origin: dict[str, str]) -> None:
    """Tidy the project in the current directory and print the next steps, last of all."""
    for path in map(Path, removed(answers)):
        # Missing paths are fine: a second run over the same folder finds them gone already.
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    record(answers, origin)
    if shutil.which("uv") is None:
        print("\nuv is not installed yet: `pipx install uv`, or `pip install uv` in a virtual environment.")
    print("\nNext steps:\n")
    for step in NEXT_STEPS:
        print("    " + step.format(slug=answers["project_slug"]))


if __name__ == "__main__":
    main(json.loads(r"""{{ cookiecutter | tojson }}"""), json.loads(r"""{{ cookiecutter | origin | tojson }}"""))
