"""How far a policy has gone from another: the KL divergence of its answers, in nats per sequence.

The policy answers prompts at temperature 1, from its whole distribution, in float32. Of every answer, its
log-probability under the policy less that under the reference is one sample of the divergence, which needs no
bound on the answers' tokens; their mean is the estimate (k1 of Schulman's note on approximating KL), its
95 % interval is over prompts. So a reward that was gained can be told with what it cost.

    python -m trainers kl --model_name_or_path runs/ppo --ref_model_name_or_path runs/sft --prompts p.jsonl
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from trainers.config import parse
from trainers.errors import ConfigError, DataError
from trainers.files import write_whole
from trainers.intervals import Mean, mean
from trainers.progress import ProgressBar

if TYPE_CHECKING:
    from trainers.episodes import Episode


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the measurement."""

    model_name_or_path: str
    """The policy: a local folder or a Hugging Face hub name."""
    ref_model_name_or_path: str
    """What it is compared with; of the same tokenizer."""
    prompts: str
    """The prompts: a .jsonl or .json file (.gz too) or a folder of them."""
    output: str | None = None
    """A .json file for the result: kl_nats_per_sequence with mean and ci95, tokens_per_answer, prompts."""
    num_samples: int = 2
    """Answers for each prompt."""
    max_new_tokens: int = 128
    """Longest answer in tokens; what is cut off counts as far as it goes."""
    batch_size: int = 64
    """Answers that are computed side by side."""
    seed: int = 42
    """Seed of the answers."""
    chat_template_path: str | None = None
    """A Jinja file with a chat template for a tokenizer that has none, or `simple` for the built-in one."""

    def __post_init__(self) -> None:
        if min(self.num_samples, self.max_new_tokens, self.batch_size) < 1 or self.seed < 0:
            raise ConfigError(
                "--num_samples, --max_new_tokens and --batch_size must be at least 1, --seed 0 or above"
            )


@dataclass(frozen=True)
class Divergence:
    """What was measured."""

    kl_nats_per_sequence: Mean
    tokens_per_answer: float
    prompts: int


def main(argv: Sequence[str]) -> int:
    """Measures by the flags in `argv`; returns the exit code."""
    config = parse(Config, argv, "kl", __doc__)
    found = measure(config)
    value = found.kl_nats_per_sequence
    print(
        f"KL {value.mean:.2f} [{value.ci95[0]:.2f}, {value.ci95[1]:.2f}] nats per sequence of "
        f"{found.tokens_per_answer:.0f} tokens, over {found.prompts} prompts"
    )
    if config.output:
        write_whole(Path(config.output), [json.dumps(asdict(found), indent=2) + "\n"])
    return 0


def measure(config: Config) -> Divergence:
    """Raises CheckpointError, ConfigError, DataError."""
    # Torch and transformers take seconds to import; --help and wrong flags do not wait for them.
    from trainers import checkpoint, formats, models
    from trainers.chat import ChatEncoder
    from trainers.episodes import Episode
    from trainers.prompts import check_room, encode_prompts
    from trainers.rollout import Sampling, TransformersRollout

    parent = checkpoint.find(config.model_name_or_path)
    other = checkpoint.find(config.ref_model_name_or_path)
    tokenizer, _ = models.load_tokenizer(parent, config.chat_template_path)
    if models.load_tokenizer(other, config.chat_template_path)[0].get_vocab() != tokenizer.get_vocab():
        raise ConfigError(
            f"{parent.name} and {other.name} have different tokens, so neither can judge the other"
        )
    ends = models.answer_end_token_ids(parent, tokenizer)
    rows, _ = formats.read_rows(config.prompts)
    prompts = encode_prompts(rows, ChatEncoder(tokenizer))
    length = models.context_length(parent) or 2048
    check_room(prompts, length)
    if len(prompts) < 2:
        raise DataError(f"{config.prompts}: an interval needs two prompts or more")
    policy = models.load_policy(parent, tokenizer, "sdpa")
    reference = models.load_policy(other, tokenizer, "sdpa")
    rollout = TransformersRollout(
        policy, tokenizer, ends, context_length=length, seed=config.seed, batch_size=config.batch_size
    )
    with ProgressBar("sample", len(prompts)) as bar:
        sampling = Sampling(config.num_samples, 1.0, config.max_new_tokens)
        answers = rollout.sample([prompt.ids for prompt in prompts], sampling, bar.update_counts)
    episodes = [
        Episode(prompt, sample) for prompt, group in zip(prompts, answers, strict=True) for sample in group
    ]
    ratios = log_ratios(policy, reference, episodes, tokenizer.pad_token_id or 0, config.batch_size)
    by_prompt = [
        fmean(ratios[at : at + config.num_samples]) for at in range(0, len(ratios), config.num_samples)
    ]
    tokens = fmean(len(episode.sample.token_ids) for episode in episodes)
    return Divergence(mean(by_prompt), tokens, len(prompts))


def log_ratios(
    policy: Any, reference: Any, episodes: "Sequence[Episode]", pad_token_id: int, batch_size: int
) -> list[float]:
    """log p(answer) under the policy less that under the reference, of each episode, in nats."""
    import torch

    from trainers.data import collate_tokens
    from trainers.logprobs import sequence_logps, token_logprobs

    rows = [episode.tokens for episode in episodes]
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
    ratios = [0.0] * len(rows)
    with torch.no_grad():
        for at in range(0, len(order), batch_size):
            chosen = order[at : at + batch_size]
            batch = collate_tokens([rows[index] for index in chosen], pad_token_id)
            found, expected = (
                sequence_logps(token_logprobs(model, batch).double(), batch) for model in (policy, reference)
            )
            for index, ratio in zip(chosen, (found - expected).tolist(), strict=True):
                ratios[index] = ratio
    return ratios
