"""Imports point down: from the way in, through the guards, to the tools, and never back up."""

import ast
from pathlib import Path

import pytest

from .conftest import PACKAGE_FOLDER

# Each may import what stands after it, and its own neighbours where it is a folder.
ORDER = (
    *("__main__", "cli", "scaffold", "distribution", "clients", "surface", "subschema", "doctor", "metrics", "tracing"),
    *("serving", "server", "sdk"),
    *("dependencies", "bus", "registry", "contracts", "tools", "resources", "prompts", "shop", "outbound", "guards"),
    *(
        "listening",
        "threads",
        "spans",
        "calls",
        "limits",
        "tooling",
        "auth",
        "settings",
        "validation",
        "logs",
        "errors",
        "measures",
        "text",
        "wire",
        "__init__",
    ),
)
USERS = {"tools", "resources", "prompts"}
MODULES = sorted(path.relative_to(PACKAGE_FOLDER) for path in PACKAGE_FOLDER.rglob("*.py"))


def imported(module: Path) -> set[str]:
    """The parts of this package that a module imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((PACKAGE_FOLDER / module).read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom):
            continue
        first = (node.module or "").partition(".")[0]
        if node.level == len(module.parts):
            found |= {first} if first else {alias.name for alias in node.names}
        assert node.level or first != PACKAGE_FOLDER.name, f"{module}: imports of its own package are relative"
    return found - {"NAME"}


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_point_down(module: Path) -> None:
    """A module knows only what stands below it; your own helper modules stand where the tools do."""
    part = module.parts[0].removesuffix(".py")
    places = {name: place for place, name in enumerate(ORDER)}
    shelf = places["tools"]
    for name in imported(module):
        assert places.get(name, shelf) >= places.get(part, shelf), f"{module} imports {name}, which stands above it"


def test_tools_know_no_server() -> None:
    """What a user writes depends on the seam, not on what serves it."""
    allowed = {"tooling", "errors", "settings", "shop", "outbound"}
    for module in MODULES:
        if module.parts[0] in USERS and module.name != "__init__.py":
            assert not {name for name in imported(module) if name in ORDER} - allowed, str(module)


def test_private_parts_of_the_sdk_are_touched_in_one_module() -> None:
    """Only `sdk.py` uses the provisional middleware and underscored names of the SDK."""
    for module in MODULES:
        if module.name == "sdk.py":
            continue
        for node in ast.walk(ast.parse((PACKAGE_FOLDER / module).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
                if any(name.split(".")[0] in ("mcp", "mcp_types") for name in names):
                    assert not any(part.startswith("_") for name in names for part in name.split(".")), str(module)
            if isinstance(node, ast.Attribute):
                assert node.attr != "middleware", str(module)


def test_only_settings_reads_the_environment() -> None:
    """One place to look for what can be configured."""
    for module in MODULES:
        tree = ast.parse((PACKAGE_FOLDER / module).read_text(encoding="utf-8"))
        reads = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr in ("environ", "getenv")]
        assert module.name == "settings.py" or not reads, str(module)
