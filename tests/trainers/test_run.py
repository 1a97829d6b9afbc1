"""The run around the training: its folder, its signals, its records."""

import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from trainers import checkpoint, folder
from trainers.config import RunConfig
from trainers.errors import ConfigError, FolderInUseError, StoppedError
from trainers.formats import Source
from trainers.run import start


@dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    """Some settings."""


def config(output: Path, **settings: Any) -> Config:
    return Config(output_dir=str(output), **settings)


def test_settings_are_written_first(tmp_path: Path) -> None:
    with start(config(tmp_path / "a" / "b", seed=7), "test") as run:
        settings = json.loads((run.output / folder.SETTINGS).read_text())
        assert settings["seed"] == 7
        assert torch.initial_seed() == 7


def test_one_folder_one_run(tmp_path: Path) -> None:
    with (
        start(config(tmp_path), "test"),
        pytest.raises(FolderInUseError, match="another run is training into this folder"),
        start(config(tmp_path), "test"),
    ):
        pass
    with start(config(tmp_path), "test"):
        pass


def test_a_file_is_no_output_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written to"), start(config(tmp_path / "file"), "test"):
        pass


def test_an_earlier_run_is_not_overwritten_by_accident(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    with start(config(tmp_path), "test") as run:
        run.describe(tokenizer, None, [])
        run.finish(model, {"loss": 1.0})
    with pytest.raises(ConfigError, match="holds an earlier run"), start(config(tmp_path), "test"):
        pass
    assert checkpoint.verify(tmp_path) is True
    with start(config(tmp_path, overwrite_output_dir=True), "test"):
        assert not (tmp_path / "model.safetensors").exists()


def test_alignment_says_how_it_came_to_be(tmp_path: Path, model: Any, tokenizer: Any, base: Path) -> None:
    parent = checkpoint.find(str(base))
    with start(config(tmp_path / "out", seed=3), "test") as run:
        run.describe(tokenizer, parent, [Source("a.jsonl", "abc", 5)])
        run.finish(model, {"loss": 1.0}, {"mean": 0.0}, 0.25)
    alignment = json.loads((tmp_path / "out" / "alignment.json").read_text())
    assert alignment["algorithm"] == "test"
    assert alignment["config"]["seed"] == alignment["seed"] == 3
    assert alignment["parent"] == {"path": str(base), "sha256": parent.sha256}
    assert alignment["data"] == [{"path": "a.jsonl", "sha256": "abc", "rows": 5}]
    assert alignment["metrics"] == {"loss": 1.0}
    assert (alignment["calibration"], alignment["reward_offset"]) == ({"mean": 0.0}, 0.25)
    assert alignment["versions"]["torch"] == torch.__version__


def test_the_unverified_is_said_to_be(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = checkpoint.find(str(base))
    with start(config(tmp_path), "test") as run:
        run.describe(None, found, [])
        assert "not verified" not in capsys.readouterr().err
        run.describe(None, checkpoint.Parent("m", base, False, "abc"), [])
        assert "test: m has no manifest and was not verified" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_at_once_while_nothing_is_at_stake(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    with pytest.raises(StoppedError) as caught, start(config(tmp_path), "test"):
        os.kill(os.getpid(), number)
    assert caught.value.exit_code == code


def test_a_signal_waits_for_what_must_not_be_cut(tmp_path: Path) -> None:
    done = []
    with start(config(tmp_path), "test") as run:
        signals = run.signals.deferred()
        signals.__enter__()
        os.kill(os.getpid(), signal.SIGTERM)
        done.append("all of it")
        with pytest.raises(StoppedError):
            signals.__exit__(None, None, None)
    assert done == ["all of it"]


def test_a_signal_that_comes_again_on_the_way_out_changes_nothing(tmp_path: Path) -> None:
    def work() -> None:
        with start(config(tmp_path), "test"):
            try:
                os.kill(os.getpid(), signal.SIGINT)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(StoppedError) as caught:
        work()
    assert caught.value.exit_code == 130
    assert caught.value.__context__ is None


def test_signal_handlers_are_put_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with start(config(tmp_path), "test"):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_a_crash_left_unfinished_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".checkpoint-3.staging").mkdir()
    (tmp_path / ".checkpoint-3.staging" / "model.safetensors").write_text("half")
    with start(config(tmp_path), "test"):
        assert {path.name for path in tmp_path.iterdir()} == {folder.SETTINGS, folder.METRICS}


def test_metrics_after_a_step_are_forgotten(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        folder.append_metrics(tmp_path, {"step": step})
    with (tmp_path / folder.METRICS).open("a") as file:
        file.write('{"step": 8, "lo')
    folder.forget_metrics_after(tmp_path, 4)
    assert (tmp_path / folder.METRICS).read_text() == '{"step": 2}\n{"step": 4}\n'
