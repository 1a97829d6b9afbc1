"""deploy/compose.yaml: valid by the Compose specification, its commands taken by the real command lines,
closed to all but this machine, and everything that it mounts is there."""

import ipaddress
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from gateway import config_file
from gateway.auth import OPEN_PATHS
from gateway.config import GatewayConfig
from gateway.flags import build_parser
from gateway.launch_specs import SMALL_CACHES
from rm_server.config import parse_args
from rm_server.server import DRAIN_S
from tests.deploy import compose_file, test_dockerfile
from tests.deploy.compose_file import DEPLOY
from tests.deploy.vllm_flags import parse_server
from trainers.exporter import PORT
from trainers.exporter import build_parser as exporter_parser

BASE = compose_file.read("compose.yaml")
GPU = compose_file.laid_over(BASE, compose_file.read("compose.gpu.yaml"))
FILES = {"compose.yaml": BASE, "compose.yaml + compose.gpu.yaml": GPU}
OURS = {"vllm", "rm_server", "gateway", "training_exporter"}


@pytest.fixture(params=FILES)
def services(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Of one machine without a GPU, and of one with."""
    found = FILES[request.param]["services"]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("name", FILES)
def test_it_is_valid_by_the_specification(name: str) -> None:
    parsed = PyCompose.from_yaml(yaml.safe_dump(FILES[name]))
    assert set(parsed.service_names()) == OURS | {"prometheus", "grafana"}
    for broken in ({"tmpsf": ["/tmp"]}, {"depends_on": {"vllm": {"condition": "service_well"}}}):
        wrong = compose_file.laid_over(FILES[name], {"services": {"gateway": broken}})
        with pytest.raises(ValueError, match=r"services\.gateway"):
            PyCompose.from_yaml(yaml.safe_dump(wrong))


def test_what_it_refers_to_exists(services: dict[str, Any]) -> None:
    for service in services.values():
        assert set(service.get("depends_on", {})) <= set(services)
        for volume in service["volumes"]:
            source, _, _ = volume.partition(":")
            if source == "../runs/demo":  # what `make demo` leaves behind
                continue
            known = (DEPLOY / source).exists() if source.startswith(".") else source in BASE["volumes"]
            assert known, source


def test_only_gateway_and_grafana_are_published_and_to_this_machine_alone(services: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert set(published) == {"gateway", "grafana"}
    for ports in published.values():
        for port in ports:
            assert ipaddress.ip_address(port.split(":")[0]).is_loopback
    assert all(service.get("network_mode") is None for service in services.values())


def test_nothing_runs_with_more_rights_than_it_needs(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["read_only"] or name == "vllm"
        assert "privileged" not in service
        assert all(volume.endswith(":ro") for volume in service["volumes"] if volume.startswith("."))


def test_images_are_our_targets_or_have_exact_tags(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert re.search(r":v?\d+\.\d+\.\d+$", service["image"]), service["image"]
        assert ("build" in service) == (name in OURS)
        if name in OURS:
            assert service["build"]["target"] in test_dockerfile.TARGETS
            assert (DEPLOY / service["build"]["context"] / "Dockerfile").is_file()


def test_every_service_says_how_it_is(services: dict[str, Any]) -> None:
    for service in services.values():
        target = service.get("build", {}).get("target", "none")
        check = service.get("healthcheck", {}).get("test") or test_dockerfile.value_of(target, "HEALTHCHECK")
        assert "http://127.0.0.1:" in str(check)
    [path] = re.findall(r"8000(/[\w/]+)", str(services["gateway"]["healthcheck"]))
    assert path == "/health/ready"
    assert path in OPEN_PATHS


def test_the_gateway_takes_its_command_and_finds_its_servers(services: dict[str, Any]) -> None:
    service = services["gateway"]
    options = build_parser().parse_args(service["command"])
    mounted = dict(reversed(volume.split(":")[:2]) for volume in service["volumes"])
    config = config_file.load(DEPLOY / mounted[str(options.config.parent)] / options.config.name)
    assert {url for policy in config.policies for url in policy.urls} == {"http://vllm:8000"}
    assert {url for reward in config.rewards for url in reward.urls} == {"http://rm_server:8001"}
    assert seconds(service) > options.drain_delay + options.drain_timeout


def test_the_keys_that_the_configuration_proposes_lie_on_a_volume_of_the_gateway() -> None:
    text = (DEPLOY / "gateway" / "gateway.yaml").read_text()
    [proposed] = re.findall(r"^# (keys_file: \S+)", text, re.MULTILINE)
    config: GatewayConfig = config_file.parse(f"{text}\n{proposed}".encode())
    assert config.keys_file is not None
    assert f"keys:{Path(config.keys_file).parent}" in BASE["services"]["gateway"]["volumes"]


def test_the_reward_server_takes_its_command(services: dict[str, Any]) -> None:
    entry = test_dockerfile.STAGES["rm_server"].words("ENTRYPOINT")[3:]
    config = parse_args([*entry, *services["rm_server"]["command"]])
    asked = [
        reward.upstream_model for reward in config_file.load(DEPLOY / "gateway" / "gateway.yaml").rewards
    ]
    assert (config.port, [model.name for model in config.models]) == (8001, asked)
    assert seconds(services["rm_server"]) > config.drain_delay + DRAIN_S


def test_the_exporter_of_runs_takes_its_command_and_is_asked_for(services: dict[str, Any]) -> None:
    service = services["training_exporter"]
    assert service["entrypoint"] == ["python3", "-m", "trainers.exporter"]
    options = exporter_parser().parse_args(service["command"])
    assert [volume.split(":")[1] for volume in service["volumes"]] == [str(options.folder)]
    assert options.port == PORT
    assert {name for name in services if "profiles" in services[name]} == {"training_exporter"}


@pytest.mark.slow
def test_vllm_takes_its_command(services: dict[str, Any]) -> None:
    service = services["vllm"]
    *start, module = service["entrypoint"][:3]
    assert (start, module) == (["python3", "-m"], "vllm.entrypoints.openai.api_server")
    options = parse_server([*service["entrypoint"][3:], *service["command"]])
    asked = [policy.name for policy in config_file.load(DEPLOY / "gateway" / "gateway.yaml").policies]
    assert (options.port, options.served_model_name) == (8000, asked)
    assert seconds(service) > options.shutdown_timeout


def test_vllm_on_a_cpu_keeps_as_few_prepared_products_as_under_gateway_up() -> None:
    assert SMALL_CACHES.items() <= BASE["services"]["vllm"]["environment"].items()


def test_prometheus_asks_services_that_are_there() -> None:
    tree = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    targets = {
        target
        for job in tree["scrape_configs"]
        for group in job.get("static_configs", [])
        for target in group["targets"]
    }
    known = {"vllm:8000", "rm_server:8001", "gateway:8000", f"training_exporter:{PORT}"}
    assert known <= targets <= known | {"prometheus:9090", "localhost:9090"}


def seconds(service: dict[str, Any]) -> int:
    """How long a service may take to stop."""
    return int(service["stop_grace_period"].removesuffix("s"))
