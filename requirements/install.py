"""Make `.venv` with everything that Bonsai needs. Run by `make setup`: `python3 requirements/install.py`.

Standard library only, and syntax that an old Python still parses, so that "your Python is too old" can be
said in one line. A machine with an NVIDIA GPU gets requirements/cuda.lock, any other requirements/cpu.lock.
No compiler is asked for: every pin is a wheel, and the CPU engine runs with --enforce-eager, which compiles
nothing.

A stamp inside `.venv` says what was installed from what. When it fits, nothing is done; when the lock or
pyproject.toml changed, the environment is brought up to it, in seconds; when the stamp is missing (an
interrupted install) or the Python or the folder is another, `.venv` is built anew. Exit codes: 0 done, 1 the
installation failed, 2 something is missing here, 4 the disk is too small.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST, TOO_NEW = (3, 11), (3, 15)  # what the engine's wheels are built for
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
DISK_FULL = "the disk is full"
OFFLINE_SIGNS = ("NewConnectionError", "NameResolutionError", "failure in name resolution", "ConnectTimeout")
SELDOM_IMPORTED = "/(transformers/models|vllm/model_executor/models|tests?|testing)/"
# What .venv takes (2.2 GiB on a CPU), and room for the wheels that are being unpacked.
NEEDED_GIB = {"cpu": 3.5, "cuda": 20.0}


class SetupError(Exception):
    """Something that the user must put right: one line, and the exit code."""

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def check_python(version: tuple[int, int], platform: str) -> None:
    """Refuse an interpreter or a system that the engine has no wheels for."""
    if platform != "linux":
        raise SetupError(
            f"the engines run on Linux, and this is {platform}: use a Linux machine, WSL or a container"
        )
    if not OLDEST <= version < TOO_NEW:
        raise SetupError(
            f"Python 3.11 to 3.14 is needed, and this is {version[0]}.{version[1]}: "
            "name another, as in `make setup PYTHON=python3.12`"
        )


def check_venv_module() -> None:
    """Refuse a Python without ensurepip, as Debian ships it."""
    if importlib.util.find_spec("ensurepip") is None:
        hint = "`apt install python3-venv` puts that right"
        raise SetupError(f"this Python cannot make virtual environments: {hint}")


def check_library(name: str, hint: str) -> None:
    """Refuse a system without a shared library that a wheel expects there."""
    try:
        ctypes.CDLL(name)
    except OSError:
        raise SetupError(f"{name} is missing on this system: {hint}") from None


def check_disk(free_bytes: int, lock_name: str) -> None:
    """Refuse a disk that the environment would fill."""
    needed = NEEDED_GIB[lock_name]
    if free_bytes < needed * 2**30:
        free = free_bytes / 2**30
        raise SetupError(
            f"{needed} GiB of free disk are needed for .venv, and there are {free:.1f}", exit_code=4
        )


def has_nvidia_gpu() -> bool:
    """Whether nvidia-smi is there, works, and names a GPU."""
    if shutil.which("nvidia-smi") is None:
        return False
    answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return answer.returncode == 0 and answer.stdout.startswith("GPU ")


def find_pin(lock_text: str, package: str) -> str:
    """The lock's line for one package, such as "torch==2.13.0+cpu"."""
    found = re.search(rf"^{re.escape(package)}==\S+", lock_text, re.MULTILINE)
    if found is None:
        raise SetupError(f"the lock does not pin {package}")
    return found.group()


def fingerprint(lock: Path, root: Path) -> dict[str, str]:
    """What an environment was made from. It holds absolute paths, so a moved folder needs a new one."""
    return {
        "python": sys.version,
        "folder": str(root),
        "lock": hashlib.sha256(lock.read_bytes()).hexdigest(),
        "project": hashlib.sha256((root / "pyproject.toml").read_bytes()).hexdigest(),
    }


def read_stamp(stamp: Path) -> dict[str, str]:
    """The fingerprint of the environment that is there; empty where there is none or it was not finished."""
    try:
        loaded = json.loads(stamp.read_text())
    except (OSError, ValueError):
        return {}
    return loaded if isinstance(loaded, dict) else {}


