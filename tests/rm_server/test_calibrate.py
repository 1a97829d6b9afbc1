"""The command that calibrates, and the server that reads what it wrote."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import pytest
import torch

from rm_server.assembly import Assembly, builder
from rm_server.calibrate import describe, main
from rm_server.config import parse_args
from rm_server.errors import CheckpointError
from rm_server.judge import Judge
from rm_server.metrics import Metrics
from rm_server.threads import Threads
from tests.rm_server.fakes import fake_app
from tests.rm_server.test_api_server import served
from tests.rm_server.tiny import save_checkpoint, seal, tiny_model

PROMPT = [{"role": "user", "content": "How many apples?"}]


@pytest.fixture
def seeds(tmp_path: Path) -> list[Path]:
    """Two checkpoints that differ in their heads."""
    folders = []
    for seed in (1, 2):
        model = tiny_model()
        torch.manual_seed(seed)
        torch.nn.init.normal_(model.score.weight, std=0.3)
        folders.append(seal(save_checkpoint(tmp_path / f"seed-{seed}", model)))
    return folders


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def assemble(executor: Executor, metrics: Metrics, *arguments: str) -> Judge:
    config = parse_args(arguments)
    threads = Threads(executor, executor)
    return Assembly(builder(config, metrics, threads), config, metrics).judge(config.models[0])


async def test_an_ensemble_is_calibrated_and_then_doubts(
    seeds: list[Path],
    tmp_path: Path,
    executor: Executor,
    metrics: Metrics,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = f"judge={seeds[0]}+{seeds[1]}"
    answers = [f"There are {n}." for n in range(40)]
    data = write_rows(tmp_path / "data.jsonl", [{"prompt": PROMPT, "responses": answers, "other": 1}])
    output = tmp_path / "judge.json"
    flags = ["--data", str(data), "--output", str(output)]
    assert await asyncio.to_thread(main, ["--model", model, "--threads", "1", *flags]) == 0
    assert "on 40 answers" in capsys.readouterr().out
    judge = assemble(executor, metrics, "--model", model, "--calibration", f"judge={output}")
    async with served(fake_app(judge, metrics=metrics)) as http:
        ask = {"messages": PROMPT, "responses": answers, "return_members": True}
        answer = (await http.post("/score", json=ask)).json()
        worst = (await http.post("/score", json={**ask, "ensemble": "worst"})).json()
    stored = json.loads(output.read_text())
    assert stored["version"] == answer["version"]
    assert stored["scores"]["mean"]["mean"] == pytest.approx(sum(answer["scores"]) / 40, abs=1e-5)
    assert stored["scores"]["worst"]["mean"] == pytest.approx(sum(worst["scores"]) / 40, abs=1e-5)
    assert stored["spread"]["mean"] == pytest.approx(sum(answer["spread"]) / 40, abs=1e-5)
    # It was calibrated on these: none is above the greatest (up to the file's six digits).
    assert sorted(answer["percentiles"])[20] == pytest.approx(0.5, abs=0.05)
    assert sum(answer["out_of_distribution"]) <= 3


def test_a_calibration_of_something_else_is_refused(
    seeds: list[Path], tmp_path: Path, executor: Executor, metrics: Metrics
) -> None:
    stored = describe("other", {"one": [0.0, 1.0, 2.0]}, 0.5)
    output = write_rows(tmp_path / "judge.json", [stored])
    flags = ["--model", f"judge={seeds[0]}", "--calibration", f"judge={output}"]
    with pytest.raises(CheckpointError, match=r"is about version other, lambda 0\.5, but judge is version"):
        assemble(executor, metrics, *flags)
    output.write_text("{}")
    with pytest.raises(CheckpointError, match=r"not a calibration that rm_server\.calibrate wrote"):
        assemble(executor, metrics, *flags)


def test_one_member_has_one_method_and_no_spread() -> None:
    # Of three values the quantile 0.5 is the second: 0.5 (3 + 1) = 2.
    found = describe("v", {"one": [2.0, 0.0, 1.0]}, 0.5)
    assert list(found["scores"]) == ["mean"]
    assert found["scores"]["mean"]["quantiles"]["0.5"] == 1.0
    assert found["scores"]["mean"]["quantiles"]["0.001"] == 0.0
    assert found["spread"] is None


def test_a_reward_that_is_not_finite_is_refused() -> None:
    with pytest.raises(CheckpointError, match="1 answers have no finite reward"):
        describe("v", {"one": [2.0, None, 1.0]}, 0.5)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "holds 0 answers"),
        ([{"messages": PROMPT}, {"text": "x"}], "line 2: no messages, no prompt with responses"),
        ([{"prompt": PROMPT, "responses": "x"}], "line 1: no messages"),
        ([{"messages": []}], "line 1: no messages"),
        ([{"messages": [{"role": "user", "content": "!" * 200}]}] * 2, "tokens long"),
    ],
)
def test_bad_data_is_exit_code_3(
    seeds: list[Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    rows: list[dict[str, Any]],
    words: str,
) -> None:
    data = write_rows(tmp_path / "data.jsonl", rows)
    capfd.readouterr()
    flags = ["--data", str(data), "--output", str(tmp_path / "x.json"), "--threads", "1"]
    assert main(["--model", str(seeds[0]), *flags]) == 3
    assert words in capfd.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "x.json").exists()


def test_a_wrong_command_line_is_exit_code_2(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "x"]) == 2
    assert "python -m rm_server.calibrate --help" in capfd.readouterr().err
    assert main(["--model", "x", "--model", "y", "--data", "d", "--output", "o"]) == 2
