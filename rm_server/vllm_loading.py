"""From an opened checkpoint and the address of a vLLM to a model that serves."""

from __future__ import annotations

import math

import transformers

from rm_server.checkpoint import Checkpoint
from rm_server.config import Config, MemberSource
from rm_server.errors import CheckpointError
from rm_server.formatting import ChatFormatter
from rm_server.loading import TRIAL, bound_length
from rm_server.metrics import Metrics
from rm_server.reward_model import load_tokenizer
from rm_server.served_model import ModelCard, ServedModel
from rm_server.threads import Threads
from rm_server.vllm_engine import VllmEngine, look_up


def connect(
    checkpoint: Checkpoint, member: MemberSource, config: Config, metrics: Metrics, threads: Threads
) -> ServedModel:
    """Raises StartError, with one line that says what to do, before the model has served anything."""
    url = member.vllm_url
    assert url is not None
    name, max_length = look_up(url, checkpoint.folder)
    settings = transformers.AutoConfig.from_pretrained(
        checkpoint.folder, local_files_only=True, trust_remote_code=False
    )
    formatter = ChatFormatter(load_tokenizer(checkpoint))
    text_settings = settings.get_text_config()
    known = (max_length, getattr(text_settings, "max_position_embeddings", None))
    lengths = [length for length in known if length]
    card = ModelCard(
        name=member.name,
        version=checkpoint.version,
        verified=checkpoint.verified,
        labels=[str(settings.id2label[i]) for i in range(settings.num_labels)],
        reward_offset=checkpoint.reward_offset,
        max_length=bound_length(checkpoint, min(lengths, default=None), config.max_length),
        vocab_size=text_settings.vocab_size,
        calibration=checkpoint.calibration,
    )
    engine = VllmEngine(
        url, name, metrics, num_labels=len(card.labels), max_queue_tokens=config.max_queue_tokens
    )
    if not all(map(math.isfinite, engine.try_out(formatter.encode([TRIAL]))[0])):
        raise CheckpointError(f"{url}: its score of a greeting is not finite")
    return ServedModel(card, formatter, engine, threads.tokenizing, metrics)
