"""The one seam between your code and the server: `@tool`, `@resource`, `@prompt`, and how they are found.

A file in `tools/`, `resources/` or `prompts/` is all there is to write. Files whose name starts with an underscore are
yours to share code in; every other file holds at least one decorated function.
"""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from traceback import extract_tb
from types import ModuleType
from typing import Any, Literal, TypeVar

from mcp.server.mcpserver import Context

from .auth.principal import SCOPE, Principal
from .errors import StartError
from .settings import Settings

__all__ = ["Context", "Declaration", "Depends", "Principal", "discover", "prompt", "resource", "tool"]

Kind = Literal["tool", "resource", "prompt"]
_F = TypeVar("_F", bound=Callable[..., Any])
_MARK = "__mcp_declaration__"


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """What the author of a tool, resource or prompt wrote in its decorator."""

    kind: Kind
    function: Callable[..., Any]
    title: str | None
    scopes: frozenset[str]
    cost: int
    timeout_seconds: float | None
    read_only: bool
    destructive: bool
    idempotent: bool
    open_world: bool
    uri: str = ""
    mime_type: str | None = None

    @property
    def name(self) -> str:
        """The function's name."""
        return self.function.__name__

    @property
    def description(self) -> str:
        """The function's docstring."""
        return inspect.getdoc(self.function) or ""

    @property
    def place(self) -> str:
        """`tools/place_order.py`: how messages name the file."""
        return "/".join(Path(inspect.getfile(self.function)).parts[-2:])


@dataclass(frozen=True, slots=True)
class Depends:
    """Marks a parameter that the server fills in and the model never sees.

    `stock: Annotated[Stock, Depends(open_stock)]`, where `open_stock(settings)` is an asynchronous context manager: it
    is entered once, before the first request, and left after the last.

    `check` is given what was opened and raises when that is of no use now: the server is not ready then, or with
    `optional` it is ready, and degraded. It may take 2 s, and runs at most once a second.
    """

    open: Callable[[Settings], AbstractAsyncContextManager[Any]]
    check: Callable[[Any], Awaitable[object]] | None = None
    optional: bool = False
    label: str | None = None

    @property
    def name(self) -> str:
        """`label`, or `shop.open_shop`: how messages name it."""
        return self.label or f"{self.open.__module__.rpartition('.')[2]}.{self.open.__name__}"


class DeclarationError(TypeError):
    """A decorator was given something it cannot use; the text says what to write."""


def tool(
    *misused: object,
    title: str | None = None,
    scopes: Iterable[str] = (),
    cost: int = 1,
    timeout_seconds: float | None = None,
    read_only: bool = False,
    destructive: bool = True,
    idempotent: bool = False,
    open_world: bool = True,
) -> Callable[[_F], _F]:
    """Serve a function as a tool: its name and docstring are the tool's, its signature is the schema.

    Args:
        title: the name shown to people.
        scopes: all of them are needed to call it.
        cost: what one call takes from the caller's rate limit.
        timeout_seconds: else the default of the settings.
        read_only, destructive, idempotent, open_world: the specification's annotations, with its defaults;
            `destructive` and `idempotent` mean nothing on a read-only tool.
    """
    if misused:
        raise DeclarationError("write @tool() with parentheses")
    if cost < 1:
        raise DeclarationError("cost is 1 or more")
    return _mark(
        "tool",
        title=title,
        scopes=scopes,
        cost=cost,
        timeout_seconds=timeout_seconds,
        read_only=read_only,
        destructive=destructive and not read_only,
        idempotent=idempotent or read_only,
        open_world=open_world,
    )


