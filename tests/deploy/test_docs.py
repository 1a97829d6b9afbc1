"""docs/deploy.md and docs/security.md: every block is run, or parsed by the program that it is for."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from gateway.keys_flags import build_parser as keys_parser
from gateway.metrics import Metrics
from loadtests import sizing
from loadtests.__main__ import build_parser as load_parser
from tests.deploy import compose_file, manifests, test_dockerfile

ROOT = Path(__file__).parents[2]
PAGES = {name: (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("deploy.md", "security.md")}
BLOCKS = [
    (name, *block)
    for name, text in PAGES.items()
    for block in re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL)
]
COMMANDS = [
    line
    for _, language, code in BLOCKS
    if language == "sh"
    for line in code.replace("\\\n", " ").splitlines()
    if line
]
VARIABLES = set(re.findall(r"\$\{(\w+)", (compose_file.DEPLOY / "compose.yaml").read_text()))


def check_make(words: list[str]) -> None:
    assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def check_docker(words: list[str]) -> None:
    check = {"build": check_build, "compose": check_compose}[words[0]]
    check(words[1:])


def check_build(words: list[str]) -> None:
    options = dict(zip(words[:-1:2], words[1:-1:2], strict=True))
    assert set(options) <= {"--target", "--build-arg", "-t"}
    assert options["--target"] in test_dockerfile.TARGETS
    name, _, value = options.get("--build-arg", "LOCK=cpu").partition("=")
    assert (name, value) in {("LOCK", "cpu"), ("LOCK", "cuda")}
    assert words[-1] == "."


def check_compose(words: list[str]) -> None:
    while words[0] == "-f":
        assert (ROOT / words[1]).is_file()
        words = words[2:]
    services = compose_file.read("compose.yaml")["services"]
    if words[0] == "up":
        assert words == ["up", "--build", "--wait"]
    elif words[0] == "kill":
        assert words[1:3] == ["--signal", "HUP"]
        assert words[3] in services
    else:
        assert words[:5] == ["run", "--rm", "--no-deps", "--entrypoint", "bonsai"]
        assert words[5] in services
        keys_parser().parse_args(words[8:])
        assert words[6:8] == ["gateway", "keys"]


def check_kubectl(words: list[str]) -> None:
    if words[:2] == ["--namespace", "bonsai"]:
        words = words[2:]
    if words[0] in ("kustomize", "apply"):
        assert (ROOT / words[-1] / "kustomization.yaml").is_file()
    elif words[:2] == ["create", "namespace"]:
        [namespace] = manifests.documents(manifests.KUBERNETES / "base" / "namespace.yaml")
        assert namespace["metadata"]["name"] == words[2]
    else:
        assert words[:3] == ["create", "secret", "generic"]
        [gateway, *_] = manifests.documents(manifests.KUBERNETES / "base" / "gateway.yaml")
        [secret] = [
            volume["secret"]["secretName"]
            for volume in gateway["spec"]["template"]["spec"]["volumes"]
            if "secret" in volume
        ]
        assert words[3:] == [secret, "--from-file", "keys.json"]


def check_python(words: list[str]) -> None:
    assert words[0] == "-m"
    if words[1] == "loadtests":
        load_parser().parse_args(words[2:])
    else:
        assert words[1:3] == ["gateway", "keys"]
        keys_parser().parse_args(words[3:])


PROGRAMS: dict[str, Callable[[list[str]], None]] = {
    "make": check_make,
    "docker": check_docker,
    "kubectl": check_kubectl,
    "python": check_python,
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_taken_by_its_program(command: str) -> None:
    words = shlex.split(command, comments=True)
    while "=" in words[0]:
        assert words.pop(0).partition("=")[0] in VARIABLES
    PROGRAMS[words[0]](words[1:])


def test_inline_commands_are_taken_too() -> None:
    found = [match for text in PAGES.values() for match in re.findall(r"`(docker [^`]+)`", text)]
    assert len(found) == 1
    for command in found:
        check_docker(shlex.split(command)[1:])


def test_the_calculator_says_what_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    [shown] = [code for _, language, code in BLOCKS if language == "console"]
    command, _, expected = shown.removeprefix("$ python -m loadtests.sizing ").partition("\n")
    assert sizing.main(shlex.split(command)) == 0
    assert capsys.readouterr().out == expected


def test_the_overlay_of_one_s_own_renames_images_that_there_are() -> None:
    overlay, _ = [yaml.safe_load(code) for _, language, code in BLOCKS if language == "yaml"]
    [below] = overlay["resources"]
    folder = manifests.KUBERNETES / "overlays" / "mine" / below
    assert folder.resolve().is_dir()
    used = {
        manifests.container(pod)["image"].partition(":")[0]
        for thing in manifests.render(str(folder.resolve()))
        for pod in manifests.pods(thing)
    }
    assert {image["name"] for image in overlay["images"]} == used


def test_the_rule_for_the_autoscaler_serves_the_metric_that_it_asks_for() -> None:
    _, adapter = [yaml.safe_load(code) for _, language, code in BLOCKS if language == "yaml"]
    [rule] = adapter["rules"]
    [scaler] = manifests.documents(manifests.KUBERNETES / "base" / "gateway-autoscaling.yaml")
    asked = scaler["spec"]["metrics"][0]["pods"]
    assert rule["name"]["as"] == asked["metric"]["name"]
    assert rule["seriesQuery"].partition("{")[0] in {family.name for family in Metrics().registry.collect()}
    assert f"above {asked['target']['averageValue']} of the 512" in PAGES["deploy.md"]


def test_no_block_is_left_out() -> None:
    assert {language for _, language, _ in BLOCKS} == {"sh", "yaml", "console", "text"}
    assert sum(language == "text" for _, language, _ in BLOCKS) == 1, "the drawing"


@pytest.mark.parametrize("page", PAGES)
def test_links_and_named_tests_exist(page: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", PAGES[page])
    assert len(links) > 3
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
    named = re.findall(r"`(tests/[\w/.]+|deploy/[\w/.-]+)`", PAGES[page])
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_overlay_and_every_image_is_on_the_page() -> None:
    for name in manifests.KUSTOMIZATIONS:
        assert f"| `{name}` |" in PAGES["deploy.md"]
    for target in test_dockerfile.TARGETS:
        assert f"| `{target}` |" in PAGES["deploy.md"]
