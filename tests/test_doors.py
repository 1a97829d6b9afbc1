"""The doors of the house: packages meet over HTTP and through checkpoint folders, never by import."""

import pytest

from tests.imports import PACKAGES, find_cycle, graph, imported_by, modules

# What a package must never load. trainers may use vLLM, but only to sample (below).
CLOSED_TO = {
    "gateway": {"torch", "transformers", "vllm", "accelerate", "safetensors", "tokenizers"},
    "rm_server": {"vllm", "accelerate"},
    "trainers": {"fastapi", "uvicorn", "starlette"},
    "loadtests": {"torch", "transformers", "vllm", "accelerate", "httpx", "requests"},
}
VLLM_ROOM = "rollout"
OWN_PROCESS = {"loadtests": ("random_judge", "trl_trainer")}
"""Modules that run in an interpreter of their own: what our servers and trainers are compared with."""


def imports(package: str) -> list[tuple[str, str]]:
    """(module, what it imports) over a package."""
    return [
        (name, target)
        for name, file in modules(package).items()
        for target in imported_by(file.read_text(), name, is_package=file.name == "__init__.py")
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_no_package_imports_another(package: str) -> None:
    others = set(PACKAGES) - {package}
    crossed = [
        (name, target) for name, target in imports(package) if target.split(".")[0] in others | {"tests"}
    ]
    assert crossed == []


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_inside_a_package_run_one_way(package: str) -> None:
    assert find_cycle(graph(package)) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_loads_only_what_its_room_is_for(package: str) -> None:
    apart = {f"{package}.{name}" for name in OWN_PROCESS.get(package, ())}
    wrong = [
        (name, target)
        for name, target in imports(package)
        if target in apart or (name not in apart and target.split(".")[0] in CLOSED_TO[package])
    ]
    assert wrong == []


def test_vllm_is_loaded_in_rollouts_alone() -> None:
    users = {name for name, target in imports("trainers") if target.split(".")[0] == "vllm"}
    assert {name for name in users if not name.rsplit(".", 1)[-1].startswith(VLLM_ROOM)} == set()


# The walker itself, on sources where the answer is plain.


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import a.b as c, d", ["a.b", "d"]),
        ("from a import b, c", ["a", "a.b", "a.c"]),
        ("def f():\n    from a.b import c", ["a.b", "a.b.c"]),
        ("from . import errors", ["pack", "pack.errors"]),
        ("from .errors import E", ["pack.errors", "pack.errors.E"]),
        ("from ..other import x", ["other", "other.x"]),
    ],
)
def test_the_walker_finds_every_form_of_import(source: str, expected: list[str]) -> None:
    assert list(imported_by(source, "pack.module")) == expected


def test_the_walker_resolves_relative_imports_of_a_package() -> None:
    assert list(imported_by("from .b import c", "pack", is_package=True)) == ["pack.b", "pack.b.c"]


def test_the_walker_finds_a_cycle_and_none_where_there_is_none() -> None:
    assert find_cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert find_cycle({"a": {"a"}}) == ["a", "a"]
