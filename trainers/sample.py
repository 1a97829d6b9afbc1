"""Samples answers from a policy for a file of prompts.

Each row of the prompts file has a `prompt` (a string, or a list of messages) or `messages` that end before
the assistant's turn. The output file, written whole or not at all, repeats each row in its order with
`prompt` as the policy saw it, its answers in `responses` and how each ended (`stop`, or `length` where it
was cut off) in `finish_reasons`; other columns are left untouched.

    python -m trainers sample --model_name_or_path runs/sft --prompts prompts.jsonl --output samples.jsonl
"""

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trainers.config import parse
from trainers.errors import ConfigError
from trainers.files import write_whole
from trainers.progress import ProgressBar

if TYPE_CHECKING:
    from trainers.checkpoint import Parent
    from trainers.rollout import Rollout


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of sampling."""

    model_name_or_path: str
    """The policy: a local folder or a Hugging Face hub name."""
    prompts: str
    """The prompts: a .jsonl or .json file (.gz too) or a folder of them."""
    output: str
    """The .jsonl file to write."""
    num_samples: int = 1
    """Answers for each prompt."""
    temperature: float = 1.0
    """Sampling temperature; 0 takes the likeliest token each time."""
    max_new_tokens: int = 128
    """Longest answer in tokens."""
    seed: int = 42
    """Seed of the engine: the same command on the same machine gives the same file (in float32)."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Precision of the engine; float32 agrees with the trainers' log-probabilities."""
    engine: Literal["auto", "vllm", "transformers"] = "auto"
    """What generates; auto is vLLM where it is installed."""
    chat_template_path: str | None = None
    """A Jinja file with a chat template for a tokenizer that has none, or `simple` for the built-in one."""

    def __post_init__(self) -> None:
        if self.num_samples < 1 or self.max_new_tokens < 1:
            raise ConfigError("--num_samples and --max_new_tokens must be at least 1")
        if not 0 <= self.temperature < float("inf") or self.seed < 0:
            raise ConfigError("--temperature and --seed must be 0 or above")
        if self.temperature == 0 and self.num_samples > 1:
            raise ConfigError("--temperature 0 gives the same answer every time: use --num_samples 1")


def main(argv: Sequence[str]) -> int:
    """Samples by the flags in `argv`; returns the exit code."""
    config = parse(Config, argv, "sample", __doc__)
    # Torch and transformers take seconds to import; --help and wrong flags do not wait for them.
    from trainers import checkpoint, formats, models
    from trainers.chat import ChatEncoder
    from trainers.prompts import check_room, encode_prompts
    from trainers.rollout import Sampling

    rows, _ = formats.read_rows(config.prompts)
    parent = checkpoint.find(config.model_name_or_path)
    tokenizer, _ = models.load_tokenizer(parent, config.chat_template_path)
    context_length = models.context_length(parent) or 2048
    prompts = encode_prompts(rows, ChatEncoder(tokenizer))
    check_room(prompts, context_length)
    rollout = make_rollout(config, parent, tokenizer, context_length)
    with ProgressBar("sample", len(rows)) as bar:
        sampling = Sampling(config.num_samples, config.temperature, config.max_new_tokens)
        answers = rollout.sample([prompt.ids for prompt in prompts], sampling, bar.update_counts)
    answered = (
        {name: value for name, value in row.items() if name not in ("prompt", "messages")}
        | {
            "prompt": prompt.content,
            "responses": [sample.text for sample in samples],
            "finish_reasons": [sample.finish_reason for sample in samples],
        }
        for (row, _), prompt, samples in zip(rows, prompts, answers, strict=True)
    )
    write_whole(Path(config.output), (json.dumps(row, ensure_ascii=False) + "\n" for row in answered))
    return 0


def make_rollout(config: Config, parent: "Parent", tokenizer: Any, context_length: int) -> "Rollout":
    """The engine that the settings ask for."""
    from trainers import models
    from trainers.rollout import TransformersRollout
    from trainers.rollout_vllm import VllmRollout

    has_vllm = importlib.util.find_spec("vllm") is not None
    if config.engine == "vllm" and not has_vllm:
        raise ConfigError("--engine vllm: vLLM is not installed")
    ends = models.answer_end_token_ids(parent, tokenizer)
    if has_vllm and config.engine != "transformers":
        return VllmRollout.start(
            parent.folder,
            tokenizer,
            ends,
            dtype=config.dtype,
            context_length=context_length,
            seed=config.seed,
        )
    policy = models.load_policy(parent, tokenizer, "sdpa")
    if config.dtype == "bfloat16":
        policy = policy.bfloat16()
    return TransformersRollout(policy, tokenizer, ends, context_length=context_length, seed=config.seed)