def plan(wanted: dict[str, str], found: dict[str, str]) -> str:
    """What is to be done: "nothing", "update" what is there, or build "everything" anew."""
    if wanted == found:
        return "nothing"
    same_place = all(wanted[key] == found.get(key) for key in ("python", "folder"))
    return "update" if same_place else "everything"


def explain(log: str) -> str:
    """One line on why pip failed, from what it printed."""
    if "No space left on device" in log:
        return DISK_FULL
    if any(sign in log for sign in OFFLINE_SIGNS):
        return "a package index cannot be reached (offline, or behind a proxy that pip does not know?)"
    missing = re.search(r"No matching distribution found for (\S+)", log)
    if missing:
        return f"no wheel of {missing.group(1)} for this Python and machine (or no index that can be reached)"
    errors = re.findall(r"^ERROR: (.+)$", log, re.MULTILINE)
    return errors[-1] if errors else "pip stopped without saying why"


class Progress:
    """One line on the terminal that says what pip is doing; in a log only the first and the last."""

    def __init__(self, title: str) -> None:
        self.title, self.start, self.alive = title, time.monotonic(), sys.stdout.isatty()
        if not self.alive:
            print(f"{title} ...", flush=True)

    def show(self, detail: str) -> None:
        if self.alive:
            seconds = time.monotonic() - self.start
            print(f"\r\033[K{self.title}: {seconds:3.0f} s  {detail[:60]}", end="", flush=True)

    def done(self) -> None:
        start = "\r\033[K" if self.alive else ""
        print(f"{start}{self.title}: done in {time.monotonic() - self.start:.0f} s", flush=True)


def describe(line: str) -> str | None:
    """What a line of pip's output is worth to a person waiting; None for most."""
    found = re.match(r"\s*(Collecting|Downloading|Installing|Building) (\S+)", line)
    if found is None:
        return None
    return "unpacking" if line.startswith("Installing collected") else " ".join(found.groups())


