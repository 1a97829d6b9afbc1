"""A real vLLM serves an adapter as it comes out of a run."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.trainers.conftest import make_model
from trainers import checkpoint
from trainers.__main__ import main

PROMPT = [3, 42, 43, 44, 1]


def logprobs(folder: Path, ids: list[int]) -> list[float]:
    """What transformers says of an answer."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        logprobs_TV = model(torch.tensor([PROMPT + ids])).logits[0].log_softmax(-1)
    return [float(logprobs_TV[len(PROMPT) - 1 + at, token]) for at, token in enumerate(ids)]


@pytest.mark.slow
def test_vllm_serves_the_adapter_and_its_base_side_by_side(
    pairs: Path, tokenizer: Any, tmp_path: Path
) -> None:
    base, tuned, merged = tmp_path / "base", tmp_path / "tuned", tmp_path / "merged"
    checkpoint.save(make_model(head_dim=32), tokenizer, base, {})  # vLLM's attention knows no smaller heads
    for output, more in ((tuned, ["--save_adapter"]), (merged, [])):
        named = ["--model_name_or_path", str(base), "--dataset_name", str(pairs), "--output_dir", str(output)]
        lora = ["--use_peft", "--learning_rate", "1e-2", "--num_train_epochs", "2", "--use_cpu"]
        assert main(["dpo", *named, *lora, *more]) == 0
    script = str(Path(__file__).with_name("lora_engine.py"))
    command = [sys.executable, script, str(base), str(tuned), ",".join(map(str, PROMPT))]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    plain, adapted = (json.loads(line) for line in result.stdout.splitlines() if line.startswith('{"ids"'))
    assert plain["logprobs"] == pytest.approx(logprobs(base, plain["ids"]), abs=1e-4)
    assert adapted["logprobs"] == pytest.approx(logprobs(merged, adapted["ids"]), abs=1e-4)
    assert adapted["logprobs"] != pytest.approx(logprobs(base, adapted["ids"]), abs=1e-2)
