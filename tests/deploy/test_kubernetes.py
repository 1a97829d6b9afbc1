"""deploy/kubernetes: rendered by kubectl, valid by Kubernetes' schemas, its commands and the gateway's
configuration taken by the real programs, every address one of a pod that is there."""

import re
from typing import Any
from urllib.parse import urlsplit

import kubernetes_validate
import pytest
import yaml

from gateway import config_file
from gateway.auth import OPEN_PATHS
from gateway.config import GatewayConfig
from gateway.flags import build_parser
from gateway.launch_specs import SMALL_CACHES
from gateway.metrics import Metrics
from rm_server.config import parse_args
from rm_server.server import DRAIN_S
from tests.deploy import manifests, test_dockerfile
from tests.deploy.manifests import KUBERNETES, KUSTOMIZATIONS, Object, container, find, pods
from tests.deploy.vllm_flags import parse_server

GRACE_S = {"gateway": 1.0, "rm-server": float(DRAIN_S), "vllm": 0.0}
"""What a server may take beyond its flags."""


@pytest.fixture(scope="module", params=KUSTOMIZATIONS)
def objects(request: pytest.FixtureRequest) -> list[Object]:
    """What one kustomization makes."""
    return manifests.render(request.param)


def config(objects: list[Object]) -> GatewayConfig:
    """The gateway's configuration."""
    text: str = find(objects, "ConfigMap", "gateway")["data"]["gateway.yaml"]
    return config_file.parse(text.encode())


def server(objects: list[Object], name: str) -> Object:
    """The object that runs a server's pods."""
    [found] = [thing for thing in objects if thing["metadata"]["name"] == name and any(pods(thing))]
    return found


# Without kubectl: the files themselves.


@pytest.mark.parametrize("file", sorted(KUBERNETES.glob("base/*.yaml")), ids=lambda file: file.name)
def test_a_file_of_the_base_is_valid_and_listed(file: Any) -> None:
    listed = manifests.documents(KUBERNETES / "base" / "kustomization.yaml")[0]
    if file.name in ("kustomization.yaml", "gateway-config.yaml"):
        return
    assert file.name in listed["resources"]
    for thing in manifests.documents(file):
        manifests.validate(thing)


@pytest.mark.parametrize("name", KUSTOMIZATIONS)
def test_a_kustomization_names_files_that_exist_and_every_file_is_named(name: str) -> None:
    folder = KUBERNETES / name
    [tree] = manifests.documents(folder / "kustomization.yaml")
    named = list(tree.get("resources", []))
    named += [patch["path"] for patch in tree.get("patches", []) if "path" in patch]
    named += [file.partition("=")[2] for made in tree.get("configMapGenerator", []) for file in made["files"]]
    assert [path for path in named if not (folder / path).exists()] == []
    assert {file.name for file in folder.glob("*.yaml")} == {
        "kustomization.yaml",
        *(path for path in named if path.endswith(".yaml")),
    }


