"""The cluster, image and deployment files: parsed, checked by Ray's own validator, and held to what they promise."""

from __future__ import annotations

import copy
import json
import re
import shlex
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field
from ray.scripts.scripts import drain_node

ROOT = Path(__file__).resolve().parents[2]
KUBERAY = sorted((ROOT / "infra" / "kuberay").glob("ray*.yaml"))


RIGHTS = {
    "get_object": "s3:GetObject",
    "head_object": "s3:GetObject",
    "put_object": "s3:PutObject",
    "delete_object": "s3:DeleteObject",
    "list_objects_v2": "s3:ListBucket",
}


class Model(BaseModel):
    """The fields that our files use; another one is a mistake, or belongs here."""

    model_config = ConfigDict(extra="forbid")


class Metadata(Model):
    name: str | None = None
    generateName: str | None = None
    namespace: str


class AuthOptions(Model):
    mode: str = Field(pattern="^token$")


class Autoscaler(Model):
    upscalingMode: str = Field(pattern="^(Default|Aggressive|Conservative)$")
    idleTimeoutSeconds: int = Field(gt=0)


class SecurityContext(Model):
    allowPrivilegeEscalation: bool
    runAsNonRoot: bool
    runAsUser: int
    capabilities: dict[str, list[str]]


class Exec(Model):
    command: list[str]


class Hook(Model):
    exec: Exec


class Lifecycle(Model):
    preStop: Hook


class Container(Model):
    lifecycle: Lifecycle | None = None
    name: str
    image: str = Field(pattern=r"^[^:]+:[^:]+$")
    env: list[dict[str, str]]
    envFrom: list[dict[str, dict[str, str]]]
    ports: list[dict[str, int | str]] = []
    resources: dict[str, dict[str, str]]
    securityContext: SecurityContext


class Pod(Model):
    nodeSelector: dict[str, str] = {}
    tolerations: list[dict[str, str]] = []
    terminationGracePeriodSeconds: int = 30
    containers: list[Container]


class Template(Model):
    spec: Pod


class HeadGroup(Model):
    serviceType: str = Field(pattern="^ClusterIP$")
    rayStartParams: dict[str, str]
    template: Template


class WorkerGroup(Model):
    groupName: str
    replicas: int
    minReplicas: int
    maxReplicas: int
    rayStartParams: dict[str, str]
    template: Template


class ClusterSpec(Model):
    rayVersion: str
    authOptions: AuthOptions
    enableInTreeAutoscaling: bool
    autoscalerOptions: Autoscaler
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup]


class JobSpec(Model):
    entrypoint: str
    submissionMode: str = Field(pattern="^(K8sJobMode|HTTPMode|SidecarMode)$")
    backoffLimit: int
    shutdownAfterJobFinishes: bool
    ttlSecondsAfterFinished: int
    rayClusterSpec: ClusterSpec


class RayCluster(Model):
    apiVersion: str = Field(pattern="^ray.io/v1$")
    kind: str
    metadata: Metadata
    spec: ClusterSpec


class RayJob(Model):
    apiVersion: str = Field(pattern="^ray.io/v1$")
    kind: str
    metadata: Metadata
    spec: JobSpec


def documents(path: Path) -> list[dict]:
    return list(yaml.safe_load_all(path.read_text()))


def options_of_train_all() -> set[str]:
    import typer

    from pipelines import train_all

    command = typer.main.get_command(train_all.app)
    return {option for parameter in command.params for option in parameter.opts}


def test_rays_own_validator_takes_the_cluster_file():
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = documents(ROOT / "ray_cluster.yaml")[0]
    prepared = prepare_config(copy.deepcopy(config))
    prepared.setdefault("cluster_synced_files", [])
    validate_config(prepared)
    broken = copy.deepcopy(prepared) | {"max_worker": 8}
    with pytest.raises(Exception, match="max_worker"):
        validate_config(broken)