def run_pip(venv: Path, arguments: list[str], progress: Progress) -> tuple[int, str]:
    """Run the environment's pip, its output into install.log; return exit code and output."""
    command = [str(venv / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--no-input"]
    command += arguments
    lines = []
    with (venv / "install.log").open("a") as log:
        log.write(f"$ {' '.join(command)}\n")
        pip = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8")
        assert pip.stdout is not None
        for line in pip.stdout:
            log.write(line)
            lines.append(line)
            detail = describe(line)
            if detail is not None:
                progress.show(detail)
    return pip.wait(), "".join(lines)


def require_pip(venv: Path, arguments: list[str], progress: Progress, what: str) -> None:
    """Run pip; a failure is one line that says what, why, and where the rest stands."""
    code, output = run_pip(venv, arguments, progress)
    if code != 0:
        reason = explain(output)
        message = f"could not install {what}: {reason}; pip's own words are in {venv / 'install.log'}"
        raise SetupError(message, exit_code=4 if reason == DISK_FULL else 1)


def make_environment(venv: Path, progress: Progress) -> None:
    """An empty environment with pip; whatever stood there before goes."""
    command = [sys.executable, "-m", "venv", "--clear", str(venv)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        said = (made.stderr or made.stdout).strip().splitlines() or ["no reason given"]
        raise SetupError(f"could not make {venv}: {said[-1]}")
    progress.done()


def install_torch_for_cpu(venv: Path, pin: str, progress: Progress) -> None:
    """The CPU build of torch: a wheel that pip is configured to find here, else PyTorch's own CPU index.

    PyPI has the CUDA build alone under this version, several GB of it: no other index is asked.
    """
    wheel_only = ["install", "--no-deps", "--no-compile", "--only-binary=:all:"]
    code, _ = run_pip(venv, [*wheel_only, "--no-index", pin], progress)
    if code != 0:
        require_pip(venv, [*wheel_only, "--index-url", TORCH_CPU_INDEX, pin], progress, pin)
    progress.done()


def install_locked(venv: Path, lock: Path, progress: Progress) -> None:
    """Every pin of the lock, wheels only, without looking at what they declare (the lock is complete)."""
    wheels = ["install", "--no-deps", "--no-compile", "--only-binary=:all:", "-r", str(lock)]
    require_pip(venv, wheels, progress, f"the packages of {lock.name}")
    progress.done()


def install_project(venv: Path, root: Path, progress: Progress) -> None:
    """Bonsai itself, editable: `import gateway` and the `bonsai` command."""
    arguments = ["install", "--no-deps", "--no-build-isolation", "-e", str(root)]
    require_pip(venv, arguments, progress, "Bonsai itself")
    progress.done()


def remove_others(venv: Path, lock_text: str, progress: Progress) -> None:
    """Whatever an older lock had and this one has not: what is there is what a fresh install would give."""
    code, listed = run_pip(venv, ["list", "--format=freeze", "--exclude-editable"], progress)
    others = names(listed) - names(lock_text) - {"pip"}
    if code == 0 and others:
        require_pip(venv, ["uninstall", "--yes", *sorted(others)], progress, "without what is not locked")


def names(lines: str) -> set[str]:
    """The packages of `name==version` lines, in the one spelling."""
    return {re.sub(r"[-_.]+", "-", name).lower() for name in re.findall(r"^([\w.-]+)==", lines, re.MULTILINE)}


def compile_modules(venv: Path, progress: Progress) -> None:
    """Write the bytecode of what engines import, in parallel; pip would do so one file after the other.

    Where PYTHONDONTWRITEBYTECODE is set, as in containers, an engine would compile all of it at every start:
    51 s instead of 24. What does not compile (a few packages hold templates) is let be.
    """
    command = [str(venv / "bin" / "python"), "-m", "compileall", "-q", "-j", "0", "-x", SELDOM_IMPORTED]
    subprocess.run([*command, str(venv / "lib")], capture_output=True, check=False)
    progress.done()


def install(venv: Path, lock: Path) -> None:
    """Bring an environment to what the lock says, whatever it holds."""
    text = lock.read_text()
    torch = find_pin(text, "torch")
    if torch.endswith("+cpu"):
        install_torch_for_cpu(venv, torch, Progress(f"setup: {torch}"))
    packages = Progress(f"setup: {len(names(text))} packages of {lock.name}")
    install_locked(venv, lock, packages)
    remove_others(venv, text, packages)
    compile_modules(venv, Progress("setup: compiling modules"))
    install_project(venv, ROOT, Progress("setup: Bonsai itself"))


def set_up(lock_name: str) -> None:
    """Bring `.venv` to what the lock and pyproject.toml say, doing no more than that takes."""
    check_python(sys.version_info[:2], sys.platform)
    lock = ROOT / "requirements" / f"{lock_name}.lock"
    venv = ROOT / ".venv"
    stamp = venv / "installed.json"
    wanted = fingerprint(lock, ROOT)
    todo = plan(wanted, read_stamp(stamp))
    if todo == "nothing":
        print("setup: .venv is up to date", flush=True)
        return
    stamp.unlink(missing_ok=True)  # from here on the environment is not to be trusted
    if todo == "everything":
        check_venv_module()
        if lock_name == "cpu":
            check_library("libnuma.so.1", "`apt install libnuma1` or `dnf install numactl-libs` brings it")
        check_disk(shutil.disk_usage(ROOT).free, lock_name)
        make_environment(venv, Progress("setup: an empty .venv (a minute or two in all)"))
    install(venv, lock)
    stamp.write_text(json.dumps(wanted, indent=1))


def main() -> int:
    """Read the flags, set up, and turn what is wrong into one line and an exit code."""
    parser = argparse.ArgumentParser(description="Make .venv with everything that Bonsai needs.")
    choices = ["auto", "cpu", "cuda"]
    parser.add_argument("--lock", choices=choices, default="auto", help="versions (auto: by the GPU)")
    lock_name = parser.parse_args().lock
    if lock_name == "auto":
        lock_name = "cuda" if has_nvidia_gpu() else "cpu"
    try:
        set_up(lock_name)
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\nsetup: interrupted; `make setup` starts again", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
