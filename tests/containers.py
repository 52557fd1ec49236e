"""A container engine, an image and its containers, in the words that docker and podman share."""

import gzip
import json
import os
import secrets
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from raw import Json, Server

PATIENCE = 60  # seconds; an engine on a busy machine takes some of its own


class Engine:
    """docker, podman, or what behaves like them."""

    def __init__(self, program: str) -> None:
        self.program = program
        self.is_podman = "podman" in self("version").stdout.lower()

    def __call__(self, *arguments: str | Path, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Run one of its commands, which has to end with this code; None: with any."""
        # A layer for each instruction, as docker makes them: what one adds is found although the next removes it.
        variables = os.environ | {"BUILDAH_LAYERS": "true"}
        line = [self.program, *arguments]
        done = subprocess.run(line, env=variables, capture_output=True, encoding="utf-8", check=False)
        assert code in (None, done.returncode), done.stderr[-2000:]
        return done

    def build(self, context: Path, *options: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Build an image of a folder."""
        return self("build", *options, str(context), code=code)


def find_engine() -> Engine:
    """The engine that CONTAINER_ENGINE names, else docker or podman if they work; skips the test if there is none."""
    if named := os.environ.get("CONTAINER_ENGINE"):
        return Engine(named)
    for name in ("docker", "podman"):
        if shutil.which(name) and subprocess.run([name, "ps"], capture_output=True, check=False).returncode == 0:
            return Engine(name)
    pytest.skip("no container engine: install docker or podman, or name one like them in CONTAINER_ENGINE")


class Image:
    """An image, and what is in it. `config`: as the OCI image specification has it, with `config` and `rootfs`."""

    def __init__(self, engine: Engine, name: str, folder: Path) -> None:
        self.engine, self.name, self._folder = engine, name, folder
        self._saved = folder / f"{secrets.token_hex(4)}.tar"
        engine("save", "--output", self._saved, name)
        with tarfile.open(self._saved) as archive:
            (self._manifest,) = json.loads(self._member(archive, "manifest.json"))
            self.config: Json = json.loads(self._member(archive, self._manifest["Config"]))

    def layers(self) -> Iterator[bytes]:
        """The archive of each layer, the base image's first."""
        with tarfile.open(self._saved) as archive:
            for name in self._manifest["Layers"]:
                data = self._member(archive, name)
                yield gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data

    @cached_property
    def files(self) -> dict[str, tarfile.TarInfo]:
        """What a container of it sees, by path."""
        with tarfile.open(self._exported) as archive:
            return {"/" + member.name.removeprefix("./").strip("/"): member for member in archive}

    def read(self, path: str) -> bytes:
        """A file that a container of it sees."""
        with tarfile.open(self._exported) as archive:
            return self._member(archive, self.files[path].name)

    @cached_property
    def _exported(self) -> Path:
        path = self._saved.with_suffix(".files.tar")
        container = self.engine("create", self.name).stdout.strip()
        try:
            self.engine("export", "--output", path, container)
        finally:
            self.engine("rm", container)
        return path

    @staticmethod
    def _member(archive: tarfile.TarFile, name: str) -> bytes:
        file = archive.extractfile(name)
        assert file is not None, f"{name} is no file"
        return file.read()


class Container(Server):
    """A container in the foreground: its streams, its exit code. It is gone at the end, however that comes."""

    def __init__(self, image: Image, options: Sequence[str | Path], arguments: Sequence[str] = ()) -> None:
        self.image = image
        self.name = f"plinth-{secrets.token_hex(8)}"
        # What the engine itself has to say is not to stand in between the server's lines.
        run = [image.engine.program, "--log-level", "fatal", "run", "--name", self.name]
        super().__init__([*run, *options, image.name, *arguments], patience=PATIENCE)

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        super().__exit__(kind, error, trace)
        self.image.engine("rm", "--force", self.name, code=None)

    def __enter__(self) -> Self:
        return self

    def execute(self, *command: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Run a command in it."""
        return self.image.engine("exec", self.name, *command, code=code)

    def is_healthy(self) -> bool:
        """What its HEALTHCHECK says now. docker runs it by the clock only: there, its command is run in it."""
        if self.image.engine.is_podman:
            return self.image.engine("healthcheck", "run", self.name, code=None).returncode == 0
        kind, *command = self.image.config["config"]["Healthcheck"]["Test"]
        assert kind == "CMD"
        return self.execute(*command, code=None).returncode == 0

    def stop(self, *options: str) -> None:
        """Stop it as an operator does."""
        self.image.engine("stop", *options, self.name)
