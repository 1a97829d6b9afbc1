"""The demo's stack, where it does not start; tests/e2e serves for real."""

from pathlib import Path

import pytest

from trainers.tiny.stack import Ports, Stack, StackError

PORTS = Ports(gateway=0, reward=0)


def test_a_policy_that_is_no_checkpoint_is_said_with_its_exit_code(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dpo").mkdir()
    stack = Stack(tmp_path / "reward", PORTS)
    with pytest.raises(StackError) as caught:
        stack.serve(tmp_path / "dpo")
    assert caught.value.exit_code == 3
    assert f"{tmp_path / 'dpo'}: no checkpoint" in capfd.readouterr().err
    stack.stop()
    assert not (tmp_path / "ready.json").exists()


def test_a_ready_file_of_an_earlier_run_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / "ready.json").write_text("{}")
    stack = Stack(tmp_path / "reward", PORTS)
    with pytest.raises(StackError):
        stack.serve(tmp_path / "nothing")
    stack.stop()


def test_nothing_to_stop_or_to_wait_for(tmp_path: Path) -> None:
    stack = Stack(tmp_path / "reward", Ports(gateway=8000, reward=8001))
    assert stack.wait() == 0
    stack.stop()
    assert (stack.url, stack.reward_url) == ("http://127.0.0.1:8000", "http://127.0.0.1:8001")
