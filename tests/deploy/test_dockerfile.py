"""The Dockerfile: linted, pinned, without root, and its gateway built step by step in an empty folder."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.auth import OPEN_PATHS
from gateway.flags import read_flags
from rm_server.config import parse_args
from tests.deploy.stages import Builder, read_stages

ROOT = Path(__file__).parents[2]
ARGUMENTS, STAGES = read_stages(ROOT / "Dockerfile")
TARGETS = ("gateway", "rm_server", "trainers", "serving", "vllm-cuda")


def value_of(target: str, instruction: str) -> str | None:
    """An instruction's last value in a stage or in those that it starts from."""
    stage = STAGES.get(target)
    return None if stage is None else stage.last(instruction) or value_of(stage.parent, instruction)


def test_the_linter_finds_nothing() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_linter_would_find_something(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM python\nRUN cd /x && sudo pip install y\n")
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, tmp_path / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert {"DL3006", "DL3004"} <= set(re.findall(r"DL\d+", done.stdout))


def test_base_images_have_exact_tags_and_vllm_s_is_that_of_the_lock() -> None:
    foreign = {stage.parent for stage in STAGES.values()} - set(STAGES)
    assert foreign == {"python:${PYTHON}", "vllm/vllm-openai:${VLLM}"}
    assert re.fullmatch(r"3\.\d+\.\d+-slim-\w+", ARGUMENTS["PYTHON"])
    lock = (ROOT / "requirements" / "cuda.lock").read_text()
    assert f"vllm=={ARGUMENTS['VLLM'].removeprefix('v')}\n" in lock


@pytest.mark.parametrize("target", TARGETS)
def test_every_image_has_an_entry_a_user_that_is_not_root_and_says_how_it_is(target: str) -> None:
    assert value_of(target, "USER") == "10001"
    assert value_of(target, "ENTRYPOINT")
    assert value_of(target, "HEALTHCHECK")


def test_the_last_stage_is_the_one_that_can_do_everything() -> None:
    assert list(STAGES)[-1] == "serving"


@pytest.mark.parametrize(("target", "port"), [("gateway", 8000), ("rm_server", 8001), ("serving", 8000)])
def test_health_is_asked_where_the_server_listens(target: str, port: int) -> None:
    check = value_of(target, "HEALTHCHECK") or ""
    found = re.search(r"http://127\.0\.0\.1:(\d+)(/[\w/]+)", check)
    assert found is not None
    assert (int(found[1]), found[2] in OPEN_PATHS) == (port, True)
    assert value_of(target, "EXPOSE") == str(port)


def test_the_servers_take_their_entry_points_flags() -> None:
    program, name, *flags = STAGES["gateway"].words("ENTRYPOINT")
    assert (program, name) == ("bonsai", "gateway")
    _, options = read_flags([*flags, "--policy-url", "http://policy:8100"])
    assert (options.host, options.port) == ("0.0.0.0", 8000)
    program, dash_m, module, *flags = STAGES["rm_server"].words("ENTRYPOINT")
    assert (program, dash_m, module) == ("python", "-m", "rm_server")
    config = parse_args([*flags, "--model", "judge=/models/judge"])
    assert (config.host, config.port) == ("0.0.0.0", 8001)


def test_what_is_copied_is_let_through_by_dockerignore() -> None:
    let_through = {
        line[1:].rstrip("/")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied: set[str] = set()
    for stage in STAGES.values():
        for instruction, value in stage.steps:
            if instruction == "COPY" and not value.startswith("--from"):
                copied |= {source.split("/")[0] for source in value.split()[:-1]}
    assert copied == let_through


@pytest.mark.slow
def test_the_gateway_s_steps_make_a_gateway_without_torch(tmp_path: Path) -> None:
    python = Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}"
    builder = Builder(context=ROOT, folder=tmp_path, python=python, stages=STAGES)
    builder.build("gateway")
    assert sorted(path.name for path in builder.root.iterdir()) == ["app", "bin", "opt"]
    assert list((builder.root / "app").iterdir()) == []
    shown = builder.run(["python", "-m", "gateway", "--help"])
    assert (shown.returncode, "--policy-url" in shown.stdout) == (0, True), shown.stderr
    entry = builder.run([*STAGES["gateway"].words("ENTRYPOINT"), "--help"])
    assert (entry.returncode, entry.stdout.startswith("usage")) == (0, True), entry.stderr
    for module in ("torch", "transformers", "vllm", "rm_server", "trainers"):
        assert "ModuleNotFoundError" in builder.run(["python", "-c", f"import {module}"]).stderr
    versions = builder.run(["python", "-m", "pip", "freeze", "--exclude", "bonsai-gateway"]).stdout.split()
    pins = {line.lower().replace("_", "-") for line in (ROOT / "requirements/cpu.lock").read_text().split()}
    assert len(versions) > 15
    assert {line for line in versions if line.lower().replace("_", "-") not in pins} == set()
