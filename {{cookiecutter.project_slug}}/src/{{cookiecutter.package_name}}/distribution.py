"""`bundle`: this server as one file that desktop clients install (.mcpb), and its entry for the MCP registry.

Both are made of `pyproject.toml`, of what is served, and of the settings as they are declared; nothing is kept that could
differ from these. Sources: MCPB manifest 0.4 (modelcontextprotocol/mcpb, MANIFEST.md), server.json 2025-12-11
(modelcontextprotocol/registry).
"""

import hashlib
import io
import json
import re
import tomllib
import zipfile
from fnmatch import fnmatchcase
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

from . import NAME
from .clients import Question, questions
from .errors import StartError
from .registry import Registry
from .settings import PREFIX, Settings, secret_paths

Json = dict[str, Any]

SCHEMA = "https://static.modelcontextprotocol.io/schemas/2025-12-11/server.schema.json"
_FILES = ("pyproject.toml", "uv.lock", "README.md", "LICENSE")
_ENTRY = f'''"""Where a client of bundles starts this server."""

from {__package__}.__main__ import main

main()
'''
# Names that secrets go by, in either case, of files and of folders with all that is in them; copies that people and editors
# leave; and, as in .gitignore, what is none although it is named so: modules, but for those in such a folder. .gitignore (by
# which wheel and sdist go) and .dockerignore have the same list: tests/test_distribution.py holds them to this one.
PRIVATE = (
    *("*.age", "*.asc", "*.gpg*", "*.jks*", "*.kdb", "*.kdbx*", "*.key", "*.key.*", "*.keystore*", "*.keytab*"),
    *("*.ovpn", "*.p12*", "*.p8", "*.pem*", "*.pfx*", "*.pgp", "*.pk8", "*.ppk*", "id_dsa*", "id_ecdsa*"),
    *("id_ed25519*", "id_rsa*", "*.env", "*.env.*", ".envrc", ".git-credentials", ".htpasswd", ".netrc", ".npmrc"),
    *(".pgpass", ".pypirc", "*.tfstate*", "*.tfvars*", "*credential*.json*", "*kubeconfig*", "*secret*.json*"),
    *("_netrc", "credentials.*", "htpasswd", "keys.json*", "*-keys.json*", "*_keys.json*", "passwords.*", "secret.*"),
    *("secrets.*", "service-account*.json*", "service_account*.json*", "token.json*", "*.bak", "*.old", "*.orig"),
    *("*.save", "*.swp", "*~", "!*.py", "!.env.example", "credentials", "secrets"),
)
_HIDDEN = re.compile(r"\..*|__pycache__|.*\.pyc", re.IGNORECASE)
# A key itself, not the first line alone, which code that looks for keys has too.
_KEY = re.compile(
    rb"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----(?:\s|\\[nr]){1,4}[\w+/=:,-]{12}"
    rb"|PuTTY-User-Key-File-\d: |AGE-SECRET-KEY-1[A-Z0-9]{20}"
)
_GITHUB = re.compile(r"https://github\.com/([A-Za-z0-9-]+)/([\w.-]+?)(?:\.git)?/?", re.ASCII)
_STDIO = {f"{PREFIX}TRANSPORT": "stdio"}


class Bundled(NamedTuple):
    """What was written, and the files of the package that are not in it, both relative to the project."""

    written: list[Path]
    left_out: list[Path]


def bundle(settings: Settings, registry: Registry, *, with_server_json: bool) -> Bundled:
    """Write `dist/<name>-<version>.mcpb`, and `dist/server.json` if it is wanted; the same input gives the same bytes.

    Raises:
        StartError: something is missing that only its author knows, or a file holds a private key.
    """
    root = Path(__file__).parents[2]
    if not (root / "pyproject.toml").is_file():
        raise StartError(["bundle: works in the project's source tree only; run it there with `uv run`"])
    if not (root / "uv.lock").is_file():
        raise StartError(
            ["uv.lock: is not there; `uv lock` makes it, so that every user gets the versions tested here"]
        )
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    paths, left_out = _packable(root, settings)
    packed = _packed(root, paths, manifest(project, registry))
    files = {f"{NAME}-{project['version']}.mcpb": packed}
    if with_server_json:
        files["server.json"] = _text(server_json(project, settings, hashlib.sha256(packed).hexdigest()))
    (root / "dist").mkdir(exist_ok=True)
    for name, content in files.items():
        (root / "dist" / name).write_bytes(content)
    return Bundled([Path("dist", name) for name in files], [path.relative_to(root) for path in left_out])


def manifest(project: Json, registry: Registry) -> Json:
    """The bundle's `manifest.json`. uv, which the client brings, installs what `uv.lock` says on the first start."""
    asked = list(questions())
    author = {key: value for key, value in project["authors"][0].items() if key in ("name", "email")}
    return {
        "manifest_version": "0.4",
        "name": NAME,
        "version": project["version"],
        "description": project["description"],
        "author": author,
        "license": project["license"],
        "server": {
            "type": "uv",
            "entry_point": "server.py",
            "mcp_config": {
                "command": "uv",
                "args": ["run", "--frozen", "--no-dev", "--directory", "${__dirname}", "server.py"],
                "env": _STDIO | {each.variable: "${user_config." + each.field + "}" for each in asked},
            },
        },
        "user_config": {each.field: _user_config(each) for each in asked},
        "tools": [
            {"name": tool.name, "description": " ".join(tool.declaration.description.split())}
            for tool in registry.tools.values()
        ],
        "prompts_generated": bool(registry.prompts),
        "compatibility": {
            "platforms": ["darwin", "linux", "win32"],
            "runtimes": {"python": project["requires-python"]},
        },
    }