def resource(
    uri: str,
    *,
    title: str | None = None,
    mime_type: str | None = None,
    scopes: Iterable[str] = (),
    timeout_seconds: float | None = None,
) -> Callable[[_F], _F]:
    """Serve a function as a resource, or as a resource template if `uri` has `{variables}` (RFC 6570).

    The variables are the function's parameters. It returns text, bytes, or a value that becomes JSON.
    """
    return _mark(
        "resource",
        **_READING,
        title=title,
        scopes=scopes,
        timeout_seconds=timeout_seconds,
        uri=uri,
        mime_type=mime_type,
    )


def prompt(
    *misused: object, title: str | None = None, scopes: Iterable[str] = (), timeout_seconds: float | None = None
) -> Callable[[_F], _F]:
    """Serve a function as a prompt: it returns the user's text, or a list of the SDK's `PromptMessage`."""
    if misused:
        raise DeclarationError("write @prompt() with parentheses")
    return _mark("prompt", **_READING, title=title, scopes=scopes, timeout_seconds=timeout_seconds)


def discover(package: ModuleType, kind: Kind) -> Iterator[Declaration]:
    """Import every module of `package` and yield what it declares, in the order of file and line.

    Raises:
        StartError: a file cannot be imported, declares nothing, or declares something of another kind.
    """
    problems = []
    for found in sorted(pkgutil.iter_modules(package.__path__), key=lambda module: module.name):
        if found.name.startswith("_"):
            continue
        place = f"{package.__name__.rpartition('.')[2]}/{found.name}.py"
        try:
            module = importlib.import_module(f"{package.__name__}.{found.name}")
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a user's module may raise anything
            problems.append(_cannot_import(place, error))
            continue
        declared = [mark for value in vars(module).values() if (mark := getattr(value, _MARK, None)) is not None]
        own = [each for each in declared if each.function.__module__ == module.__name__]
        if not own:
            problems.append(f"{place}: declares no @{kind}; start the name of a helper module with an underscore")
        for each in own:
            if each.kind != kind:
                problems.append(f"{place}: {each.name} is a @{each.kind}; move it to {each.kind}s/")
            else:
                yield each
    if problems:
        raise StartError(problems)


_READING: dict[str, Any] = {"cost": 1, "read_only": True, "destructive": False, "idempotent": True, "open_world": True}


def _mark(kind: Kind, *, scopes: Iterable[str], timeout_seconds: float | None, **options: Any) -> Callable[[_F], _F]:
    if isinstance(scopes, str):
        raise DeclarationError(f"scopes is a set of names, as in scopes=[{scopes!r}]")
    scopes = frozenset(scopes)
    if not all(isinstance(scope, str) and re.fullmatch(SCOPE, scope) for scope in scopes):
        raise DeclarationError(
            'a scope is a word such as "orders:write", without spaces, commas, quotes and backslashes'
        )
    if timeout_seconds is not None and not (isinstance(timeout_seconds, int | float) and timeout_seconds > 0):
        raise DeclarationError("timeout_seconds is a number greater than 0")

    def mark(function: _F) -> _F:
        earlier = getattr(function, "__globals__", {}).get(function.__name__)
        if (other := getattr(earlier, _MARK, None)) is not None and other.kind == kind:
            raise DeclarationError(f"{function.__name__}: there is a {kind} of this name above; rename one")
        declared = Declaration(kind=kind, function=function, scopes=scopes, timeout_seconds=timeout_seconds, **options)
        setattr(function, _MARK, declared)
        return function

    return mark


def _cannot_import(place: str, error: BaseException) -> str:
    if isinstance(error, SyntaxError) and error.filename:
        line = f", line {error.lineno}" if error.lineno else ""
        return f"{'/'.join(Path(error.filename).parts[-2:])}{line}: {error.msg}"
    frames = extract_tb(error.__traceback__)
    found = next((frame.lineno for frame in reversed(frames) if frame.filename.endswith(place)), None)
    where = f"{place}, line {found}" if found else place
    if isinstance(error, ImportError | NameError | DeclarationError):  # their texts hold names, and nothing else
        return f"{where}: {error}"
    return f"{where}: {type(error).__name__} while it was imported"
