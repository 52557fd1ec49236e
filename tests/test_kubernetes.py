"""The Kubernetes manifests: what kustomize makes of them is valid, restricted, fits together, and starts a real server."""

import copy
import json
import re
import secrets
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from bootstrap import environment, free_port
from installed import SLUG, Installed, install, modern
from rendering import metadata, render

pytestmark = pytest.mark.timeout(300)  # the first of the last ones waits for an install

Json = dict[str, Any]

SECRETS = "/run/secrets/server/"
# What the Dockerfile sets; a test says so.
IMAGE = {"MCP_ENVIRONMENT": "production", "MCP_HOST": "0.0.0.0", "MCP_TRANSPORT": "http"}
VERSIONS = ("1.32", "1.34", "1.37")  # of Kubernetes: the oldest that is widely run, and newer ones
KINDS = {
    "ConfigMap",
    "Deployment",
    "HorizontalPodAutoscaler",
    "NetworkPolicy",
    "PodDisruptionBudget",
    "Service",
    "ServiceAccount",
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with manifests."""
    return render(tmp_path_factory.mktemp("kubernetes"), project_name="Spare Parts", kubernetes="yes")


@pytest.fixture(scope="module")
def built(project: Path) -> dict[str, Json]:
    """What `kubectl kustomize` makes of them, by kind."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not on PATH; `apt-get install kubernetes-client` installs one")
    done = subprocess.run(
        [kubectl, "kustomize", project / "kubernetes"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # kustomize warns of deprecated fields there
    documents = list(yaml.safe_load_all(done.stdout))
    kinds = {document["kind"]: document for document in documents}
    assert len(kinds) == len(documents)
    return kinds


@pytest.fixture(scope="module")
def pod(built: dict[str, Json]) -> Json:
    """The deployment's pod: `metadata` and `spec`."""
    template: Json = built["Deployment"]["spec"]["template"]
    return template


@pytest.fixture(scope="module")
def container(pod: Json) -> Json:
    """The pod's one container."""
    (only,) = pod["spec"]["containers"]
    return dict(only)


@pytest.fixture(scope="module")
def settings(built: dict[str, Json]) -> dict[str, str]:
    """What the server is set to."""
    return dict(built["ConfigMap"]["data"])


def put(document: Json, path: str, value: object) -> Json:
    """A copy with this value at a path as in `spec.containers.0.name`; None takes out what is there."""
    changed = copy.deepcopy(document)
    *parents, last = path.split(".")
    at: Any = changed
    for name in parents:
        at = at[int(name)] if isinstance(at, list) else at.setdefault(name, {})
    if isinstance(at, list):
        at[int(last)] = value
    elif value is None:
        del at[last]
    else:
        at[last] = value
    return changed


# Schemas


def invalid(document: Json, version: str) -> str | None:
    """What the published schema of this version of Kubernetes says against it; fields that it does not know too."""
    try:
        kubernetes_validate.validate(document, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return str(error.message)
    return None


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_fits_the_published_schema(built: dict[str, Json], version: str) -> None:
    """Nothing is misspelt, missing, or newer than the oldest version that is supported."""
    assert built.keys() == KINDS
    assert {kind: invalid(document, version) for kind, document in built.items()} == dict.fromkeys(KINDS)


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("Deployment", "spec.template.spec.containers.0.readinessprobe", {}),
        ("Deployment", "spec.selector", None),
        ("HorizontalPodAutoscaler", "spec.maxReplicas", "six"),
        ("NetworkPolicy", "spec.egress", {}),
    ],
)
def test_the_schemas_refuse_what_is_wrong(built: dict[str, Json], kind: str, path: str, value: object) -> None:
    """A name, a type or a required field that is not right is found."""
    assert invalid(put(built[kind], path, value), VERSIONS[-1]) is not None


# The Pod Security Standards, https://kubernetes.io/docs/concepts/security/pod-security-standards/, rule by rule. A profile is
# what the pod itself says, then what each of its containers says.


def containers(pod: Json) -> list[Json]:
    """Those of every sort."""
    return [
        each for sort in ("containers", "initContainers", "ephemeralContainers") for each in pod["spec"].get(sort, [])
    ]


def contexts(pod: Json) -> list[Json]:
    """The security contexts of the pod and of its containers."""
    return [pod["spec"].get("securityContext", {}), *(each.get("securityContext", {}) for each in containers(pod))]


def said(pod: Json, *path: str) -> list[Any]:
    """What the contexts that say something say there."""
    found = []
    for context in contexts(pod):
        at: Any = context
        for name in path:
            at = at.get(name) if isinstance(at, dict) else None
        found.append(at)
    return [each for each in found if each is not None]


def in_each(pod: Json, *path: str) -> list[Any]:
    """What counts for each container: its own word, else the pod's."""
    own, *others = [said({"spec": {"securityContext": context}}, *path) for context in contexts(pod)]
    return [(each or own or [None])[0] for each in others]


def added(pod: Json) -> set[str]:
    """The capabilities that containers are given."""
    return {each for names in said(pod, "capabilities", "add") for each in names}


def handlers(pod: Json) -> list[Json]:
    """What probes and hooks do."""
    names = ("livenessProbe", "readinessProbe", "startupProbe")
    probes = [each[name] for each in containers(pod) for name in names if name in each]
    return probes + [hook for each in containers(pod) for hook in each.get("lifecycle", {}).values()]


def hosts(pod: Json) -> list[str]:
    """The hosts that probes and hooks name."""
    return [do[by]["host"] for do in handlers(pod) for by in ("httpGet", "tcpSocket") if "host" in do.get(by, {})]


DEFAULT_CAPABILITIES = {
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
}
SAFE_SYSCTLS = {
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
}
SELINUX_TYPES = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
SECCOMP = {"RuntimeDefault", "Localhost"}
APPARMOR = "container.apparmor.security.beta.kubernetes.io/"
FIRST = "spec.containers.0."
CONTEXT = f"{FIRST}securityContext."
BARE: Json = {"name": "other", "image": "other:1"}

# A rule: whether a pod keeps it, and changes that break it.
BASELINE: dict[str, tuple[Callable[[Json], bool], list[tuple[str, object]]]] = {
    "no process of a Windows host": (
        lambda pod: not any(said(pod, "windowsOptions", "hostProcess")),
        [("spec.securityContext.windowsOptions", {"hostProcess": True})],
    ),
    "no namespace of the host": (
        lambda pod: not any(pod["spec"].get(name) for name in ("hostNetwork", "hostPID", "hostIPC")),
        [("spec.hostNetwork", True), ("spec.hostPID", True), ("spec.hostIPC", True)],
    ),
    "not privileged": (lambda pod: not any(said(pod, "privileged")), [(f"{CONTEXT}privileged", True)]),
    "no capabilities beyond the usual": (
        lambda pod: added(pod) <= DEFAULT_CAPABILITIES,
        [(f"{CONTEXT}capabilities.add", ["NET_ADMIN"])],
    ),
    "no path of the host": (
        lambda pod: not any("hostPath" in volume for volume in pod["spec"]["volumes"]),
        [("spec.volumes.0", {"name": "tmp", "hostPath": {"path": "/tmp"}})],
    ),
    "no port of the host": (
        lambda pod: not any(port.get("hostPort") for each in containers(pod) for port in each.get("ports", [])),
        [(f"{FIRST}ports.0.hostPort", 8000)],
    ),
    "probes and hooks name no host": (
        lambda pod: not any(hosts(pod)),
        [
            (f"{FIRST}livenessProbe.httpGet.host", "10.0.0.1"),
            (f"{FIRST}lifecycle.preStop.tcpSocket", {"host": "10.0.0.1", "port": 80}),
        ],
    ),
    "AppArmor is not switched off": (
        lambda pod: (
            "Unconfined" not in said(pod, "appArmorProfile", "type")
            and not any(
                name.startswith(APPARMOR) and value == "unconfined"
                for name, value in pod["metadata"].get("annotations", {}).items()
            )
        ),
        [
            (f"{CONTEXT}appArmorProfile", {"type": "Unconfined"}),
            ("metadata.annotations", {f"{APPARMOR}server": "unconfined"}),
        ],
    ),
    "SELinux: no user, no role, a type for containers": (
        lambda pod: (
            not any(said(pod, "seLinuxOptions", "user") + said(pod, "seLinuxOptions", "role"))
            and set(said(pod, "seLinuxOptions", "type")) <= SELINUX_TYPES
        ),
        [
            ("spec.securityContext.seLinuxOptions", {"type": "spc_t"}),
            (f"{CONTEXT}seLinuxOptions", {"user": "system_u"}),
            (f"{CONTEXT}seLinuxOptions", {"role": "sysadm_r"}),
        ],
    ),
    "/proc is masked": (
        lambda pod: set(said(pod, "procMount")) <= {"Default"},
        [(f"{CONTEXT}procMount", "Unmasked")],
    ),
    "seccomp is not switched off": (
        lambda pod: set(said(pod, "seccompProfile", "type")) <= SECCOMP,
        [(f"{CONTEXT}seccompProfile", {"type": "Unconfined"})],
    ),
    "no unsafe sysctl": (
        lambda pod: {each["name"] for each in pod["spec"]["securityContext"].get("sysctls", [])} <= SAFE_SYSCTLS,
        [("spec.securityContext.sysctls", [{"name": "kernel.msgmax", "value": "1"}])],
    ),
}
RESTRICTED: dict[str, tuple[Callable[[Json], bool], list[tuple[str, object]]]] = {
    "volumes of the core types only": (
        lambda pod: all(volume.keys() - {"name"} <= VOLUMES for volume in pod["spec"]["volumes"]),
        [("spec.volumes.0", {"name": "tmp", "nfs": {"server": "x", "path": "/"}})],
    ),
    "no privilege escalation": (
        lambda pod: all(
            each.get("securityContext", {}).get("allowPrivilegeEscalation") is False for each in containers(pod)
        ),
        [
            (f"{CONTEXT}allowPrivilegeEscalation", True),
            (f"{CONTEXT}allowPrivilegeEscalation", None),
            ("spec.initContainers", [BARE]),
        ],
    ),
    "not as root": (
        lambda pod: all(value is True for value in in_each(pod, "runAsNonRoot")),
        [
            ("spec.securityContext.runAsNonRoot", None),
            ("spec.securityContext.runAsNonRoot", False),
            (f"{CONTEXT}runAsNonRoot", False),
        ],
    ),
    "no user 0": (
        lambda pod: 0 not in said(pod, "runAsUser"),
        [("spec.securityContext.runAsUser", 0), (f"{CONTEXT}runAsUser", 0)],
    ),
    "a seccomp profile": (
        lambda pod: set(in_each(pod, "seccompProfile", "type")) <= SECCOMP,
        [
            ("spec.securityContext.seccompProfile", None),
            (f"{CONTEXT}seccompProfile", {"type": "Unconfined"}),
        ],
    ),
    "all capabilities dropped": (
        lambda pod: (
            all(
                "ALL" in each.get("securityContext", {}).get("capabilities", {}).get("drop", [])
                for each in containers(pod)
            )
            and added(pod) <= {"NET_BIND_SERVICE"}
        ),
        [
            (f"{CONTEXT}capabilities", None),
            (f"{CONTEXT}capabilities.drop", ["NET_RAW"]),
            (f"{CONTEXT}capabilities.add", ["CHOWN"]),
            ("spec.initContainers", [BARE]),
        ],
    ),
}
OWN: dict[str, tuple[Callable[[Json], bool], list[tuple[str, object]]]] = {
    "the root file system is read-only": (
        lambda pod: all(
            each.get("securityContext", {}).get("readOnlyRootFilesystem") is True for each in containers(pod)
        ),
        [(f"{CONTEXT}readOnlyRootFilesystem", None), ("spec.initContainers", [BARE])],
    ),
    "the user is the image's, by number": (
        lambda pod: said(pod, "runAsUser") == said(pod, "runAsGroup") == said(pod, "fsGroup") == [65532],
        [("spec.securityContext.runAsUser", 1000), ("spec.securityContext.fsGroup", None)],
    ),
    "/tmp is in memory, and bounded": (
        lambda pod: volume_at(pod, "/tmp").get("emptyDir", {}) == {"medium": "Memory", "sizeLimit": "16Mi"},
        [("spec.volumes.0.emptyDir", {}), (f"{FIRST}volumeMounts.0.mountPath", "/var/tmp")],
    ),
    "others cannot read the secrets": (
        lambda pod: (
            volume_at(pod, SECRETS.rstrip("/")).get("secret", {}).get("defaultMode") == 0o440
            and all(mount["readOnly"] for mount in mounts(pod) if mount["name"] == "secrets")
        ),
        [("spec.volumes.1.secret.defaultMode", None), (f"{FIRST}volumeMounts.1.readOnly", False)],
    ),
    "no token of the cluster": (
        lambda pod: pod["spec"].get("automountServiceAccountToken") is False,
        [("spec.automountServiceAccountToken", None)],
    ),
    "services of the namespace do not set settings": (
        lambda pod: pod["spec"].get("enableServiceLinks") is False,
        [("spec.enableServiceLinks", None)],
    ),
    "requests, and a limit of memory but none of processor time": (
        lambda pod: all(
            each["resources"]["requests"].keys() == {"cpu", "memory"}
            and each["resources"]["limits"].keys() == {"memory"}
            for each in containers(pod)
        ),
        [(f"{FIRST}resources.limits.cpu", "1"), (f"{FIRST}resources.requests.cpu", None)],
    ),
    "the server waits by itself: no hook does so too": (
        lambda pod: not any("lifecycle" in each for each in containers(pod)),
        [(f"{FIRST}lifecycle.preStop.sleep.seconds", 10)],
    ),
}


def mounts(pod: Json) -> list[Json]:
    """Where the container's volumes are mounted."""
    found: list[Json] = pod["spec"]["containers"][0]["volumeMounts"]
    return found


def volume_at(pod: Json, path: str) -> Json:
    """The volume that is mounted there; empty if there is none."""
    names = {mount["name"] for mount in mounts(pod) if mount["mountPath"] == path}
    return next((dict(volume) for volume in pod["spec"]["volumes"] if volume["name"] in names), {})


RULES = BASELINE | RESTRICTED | OWN


@pytest.mark.parametrize("rule", RULES)
def test_the_pod_keeps_the_rule(pod: Json, rule: str) -> None:
    """Every rule of the Pod Security Standards, baseline and restricted, and those of the house."""
    keeps, _ = RULES[rule]
    assert keeps(pod)


@pytest.mark.parametrize(
    ("rule", "path", "value"),
    [
        pytest.param(rule, path, value, id=f"{rule}: {path}")
        for rule, (_, changes) in RULES.items()
        for path, value in changes
    ],
)
def test_a_pod_that_breaks_the_rule_is_found(pod: Json, rule: str, path: str, value: object) -> None:
    """Each rule can fail."""
    keeps, _ = RULES[rule]
    assert not keeps(put(pod, path, value))


# How it fits together


def test_selectors_match_the_pods_labels(built: dict[str, Json], pod: Json) -> None:
    """The deployment, service, budget, policy and spread choose the server's pods, and nothing in the namespace beside."""
    labels = pod["metadata"]["labels"]
    assert labels == {"app.kubernetes.io/name": SLUG}
    assert built["Deployment"]["spec"]["selector"] == {"matchLabels": labels}
    assert built["Service"]["spec"]["selector"] == labels
    assert built["PodDisruptionBudget"]["spec"]["selector"] == {"matchLabels": labels}
    assert built["NetworkPolicy"]["spec"]["podSelector"] == {"matchLabels": labels}
    spread = pod["spec"]["topologySpreadConstraints"]
    assert [each["labelSelector"] for each in spread] == [{"matchLabels": labels}] * 2
    assert {each["topologyKey"] for each in spread} == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}


