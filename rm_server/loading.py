"""From an opened checkpoint to a model that serves: built, tried once."""

from __future__ import annotations

import logging
import math

from rm_server.batcher import Batcher
from rm_server.checkpoint import Checkpoint
from rm_server.config import BATCH_TOKENS, Config, MemberSource
from rm_server.errors import CheckpointError, ConfigError, RmServerError
from rm_server.formatting import ChatFormatter
from rm_server.metrics import Metrics
from rm_server.planning import plan_packed, plan_padded
from rm_server.reward_model import RewardModel, load_model, load_tokenizer, pick_device
from rm_server.served_model import ModelCard, ServedModel
from rm_server.threads import Threads

logger = logging.getLogger(__name__)

TRIAL = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]


def build_model(
    checkpoint: Checkpoint, member: MemberSource, config: Config, metrics: Metrics, threads: Threads
) -> ServedModel:
    """Raises StartError, with one line that says what to do, before the model has served anything."""
    device = pick_device()
    model = load_model(
        checkpoint, config.dtype, device, metrics, prompt_cache_bytes=config.prompt_cache_bytes
    )
    formatter = ChatFormatter(load_tokenizer(checkpoint))
    card = ModelCard(
        name=member.name,
        version=checkpoint.version,
        verified=checkpoint.verified,
        labels=model.labels,
        reward_offset=checkpoint.reward_offset,
        max_length=bound_length(checkpoint, model.max_length, config.max_length),
        vocab_size=model.vocab_size,
        calibration=checkpoint.calibration,
    )
    batcher = Batcher(
        model,
        threads.scoring,
        metrics,
        max_batch_tokens=config.max_batch_tokens or BATCH_TOKENS[device],
        max_queue_tokens=config.max_queue_tokens,
        plan=plan_padded if model.why_not_packed else plan_packed,
    )
    served = ServedModel(card, formatter, batcher, threads.tokenizing, metrics)
    _try(checkpoint, model, formatter, served)
    checkpoint.check_unchanged()
    if model.why_not_packed:
        logger.info("%s: reads every text in full: %s", checkpoint.folder, model.why_not_packed)
    if not checkpoint.verified:
        logger.warning("%s: has no manifest.json, so its files are unverified", checkpoint.folder)
    return served


def bound_length(checkpoint: Checkpoint, longest: int | None, asked: int | None) -> int:
    """How many tokens a conversation may have: what was asked for, or all that the model reads. Raises
    ConfigError."""
    if longest is None and asked is None:
        raise ConfigError(f"{checkpoint.folder}: says no max_position_embeddings: give --max-length")
    if longest is not None and asked is not None and asked > longest:
        raise ConfigError(f"--max-length {asked}: {checkpoint.folder} reads {longest} tokens at most")
    length = asked or longest
    assert length is not None
    return length


def _try(checkpoint: Checkpoint, model: RewardModel, formatter: ChatFormatter, served: ServedModel) -> None:
    """Scores one short conversation: what cannot do that must not wait for its first request to say so."""
    try:
        rows = formatter.encode([TRIAL])
        served.check_ids(rows)
    except RmServerError as error:
        raise CheckpointError(f"{checkpoint.folder}: cannot read a greeting: {error.message}") from error
    if not all(map(math.isfinite, model.score(rows)[0])):
        raise CheckpointError(f"{checkpoint.folder}: its score of a greeting is not finite")