def test_what_is_wrong_would_be_found() -> None:
    [wrong] = [
        thing for thing in manifests.documents(KUBERNETES / "base/vllm.yaml") if thing["kind"] == "Service"
    ]
    wrong["spec"]["selectors"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        manifests.validate(wrong)


# What kubectl makes of them.


def test_everything_is_valid(objects: list[Object]) -> None:
    for thing in objects:
        manifests.validate(thing)
        assert thing["kind"] == "Namespace" or thing["metadata"]["namespace"] == "bonsai"


def test_the_gateway_takes_its_command_and_leaves_within_its_grace_period(objects: list[Object]) -> None:
    [pod] = pods(server(objects, "gateway"))
    options = build_parser().parse_args(container(pod)["args"])
    mounts = {mount["mountPath"] for mount in container(pod)["volumeMounts"]}
    assert str(options.config.parent) in mounts
    assert options.config.name in find(objects, "ConfigMap", "gateway")["data"]
    assert str(config(objects).keys_file).rpartition("/")[0] in mounts
    slowest = options.drain_delay + options.drain_timeout + GRACE_S["gateway"]
    assert pod["spec"]["terminationGracePeriodSeconds"] > slowest


def test_every_address_of_the_configuration_is_a_pod_s_and_every_pod_has_one(objects: list[Object]) -> None:
    parts = config(objects)
    urls = [urlsplit(url) for policy in parts.policies for url in policy.urls]
    urls += [urlsplit(url) for reward in parts.rewards for url in reward.urls]
    wanted: set[tuple[str, int]] = set()
    for name in ("vllm", "rm-server"):
        thing, service = server(objects, name), find(objects, "Service", name)
        first = container(next(pods(thing)))
        [port] = first["ports"]
        assert service["spec"]["clusterIP"] == "None"
        assert service["spec"]["ports"][0]["targetPort"] == port["name"]
        assert service["spec"]["publishNotReadyAddresses"] is True
        assert thing["spec"].get("serviceName", name) == name
        wanted |= {(f"{name}-{i}.{name}", port["containerPort"]) for i in range(thing["spec"]["replicas"])}
    assert {(str(url.hostname), url.port) for url in urls} == wanted


def test_the_reward_server_takes_its_command_and_leaves_within_its_grace_period(
    objects: list[Object],
) -> None:
    [pod] = pods(server(objects, "rm-server"))
    entry = test_dockerfile.STAGES["rm_server"].words("ENTRYPOINT")[3:]
    options = parse_args([*entry, *container(pod)["args"]])
    assert options.port == container(pod)["ports"][0]["containerPort"]
    assert [model.name for model in options.models] == [reward.name for reward in config(objects).rewards]
    slowest = options.drain_delay + GRACE_S["rm-server"]
    assert pod["spec"]["terminationGracePeriodSeconds"] > slowest
    assert options.drain_delay > 2 * 5 * 1.2, "two of the gateway's probes"


@pytest.mark.slow
def test_vllm_takes_its_commands(objects: list[Object]) -> None:
    for rank, pod in enumerate(pods(server(objects, "vllm"))):
        started = container(pod)
        words = [*started["command"], *started["args"]]
        start = 3 if words[0] == "python3" else 2
        assert words[:start] in (
            ["python3", "-m", "vllm.entrypoints.openai.api_server"],
            ["vllm", "serve"],
        )
        options = parse_server([word.replace("$(LWS_WORKER_INDEX)", "1") for word in words[start:]])
        assert options.node_rank == rank
        assert options.headless == (rank > 0)
        assert pod["spec"]["terminationGracePeriodSeconds"] > options.shutdown_timeout
        gpus = int(started.get("resources", {}).get("limits", {}).get("nvidia.com/gpu", 1))
        assert gpus * options.nnodes == options.tensor_parallel_size * options.pipeline_parallel_size
        if rank == 0:
            assert options.port == started["ports"][0]["containerPort"]
            assert options.served_model_name == [config(objects).policies[0].name]


def test_vllm_on_a_cpu_keeps_as_few_prepared_products_as_under_gateway_up() -> None:
    objects = manifests.documents(KUBERNETES / "overlays/cpu-small/small-servers.yaml")
    [pod] = pods(find(objects, "StatefulSet", "vllm"))
    variables = {variable["name"]: variable["value"] for variable in container(pod)["env"]}
    assert SMALL_CACHES.items() <= variables.items()


def test_probes_ask_paths_that_are_open(objects: list[Object]) -> None:
    for name in ("gateway", "rm-server", "vllm"):
        first = container(next(pods(server(objects, name))))
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            asked = first[probe]["httpGet"]
            assert asked["path"] in OPEN_PATHS if name != "vllm" else asked["path"] == "/health"
            assert asked["port"] == first["ports"][0]["name"]
        live = first["livenessProbe"]["httpGet"]["path"]
        assert live != "/health/ready", "a server that waits for another must not be restarted"


def test_pods_keep_the_restricted_standard_of_pod_security(objects: list[Object]) -> None:
    found = [pod for thing in objects for pod in pods(thing)]
    assert len(found) >= 3
    for pod in found:
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        assert str(pod["spec"]["securityContext"]["runAsUser"]) == test_dockerfile.value_of("gateway", "USER")
        assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert container(pod)["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        mounted = {mount["name"] for mount in container(pod)["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["spec"]["volumes"]}
        claims = {
            volume.get("persistentVolumeClaim", {}).get("claimName") for volume in pod["spec"]["volumes"]
        }
        assert all(find(objects, "PersistentVolumeClaim", claim) for claim in claims if claim)


def test_selectors_find_pods(objects: list[Object]) -> None:
    labels = [pod["metadata"]["labels"] for thing in objects for pod in pods(thing)]
    selectors = [thing["spec"]["selector"] for thing in objects if thing["kind"] == "Service"]
    selectors += [
        thing["spec"]["selector"]["matchLabels"]
        for thing in objects
        if thing["kind"] == "PodDisruptionBudget"
    ]
    selectors += [
        thing["spec"]["podSelector"]["matchLabels"] for thing in objects if thing["kind"] == "NetworkPolicy"
    ]
    assert len(selectors) >= 7
    for selector in selectors:
        assert any(selector.items() <= found.items() for found in labels)


def test_images_are_those_of_the_dockerfile(objects: list[Object]) -> None:
    names = {target.replace("_", "-") for target in test_dockerfile.TARGETS}
    for thing in objects:
        for pod in pods(thing):
            found = re.fullmatch(r"bonsai-([\w-]+):\d+\.\d+\.\d+", container(pod)["image"])
            assert found is not None
            assert found[1] in names or found[1].removesuffix("-cuda") in names


def test_vllm_and_reward_servers_are_closed_to_all_but_gateways_and_prometheus(objects: list[Object]) -> None:
    for name in ("vllm", "rm-server"):
        policy = find(objects, "NetworkPolicy", name)["spec"]
        assert policy["policyTypes"] == ["Ingress"]
        sources = [source for rule in policy["ingress"] for source in rule["from"]]
        apps = {
            source["podSelector"]["matchLabels"]["app.kubernetes.io/name"]
            for source in sources
            if "podSelector" in source
        }
        assert "gateway" in apps
        assert apps <= {"gateway", name}
        assert len(sources) == len(apps) + 1


def test_gateways_are_added_when_seven_tenths_of_their_slots_are_in_use() -> None:
    objects = manifests.documents(KUBERNETES / "base" / "gateway-autoscaling.yaml")
    [metric] = find(objects, "HorizontalPodAutoscaler", "gateway")["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] in {family.name for family in Metrics().registry.collect()}
    target = int(metric["pods"]["target"]["averageValue"])
    for file in KUBERNETES.rglob("gateway-config.yaml"):
        limits = config_file.load(file).limits
        assert target == int(0.7 * limits.max_concurrent_candidates), file


def test_overlays_change_what_they_say_and_nothing_disappears() -> None:
    base = {(thing["kind"], thing["metadata"]["name"].split("-")[0]) for thing in manifests.render("base")}
    for name, gone in {
        "overlays/cpu-small": {("HorizontalPodAutoscaler", "gateway")},
        "overlays/gpu": set(),
        "overlays/gpu-multinode": {("StatefulSet", "vllm"), ("PodDisruptionBudget", "vllm")},
    }.items():
        found = {(thing["kind"], thing["metadata"]["name"].split("-")[0]) for thing in manifests.render(name)}
        assert base - found == gone
        assert found - base == ({("LeaderWorkerSet", "vllm")} if "multinode" in name else set())


def test_yaml_files_hold_no_key_twice() -> None:
    for file in KUBERNETES.rglob("*.yaml"):
        for node in yaml.compose_all(file.read_text(encoding="utf-8")):
            assert repeated(node) == [], file


def repeated(node: yaml.Node) -> list[str]:
    """Keys that a mapping has twice: YAML's loader lets the last one win in silence."""
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value]
        twice = [key for key in set(keys) if keys.count(key) > 1]
        return twice + [found for _, value in node.value for found in repeated(value)]
    if isinstance(node, yaml.SequenceNode):
        return [found for value in node.value for found in repeated(value)]
    return []
