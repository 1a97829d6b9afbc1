"""Training runs as processes, with a small program in a trainer's place."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from loadtests.errors import LoadTestError
from loadtests.peer_training import ACCUMULATION, BATCH, WARMUP, Cost, Work, ours, watch, write_rows

TRAINER = """\
import json, sys, time
held = bytearray(64 * 2**20)
for step in range(1, 6):
    until = time.process_time() + 0.02
    while time.process_time() < until:
        pass
    with open(sys.argv[1] + "/metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": step, "loss": 1 / step, "tokens": 100 * step}) + "\\n")
"""


def work(tmp_path: Path, algorithm: str = "sft", bf16: bool = False) -> Work:
    model, data, out = (tmp_path / name for name in ("model", "rows.jsonl", "out"))
    return Work(
        algorithm=algorithm, model=model, data=data, out=out / "bonsai", bf16=bf16, threads=1, steps=5
    )


def test_steps_after_the_warm_up_are_measured(tmp_path: Path) -> None:
    at = work(tmp_path)
    cost = watch([sys.executable, "-c", TRAINER, str(at.out)], at)
    assert cost.units == cost.tokens == 100 * (5 - WARMUP)
    assert cost.seconds > 0
    assert cost.peak_bytes > 64 * 2**20
    assert list(cost.losses) == [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5]


def test_of_ppo_episodes_are_counted(tmp_path: Path) -> None:
    at = replace(work(tmp_path, "ppo"), judge=tmp_path / "judge")
    cost = watch([sys.executable, "-c", TRAINER, str(at.out)], at)
    assert (cost.units, cost.tokens) == ((5 - WARMUP) * BATCH * ACCUMULATION, 100 * (5 - WARMUP))


def test_rates_by_hand() -> None:
    cost = Cost(units=300, tokens=900, seconds=2.0, cpu_s=3.0, peak_bytes=1, losses=[])
    assert (cost.rate, cost.cpu_rate) == (150, 100)


@pytest.mark.parametrize("program", ["raise SystemExit('no such model')", "print('no such model')"])
def test_a_run_that_fails_or_ends_early_is_said(program: str, tmp_path: Path) -> None:
    with pytest.raises(LoadTestError, match="failed: no such model"):
        watch([sys.executable, "-c", program], work(tmp_path))


@pytest.mark.parametrize("bf16", [False, True])
def test_our_command_says_what_is_compared(bf16: bool, tmp_path: Path) -> None:
    words = ours(work(tmp_path, "dpo", bf16))
    assert words[1:4] == ["-m", "trainers", "dpo"]
    flags = dict(zip(words[4::2], words[5::2], strict=True))
    assert flags["--max_steps"] == "5"
    assert flags["--bf16"] == str(bf16).lower()
    assert "--reward_model_path" not in flags


def test_our_command_of_ppo_names_the_judge(tmp_path: Path) -> None:
    words = ours(replace(work(tmp_path, "ppo"), judge=tmp_path / "judge"))
    flags = dict(zip(words[4::2], words[5::2], strict=True))
    assert flags["--reward_model_path"] == str(tmp_path / "judge")
    assert flags["--gradient_accumulation_steps"] == str(ACCUMULATION)


@pytest.mark.parametrize(
    ("algorithm", "keys"),
    [
        ("sft", {"prompt", "completion"}),
        ("ppo", {"prompt"}),
        ("dpo", {"prompt", "chosen", "rejected"}),
        ("reward", {"prompt", "chosen", "rejected"}),
    ],
)
def test_rows_are_the_same_every_time_and_within_their_bounds(
    algorithm: str, keys: set[str], tmp_path: Path
) -> None:
    texts = []
    for name in ("one", "other"):
        write_rows(tmp_path / name, algorithm, 20)
        texts.append((tmp_path / name).read_text())
    assert texts[0] == texts[1]
    rows = [json.loads(line) for line in texts[0].splitlines()]
    assert len(rows) == 20
    assert all(set(row) == keys for row in rows)
    if algorithm == "dpo":
        assert all(32 <= len(text.split()) <= 96 for row in rows for text in row.values())
    if algorithm == "reward":
        assert {message["role"] for row in rows for message in row["chosen"]} == {"assistant"}
