"""API keys: 32 random bytes behind a visible prefix and an id; only their hashes are kept.

The file: `{"keys": [{"id", "name", "sha256", "scopes", "created", "expires"}]}`, times in ISO 8601. A key of 256 random bits
cannot be guessed from its SHA-256, so no slow hash is needed.
"""

import os
import re
import secrets
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path
from stat import S_ISREG
from typing import IO, Annotated, Self

import structlog
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from ..errors import StartError
from ..settings import Settings
from ..validation import problems_of
from .credentials import Rejected
from .principal import SCOPE, Principal

PREFIX = "mcp"
_KEY = re.compile(PREFIX + r"_([0-9a-f]{12})_[\w-]{43}", re.ASCII)
_FRESH_SECONDS = 1.0
_LARGEST_FILE = 8 << 20  # bytes
_LONGEST_DAYS = 36500
_NOBODY = "0" * 64
_REMEDY = "Ask the server's operator for a new one."
_MOST_PROBLEMS = 10  # that are told of a file


class Key(BaseModel):
    """What is kept of a key."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    id: str = Field(pattern=r"^[0-9a-f]{12}$")
    name: str = Field(min_length=1, max_length=100)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    scopes: tuple[Annotated[str, Field(pattern=SCOPE)], ...] = ()
    created: AwareDatetime
    expires: AwareDatetime | None = None


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    keys: list[Key]


_Version = tuple[int, ...]


class ApiKeys:
    """The valid keys of a file, which may change: it is looked at once a second at most, when a key is to be checked.

    While it cannot be read, the keys that were read last stay valid, and it is tried again each second.
    """

    def __init__(self, path: Path) -> None:
        """Raises StartError: the file cannot be read."""
        self._path = path
        keys, self._current = _read(path)
        self._keys = _by_id(keys)
        self._failed: tuple[_Version | None, list[str]] | None = None  # what the last try found
        self._look_at = time.monotonic() + _FRESH_SECONDS

    @asynccontextmanager
    async def open(self, _: Settings) -> AsyncIterator[Self]:
        """There is nothing to open; for `Depends`."""
        yield self

    async def check_file(self) -> None:
        """Raises StartError: the file cannot be read, so keys that were taken out of it may be valid still."""
        self._look()
        if self._failed is not None:
            raise StartError(self._failed[1])

    @property
    def live(self) -> list[Key]:
        """The keys that have not expired."""
        now = datetime.now(UTC)
        return [key for key, _ in self._keys.values() if key.expires is None or key.expires > now]

    async def authenticate(self, credential: str) -> Principal:
        """Who holds this key; raises Rejected."""
        return self.check(credential)

    def check(self, credential: str) -> Principal:
        """Who holds this key; raises Rejected."""
        self._look()
        match = _KEY.fullmatch(credential)
        key, principal = (match and self._keys.get(match[1])) or (None, None)
        # A key that does not exist takes as long as one that is wrong.
        is_right = compare_digest(_hash(credential), key.sha256 if key is not None else _NOBODY)
        if not is_right or key is None or principal is None:
            raise Rejected(f"This API key is not valid. {_REMEDY}", "unknown key" if key is None else "wrong key")
        return _unexpired(key, principal)

    def recheck(self, principal: Principal) -> Principal:
        """As `Authenticator.recheck`. A new secret under the id is another key."""
        self._look()
        key, found = self._keys.get(principal.subject or "") or (None, None)
        if key is None or found is None or key.sha256 != principal.grant:
            raise Rejected(f"This API key is not valid. {_REMEDY}", "unknown key")
        return _unexpired(key, found)

    def _look(self) -> None:
        """Read the file anew if it has changed, and was not looked at in the last second."""
        if time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + _FRESH_SECONDS
        if (seen := _version(self._path)) == self._current:
            self._failed = None  # it is what it was
            return
        log = structlog.get_logger()
        try:
            keys, self._current = _read(self._path)
        except StartError as error:
            if self._failed != (seen, error.problems):
                log.error("api_keys_not_read", problems=error.problems, kept=len(self._keys))
            self._failed = (seen, error.problems)
        else:
            self._keys, self._failed = _by_id(keys), None
            log.info("api_keys_read", keys=len(self._keys))


def new_key(path: Path, name: str, scopes: Iterable[str], expires_days: float | None) -> str:
    """Make a key and add its hash to the file, which is made if it is not there.

    Args:
        path: the file.
        name: whose key it is.
        scopes: what it grants.
        expires_days: from now; None: never.

    Returns:
        The key, which is kept nowhere.

    Raises:
        StartError: the file cannot be read or written.
    """
    scopes = sorted(set(scopes))
    if not (name.isprintable() and 1 <= len(name) <= 100):
        raise StartError(["--name: must be 1 to 100 printable characters"])
    if not all(re.fullmatch(SCOPE, scope) for scope in scopes):
        raise StartError(["--scopes: must be words such as orders:write, without quotes and backslashes"])
    if expires_days is not None and not 0 < expires_days <= _LONGEST_DAYS:
        raise StartError([f"--expires-days: must be more than 0, and at most {_LONGEST_DAYS}"])
    path = Path(os.path.realpath(path))  # a link stays one
    now = datetime.now(UTC).replace(microsecond=0)
    key_id = secrets.token_hex(6)
    key = f"{PREFIX}_{key_id}_{secrets.token_urlsafe(32)}"
    expires = now + timedelta(days=expires_days) if expires_days is not None else None
    added = Key(id=key_id, name=name, sha256=_hash(key), scopes=tuple(scopes), created=now, expires=expires)
    try:
        with _replacing(path) as file:
            found = _read(path)[0] if path.exists() else []
            file.write(_File(keys=[*found, added]).model_dump_json(indent=2) + "\n")
    except FileExistsError:
        problem = f"{path.name}.new is there: another `keys new` is running, or one was interrupted; then remove it"
        raise StartError([f"MCP_API_KEYS_FILE: {problem}"]) from None
    except OSError as error:
        raise StartError([f"MCP_API_KEYS_FILE: the file cannot be written ({error.strerror})"]) from None
    return key


@contextmanager
def _replacing(path: Path) -> Iterator[IO[str]]:
    """Write the whole file anew, so that no reader sees half of it. Raises FileExistsError while another does."""
    beside = path.with_name(f"{path.name}.new")
    found = path.stat() if path.exists() else None
    mode = found.st_mode & 0o777 if found is not None else 0o600
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        if found is not None and hasattr(os, "fchown"):
            with suppress(PermissionError):  # only root may, and else would take the file from the server's user
                os.fchown(handle, found.st_uid, found.st_gid)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.chmod(mode)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _read(path: Path) -> tuple[list[Key], _Version]:
    """The keys, and which version of the file they are of."""
    try:
        with open(path, "rb", opener=_open) as file:
            found = os.fstat(file.fileno())
            if not S_ISREG(found.st_mode):
                raise StartError(["MCP_API_KEYS_FILE: is no regular file; name one that `keys new` has made"])
            data = file.read(_LARGEST_FILE + 1)
    except (OSError, ValueError) as error:  # ValueError: a path with NUL
        problem = f"the file cannot be read ({getattr(error, 'strerror', error)}); `keys new` makes it"
        raise StartError([f"MCP_API_KEYS_FILE: {problem}"]) from None
    if len(data) > _LARGEST_FILE:
        raise StartError([f"MCP_API_KEYS_FILE: the file is larger than {_LARGEST_FILE} bytes"])
    try:
        keys = _File.model_validate_json(data).keys
    except ValidationError as error:
        lines = [line.removeprefix("arguments: ") for line in problems_of(error, known=("keys",))]
        raise StartError(f"MCP_API_KEYS_FILE: {line}" for line in lines[:_MOST_PROBLEMS]) from None
    if len({key.id for key in keys}) < len(keys):
        raise StartError(["MCP_API_KEYS_FILE: keys: an id stands twice; remove one"])
    return keys, _version_of(found)


def _by_id(keys: Iterable[Key]) -> dict[str, tuple[Key, Principal]]:
    return {key.id: (key, _principal(key)) for key in keys}


def _principal(key: Key) -> Principal:
    return Principal("api_key", frozenset(key.scopes), client=key.name, subject=key.id, grant=key.sha256)


def _unexpired(key: Key, principal: Principal) -> Principal:
    if key.expires is not None and key.expires <= datetime.now(UTC):
        raise Rejected(f"This API key has expired. {_REMEDY}", "expired key")
    return principal


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe that nobody writes to would be waited for


def _version(path: Path) -> _Version | None:
    try:
        return _version_of(path.stat())
    except (OSError, ValueError):
        return None


def _version_of(found: os.stat_result) -> _Version:
    """What changes with a file; ctime too, as a file that becomes readable has the mtime that it had."""
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino, found.st_dev


def _hash(key: str) -> str:
    return sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
