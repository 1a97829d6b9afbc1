"""docs/trainers.md: its commands run, and what it lists is what there is."""

import json
import re
import shlex
from contextlib import chdir
from dataclasses import fields
from pathlib import Path
from shutil import copytree

from tests.trainers.conftest import chat
from trainers import dpo, reward, robustness, sample, sft
from trainers.__main__ import ALGORITHMS, main

PAGE = (Path(__file__).parents[2] / "docs" / "trainers.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)


def test_every_command_runs_and_every_metric_is_explained(
    base: Path, demonstrations: Path, pairs: Path, tmp_path: Path
) -> None:
    desk = tmp_path / "desk"
    copytree(base, desk / "base")
    (desk / "demos.jsonl").write_text(demonstrations.read_text())
    (desk / "pairs.jsonl").write_text(pairs.read_text())
    (desk / "votes.jsonl").write_text(pairs.read_text())
    (desk / "held_out.jsonl").write_text(pairs.read_text())
    (desk / "demos_held_out.jsonl").write_text(demonstrations.read_text())
    (desk / "choices.jsonl").write_text(json.dumps({"prompt": "q", "responses": ["a", "b", "c"], "best": 1}))
    (desk / "prompts.jsonl").write_text((json.dumps({"prompt": chat("q", "a")["messages"][:1]}) + "\n") * 2)
    commands = [shlex.split(line) for block in BLOCKS for line in block.splitlines()]
    assert len(commands) == 17
    with chdir(desk):
        for words in commands:
            assert words[:3] == ["python", "-m", "trainers"]
            is_sample = words[3] == "sample"
            quick = (
                ["--engine", "transformers", "--max_new_tokens", "4"] if is_sample else ["--max_steps", "1"]
            )
            # The model's random bytes grow when they are read again, and it reads 128 tokens.
            short = ["--response_length", "8"] if "--reward_model_path" in words else []
            assert main([*words[3:], *quick, *short]) == 0
    for file in desk.glob("runs/**/metrics.jsonl"):
        for name in json.loads(file.read_text().splitlines()[-1]):
            assert f"`{name.removeprefix('eval_')}`" in PAGE


def test_every_algorithm_is_listed() -> None:
    assert set(re.findall(r"^\| `(\w+)` \| ", PAGE, flags=re.MULTILINE)) >= set(ALGORITHMS)


def test_every_flag_it_names_exists() -> None:
    configs = (sft.Config, reward.Config, dpo.Config, robustness.Config, sample.Config)
    known = {field.name for config in configs for field in fields(config)} | {"help"}
    ours = re.sub(r"`vllm serve .*?`.*`--max-lora-rank`", "", PAGE)
    assert set(re.findall(r"--([a-z]\w*)", ours)) <= known
