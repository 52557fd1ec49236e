"""The workflow files, of generated projects and of this repository: what actionlint and zizmor say, and what they do not see."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bootstrap import ROOT
from rendering import CHECKS, metadata, render, run

Json = dict[str, Any]

BIN = Path(sys.executable).parent
WRITES = {
    ("release.yml", "wheel"): {"attestations", "id-token"},
    ("release.yml", "image"): {"attestations", "id-token", "packages"},
    ("canary.yml", "canary"): {"issues"},  # this repository's own
}
"""What jobs may write; all others read the repository's contents and no more."""


@pytest.fixture(scope="module", params=["generated", "own"])
def repository(request: pytest.FixtureRequest, rendered: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the `.github` of a generated project, or with this one's own."""
    source = {"generated": rendered, "own": ROOT}[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    shutil.copytree(source / ".github", folder / ".github")
    subprocess.run(["git", "init", "--quiet", folder], check=True)  # actionlint looks for workflows from its root
    return folder


def workflows(repository: Path) -> dict[str, Json]:
    """Its workflows, by the names of their files."""
    found = {path.name: yaml.safe_load(path.read_text(encoding="utf-8")) for path in workflow_files(repository)}
    assert found
    # YAML 1.1 reads the key `on` as true.
    return {
        name: {("on" if key is True else key): value for key, value in text.items()} for name, text in found.items()
    }


def workflow_files(repository: Path) -> list[Path]:
    """Where they are."""
    return sorted((repository / ".github" / "workflows").glob("*.yml"))


def jobs(repository: Path) -> Iterator[tuple[str, str, Json]]:
    """The file, the name and the text of each job."""
    for file, workflow in workflows(repository).items():
        for name, job in workflow["jobs"].items():
            yield file, name, job


def steps(repository: Path) -> Iterator[Json]:
    """All the steps of all the jobs."""
    for _, _, job in jobs(repository):
        yield from job.get("steps", [])


def actionlint(repository: Path) -> str:
    """What it complains of; with ShellCheck on PATH, of the scripts too."""
    program = shutil.which("actionlint", path=str(BIN))
    assert program, "it is in the dev group"
    done = subprocess.run([program], cwd=repository, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


def zizmor(repository: Path) -> list[str]:
    """The names of its findings: everything it looks for that needs no network, whatever comments say is to be ignored."""
    program = shutil.which("zizmor", path=str(BIN))
    assert program, "it is in the dev group"
    line = [program, "--offline", "--pedantic", "--no-ignores", "--no-exit-codes", "--strict-collection", "--quiet"]
    done = subprocess.run(
        [*line, "--format", "json", repository], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return [finding["ident"] for finding in json.loads(done.stdout)]


def test_actionlint_finds_nothing(repository: Path) -> None:
    """Syntax, expressions, inputs of actions, names of runners, and scripts are right."""
    assert actionlint(repository) == ""


def test_zizmor_finds_nothing(repository: Path) -> None:
    """No injection, no credential left behind, no permission too many, at its most pedantic; updates cool down."""
    assert zizmor(repository) == []


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("runs-on: ubuntu-latest", "runs-on: ubuntu-lates", 'label "ubuntu-lates" is unknown'),
        ("${{ matrix.python-version }}", "${{ matrix.python }}", 'property "python" is not defined'),
    ],
)
def test_actionlint_would_find_it(rendered: Path, tmp_path: Path, right: str, wrong: str, said: str) -> None:
    """It looks at the files."""
    assert said in actionlint(planted(rendered, tmp_path, right, wrong))


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("@9c091bb21b7c1c1d1991bb908d89e4e9dddfe3e0 # v7.0.0", "@v7", "unpinned-uses"),
        ("persist-credentials: false", "fetch-depth: 1", "artipacked"),
        ("docker build --pull --tag image:ci .", "echo ${{ github.head_ref }}", "template-injection"),
        ("permissions: {}\n", "permissions: write-all\n", "excessive-permissions"),
        ("  pull_request:\n", "  pull_request_target:\n", "dangerous-triggers"),
    ],
)
def test_zizmor_would_find_it(rendered: Path, tmp_path: Path, right: str, wrong: str, said: str) -> None:
    """It looks at the files, with these rules."""
    assert said in zizmor(planted(rendered, tmp_path, right, wrong))


