"""What cannot work is refused in one line before anything starts."""

import asyncio
import hashlib
import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.launch_checks import (
    LaunchError,
    check_checkpoint,
    check_head_size,
    check_server,
    choose_ports,
    find_checkpoint,
)
from tests.gateway.fake_servers import FakeVllm
from tests.gateway.launch_fakes import free_port


def write_checkpoint(folder: Path, *, manifest: bool = True) -> Path:
    """A folder with the files of a checkpoint, and nothing in them that a model could be made of."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"hidden_size": 256, "num_attention_heads": 8}))
    (folder / "model.safetensors").write_bytes(b"weights")
    if manifest:
        digests = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}
        (folder / "manifest.json").write_text(json.dumps({"files": digests}))
    return folder


def refusal(check: Callable[[], object]) -> tuple[str, int]:
    with pytest.raises(LaunchError) as caught:
        check()
    assert "\n" not in str(caught.value)
    return str(caught.value), caught.value.exit_code


def test_a_whole_checkpoint_is_verified_and_one_without_manifest_taken(tmp_path: Path) -> None:
    assert check_checkpoint(write_checkpoint(tmp_path / "ours")) is True
    assert check_checkpoint(write_checkpoint(tmp_path / "hub", manifest=False)) is False


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: (folder / "config.json").unlink(), "it has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be read as JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "must hold a JSON object"),
        (lambda folder: (folder / "config.json").write_text('{"auto_map": {"a": "b"}}'), "auto_map"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "model.bin"), "pickle checkpoints"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"weightz"), "does not match its SHA-256"),
        (lambda folder: (folder / "more.safetensors").write_bytes(b""), "manifest.json does not list it"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), 'holds no "files"'),
        (
            lambda folder: (folder / "manifest.json").write_text('{"files": {"../x": ""}}'),
            "outside its folder",
        ),
        (lambda folder: (folder / "manifest.json").write_text('{"files": {"gone": ""}}'), "not readable"),
    ],
)
def test_a_spoilt_checkpoint_is_refused_with_exit_code_3(
    tmp_path: Path, spoil: Callable[[Path], object], says: str
) -> None:
    folder = write_checkpoint(tmp_path / "policy")
    spoil(folder)
    message, exit_code = refusal(lambda: check_checkpoint(folder))
    assert says in message
    assert str(folder) in message
    assert exit_code == 3


def test_a_name_is_a_folder_or_a_hubs_and_a_typing_error_is_neither(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write_checkpoint(tmp_path / "runs" / "sft")
    (tmp_path / "notes.txt").write_text("")
    assert find_checkpoint("runs/sft") == folder
    assert find_checkpoint("some-org/some-model") is None
    for name in ("runs/stf", "./nowhere", "/nowhere/at/all", "model", "a/b/c"):
        assert refusal(lambda name=name: find_checkpoint(name)) == (f"{name}: no such checkpoint folder", 3)
    assert refusal(lambda: find_checkpoint("notes.txt"))[1] == 3


@pytest.mark.parametrize(
    ("config", "fits"),
    [
        ({"hidden_size": 256, "num_attention_heads": 8}, True),
        ({"hidden_size": 64, "num_attention_heads": 8}, False),
        ({"hidden_size": 64, "num_attention_heads": 8, "head_dim": 32}, True),
        ({"hidden_size": 256, "num_attention_heads": 8, "head_dim": 16}, False),
        ({"hidden_size": 256, "num_attention_heads": 0}, True),
        ({"model_type": "something-new"}, True),
    ],
)
def test_heads_too_small_for_the_cpu_engine_are_refused(
    tmp_path: Path, config: dict[str, object], fits: bool
) -> None:
    folder = write_checkpoint(tmp_path / "policy", manifest=False)
    (folder / "config.json").write_text(json.dumps(config))
    if fits:
        check_head_size(folder)
    else:
        message, exit_code = refusal(lambda: check_head_size(folder))
        assert "needs 32 or more" in message
        assert exit_code == 3


def test_free_ports_are_different_and_a_port_in_use_is_named() -> None:
    ports = choose_ports([("--port", "127.0.0.1", 0), ("--policy-port", "127.0.0.1", 0)])
    assert len({*ports, 0}) == 3
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        message, exit_code = refusal(lambda: choose_ports([("--reward-port", "127.0.0.1", port)]))
    assert f"--reward-port: cannot listen on 127.0.0.1:{port} (Address already in use)" in message
    assert exit_code == 2


def test_the_same_port_twice_is_refused() -> None:
    port = free_port()
    message, _ = refusal(
        lambda: choose_ports([("--port", "127.0.0.1", port), ("--policy-port", "127.0.0.1", port)])
    )
    assert message.startswith("--policy-port")


async def test_a_running_server_must_answer_its_health_check() -> None:
    server = FakeVllm()
    await server.start()
    await asyncio.to_thread(check_server, "--policy-url", server.url)
    server.healthy = False
    with pytest.raises(LaunchError, match="/health answers 503"):
        await asyncio.to_thread(check_server, "--policy-url", server.url)
    await server.stop()
    for url in (server.url, "http://127.0.0.1:99999", "nonsense"):
        with pytest.raises(LaunchError, match="no server answers there") as caught:
            await asyncio.to_thread(check_server, "--policy-url", url)
        assert caught.value.exit_code == 2
