"""The command line: what it means, and one clear line for what it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from rm_server.config import MemberSource, ModelSource, parse_args, parse_model
from rm_server.errors import ConfigError


def source(name: str, folder: str) -> ModelSource:
    return ModelSource(name, (MemberSource(name, folder),))


def test_defaults() -> None:
    config = parse_args(["--model", "org/judge"])
    assert config.models == (source("judge", "org/judge"),)
    assert (config.host, config.port, config.dtype) == ("127.0.0.1", 8001, "float32")
    assert config.threads >= 1
    assert config.max_length is None


def test_every_flag_reaches_its_field() -> None:
    flags = {
        "host": "::1",
        "port": 0,
        "dtype": "bfloat16",
        "threads": 3,
        "max_batch_tokens": 5,
        "max_queue_tokens": 6,
        "max_length": 7,
        "max_body_bytes": 8,
        "ensemble": "worst",
        "uncertainty_lambda": 0.1,
        "length_penalty": 0.01,
        "drain_delay": 2.5,
    }
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    config = parse_args(["--model", "a=x/y", "--model", "b=x/y", *arguments])
    assert config.models == (source("a", "x/y"), source("b", "x/y"))
    assert {name: getattr(config, name) for name in flags} == flags


def test_a_model_is_named_or_takes_its_folders_name(tmp_path: Path) -> None:
    folder = tmp_path / "judge=v2"
    folder.mkdir()
    assert parse_model(str(folder)) == source("judge=v2", str(folder))  # a folder, not NAME=DIR
    assert parse_model(f"best={folder}") == source("best", str(folder))
    assert parse_model(f"{folder}/") == source("judge=v2", f"{folder}/")
    assert parse_model("runs/none") == source("none", "runs/none")


@pytest.mark.parametrize(
    ("text", "members"),
    [
        ("j=a/x+b/y", [("x", "a/x", None), ("y", "b/y", None)]),
        ("j=a/x+b/x", [("j-1", "a/x", None), ("j-2", "b/x", None)]),
        ("j=a/x@http://h:1/", [("j", "a/x", "http://h:1")]),
        ("j=a/x@http://h:1+b/y", [("x", "a/x", "http://h:1"), ("y", "b/y", None)]),
    ],
)
def test_several_checkpoints_and_where_they_are_computed(
    text: str, members: list[tuple[str, str, str | None]]
) -> None:
    assert parse_model(text) == ModelSource("j", tuple(MemberSource(*member) for member in members))


def test_a_folder_with_a_plus_in_its_name_is_one_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "helpful+harmless"
    folder.mkdir()
    assert parse_model(f"j={folder}") == ModelSource("j", (MemberSource("j", str(folder)),))


def test_a_calibration_belongs_to_a_model() -> None:
    config = parse_args(["--model", "a", "--model", "b=x+y", "--calibration", "b=c.json"])
    assert [model.calibration for model in config.models] == [None, Path("c.json")]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "required: --model"),
        (["--model", "a", "--port", "65536"], "invalid port value: '65536'"),
        (["--model", "a", "--port", "x"], "invalid port value"),
        (["--model", "a", "--threads", "0"], "invalid positive number value"),
        (["--model", "a", "--max-batch-tokens", "-1"], "invalid positive number value"),
        (["--model", "a", "--dtype", "int8"], "invalid choice: 'int8'"),
        (["--model", "a", "--model", "x/a"], "two models are called a"),
        (["--model", "a", "--length-penalty", "-1"], "invalid amount value: '-1'"),
        (["--model", "a", "--drain-delay", "inf"], "invalid amount value: 'inf'"),
        (["--model", "a+"], "--model a+: a + stands between two checkpoints"),
        (["--model", "a", "--calibration", "b=x"], "--calibration b=x: give NAME=FILE"),
        (["--model", "a", "--calibration", "x"], "--calibration x: give NAME=FILE"),
        (["--model", "a", "--mod", "b"], "unrecognized arguments"),
    ],
)
def test_refuses(arguments: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_args(arguments)
    assert words in str(refused.value)
