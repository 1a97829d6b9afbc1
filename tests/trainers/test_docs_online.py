"""docs/online.md: its commands run, and what it lists is what there is."""

import json
import re
import shlex
from contextlib import chdir
from dataclasses import fields
from pathlib import Path
from shutil import copytree

from trainers import cem, ppo, rloo
from trainers.__main__ import main

PAGE = (Path(__file__).parents[2] / "docs" / "online.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
OF_ALL_TRAINERS = {"step", "epoch", "learning_rate", "loss", "grad_norm", "tokens", "seconds"}
OF_ALL_TRAINERS |= {"tokens_per_second"}


def test_every_command_runs_and_every_metric_is_explained(
    base: Path, reward_checkpoint: Path, prompts: Path, demonstrations: Path, tmp_path: Path
) -> None:
    desk = tmp_path / "desk"
    copytree(base, desk / "runs" / "sft")
    copytree(reward_checkpoint, desk / "runs" / "reward")
    (desk / "prompts.jsonl").write_text(prompts.read_text())
    commands = [shlex.split(line) for block in BLOCKS for line in block.splitlines()]
    assert [words[3] for words in commands] == ["ppo", "rloo", "cem", "ppo"]
    said = set()
    with chdir(desk):
        for words in commands:
            quick = ["--max_steps", "1", "--response_length", "4", "--max_length", "99", "--use_cpu"]
            mix = ["--ptx_dataset_name", str(demonstrations)] if words[3] == "ppo" else []
            assert main([*words[3:], *quick, *mix, "--eval_dataset_name", "prompts.jsonl"]) == 0
            output = Path(words[words.index("--output_dir") + 1])
            lines = (output / "metrics.jsonl").read_text().splitlines()
            said |= {name.removeprefix("eval_") for name in json.loads(lines[-1])}
    explained = set(re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE))))
    assert said - OF_ALL_TRAINERS <= explained
    assert {"rollout_logprob_difference", "rollout_logprob_difference_max"} <= explained


def test_every_flag_it_names_exists() -> None:
    known = {field.name for config in (ppo.Config, rloo.Config, cem.Config) for field in fields(config)}
    # vLLM's own are tried where its server is started (test_vllm_online.py).
    ours = re.sub(r"^```sh\n.*?^```$", "", PAGE, flags=re.DOTALL | re.MULTILINE)
    assert set(re.findall(r"--([a-z]\w*)", ours)) <= known
