"""vLLM in this process: when it takes the policy's weights, and which; what its errors become."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.trainers.conftest import make_model
from trainers.errors import OutOfMemoryError, RolloutError
from trainers.rollout import Sampling
from trainers.rollout_vllm import VllmRollout, weights_of


class FakeEngine:
    """Answers nothing, and writes down what is asked of it."""

    def __init__(self, is_emptied: bool = True, error: Exception | None = None) -> None:
        self.is_emptied, self.error = is_emptied, error
        self.calls: list[str] = []
        self.weights: dict[str, torch.Tensor] = {}

    def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> None:
        self.calls.append(method)
        self.weights = {name: weight.clone() for name, weight in kwargs["weights_iterator"]}

    def reset_prefix_cache(self) -> bool:
        self.calls.append("reset_prefix_cache")
        return self.is_emptied

    def has_unfinished_requests(self) -> bool:
        if self.error:
            raise self.error
        return False


def rollout(engine: FakeEngine, tokenizer: Any, policy: Any | None) -> VllmRollout:
    return VllmRollout(engine, tokenizer, [1], context_length=128, policy=policy)


def answer_nothing(target: VllmRollout) -> None:
    assert target.sample([], Sampling(1, 1.0, 8), lambda *_: None) == []


def test_weights_go_in_once_for_each_update_and_the_prefix_cache_is_emptied(tokenizer: Any) -> None:
    engine, policy = FakeEngine(), make_model()
    target = rollout(engine, tokenizer, policy)
    once = ["load_policy", "reset_prefix_cache"]
    answer_nothing(target)
    assert engine.calls == once  # a continued run's weights are not those of the checkpoint it started from
    answer_nothing(target)
    assert engine.calls == once
    target.update()
    target.update()
    with torch.no_grad():
        policy.lm_head.weight.fill_(7)
    answer_nothing(target)
    assert engine.calls == once * 2
    assert bool((engine.weights["lm_head.weight"] == 7).all())


def test_a_checkpoints_own_weights_stay(tokenizer: Any) -> None:
    engine = FakeEngine()
    target = rollout(engine, tokenizer, None)
    target.update()
    answer_nothing(target)
    assert engine.calls == []


def test_a_cache_that_is_not_emptied_is_an_error(tokenizer: Any) -> None:
    with pytest.raises(RolloutError, match="prefix cache still holds"):
        answer_nothing(rollout(FakeEngine(is_emptied=False), tokenizer, make_model()))


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (KeyError("head size 8\nand a long story"), RolloutError, "vLLM stopped: 'head size 8"),
        (ValueError(), RolloutError, "vLLM stopped: ValueError"),
        (RuntimeError("CUDA out of memory"), OutOfMemoryError, "out of memory: lower"),
    ],
)
def test_what_goes_wrong_in_the_engine_is_one_line(
    error: Exception, kind: type[Exception], message: str, tokenizer: Any
) -> None:
    with pytest.raises(kind) as told:
        answer_nothing(rollout(FakeEngine(error=error), tokenizer, None))
    assert str(told.value).startswith(message)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("tie", [False, True])
def test_weights_bear_the_names_of_a_checkpoint(tie: bool) -> None:
    weights = weights_of(make_model(tie_word_embeddings=tie))
    assert ("lm_head.weight" in weights) is not tie
    assert {"model.embed_tokens.weight", "model.layers.1.self_attn.q_proj.weight"} <= set(weights)
    assert len(weights) == 2 * 9 + 2 + (not tie)


def test_samples_carry_the_chosen_tokens_logprobs(tokenizer: Any) -> None:
    def said(logprobs: Sequence[float]) -> list[dict[int, Any]]:
        return [{5 + at: SimpleNamespace(logprob=value)} for at, value in enumerate(logprobs)]

    outputs = [
        SimpleNamespace(token_ids=(5, 6, 7), finish_reason="length", logprobs=said([-1.0, -2.0, -0.5])),
        SimpleNamespace(token_ids=(5,), finish_reason="stop", logprobs=said([-3.0])),
    ]
    samples = rollout(FakeEngine(), tokenizer, make_model())._read(outputs)
    assert [sample.logprobs for sample in samples] == [[-1.0, -2.0, -0.5], [-3.0]]
    assert [sample.finish_reason for sample in samples] == ["length", "stop"]