def server_json(project: Json, settings: Settings, digest: str) -> Json:
    """The server's entry for the MCP registry.

    Args:
        digest: SHA-256 of the bundle, which is expected among the files of the GitHub release of this version.

    Raises:
        StartError: the project does not say where its repository is.
    """
    address = project.get("urls", {}).get("Repository", "")
    found = _GITHUB.fullmatch(address)
    if found is None:
        needed = "must be set, as in https://github.com/OWNER/NAME"
        reason = "the server's name in the registry (io.github.OWNER/...) and the bundle's address come from it"
        raise StartError([f"pyproject.toml: [project.urls] Repository {needed}; {reason}"])
    owner, name = found.groups()
    version = project["version"]
    entry: Json = {
        "$schema": SCHEMA,
        "name": f"io.github.{owner}/{NAME}",
        "description": shorten(project["description"], 100, placeholder="…"),
        "version": version,
        "repository": {"url": f"https://github.com/{owner}/{name}", "source": "github"},
        "packages": [
            {
                "registryType": "mcpb",
                "identifier": f"https://github.com/{owner}/{name}/releases/download/v{version}/{NAME}-{version}.mcpb",
                "version": version,
                "fileSha256": digest,
                "transport": {"type": "stdio"},
                "environmentVariables": [_environment_variable(each) for each in questions()],
            }
        ],
    }
    if settings.public_url is not None:
        remote: Json = {"type": "streamable-http", "url": settings.public_url}
        if settings.auth_mode == "api_key":
            key: Json = {"description": f"API key for {NAME}", "isRequired": True, "isSecret": True}
            remote["headers"] = [{"name": "Authorization", "value": "Bearer {api_key}", "variables": {"api_key": key}}]
        entry["remotes"] = [remote]
    return entry


def _user_config(asked: Question) -> Json:
    choices = f" (one of {', '.join(asked.choices)})" if asked.choices else ""
    entry: Json = {
        "type": asked.kind,
        "title": " ".join(_SHORT.get(word, word) for word in asked.field.capitalize().split("_")),
        "description": asked.description + choices,
        "required": asked.is_required,
    }
    if not asked.is_required:  # clients leave `${user_config.x}` as it is when there is neither answer nor default
        entry["default"] = "" if asked.default is None else asked.default
    if asked.is_secret:
        entry["sensitive"] = True
    ends = {"min": asked.minimum, "max": asked.maximum}
    return entry | {name: end for name, end in ends.items() if end is not None}


_SHORT = {"Api": "API", "api": "API", "url": "URL"}


def _environment_variable(asked: Question) -> Json:
    entry: Json = {
        "name": asked.variable,
        "description": asked.description,
        "format": "filepath" if asked.kind == "file" else asked.kind,
        "isRequired": asked.is_required,
        "isSecret": asked.is_secret,
    }
    if asked.default not in (None, ""):
        entry["default"] = asked.default if isinstance(asked.default, str) else json.dumps(asked.default)
    return entry | ({"choices": [*asked.choices]} if asked.choices else {})


def _packed(root: Path, paths: list[Path], described: Json) -> bytes:
    """The archive: the package, and what uv needs to install it."""
    files = {"manifest.json": _text(described), "server.py": _ENTRY.encode()}
    files |= {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}
    if named := [name for name, content in files.items() if _KEY.search(content)]:
        raise StartError([f"{name}: holds a private key; keep it outside the project" for name in named])
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            about = zipfile.ZipInfo(name)  # of 1980: when it was made does not change it
            about.compress_type = zipfile.ZIP_DEFLATED
            about.external_attr = 0o100644 << 16
            archive.writestr(about, files[name])
    return packed.getvalue()


def _packable(root: Path, settings: Settings) -> tuple[list[Path], list[Path]]:
    """Named files of the project and the package's; and those of the package that are secret, or links, and left out.

    What is hidden, as tools leave it, is passed over in silence.
    """
    secret = {path.resolve() for path in secret_paths(settings).values()}
    package = Path(__file__).parent
    packable: list[Path] = []
    left_out: list[Path] = []
    for path in (*(root / name for name in _FILES), *sorted(package.rglob("*"))):
        names = path.relative_to(root).parts
        if not path.is_file() or any(map(_HIDDEN.fullmatch, names)):
            continue
        private = path.is_symlink() or path.resolve() in secret or any(map(is_private, names))
        (left_out if private else packable).append(path)
    return packable, left_out


def is_private(name: str) -> bool:
    """Whether secrets go by this name: the last of `PRIVATE` that fits it says so."""
    fitting = [pattern for pattern in PRIVATE if fnmatchcase(name.lower(), pattern.removeprefix("!"))]
    return bool(fitting) and not fitting[-1].startswith("!")


def _text(value: Json) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
