"""A checkpoint becomes a served model whose scores are its own, or one clear line."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import pytest
import torch

from rm_server.checkpoint import locate, open_checkpoint
from rm_server.config import parse_args
from rm_server.errors import CheckpointError, ConfigError, StartError
from rm_server.loading import build_model
from rm_server.metrics import Metrics
from rm_server.served_model import ServedModel
from rm_server.threads import Threads
from tests.rm_server.fakes import fake_app
from tests.rm_server.test_api_server import assert_envelope, served
from tests.rm_server.tiny import MAX_LENGTH, save_checkpoint, tiny_model, tiny_tokenizer

QUESTION = {"role": "user", "content": "How many apples?"}


def load_folder(folder: Path, executor: Executor, metrics: Metrics, *flags: str) -> ServedModel:
    config = parse_args(["--model", str(folder), *flags])
    [member] = config.models[0].members
    checkpoint = open_checkpoint(locate(member.source))
    return build_model(checkpoint, member, config, metrics, Threads(executor, executor))


def plain_score(messages: list[dict[str, str]]) -> float:
    ids = tiny_tokenizer().apply_chat_template(messages, tokenize=True, return_dict=False)
    with torch.no_grad():
        return float(tiny_model()(torch.tensor([ids])).logits[0, 0])


async def test_served_scores_are_the_models_own(
    tiny_checkpoint: Path, executor: Executor, metrics: Metrics
) -> None:
    model = load_folder(tiny_checkpoint, executor, metrics)
    assert model.card.verified
    responses = ["12", "There are 12 apples, I think.", "", "no"]
    conversations = [[QUESTION, {"role": "assistant", "content": response}] for response in responses]
    expected = [plain_score(conversation) - 0.25 for conversation in conversations]
    async with served(fake_app(model, metrics=metrics)) as http:
        one = await http.post("/score", json={"messages": [QUESTION], "responses": responses})
        other = await http.post("/score", json={"conversations": conversations})
        raw = await http.post("/pooling", json={"messages": conversations[0]})
    assert one.json()["scores"] == pytest.approx(expected, abs=1e-5, rel=1e-5)
    assert other.json() == one.json()
    assert raw.json()["data"][0]["data"] == pytest.approx([expected[0] + 0.25], abs=1e-5)
    assert one.json()["model"] == "tiny"


async def test_an_over_long_text_is_refused_by_how_much(
    tiny_checkpoint: Path, executor: Executor, metrics: Metrics
) -> None:
    model = load_folder(tiny_checkpoint, executor, metrics)
    body: dict[str, Any] = {"conversations": [[{"role": "user", "content": "!" * (MAX_LENGTH + 1)}]]}
    async with served(fake_app(model, metrics=metrics)) as http:
        error = assert_envelope(await http.post("/score", json=body), 400, "context_length_exceeded")
    # <|user|>, a line break, 97 marks, <|end|>
    assert "100 tokens long, 4 more than the 96" in error["message"]


def test_max_length_can_be_lowered_but_not_raised(
    tiny_checkpoint: Path, executor: Executor, metrics: Metrics
) -> None:
    assert load_folder(tiny_checkpoint, executor, metrics, "--max-length", "20").card.max_length == 20
    with pytest.raises(ConfigError, match="--max-length 97"):
        load_folder(tiny_checkpoint, executor, metrics, "--max-length", "97")


def _small_vocabulary(folder: Path) -> None:
    tiny_model(vocab_size=100).save_pretrained(folder)


def _overflow(folder: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.score.weight.fill_(3e38)
    model.save_pretrained(folder)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_small_vocabulary, "unknown token id"),
        (_overflow, "score of a greeting is not finite"),
        (lambda f: save_checkpoint(f, template="{{ raise_exception('x') }}"), "cannot read a greeting"),
    ],
)
def test_what_cannot_score_a_greeting_does_not_start(
    loose_checkpoint: Path,
    executor: Executor,
    metrics: Metrics,
    damage: Callable[[Path], object],
    words: str,
) -> None:
    damage(loose_checkpoint)
    with pytest.raises(StartError) as refused:
        load_folder(loose_checkpoint, executor, metrics)
    assert isinstance(refused.value, CheckpointError)
    assert words in str(refused.value)