def test_every_object_has_the_label(built: dict[str, Json]) -> None:
    """One selector finds all that belongs to the server."""
    for document in built.values():
        assert document["metadata"]["labels"] == {"app.kubernetes.io/name": SLUG}, document["kind"]


def test_names_are_those_of_objects_that_exist(built: dict[str, Json], pod: Json, container: Json) -> None:
    """The autoscaler, the pod's account and its settings point at what is there."""
    target = built["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    deployment = built["Deployment"]
    assert target == {
        "apiVersion": deployment["apiVersion"],
        "kind": "Deployment",
        "name": deployment["metadata"]["name"],
    }
    account = built["ServiceAccount"]
    assert pod["spec"]["serviceAccountName"] == account["metadata"]["name"]
    assert account["automountServiceAccountToken"] is False
    # With a hash in its name: pods are replaced when a setting changes.
    name = built["ConfigMap"]["metadata"]["name"]
    assert re.fullmatch(rf"{SLUG}-[a-z0-9]{{10}}", name)
    assert container["envFrom"] == [{"configMapRef": {"name": name}}]
    assert "env" not in container


def test_the_image_is_this_version_of_the_project(project: Path, container: Json) -> None:
    """The tag is the version in pyproject.toml, never `latest`."""
    assert container["image"] == f"{SLUG}:{metadata(project)['version']}"


def test_ports_are_those_the_server_listens_on(
    built: dict[str, Json], pod: Json, container: Json, settings: dict[str, str], project: Path
) -> None:
    """Service, probes, scraping and the policy use ports that the container has and the settings name."""
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert "\n# MCP_PORT=8000\n" in (project / ".env.example").read_text(encoding="utf-8")
    assert ports == {"http": 8000, "metrics": int(settings["MCP_METRICS_PORT"])}
    (port,) = built["Service"]["spec"]["ports"]
    assert port["targetPort"] == "http"
    for probe, path in {"startup": "/livez", "liveness": "/livez", "readiness": "/readyz"}.items():
        assert container[f"{probe}Probe"]["httpGet"] == {"path": path, "port": "http"}
    assert pod["metadata"]["annotations"] == {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": settings["MCP_METRICS_PORT"],
        "prometheus.io/path": "/metrics",
    }


def test_the_policy_lets_in_clients_and_metrics_and_out_what_is_needed(
    built: dict[str, Json], settings: dict[str, str]
) -> None:
    """Nobody reads metrics but Prometheus; beyond names, Redis, traces and 443 nothing is reached, credentials of clouds least."""
    policy = built["NetworkPolicy"]["spec"]
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    assert [[port["port"] for port in rule["ports"]] for rule in policy["ingress"]] == [["http"], ["metrics"]]
    assert all(rule["from"] for rule in policy["ingress"])
    assert {"podSelector": {}} not in policy["ingress"][1]["from"]

    def reached(rule: Json) -> set[tuple[str, int]]:
        return {(port.get("protocol", "TCP"), port["port"]) for port in rule["ports"]}

    names, redis, collector, web = policy["egress"]
    assert reached(names) == {("UDP", 53), ("TCP", 53)}
    assert settings["MCP_RATE_LIMIT_STORE"].startswith("redis://")
    assert reached(redis) == {("TCP", int(settings["MCP_RATE_LIMIT_STORE"].rpartition(":")[2].partition("/")[0]))}
    assert reached(collector) == {("TCP", 4318)}  # OTLP over HTTP
    assert [peer["namespaceSelector"] for peer in collector["to"]] == [
        peer["namespaceSelector"] for peer in policy["ingress"][1]["from"]
    ]
    assert reached(web) == {("TCP", 443)}
    assert not any(reachable(policy["egress"], address) for address in OWN_NETWORKS)
    assert all(reachable(policy["egress"], address) for address in PUBLIC)


# Where a cluster's API, its nodes and services are, and where clouds hand out credentials; each as IPv6 can write it, too.
OWN_NETWORKS = (
    *(
        "10.96.0.1",
        "10.255.255.254",
        "172.16.0.1",
        "172.20.0.1",
        "172.31.255.254",
        "192.168.49.2",
        "100.64.0.1",
        "100.127.0.1",
    ),
    *(
        "169.254.169.254",
        "169.254.170.2",
        "127.0.0.1",
        "0.0.0.1",
        "198.18.0.1",
        "192.0.0.192",
        "224.0.0.1",
        "255.255.255.255",
    ),
    *("::1", "fe80::1", "fd00::1", "fd00:ec2::254", "fc00::1", "ff02::1", "::ffff:10.96.0.1", "64:ff9b::10.96.0.1"),
    *("2002:a60:1::1", "2001:0:a60:1::1", "::10.96.0.1"),
)
PUBLIC = (
    "1.1.1.1",
    "9.255.255.255",
    "11.0.0.1",
    "172.15.0.1",
    "172.32.0.1",
    "100.63.0.1",
    "192.169.0.1",
    "223.5.5.5",
    "2606:4700::1111",
)


def reachable(egress: list[Json], address: str) -> bool:
    """Whether a rule lets 443 out to this address; a rule that names pods lets it out to none."""
    found = ip_address(address)
    blocks = [
        peer["ipBlock"]
        for rule in egress
        for peer in rule["to"]
        if "ipBlock" in peer and 443 in (port["port"] for port in rule["ports"])
    ]
    return any(
        found in ip_network(block["cidr"])
        and not any(found in ip_network(network) for network in block.get("except", ()))
        for block in blocks
    )


@pytest.mark.parametrize(
    ("path", "value", "address"),
    [
        ("spec.egress.3.to.0.ipBlock.except", None, "10.96.0.1"),
        ("spec.egress.3.to.0.ipBlock.except", ["169.254.0.0/16"], "192.168.49.2"),
        ("spec.egress.3.to.0.ipBlock.except", ["10.0.0.0/8"], "169.254.169.254"),
        ("spec.egress.3.to.1.ipBlock", {"cidr": "::/0"}, "fd00::1"),
        ("spec.egress.3.to.0", {"ipBlock": {"cidr": "10.96.0.1/32"}}, "10.96.0.1"),
    ],
)
def test_a_way_to_the_clusters_own_api_is_seen(built: dict[str, Json], path: str, value: object, address: str) -> None:
    """What the policy leaves out counts, and a rule that is too wide is found."""
    policy = built["NetworkPolicy"]
    assert not reachable(policy["spec"]["egress"], address)
    assert reachable(put(policy, path, value)["spec"]["egress"], address)


def test_a_stop_fits_into_the_grace_period(pod: Json, settings: dict[str, str]) -> None:
    """Delay, timeout and 10 s to clean up; endpoints are known to be gone 5 s after the signal, so the delay is longer."""
    grace = pod["spec"]["terminationGracePeriodSeconds"]
    delay, timeout = (float(settings[f"MCP_DRAIN_{name}_SECONDS"]) for name in ("DELAY", "TIMEOUT"))
    assert float(settings["MCP_GRACE_PERIOD_SECONDS"]) == grace
    assert delay + timeout + 10 < grace
    assert delay >= 5
    assert timeout >= 30  # the default of MCP_TOOL_TIMEOUT_SECONDS: no call of a usual tool is cut


def test_replicas_budget_and_autoscaler_agree(built: dict[str, Json], settings: dict[str, str]) -> None:
    """Two at least, of which one may be gone and one not; a rollout takes none away; applying again scales nothing."""
    scale = built["HorizontalPodAutoscaler"]["spec"]
    assert scale["minReplicas"] == int(settings["MCP_REPLICAS"]) == 2
    assert scale["maxReplicas"] > scale["minReplicas"]
    assert 0 < built["PodDisruptionBudget"]["spec"]["maxUnavailable"] < scale["minReplicas"]
    assert "replicas" not in built["Deployment"]["spec"]
    rollout = built["Deployment"]["spec"]["strategy"]["rollingUpdate"]
    assert (rollout["maxUnavailable"], rollout["maxSurge"]) == (0, 1)


def test_every_setting_that_is_named_exists(project: Path, settings: dict[str, str]) -> None:
    """In the settings and in comments; a `_FILE` twin is that of a setting."""
    known = set(re.findall(r"^# (MCP_\w+)=", (project / ".env.example").read_text(encoding="utf-8"), re.MULTILINE))
    texts = [path.read_text(encoding="utf-8") for path in (project / "kubernetes").iterdir()]
    named = {name for text in texts for name in re.findall(r"\bMCP_\w+", text)}
    assert named >= settings.keys()
    assert {name for name in named if name not in known and name.removesuffix("_FILE") not in known} == set()


def test_the_secret_is_made_as_the_comment_says(project: Path, pod: Json, settings: dict[str, str]) -> None:
    """It is not among the files; the commands in the comment make each file that a setting names, under the name of the
    volume's."""
    files = {name: value for name, value in settings.items() if name.endswith("_FILE")}
    assert len(files) == 2
    assert all(path.startswith(SECRETS) for path in files.values())
    comment = (project / "kubernetes" / "kustomization.yaml").read_text(encoding="utf-8").partition("\napiVersion")[0]
    made = re.findall(r"--from-file=(\S+)", comment) + re.findall(r"--from-literal=([\w-]+)=", comment)
    assert {SECRETS + name for name in made} == set(files.values())
    assert f"create secret generic {pod['spec']['volumes'][1]['secret']['secretName']} " in comment


# A real server with these settings


@contextmanager
def redis() -> Iterator[int]:
    """The port of a Redis that is ended with the block."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not on PATH; `apt-get install redis-server` installs it")
    port = free_port()
    line = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert any("Ready to accept connections" in said for said in process.stdout)
            yield port
        finally:
            process.kill()


@pytest.fixture(scope="module")
def installed(project: Path) -> Installed:
    """The project, installed."""
    return install(project)


@pytest.fixture(scope="module")
def key(installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """An API key, and the folder with the files of the secret."""
    folder = tmp_path_factory.mktemp("secret")
    made = installed.new_key(folder / "keys.json")
    state_keys = folder / "request-state-keys"
    state_keys.touch(0o600)
    state_keys.write_text(secrets.token_hex(32), encoding="utf-8")
    return made, folder


@pytest.fixture
def variables(settings: dict[str, str], key: tuple[str, Path]) -> Iterator[dict[str, str]]:
    """The pod's environment: the image's and the config map's, with secrets, Redis and ports that are here."""
    with redis() as port:
        here = {"MCP_RATE_LIMIT_STORE": f"redis://127.0.0.1:{port}/0", "MCP_PORT": "0", "MCP_METRICS_PORT": "0"}
        moved = {name: value.replace(SECRETS, f"{key[1]}/") for name, value in settings.items()}
        yield IMAGE | moved | here


def test_the_image_sets_what_the_manifests_leave_to_it(project: Path) -> None:
    """Production, over HTTP, for the whole pod."""
    text = (project / "Dockerfile").read_text(encoding="utf-8")
    (line,) = re.findall("^ENV .*MCP_TRANSPORT.*", text, re.MULTILINE)
    assert set(line.split()) >= {f"{name}={value}" for name, value in IMAGE.items()}


def doctor(installed: Installed, variables: dict[str, str]) -> Json:
    """What the checklist says, as production."""
    line = [installed.command, "doctor", "--production", "--json"]
    done = subprocess.run(line, env=environment() | variables, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout, done.stderr
    report: Json = json.loads(done.stdout)
    assert done.returncode == (0 if report["passed"] else 1)
    return report


@pytest.mark.install
def test_the_checklist_passes_with_the_settings_of_the_manifests(
    installed: Installed, variables: dict[str, str]
) -> None:
    """Every row, two of which say that only a container shows it: the pod's rules above are for those."""
    rows = {row["item"]: row for row in doctor(installed, variables)["rows"]}
    assert {item: row["remedy"] for item, row in rows.items() if not row["passed"]} == {}
    unjudged = {item for item, row in rows.items() if row["found"].startswith("not judged")}
    assert unjudged == {"root-file-system", "unprivileged-user"}
    assert rows["stop-time"]["found"] == "takes up to 50 s of 60 s"
    assert [rows[item]["found"] for item in ("request-state-keys", "shared-rate-limit")] == ["shared", "shared"]


@pytest.mark.install
@pytest.mark.parametrize(
    ("taken", "row"),
    [
        ("MCP_ALLOWED_HOSTS", "allowed-hosts"),
        ("MCP_AUTH_MODE", "authentication"),
        ("MCP_GRACE_PERIOD_SECONDS", "stop-time"),
        ("MCP_RATE_LIMIT_STORE", "shared-rate-limit"),
        ("MCP_REQUEST_STATE_KEYS_FILE", "request-state-keys"),
        ("MCP_TRUSTED_PROXIES", "trusted-proxies"),
    ],
)
def test_the_checklist_fails_without_a_setting(
    installed: Installed, variables: dict[str, str], taken: str, row: str
) -> None:
    """Each is in the manifests for a reason."""
    del variables[taken]
    assert [each["item"] for each in doctor(installed, variables)["rows"] if not each["passed"]] == [row]


@pytest.mark.install
def test_a_server_starts_in_production_with_the_settings_of_the_manifests(
    installed: Installed, variables: dict[str, str], key: tuple[str, Path], container: Json
) -> None:
    """The probes pass, the metrics are read, and a caller with a key is answered under the service's name only."""
    command = [installed.command]  # as the image's entry point
    with subprocess.Popen(command, env=environment() | variables, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            ports: dict[str, str] = {}
            for line in server.stderr:
                event = json.loads(line)
                assert event["level"] == "info", event
                if "url" in event:
                    ports[event["event"]] = event["url"].rpartition(":")[2].partition("/")[0]
                if ports.keys() == {"listening", "metrics_listening"}:
                    break
            threading.Thread(target=server.stderr.read).start()
            base = f"http://127.0.0.1:{ports['listening']}"
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                deadline = time.monotonic() + 60  # Redis has 50 ms to answer in, which a busy machine may take from it
                while (found := get(base + container[probe]["httpGet"]["path"])) and time.monotonic() < deadline:
                    if json.loads(found[1])["status"] == "ok":
                        break
                    time.sleep(1)
                assert (found[0], json.loads(found[1])["status"]) == (200, "ok")
            assert get(f"http://127.0.0.1:{ports['metrics_listening']}/metrics")[0] == 200
            assert call(base, host=SLUG, key=key[0]) == 200
            assert call(base, host=SLUG, key="wrong") == 401
            assert call(base, host="other.example.com", key=key[0]) == 421
        finally:
            server.kill()


def get(url: str) -> tuple[int, str]:
    """The status and the body of what is there."""
    with urllib.request.urlopen(url, timeout=20) as answer:
        return answer.status, answer.read().decode()


def call(base: str, *, host: str, key: str) -> int:
    """The status of a request for the list of tools."""
    headers = {
        "Host": host,
        "Authorization": f"Bearer {key}",
        "Accept": "application/json, text/event-stream",
        "Content-Type": "application/json",
        "MCP-Protocol-Version": "2026-07-28",
        "Mcp-Method": "tools/list",
    }
    request = urllib.request.Request(f"{base}/mcp", json.dumps(modern(1, "tools/list")).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as refusal:
        with refusal:
            return refusal.code
