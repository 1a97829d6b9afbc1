"""Answers from a policy: order, number, ends and lengths."""

from typing import Any

import pytest
import torch

from tests.trainers.conftest import make_model
from trainers.data import Part
from trainers.rollout import Sampling, ScriptedRollout, TransformersRollout

END = 1


def rollout(model: Any, tokenizer: Any, seed: int = 0, context_length: int = 128) -> TransformersRollout:
    return TransformersRollout(model, tokenizer, [END], context_length=context_length, seed=seed)


def ignore(_finished: int, _tokens: int) -> None:
    """No progress to show."""


def test_greedy_answers_follow_the_likeliest_tokens(model: Any, tokenizer: Any) -> None:
    prompts = [[5, 6, 7], [9], [10, 11, 12, 13, 14, 15]]
    answers = rollout(model, tokenizer).sample(prompts, Sampling(1, 0.0, 5), ignore)
    for prompt, (answer,) in zip(prompts, answers, strict=True):
        ids = list(prompt)
        while len(ids) < len(prompt) + 5 and (len(ids) == len(prompt) or ids[-1] != END):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert answer.token_ids == ids[len(prompt) :]
        assert answer.finish_reason == ("stop" if ids[-1] == END else "length")


def test_every_prompt_gets_its_number_of_different_answers(model: Any, tokenizer: Any) -> None:
    finished: list[tuple[int, int]] = []
    prompts = [[5] * (1 + n % 4) for n in range(30)]
    answers = rollout(model, tokenizer).sample(prompts, Sampling(3, 1.0, 6), lambda *n: finished.append(n))
    assert [len(group) for group in answers] == [3] * 30
    assert len({tuple(answer.token_ids) for group in answers for answer in group}) > 50
    assert finished[-1] == (30, sum(len(answer.token_ids) for group in answers for answer in group))


def test_the_seed_decides(model: Any, tokenizer: Any) -> None:
    def texts(seed: int) -> list[str]:
        (answers,) = rollout(model, tokenizer, seed).sample([[5, 6]], Sampling(4, 1.0, 8), ignore)
        return [answer.text for answer in answers]

    assert texts(1) == texts(1) != texts(2)


def test_a_second_call_draws_other_numbers_until_it_is_seeded_again(model: Any, tokenizer: Any) -> None:
    sampler = rollout(model, tokenizer, seed=4)

    def texts() -> list[str]:
        (answers,) = sampler.sample([[5, 6]], Sampling(4, 1.0, 8), ignore)
        return [answer.text for answer in answers]

    first, second = texts(), texts()
    sampler.reseed(4)
    assert first == texts() != second


@pytest.mark.parametrize(("count", "batch_size"), [(1, 5), (2, 64), (3, 4)])
def test_who_samples_a_prompt_changes_nothing(
    model: Any, tokenizer: Any, count: int, batch_size: int
) -> None:
    prompts = [[5 + n] * (1 + n % 4) for n in range(10)]
    whole = rollout(model, tokenizer).sample(prompts, Sampling(3, 1.0, 6), ignore)
    for index in range(count):
        sampler = TransformersRollout(
            model,
            tokenizer,
            [END],
            context_length=128,
            seed=0,
            batch_size=batch_size,
            part=Part(index, count),
        )
        part = sampler.sample(prompts[index::count], Sampling(3, 1.0, 6), ignore)
        assert part == whole[index::count]


def test_a_sampler_without_prompts_answers_none(model: Any, tokenizer: Any) -> None:
    assert rollout(model, tokenizer).sample([], Sampling(3, 1.0, 6), ignore) == []


def test_an_answer_ends_with_its_end_token(tokenizer: Any) -> None:
    model = make_model()
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.weight[END] = 0.01
    answers = rollout(model, tokenizer).sample([[5, 6]], Sampling(50, 1.0, 100), ignore)[0]
    ended = [answer for answer in answers if answer.finish_reason == "stop"]
    assert ended
    for answer in ended:
        assert answer.token_ids.index(END) == len(answer.token_ids) - 1
        assert "<|end|>" not in answer.text


def test_answers_end_with_the_context(model: Any, tokenizer: Any) -> None:
    (answers,) = rollout(model, tokenizer, context_length=10).sample([[5] * 7], Sampling(1, 1.0, 50), ignore)
    assert len(answers[0].token_ids) <= 3


@pytest.mark.parametrize("num_samples", [1, 2])
def test_the_scripted_fake_answers_by_its_script(tokenizer: Any, num_samples: int) -> None:
    fake = ScriptedRollout(tokenizer, lambda prompt, number: f"{len(prompt)}-{number}")
    answers = fake.sample([[1, 2], [3]], Sampling(num_samples, 1.0, 9), ignore)
    assert [group[-1].text for group in answers] == [f"2-{num_samples - 1}", f"1-{num_samples - 1}"]
    assert tokenizer.decode(answers[0][0].token_ids) == "2-0"
