"""Container, compose.yaml, Kubernetes and workflows, as far as their files tell. What you have removed is skipped."""

import json
import re
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import ROOT
from .harness import Json

CLEANUP_SECONDS = 10  # that a server may take after its drain (serving/http.py)


def text_of(name: str) -> str:
    """A file of the project; where there is none, there is nothing to hold it to."""
    if not (ROOT / name).is_file():
        pytest.skip(f"there is no {name}")
    return (ROOT / name).read_text(encoding="utf-8")


def instructions() -> list[tuple[str, str]]:
    """Those of the Dockerfile's last stage: each one's word and the rest of it."""
    joined = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", text_of("Dockerfile"), flags=re.MULTILINE))
    whole = [line.partition(" ") for line in joined.splitlines() if line.strip()]
    last = max(n for n, (word, _, _) in enumerate(whole) if word == "FROM")
    return [(word, rest.strip()) for word, _, rest in whole[last:]]


def said(word: str) -> str:
    """What the last stage says with an instruction; of several the last one counts."""
    return ([rest for each, rest in instructions() if each == word] or [""])[-1]


def compose() -> Json:
    """`compose.yaml`."""
    found: Json = yaml.safe_load(text_of("compose.yaml"))
    return found


def own_services() -> list[Json]:
    """The services of compose.yaml that run this project's image."""
    return [each for each in compose()["services"].values() if "build" in each]


def deployment() -> Json:
    """What Kubernetes is to run."""
    found: Json = yaml.safe_load(text_of("kubernetes/deployment.yaml"))["spec"]["template"]["spec"]
    return found


def workflows() -> Iterator[tuple[str, Any]]:
    """Each workflow file's name and content."""
    for path in sorted((ROOT / ".github" / "workflows").glob("*.y*ml")):
        yield path.name, yaml.safe_load(path.read_text(encoding="utf-8"))


def seconds(text: str) -> float:
    """`50s` or `1m30s`, as Compose writes times."""
    units = {"h": 3600, "m": 60, "s": 1}
    return sum(float(number) * units[unit] for number, unit in re.findall(r"([\d.]+)([hms])", text))


def test_image_runs_as_nobody() -> None:
    """By number, as Kubernetes can only then see that it is not root."""
    user = said("USER")
    assert re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", user), f"USER {user}: must be a number other than 0"


def test_image_says_how_it_is() -> None:
    """By the server's own subcommand: there is no curl in the image."""
    check = said("HEALTHCHECK")
    assert re.search(r'CMD \["[^"]+", "healthcheck"\]$', check), f"HEALTHCHECK {check}: must ask `healthcheck`"


def test_image_gets_its_signals() -> None:
    """The server is process 1: a shell there would keep SIGTERM to itself, and calls in flight would be lost."""
    assert isinstance(json.loads(said("ENTRYPOINT") or "null"), list), "ENTRYPOINT: must be a list, in brackets"
    assert said("STOPSIGNAL") in ("", "SIGTERM")


def test_image_is_what_is_locked() -> None:
    """Each `uv sync` takes the lock file as it is, or stops the build."""
    runs = [line for line in text_of("Dockerfile").splitlines() if "uv sync" in line and line.startswith("RUN")]
    assert runs
    assert [line for line in runs if not re.search("--(locked|frozen)", line)] == []