def planted(project: Path, folder: Path, right: str, wrong: str) -> Path:
    """A repository whose ci.yml has something wrong in it."""
    shutil.copytree(project / ".github", folder / ".github")
    path = folder / ".github" / "workflows" / "ci.yml"
    text = path.read_text(encoding="utf-8")
    assert right in text
    path.write_text(text.replace(right, wrong), encoding="utf-8")
    subprocess.run(["git", "init", "--quiet", folder], check=True)
    return folder


def test_every_action_is_pinned_by_digest_with_its_version(repository: Path) -> None:
    """A tag can be moved; the comment is what Dependabot and people read. This repository's own workflows are at the commit
    that runs."""
    for path in workflow_files(repository):
        uses = re.findall(r"^ *-? *uses: (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        wrong = [each for each in uses if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", each)]
        assert [each for each in wrong if not each.startswith("$/.github/workflows/")] == [], path


def test_an_action_has_one_version(rendered: Path) -> None:
    """In all files, here and in generated projects: what was looked at is what runs."""
    text = "\n".join(path.read_text(encoding="utf-8") for folder in (rendered, ROOT) for path in workflow_files(folder))
    pins = set(re.findall(r"uses: ([\w./-]+)@([0-9a-f]{40} # \S+)", text))
    assert len(pins) == len({action for action, _ in pins})


def test_permissions_are_the_least(repository: Path) -> None:
    """None for the workflow; each job says what it may, and only a release may write, to what it publishes."""
    for file, workflow in workflows(repository).items():
        assert workflow["permissions"] == {}, file
    for file, name, job in jobs(repository):
        writes = {scope: "write" for scope in WRITES.get((file, name), ())}
        assert job["permissions"] == {"contents": "read", **writes}, (file, name)


def test_credentials_are_not_left_behind(repository: Path) -> None:
    """The token of the checkout is not kept where later steps, or what they install, can read it."""
    checkouts = [step for step in steps(repository) if step.get("uses", "").startswith("actions/checkout@")]
    assert checkouts
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)


def test_jobs_end_and_do_not_pile_up(repository: Path) -> None:
    """Each has a time limit, and each workflow a group of its own: one that calls another would else wait for itself."""
    for file, name, job in jobs(repository):
        assert "uses" in job or job["timeout-minutes"] <= 30, (file, name)
    groups = [workflow["concurrency"]["group"] for workflow in workflows(repository).values()]
    assert len(set(groups)) == len(groups)
    assert all("github.ref" in group for group in groups)


def test_forks_get_no_secrets_and_no_say(repository: Path) -> None:
    """No trigger that runs a fork's code with rights, no secret, and no expression in a script: what others can choose
    comes in by the environment, quoted."""
    for path in workflow_files(repository):
        text = re.sub("#.*", "", path.read_text(encoding="utf-8"))
        assert re.findall(r"\bsecrets\b|pull_request_target|workflow_run", text) == [], path
    for step in steps(repository):
        assert "${{" not in step.get("run", ""), step


def test_dependabot_keeps_everything_that_is_pinned(rendered: Path) -> None:
    """Python packages, actions and the base image, each a week after their release."""
    updates = yaml.safe_load((rendered / ".github" / "dependabot.yml").read_text(encoding="utf-8"))["updates"]
    assert sorted(update["package-ecosystem"] for update in updates) == ["docker", "github-actions", "uv"]
    for update in updates:
        assert (update["directory"], update["cooldown"]["default-days"]) == ("/", 7)
    assert (rendered / "Dockerfile").is_file()


