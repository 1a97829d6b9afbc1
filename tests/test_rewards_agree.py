"""A policy in training gets the same rewards from a reward model's checkpoint and from a server of it."""

import re
from pathlib import Path

import pytest
import torch

from tests.rm_server.test_main import process
from tests.trainers.conftest import save_reward_model
from trainers import checkpoint
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