def test_only_what_is_named_goes_into_the_image() -> None:
    """No `.env`, no keys and no `.git` are sent to the build."""
    lines = [line for line in text_of(".dockerignore").splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*", ".dockerignore: must begin with *, and name what is let in"
    assert [line for line in lines if re.fullmatch(r"!\.?/?(\*+|\.env.*|.*keys.*|\.git)", line)] == []


def test_compose_hardens_each_service() -> None:
    """Read-only, without capabilities and new privileges, and not as root."""
    for name, service in compose()["services"].items():
        assert service.get("read_only") is True, f"{name}: read_only"
        assert service.get("cap_drop") == ["ALL"], f"{name}: cap_drop"
        assert "no-new-privileges" in str(service.get("security_opt")), f"{name}: security_opt"
        assert re.match(r"[1-9]", str(service.get("user", ""))), f"{name}: user"


def test_compose_publishes_on_this_machine_only() -> None:
    """What other machines reach goes through a proxy that ends TLS."""
    for name, service in compose()["services"].items():
        for port in service.get("ports", []):
            assert str(port).startswith(("127.0.0.1:", "[::1]:")), f"{name}: {port}"


def test_stop_is_long_enough() -> None:
    """Whoever stops the server waits for its drain: delay, timeout and cleanup."""
    periods: list[tuple[str, dict[str, str], float]] = []
    if (ROOT / "compose.yaml").is_file():
        for service in own_services():
            periods.append(("compose.yaml", service["environment"], seconds(service.get("stop_grace_period", "10s"))))
    if (ROOT / "kubernetes" / "kustomization.yaml").is_file():
        (made,) = yaml.safe_load(text_of("kubernetes/kustomization.yaml"))["configMapGenerator"]
        settings = dict(literal.split("=", 1) for literal in made["literals"])
        periods.append(("kubernetes", settings, deployment()["terminationGracePeriodSeconds"]))
    if not periods:
        pytest.skip("there is neither compose.yaml nor kubernetes/")
    for place, settings, period in periods:
        drain = sum(float(settings[f"MCP_DRAIN_{name}_SECONDS"]) for name in ("DELAY", "TIMEOUT"))
        assert period >= drain + CLEANUP_SECONDS, place
        assert float(settings["MCP_GRACE_PERIOD_SECONDS"]) == period, place


def test_pod_is_restricted() -> None:
    """As the restricted Pod Security Standard asks, and with a root that cannot be written."""
    pod = deployment()
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    assert pod["automountServiceAccountToken"] is False
    for container in pod["containers"]:
        context = container["securityContext"]
        assert context.get("readOnlyRootFilesystem") is True, container["name"]
        assert context.get("allowPrivilegeEscalation") is False, container["name"]
        assert context.get("capabilities") == {"drop": ["ALL"]}, container["name"]


def test_probes_ask_for_what_they_mean() -> None:
    """Liveness for the process alone, or an outage elsewhere would restart it; readiness for what it depends on."""
    for container in deployment()["containers"]:
        assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
        assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_pod_reaches_no_private_network() -> None:
    """What tools call on 443 is the internet: the cluster's own API is not, nor where clouds hand out credentials."""
    rules = yaml.safe_load(text_of("kubernetes/network-policy.yaml"))["spec"]["egress"]
    web = [rule for rule in rules if 443 in [port["port"] for port in rule["ports"]]]
    blocks = [peer["ipBlock"] for rule in web for peer in rule["to"] if "ipBlock" in peer]
    for own in ("10.0.0.1", "172.16.0.1", "192.168.0.1", "100.64.0.1", "169.254.169.254", "fd00:ec2::254", "fe80::1"):
        for block in blocks:
            left_out = any(ip_address(own) in ip_network(each) for each in block.get("except", ()))
            assert left_out or ip_address(own) not in ip_network(block["cidr"]), f"{block['cidr']} lets out to {own}"


def test_workflows_run_what_was_looked_at() -> None:
    """Each action by the digest of a commit: a tag can be moved."""
    steps = [step for _, each in workflows() for job in each["jobs"].values() for step in job.get("steps", [])]
    used = [step["uses"] for step in steps if not step.get("uses", "./").startswith("./")]
    assert [each for each in used if not re.search(r"@[0-9a-f]{40}$", each)] == []


def test_workflows_may_do_little() -> None:
    """None by default; each job asks for what it needs."""
    assert [name for name, each in workflows() if each.get("permissions") != {}] == []


def test_workflow_runs_the_checks() -> None:
    """Lint, format, types and this suite stand between a change and its release."""
    text = text_of(str(Path(".github", "workflows", "ci.yml")))
    for check in ("ruff check", "ruff format --check", "mypy", "pytest"):
        assert re.search(rf"uv run (--\S+ )*{check}$", text, re.MULTILINE), check
