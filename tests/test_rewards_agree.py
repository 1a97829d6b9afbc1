"""A policy in training gets the same rewards from a reward model's checkpoint and from a server of it."""

import json
import re
from pathlib import Path

import pytest
import torch

from tests.rm_server.test_main import process
from tests.trainers.conftest import save_reward_model
from trainers import checkpoint
from trainers.__main__ import main
from trainers.config import RunConfig
from trainers.devices import Devices
from trainers.formats import Demonstration
from trainers.run import Run
from trainers.scorers import HttpScorer, LocalScorer

ANSWERS = [
    "",
    "yes",
    "a longer answer, é \U0001f600",
    "it says <|end|> and <|user|>",
    " spaces \n",
    "no" * 30,
]


@pytest.mark.slow
def test_a_checkpoint_and_its_server_give_the_same_rewards(tmp_path: Path) -> None:
    folder = save_reward_model(tmp_path / "reward")
    conversations = [
        Demonstration(
            [{"role": "user", "content": f"q{at}"}, {"role": "assistant", "content": text}], 1, False, ""
        )
        for at, text in enumerate(ANSWERS)
    ]
    config, device = RunConfig(output_dir=str(tmp_path), use_cpu=True), Devices(torch.device("cpu"))
    run = Run(config, "test", tmp_path, None, device)
    local = LocalScorer(run, checkpoint.find(str(folder)), None, batch_size=4).score(conversations)
    with process("--model", str(folder)) as (_, url):
        scorer = HttpScorer(url, None, timeout_s=60.0)
        served = scorer.score(conversations)
    assert len(set(local.tolist())) == len(ANSWERS)
    torch.testing.assert_close(served, local, atol=1e-5, rtol=1e-5)
    assert re.fullmatch(r"[0-9a-f]{12}", scorer.identity["version"])


@pytest.mark.slow
def test_a_merged_adapter_is_normalised_when_it_is_served(tmp_path: Path) -> None:
    """Mean 0 and deviation 1, over the answers by which its trainer normalised it before the merge."""
    save_reward_model(tmp_path / "base")
    rows = [{"prompt": f"q{at}", "chosen": "yes" * (1 + at % 3), "rejected": "no" * at} for at in range(12)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    named = ["--model_name_or_path", str(tmp_path / "base"), "--dataset_name", str(tmp_path / "pairs.jsonl")]
    lora = ["--use_peft", "--learning_rate", "1e-2", "--max_steps", "5", "--use_cpu"]
    assert main(["reward", *named, *lora, "--output_dir", str(tmp_path / "reward")]) == 0
    assert checkpoint.read_json(tmp_path / "reward" / "alignment.json")["reward_offset"] != 0
    asked = [(row["prompt"], row[side]) for row in rows for side in ("chosen", "rejected")]
    conversations = [
        Demonstration([{"role": "user", "content": q}, {"role": "assistant", "content": a}], 1, False, "")
        for q, a in asked
    ]
    with process("--model", str(tmp_path / "reward")) as (_, url):
        served = HttpScorer(url, None, timeout_s=60.0).score(conversations).double()
    assert float(served.mean()) == pytest.approx(0, abs=1e-5)
    assert float(served.std(correction=0)) == pytest.approx(1, abs=1e-5)