# What the scripts do


def scripts(project: Path, file: str) -> dict[str, list[str]]:
    """The command lines of each job of one workflow."""
    return {
        name: [step["run"] for step in job.get("steps", []) if "run" in step]
        for name, job in workflows(project)[file]["jobs"].items()
    }


def test_ci_runs_the_checks_that_a_user_is_told_to_run(rendered: Path) -> None:
    """All of them, from the lock file: nothing newer is installed than what was tried."""
    lines = scripts(rendered, "ci.yml")
    checks = [check.replace("uv run ", "uv run --no-sync ") for check in CHECKS]
    assert set(checks) <= {line for job in lines.values() for line in job}
    for job in lines.values():
        uses_uv = [line for line in job if line.startswith("uv ")]
        assert uses_uv[:1] in ([], ["uv sync --locked"])
        assert all(line.startswith("uv run --no-sync ") for line in uses_uv[1:])


def test_ci_runs_the_image_as_production_does(rendered: Path) -> None:
    """Built from the project's own Dockerfile, started with no rights, and scanned under the same name."""
    build, start = scripts(rendered, "ci.yml")["image"]
    assert build.startswith("docker build ") and build.endswith(" --tag image:ci .")
    assert (rendered / "Dockerfile").is_file()
    for option in ("--read-only", "--tmpfs /tmp", "--cap-drop ALL", "--security-opt no-new-privileges"):
        assert f"{option} " in start
    assert start.endswith(" image:ci tools")  # a command of the server's
    assert any("aquasecurity/trivy-action@" in step.get("uses", "") for step in steps(rendered))
    (scan,) = [step["with"] for step in steps(rendered) if step.get("with", {}).get("image-ref")]
    assert (scan["image-ref"], scan["exit-code"]) == ("image:ci", "1")


def test_nothing_is_published_before_the_checks(rendered: Path) -> None:
    """A release is a version's tag; the whole of ci.yml comes first."""
    release = workflows(rendered)["release.yml"]
    assert release["on"] == {"push": {"tags": ["v[0-9]+.[0-9]+.[0-9]+*"]}}
    assert release["jobs"]["checks"]["uses"] == "$/.github/workflows/ci.yml"
    assert "workflow_call" in workflows(rendered)["ci.yml"]["on"]
    assert (release["jobs"]["wheel"]["needs"], release["jobs"]["image"]["needs"]) == ("checks", "wheel")


def test_a_release_has_provenance_and_keeps_its_wheel(rendered: Path) -> None:
    """The wheel and the image are attested by what they are, and the wheel is kept."""
    release = workflows(rendered)["release.yml"]["jobs"]

    def inputs(job: str, action: str) -> Json:
        (found,) = [step["with"] for step in release[job]["steps"] if step.get("uses", "").startswith(f"{action}@")]
        return dict(found)

    assert inputs("wheel", "actions/attest-build-provenance") == {"subject-path": "dist/*"}
    assert inputs("wheel", "actions/upload-artifact")["path"] == "dist/*"
    assert inputs("image", "actions/attest-build-provenance") == {
        "subject-name": "${{ steps.publish.outputs.image }}",
        "subject-digest": "${{ steps.publish.outputs.digest }}",
        "push-to-registry": True,
    }


def script(project: Path, job: str, name: str) -> str:
    """The script of a step of release.yml."""
    (found,) = [
        step["run"] for step in workflows(project)["release.yml"]["jobs"][job]["steps"] if step.get("name") == name
    ]
    return str(found)


