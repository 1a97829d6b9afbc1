"""Samples from a policy: prompts as token ids in, several answers each out.

`Rollout` is the seam, and `PolicyRollout` that of a policy in training. `TransformersRollout` shares its
weights with the policy, or has a whole copy where the policy lies in parts; `VllmRollout` (rollout_vllm.py)
runs vLLM in this process and `ServerRollout` (rollout_server.py) asks a vLLM server, each with a copy of
them; `ScriptedRollout` is the fake for tests. All draw from the plain distribution at a temperature: no top-p
or top-k cut, so that log-probabilities mean what they say. Seeds belong to the engine, not to requests:
per-request seeds are slow in vLLM on a CPU, and crash it on some batches.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
import torch

from trainers.data import WHOLE, Part
from trainers.devices import Devices
from trainers.generation import generate


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to draw answers."""

    num_samples: int
    temperature: float
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer. `token_ids` holds its end token where there was one; `finish_reason` is `stop` or
    `length`. `logprobs` are the sampler's own of each token, at the temperature, where its weights are a copy
    of the policy's.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    logprobs: list[float] | None = None


GENERATE_BATCH = 64
"""Answers that `TransformersRollout` makes side by side."""

OnFinished = Callable[[int, int], None]
"""Called with the number of prompts finished and of tokens sampled so far."""


class Rollout(Protocol):
    """Anything that answers prompts."""

    def sample(
        self, prompts: Sequence[list[int]], sampling: Sampling, on_finished: OnFinished
    ) -> list[list[Sample]]:
        """Answers each prompt `num_samples` times; the order is the prompts'."""
        ...


class PolicyRollout(Rollout, Protocol):
    """Answers of a policy that learns from them."""

    def reseed(self, seed: int) -> None:
        """Makes what is sampled next depend on this seed alone, as far as the sampler can."""
        ...

    def update(self) -> None:
        """Says that the policy's weights have changed: what is sampled next is sampled from the new ones."""
        ...


class TransformersRollout:
    """A model of transformers in this process, in batches of like length.

    An answer's random numbers depend on the seed, the call, the prompt's number in it and the answer's: not
    on the other answers, and not on who samples them. In float32 on a CPU the same seed and the same calls
    give the same tokens, and `reseed` makes a call depend on nothing that came before it.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        end_token_ids: list[int],
        *,
        context_length: int,
        seed: int,
        batch_size: int = GENERATE_BATCH,
        part: Part = WHOLE,
        refresh: Callable[[], None] = lambda: None,
    ) -> None:
        """`part` says which prompts of a call that several processes share are given to this one, `refresh`
        gives the model new weights.
        """
        self.model, self.tokenizer, self.end_token_ids = model, tokenizer, end_token_ids
        self.context_length, self.batch_size, self.part = context_length, batch_size, part
        self.refresh, self.is_stale = refresh, True
        self.reseed(seed)

    @classmethod
    def of_policy(
        cls,
        devices: Devices,
        policy: Any,
        tokenizer: Any,
        end_token_ids: list[int],
        *,
        context_length: int,
        seed: int,
        batch_size: int,
    ) -> Self:
        """That of a policy in training, which has yet to be placed; wanted in all processes at once."""
        model, refresh = devices.whole_model(policy)
        return cls(
            model,
            tokenizer,
            end_token_ids,
            context_length=context_length,
            seed=seed,
            batch_size=batch_size,
            part=devices.part,
            refresh=refresh,
        )

    def reseed(self, seed: int) -> None:
        """Makes what is sampled next depend on this seed alone."""
        self.seed, self.num_calls = seed, 0

    def update(self) -> None:
        """The policy's weights have changed: a model that is a copy takes them before it samples again."""
        self.is_stale = True

    def sample(
        self, prompts: Sequence[list[int]], sampling: Sampling, on_finished: OnFinished
    ) -> list[list[Sample]]:
        """Answers each prompt, the longest first."""
        if self.is_stale:
            self.refresh()
            self.is_stale = False
        order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
        rows = [(index, number) for index in order for number in range(sampling.num_samples)]
        answers: list[list[Sample]] = [[] for _ in prompts]
        num_tokens = 0
        for at in range(0, len(rows), self.batch_size):
            batch = rows[at : at + self.batch_size]
            samples = self._generate(prompts, batch, sampling)
            for (index, _), sample in zip(batch, samples, strict=True):
                answers[index].append(sample)
            num_tokens += sum(len(sample.token_ids) for sample in samples)
            on_finished(sum(len(group) == sampling.num_samples for group in answers), num_tokens)
        self.num_calls += 1
        return answers

    def _generate(
        self, prompts: Sequence[list[int]], rows: Sequence[tuple[int, int]], sampling: Sampling
    ) -> list[Sample]:
        width = max(len(prompts[index]) for index, _ in rows)
        length = min(sampling.max_new_tokens, self.context_length - width)
        answers = generate(
            self.model,
            [prompts[index] for index, _ in rows],
            end_token_ids=self.end_token_ids,
            max_new_tokens=length,
            temperature=sampling.temperature,
            numbers_BL=torch.from_numpy(np.stack([self._numbers(*row, length) for row in rows])),
        )
        ended = [(ids, ids[-1] in self.end_token_ids) for ids in answers]
        return to_samples(self.tokenizer, ended)

    def _numbers(self, index: int, number: int, length: int) -> "np.ndarray[Any, np.dtype[np.float64]]":
        prompt = self.part.index + index * self.part.count
        return np.random.default_rng([self.seed, self.num_calls, prompt, number]).random(length)


class ScriptedRollout:
    """Answers from a function of the prompt and the sample's number: the fake for tests."""

    def __init__(self, tokenizer: Any, answer: Callable[[list[int], int], str]) -> None:
        self.tokenizer, self.answer = tokenizer, answer

    def sample(
        self, prompts: Sequence[list[int]], sampling: Sampling, on_finished: OnFinished
    ) -> list[list[Sample]]:
        """Answers each prompt by the script; everything ends by itself."""
        answers = [
            [self._sample(self.answer(prompt, number)) for number in range(sampling.num_samples)]
            for prompt in prompts
        ]
        on_finished(len(answers), sum(len(sample.token_ids) for group in answers for sample in group))
        return answers

    def _sample(self, text: str) -> Sample:
        return Sample(text, self.tokenizer(text, add_special_tokens=False)["input_ids"], "stop")


def to_samples(
    tokenizer: Any, ended: Sequence[tuple[list[int], bool]], logprobs: Sequence[list[float]] | None = None
) -> list[Sample]:
    """Samples of token ids, each with whether it ended by itself."""
    texts = tokenizer.batch_decode([ids for ids, _ in ended], skip_special_tokens=True)
    said: Sequence[list[float] | None] = logprobs or [None] * len(ended)
    return [
        Sample(text, ids, "stop" if is_ended else "length", of_tokens)
        for text, (ids, is_ended), of_tokens in zip(texts, ended, said, strict=True)
    ]
