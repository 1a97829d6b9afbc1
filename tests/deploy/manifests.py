"""Kubernetes objects: rendered from kustomizations by kubectl, and picked apart."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

KUBERNETES = Path(__file__).parents[2] / "deploy" / "kubernetes"
VERSION = "1.37"
KUSTOMIZATIONS = ("base", "overlays/cpu-small", "overlays/gpu", "overlays/gpu-multinode")
Object = dict[str, Any]


def documents(file: Path) -> list[Object]:
    """The objects of a YAML file."""
    return list(yaml.safe_load_all(file.read_text(encoding="utf-8")))


def render(name: str) -> list[Object]:
    """What `kubectl apply -k` would send; needs no cluster. Skips where there is no kubectl."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl renders kustomizations, and is not installed")
    command = [kubectl, "kustomize", str(KUBERNETES / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return list(yaml.safe_load_all(done.stdout))


def validate(thing: Object) -> None:
    """Against the schemas of Kubernetes, unknown fields being errors. A LeaderWorkerSet, which is none of
    Kubernetes' own kinds, has its two pods validated."""
    if thing["kind"] == "LeaderWorkerSet":
        for pod in pods(thing):
            metadata = {"name": "pod", **pod.get("metadata", {})}
            kubernetes_validate.validate(
                {"apiVersion": "v1", "kind": "Pod", **pod, "metadata": metadata}, VERSION, True
            )
    else:
        kubernetes_validate.validate(thing, VERSION, strict=True)


def pods(thing: Object) -> Iterator[Object]:
    """The pod templates of an object: none, one, or a LeaderWorkerSet's two, the leader's first."""
    spec = thing.get("spec", {})
    if thing["kind"] == "LeaderWorkerSet":
        group = spec["leaderWorkerTemplate"]
        yield from (group["leaderTemplate"], group["workerTemplate"])
    elif "template" in spec:
        yield spec["template"]


def find(objects: list[Object], kind: str, name: str) -> Object:
    """The one object of this kind and name; names that kustomize gave a hash count without it."""
    [found] = [
        thing
        for thing in objects
        if thing["kind"] == kind
        and (thing["metadata"]["name"] == name or thing["metadata"]["name"].rpartition("-")[0] == name)
    ]
    return found


def container(pod: Object) -> Object:
    """The one container of a pod."""
    [found] = pod["spec"]["containers"]
    assert isinstance(found, dict)
    return found