def test_the_cluster_file_keeps_its_promises():
    config = documents(ROOT / "ray_cluster.yaml")[0]
    types = config["available_node_types"]
    head = types.pop(config["head_node_type"])
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]  # on demand: the queue lives there
    for node in (head, *types.values()):
        assert node["node_config"]["IamInstanceProfile"]["Name"], "else Ray gives the head all rights, workers none"
    for worker in types.values():
        assert worker["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
        assert worker["resources"]["GPU"] > 0
        assert worker["min_workers"] == 0 < worker["max_workers"] <= config["max_workers"]
    start = " ".join(config["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in start
    assert "--num-cpus=0" in start
    assert "--autoscaling-config" in start
    environment = " ".join(config["docker"]["run_options"])
    assert "RAY_AUTH_MODE=token" in environment
    assert "RAY_AUTH_TOKEN=REPLACE" in environment  # no secret in the repository


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.stem)
def test_kubernetes_files_hold_known_fields(path):
    first = documents(path)[0]
    job = first["kind"] == "RayJob"
    parsed = (RayJob if job else RayCluster).model_validate(first)
    cluster = parsed.spec.rayClusterSpec if job else parsed.spec
    assert cluster.rayVersion == version("ray")
    assert cluster.headGroupSpec.rayStartParams["num-cpus"] == "0"
    assert cluster.headGroupSpec.template.spec.nodeSelector["karpenter.sh/capacity-type"] == "on-demand"
    for group in cluster.workerGroupSpecs:
        assert 0 == group.minReplicas <= group.replicas <= group.maxReplicas
        (container,) = group.template.spec.containers
        assert container.resources["requests"] == container.resources["limits"]
        assert container.resources["limits"]["nvidia.com/gpu"] == "1"
        assert container.securityContext.runAsNonRoot
        script = container.lifecycle.preStop.exec.command[-1]
        drain_node.make_context("drain-node", shlex.split(script.partition(";")[0])[2:])  # Ray's own reader takes it
        assert int(re.search(r"timeout (\d+)", script)[1]) < group.template.spec.terminationGracePeriodSeconds
    if job:
        used = set(re.findall(r"--[a-z-]+", parsed.spec.entrypoint))
        assert used <= options_of_train_all()
        assert "--wait-for-nodes" in used


def test_the_network_policy_lets_only_the_cluster_and_the_operator_in():
    (policy,) = documents(ROOT / "infra" / "kuberay" / "networkpolicy.yaml")
    assert policy["kind"] == "NetworkPolicy"
    assert policy["spec"]["podSelector"]["matchLabels"] == {"ray.io/is-ray-node": "yes"}, (
        "also those of a job's cluster"
    )
    assert {policy["metadata"]["namespace"]} == {documents(path)[0]["metadata"]["namespace"] for path in KUBERAY}
    (rule,) = policy["spec"]["ingress"]
    assert all("ipBlock" not in source for source in rule["from"])


def test_workers_on_gpus_get_the_image_with_torch_for_them():
    (built,) = re.findall(
        r"^#   docker build .* -t (mcpl:\S+-cu\d+) ", (ROOT / "infra" / "Dockerfile").read_text(), re.M
    )
    for path in (*KUBERAY, ROOT / "ray_cluster.yaml"):
        images = re.findall(r"REPLACE_WITH_YOUR_REGISTRY/([^\s\"]+)", path.read_text())
        assert images and set(images) == {built}, path


def test_secrets_do_not_travel_with_the_sources():
    """`ray job submit --working-dir .` packs whatever git does not ignore."""
    assert "infra/compose.env" in (ROOT / ".gitignore").read_text().splitlines()


def test_the_compose_file_publishes_on_loopback_only_and_holds_no_secret():
    compose = documents(ROOT / "infra" / "compose.yaml")[0]
    services = compose["services"]
    assert {"store", "postgres", "mlflow", "ray-head"} <= services.keys()
    for name, service in services.items():
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), name
        for wanted in service.get("depends_on", {}):
            assert wanted in services
        for volume in service.get("volumes", ()):
            assert volume.split(":")[0] in compose["volumes"]
        for source in service.get("configs", ()):
            assert source["source"] in compose["configs"]
        for variable, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|TOKEN", variable):
                assert value.startswith("${"), (name, variable)
    assert services["ray-head"]["environment"]["RAY_AUTH_MODE"] == "token"
    assert any(word.startswith("--allowed-hosts=") for word in services["mlflow"]["command"])
    example = (ROOT / "infra" / "compose.env.example").read_text()
    asked = set(re.findall(r"\$\{([A-Z_]+)", (ROOT / "infra" / "compose.yaml").read_text()))
    assert asked == set(re.findall(r"^([A-Z_]+)=", example, re.MULTILINE))
    assert all("replace-me" in line or line.startswith(("#", "STORE_USER=")) for line in example.splitlines())


def test_the_image_runs_unprivileged_with_token_authentication():
    lines = [line for line in (ROOT / "infra" / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    last_stage = lines[max(i for i, line in enumerate(lines) if line.startswith("FROM")) :]
    assert "USER ray" in last_stage
    assert any("RAY_AUTH_MODE=token" in line for line in last_stage)
    assert any("PATH=/opt/mcpl/bin" in line and "/etc/profile.d/" in line for line in last_stage), "for login shells"
    for line in lines:
        if line.startswith("COPY") and "--from" not in line:
            sources = [word for word in line.split()[1:-1] if not word.startswith("--")]
            assert all((ROOT / source).exists() or source == "README.md" for source in sources), line
        if line.startswith("FROM"):
            assert re.search(r":\d", line), "a pinned base image"


def test_the_bucket_policy_grants_no_more_than_is_used():
    policy = json.loads((ROOT / "infra" / "bucket-policy.json").read_text())
    granted = {action for statement in policy["Statement"] for action in statement["Action"]}
    assert granted == {"s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:ListBucket"}
    used = set(re.findall(r"s3\.([a-z_0-9]+)\(", (ROOT / "mcpl" / "data" / "storage.py").read_text()))
    assert {RIGHTS[request] for request in used} == granted  # no request without its right, no right without a request
    assert all(statement["Resource"] != ["*"] for statement in policy["Statement"])
    dataset = next(s for s in policy["Statement"] if s["Sid"] == "ReadTheDataset")
    assert dataset["Action"] == ["s3:GetObject"]
