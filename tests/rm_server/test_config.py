"""The command line: what it means, and one clear line for what it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from rm_server.config import ModelSource, parse_args, parse_model
from rm_server.errors import ConfigError


def test_defaults() -> None:
    config = parse_args(["--model", "org/judge"])
    assert config.models == (ModelSource("judge", "org/judge"),)
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
    }
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    config = parse_args(["--model", "a=x/y", "--model", "b=x/y", *arguments])
    assert config.models == (ModelSource("a", "x/y"), ModelSource("b", "x/y"))
    assert {name: getattr(config, name) for name in flags} == flags


def test_a_model_is_named_or_takes_its_folders_name(tmp_path: Path) -> None:
    folder = tmp_path / "judge=v2"
    folder.mkdir()
    assert parse_model(str(folder)) == ModelSource("judge=v2", str(folder))  # a folder, not NAME=DIR
    assert parse_model(f"best={folder}") == ModelSource("best", str(folder))
    assert parse_model(f"{folder}/") == ModelSource("judge=v2", f"{folder}/")
    assert parse_model("runs/none") == ModelSource("none", "runs/none")


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
        (["--model", "a", "--mod", "b"], "unrecognized arguments"),
    ],
)
def test_refuses(arguments: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_args(arguments)
    assert words in str(refused.value)
