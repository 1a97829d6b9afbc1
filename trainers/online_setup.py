"""What an online method starts from: policy and frozen reference, prompts, the source of rewards, the value
model.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers import adapters, checkpoint, formats, models
from trainers.chat import ChatEncoder
from trainers.checkpoint import Parent
from trainers.errors import ConfigError, DataError
from trainers.judged_config import JudgedConfig
from trainers.online_config import OnlineConfig
from trainers.prompts import Prompt, encode_prompts
from trainers.reference import WhileAsked, open_reference
from trainers.rollout import PolicyRollout, TransformersRollout
from trainers.rollout_server import ServerRollout
from trainers.rollout_vllm import VllmRollout
from trainers.run import Run
from trainers.scorers import HttpScorer, LocalScorer, Scorer, reward_offset


@dataclass(slots=True)
class Online:
    """All that an online method works with."""

    config: OnlineConfig
    parent: Parent
    tokenizer: Any
    encoder: ChatEncoder
    attention: str
    policy: Any
    reference: Any
    """The frozen policy of the start, where it is asked within `while_asked()`."""
    while_asked: WhileAsked
    scorer: Scorer
    rollout: PolicyRollout
    prompts: list[Prompt]
    held_out: list[Prompt]
    kl_coef: float
    """The KL coefficient of the step: fixed, or as it has adapted."""
    reward_parent: Parent | None
    """The reward model's checkpoint, where it is one."""
    context_length: int
    """The longest sequence, in tokens."""


def load(run: Run, config: OnlineConfig) -> Online:
    """Finds the checkpoints, reads the prompts, and tells the run (and the user) about them."""
    rows, sources = formats.read_rows(config.dataset_name)
    held_out_rows, held_out_sources = (
        formats.read_rows(config.eval_dataset_name) if config.eval_dataset_name else ([], [])
    )
    parent = checkpoint.find(config.model_name_or_path)
    tokenizer, notes = models.load_tokenizer(parent, config.chat_template_path)
    run.describe(tokenizer, parent, [*sources, *held_out_sources])
    encoder = ChatEncoder(tokenizer)
    max_length = min(config.max_length, models.context_length(parent) or config.max_length)
    longest = max_length - config.response_length
    prompts, dropped = keep_short(encode_prompts(rows, encoder), longest)
    held_out: list[Prompt] = []
    if held_out_rows:
        held_out, dropped_too = keep_short(encode_prompts(held_out_rows, encoder), longest)
        dropped += [f"held-out prompts: {note}" for note in dropped_too]
    for note in notes + dropped:
        run.say(note)
    run.say(f"{len(prompts)} prompts, {config.episodes_per_step} episodes in a step, on {run.devices}")
    lengths = [len(prompt.ids) + config.response_length for prompt in prompts]
    attention = models.choose_attention(config.attn_implementation, lengths, run.device, config.bf16)
    policy = models.load_policy(parent, tokenizer, attention)
    if config.use_peft:
        run.say(adapters.add(policy, config, parent.name))
    policy.to(run.device)
    reward_parent = checkpoint.find(config.reward_model_path) if config.reward_model_path else None
    scorer = make_scorer(run, config, reward_parent)
    run.reward_model = scorer.identity
    ends = models.answer_end_token_ids(parent, tokenizer) if config.stop_token == "eos" else []
    rollout = make_rollout(run, config, parent, policy, tokenizer, ends, max_length)
    return Online(
        config,
        parent,
        tokenizer,
        encoder,
        attention,
        policy,
        *open_reference(policy, run.devices),
        scorer,
        rollout,
        prompts,
        held_out,
        config.kl_coef,
        reward_parent,
        max_length,
    )


def make_rollout(
    run: Run,
    config: OnlineConfig,
    parent: Parent,
    policy: Any,
    tokenizer: Any,
    end_token_ids: list[int],
    context_length: int,
) -> PolicyRollout:
    """The sampler that the settings ask for."""
    if not config.use_vllm:
        return TransformersRollout.of_policy(
            run.devices,
            policy,
            tokenizer,
            end_token_ids,
            context_length=context_length,
            seed=config.seed,
            batch_size=config.local_rollout_forward_batch_size,
        )
    if config.vllm_server_base_url is not None:
        return ServerRollout(
            config.vllm_server_base_url,
            policy,
            tokenizer,
            end_token_ids,
            devices=run.devices,
            weights_dir=Path(config.vllm_weights_dir or run.output) / "policy-weights",
            timeout_s=config.vllm_server_timeout,
        )
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError("--use_vllm: vLLM is not installed; without the flag transformers samples")
    return VllmRollout.start(
        parent.folder,
        tokenizer,
        end_token_ids,
        dtype="bfloat16" if config.bf16 else "float32",
        context_length=context_length,
        seed=config.seed,
        kv_cache_gib=config.vllm_kv_cache_gib,
        policy=policy,
    )


def make_scorer(run: Run, config: JudgedConfig, reward_parent: Parent | None) -> Scorer:
    """The source of rewards that the settings ask for."""
    if reward_parent is not None:
        return LocalScorer(
            run, reward_parent, config.chat_template_path, config.local_rollout_forward_batch_size
        )
    assert config.reward_server_url is not None
    return HttpScorer(config.reward_server_url, config.reward_server_model, config.reward_server_timeout)


def keep_short(prompts: Sequence[Prompt], longest: int) -> tuple[list[Prompt], list[str]]:
    """The prompts that leave room for a response, with a note on the others; DataError if none is left."""
    kept = [prompt for prompt in prompts if len(prompt.ids) <= longest]
    if not kept:
        raise DataError(f"no prompt is left: each is longer than {longest} tokens, so that no response fits")
    dropped = len(prompts) - len(kept)
    note = f"dropped {dropped} of {len(prompts)} prompts, which are longer than {longest} tokens"
    return kept, [note] if dropped else []


def load_value_model(run: Run, online: Online, value_model_path: str | None) -> tuple[Any, float]:
    """The value model, and what is subtracted from its raw values: those of a reward model are not centred.

    With --use_peft it has an adapter and a head of its own, and in common with reward model or policy the
    weights that are the same. Raises ConfigError where it reads other tokens than the policy writes.
    """
    parent = checkpoint.find(value_model_path) if value_model_path else online.reward_parent or online.parent
    tokenizer, _ = models.load_tokenizer(parent, online.config.chat_template_path)
    if tokenizer.get_vocab() != online.tokenizer.get_vocab():
        raise ConfigError(
            f"{parent.name}: a value model reads the policy's tokens, and this has another vocabulary: pass "
            "another --value_model_path; the policy's own checkpoint will do"
        )
    model = models.load_value_model(parent, tokenizer, online.attention)
    if online.config.use_peft:
        run.say(f"value model: {adapters.add(model, online.config, parent.name)}")
        run.frozen["value model"] = parent.sha256
    model.to(run.device)
    adapters.share_frozen(model, online.policy)
    if isinstance(online.scorer, LocalScorer):
        adapters.share_frozen(model, online.scorer.model)
    return model, reward_offset(parent)