def shell(line: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script as a runner does."""
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", line],
        cwd=folder,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.skipif(os.name == "nt", reason="runs the script in bash, as the runner does")
def test_a_tag_that_is_not_the_version_publishes_nothing(tmp_path: Path) -> None:
    """`v` and the version in pyproject.toml, or the wheel's job fails, and the image's waits for it."""
    project = render(tmp_path)
    version = metadata(project)["version"]
    assert run(project, "uv version --short").stdout.strip() == version
    program = tmp_path / "uv"
    program.write_text(f'#!/bin/sh\ntest "$*" = "version --short" && echo {version}\n', encoding="utf-8")
    program.chmod(0o755)
    line = script(project, "wheel", "Compare the tag with the version")
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    assert shell(line, project, PATH=path, GITHUB_REF_NAME=f"v{version}").returncode == 0
    for wrong in (version, "v9.9.9", f"v{version}.1"):
        assert shell(line, project, PATH=path, GITHUB_REF_NAME=wrong).returncode == 1


# Says what it is called with, and writes what buildx would.
DOCKER = """#!/usr/bin/env python3
import json, sys
words = sys.argv[1:]
with open("calls", "a") as calls:
    print(json.dumps([words, sys.stdin.read() if "--password-stdin" in words else ""]), file=calls)
if "--metadata-file" in words:
    with open(words[words.index("--metadata-file") + 1], "w") as file:
        json.dump({"containerimage.digest": "sha256:abc"}, file)
"""


@pytest.mark.skipif(shutil.which("jq") is None, reason="`apt-get install jq` installs what every runner has")
@pytest.mark.skipif(os.name == "nt", reason="runs the script in bash, as the runner does")
def test_an_image_is_published_under_the_repositorys_name_and_version(rendered: Path, tmp_path: Path) -> None:
    """In lower case, as registries want it, with SBOM and provenance; its digest is what is attested. The token is never an
    argument, which others on the machine could see."""
    (tmp_path / "docker").write_text(DOCKER, encoding="utf-8")
    (tmp_path / "docker").chmod(0o755)
    variables = {
        "PATH": os.pathsep.join([str(tmp_path), os.environ["PATH"]]),
        "REGISTRY": "registry.example.com",
        "GITHUB_ACTOR": "somebody",
        "GITHUB_REPOSITORY": "Some-Team/Spare.Parts",
        "GITHUB_REF_NAME": "v1.2.3",
        "GITHUB_SERVER_URL": "https://forge.example.com",
        "GITHUB_SHA": "c0ffee",
        "GITHUB_OUTPUT": str(tmp_path / "output"),
        "RUNNER_TEMP": str(tmp_path),
        "TOKEN": "token-of-the-workflow",
    }
    for name in ("Log in to the registry", "Build and publish", "Log out"):
        done = shell(script(rendered, "image", name), tmp_path, **variables)
        assert done.returncode == 0, done.stderr
    calls = [json.loads(line) for line in (tmp_path / "calls").read_text(encoding="utf-8").splitlines()]
    (login, token), (create, _), (build, _), (logout, _) = calls
    registry = variables["REGISTRY"]
    assert login == ["login", registry, "--username", "somebody", "--password-stdin"]
    assert token.strip() == variables["TOKEN"]
    assert create == ["buildx", "create", "--use"]  # the default builder makes no attestations
    assert {"--push", "--sbom=true", "--provenance=mode=max", "VERSION=1.2.3", "REVISION=c0ffee"} <= set(build)
    assert "org.opencontainers.image.source=https://forge.example.com/Some-Team/Spare.Parts" in build
    assert [build[number + 1] for number, word in enumerate(build) if word == "--tag"] == [
        f"{registry}/some-team/spare.parts:1.2.3"
    ]
    assert build[-1] == "."
    assert logout == ["logout", registry]
    assert (tmp_path / "output").read_text(encoding="utf-8").splitlines() == [
        f"image={registry}/some-team/spare.parts",
        "digest=sha256:abc",
    ]
    assert not any(variables["TOKEN"] in word for words, _ in calls for word in words)
    done = shell(script(rendered, "image", "Log in to the registry"), tmp_path, **variables | {"REGISTRY": ""})
    assert done.returncode == 1
    assert "set the variable REGISTRY" in done.stdout
