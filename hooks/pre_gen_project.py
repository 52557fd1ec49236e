"""Refuse answers that would give a broken project.

cookiecutter runs this file after creating the project's empty folder, and removes the folder when it fails. The
`checked` filter (`jinja.py`) asks the same questions earlier, before anything is created and without
cookiecutter's traceback; this hook is for answers that never pass through it: `cookiecutter --replay`.
"""

import json
import keyword
import re
import sys
import unicodedata

# Held equal to the lists in cookiecutter.json by tests/test_answers.py. cookiecutter does not check replayed answers.
CHOICES = {
    "license": ("MIT", "Apache-2.0", "Proprietary"),
    "python_version": ("3.13", "3.12", "3.11", "3.14"),
    "ci": ("github", "none"),
    "kubernetes": ("no", "yes"),
    "examples": ("yes", "no"),
}

EXAMPLES = {
    "project_name": "Spare Parts",
    "project_slug": "spare-parts",
    "package_name": "spare_parts",
    "description": "Finds and orders spare parts.",
    "author_name": "Your Name",
    "author_email": "you@example.com",
}

MAX_LENGTH = {
    "project_name": 100,
    "project_slug": 50,
    "package_name": 50,
    "description": 500,
    "author_name": 100,
    "author_email": 254,
}

# Distributions that the project installs or offers as extras. A project of the same name would depend on itself, a
# package of the same name would hide theirs. tests/test_answers.py holds this against the generated pyproject.toml.
DISTRIBUTIONS = """
    annotated-types anyio ast-serialize async-timeout attrs certifi cffi charset-normalizer click colorama
    cryptography execnet googleapis-common-protos h11 httpcore2 httptools httpx2 httpx2-jsfetch hypothesis idna
    importlib-metadata iniconfig jsonschema jsonschema-specifications librt mcp mcp-types mypy mypy-extensions
    opentelemetry-api opentelemetry-exporter-http-transport opentelemetry-exporter-otlp-common
    opentelemetry-exporter-otlp-proto-common opentelemetry-exporter-otlp-proto-http opentelemetry-proto
    opentelemetry-sdk opentelemetry-semantic-conventions packaging pathspec pluggy prometheus-client promql-parser
    protobuf pycparser pydantic pydantic-core pydantic-settings pygments pyjwt pytest pytest-asyncio pytest-timeout
    pytest-xdist python-dotenv python-multipart pywin32 pyyaml redis referencing requests rpds-py ruff
    sortedcontainers sse-starlette starlette structlog tenacity truststore types-jsonschema types-pyyaml
    typing-extensions typing-inspection urllib3 uvicorn uvloop zipp
"""

# Import names that differ from their distribution's, folders of the project, commands of its environment, and names
# that Windows keeps for devices.
OTHER_NAMES = """
    attr dotenv google jwt multipart opentelemetry yaml
    hooks src test tests conftest
    activate deactivate pip python python3 uv
    aux con nul prn
"""

SLUG = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
PACKAGE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
EMAIL = re.compile(r"""[^\s@<>()\[\],:;"\\]+@[^\s@<>()\[\],:;"\\]+""")


def slug_taken(name: str) -> bool:
    """Whether a project of this name would collide with something its environment holds."""
    return name in DISTRIBUTIONS.split() or name in OTHER_NAMES.split()


def package_taken(name: str) -> bool:
    """Whether a package of this name could not be imported, or would hide another one."""
    return slug_taken(name.replace("_", "-")) or name in sys.stdlib_module_names or keyword.iskeyword(name)


def problem(field: str, value: str) -> str | None:
    """Say what is wrong with one answer, and show a right one; None when nothing is."""
    shown = repr(value if len(value) <= 60 else value[:57] + "...")
    if field in CHOICES:
        if value not in CHOICES[field]:
            return f"{shown} is not offered; choose one of: {', '.join(CHOICES[field])}"
        return None
    if not value.strip():
        return f"must not be empty, for example {EXAMPLES[field]}"
    if len(value) > MAX_LENGTH[field]:
        return f"has {len(value)} characters; at most {MAX_LENGTH[field]} fit, for example {EXAMPLES[field]}"
    # Cc: control characters, newlines among them; Cs: lone surrogates, which no file can hold; Zl, Zp: line separators.
    text = value.replace("\n", "") if field == "description" else value
    if any(unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"} for character in text):
        return f"{shown} must be one line without control characters, for example {EXAMPLES[field]}"
    if field == "project_slug":
        if not SLUG.fullmatch(value):
            return f"{shown} must be lowercase letters, digits and single dashes, for example {EXAMPLES[field]}"
        if slug_taken(value):
            return f"{shown} is the name of something the project uses; for example {value}-server is free"
    if field == "package_name":
        if not PACKAGE.fullmatch(value):
            return f"{shown} must be lowercase letters, digits and single underscores, for example {EXAMPLES[field]}"
        if package_taken(value):
            return f"{shown} is the name of something Python or the project uses; for example {value}_server is free"
    if field == "author_email" and not EMAIL.fullmatch(value):
        return f"{shown} is not an e-mail address, for example {EXAMPLES[field]}"
    return None


def problems(answers: dict[str, object]) -> list[str]:
    """Return one line for each answer that is wrong, in the order the questions are asked."""
    found = ((field, problem(field, str(answers.get(field, "")))) for field in (*EXAMPLES, *CHOICES))
    return [f"{field}: {text}" for field, text in found if text]


if __name__ == "__main__":
    # Rendered to JSON inside a raw string: whatever the answers hold, it is data here and never code.
    lines = problems(json.loads(r"""{{ cookiecutter | tojson }}"""))
    for line in lines:
        print(line, file=sys.stderr)
    sys.exit(1 if lines else 0)
