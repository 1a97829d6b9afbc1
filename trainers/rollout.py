"""Samples from a policy: prompts as token ids in, several answers each out.

`Rollout` is the seam. `VllmRollout` runs vLLM in this process; `TransformersRollout` is slower, repeatable in
float32, and shares its weights with a policy in training; `ScriptedRollout` is the fake for tests. All draw
from the plain distribution at a temperature: no top-p or top-k cut, so that log-probabilities mean what they
say. Seeds belong to the engine, not to requests: per-request seeds are slow in vLLM on a CPU, and crash it on
some batches.
"""

import logging
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

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
    `length`.
    """

    text: str
    token_ids: list[int]
    finish_reason: str


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


class VllmRollout:
    """vLLM in this process."""

    def __init__(
        self,
        folder: Path,
        tokenizer: Any,
        end_token_ids: list[int],
        *,
        dtype: str,
        context_length: int,
        seed: int,
    ) -> None:
        # Read when vLLM is imported: no engine process, 1 GiB of cache, no chatter on standard output.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        logging.getLogger("torch._library.triton").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", category=FutureWarning, module="vllm")
        from vllm import LLM

        self.tokenizer, self.end_token_ids, self.context_length = tokenizer, end_token_ids, context_length
        self.engine = LLM(
            model=str(folder),
            dtype=dtype,
            max_model_len=context_length,
            seed=seed,
            enforce_eager=True,
            skip_tokenizer_init=True,
            use_tqdm_on_load=False,
        ).llm_engine

    def sample(
        self, prompts: Sequence[list[int]], sampling: Sampling, on_finished: OnFinished
    ) -> list[list[Sample]]:
        """Answers each prompt; all are given to the engine at once, which batches them as they end."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        for index, prompt in enumerate(prompts):
            params = SamplingParams(
                n=sampling.num_samples,
                temperature=sampling.temperature,
                max_tokens=min(sampling.max_new_tokens, self.context_length - len(prompt)),
                stop_token_ids=self.end_token_ids,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            self.engine.add_request(str(index), {"prompt_token_ids": prompt}, params)
        answers: dict[int, list[Sample]] = {}
        num_tokens = 0
        while self.engine.has_unfinished_requests():
            for output in self.engine.step():
                ended = [
                    (list(answer.token_ids), answer.finish_reason == "stop") for answer in output.outputs
                ]
                samples = _to_samples(self.tokenizer, ended)
                answers[int(output.request_id)] = samples
                num_tokens += sum(len(sample.token_ids) for sample in samples)
            on_finished(len(answers), num_tokens)
        return [answers[index] for index in range(len(prompts))]


class TransformersRollout:
    """A model of transformers in this process, in batches of like length.

    In float32 on a CPU the same seed and the same calls give the same tokens, and `reseed` makes a call
    depend on nothing that came before it.
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
    ) -> None:
        self.model, self.tokenizer, self.end_token_ids = model, tokenizer, end_token_ids
        self.context_length, self.batch_size = context_length, batch_size
        self.generator = torch.Generator().manual_seed(seed)

    def reseed(self, seed: int) -> None:
        """Makes what is sampled next depend on this seed alone."""
        self.generator.manual_seed(seed)

    def sample(
        self, prompts: Sequence[list[int]], sampling: Sampling, on_finished: OnFinished
    ) -> list[list[Sample]]:
        """Answers each prompt, the longest first."""
        rows = [index for index in range(len(prompts)) for _ in range(sampling.num_samples)]
        rows.sort(key=lambda index: -len(prompts[index]))
        answers: list[list[Sample]] = [[] for _ in prompts]
        num_tokens = 0
        for at in range(0, len(rows), self.batch_size):
            batch = rows[at : at + self.batch_size]
            samples = self._generate([prompts[index] for index in batch], sampling)
            for index, sample in zip(batch, samples, strict=True):
                answers[index].append(sample)
            num_tokens += sum(len(sample.token_ids) for sample in samples)
            on_finished(sum(len(group) == sampling.num_samples for group in answers), num_tokens)
        return answers

    def _generate(self, prompts: list[list[int]], sampling: Sampling) -> list[Sample]:
        width = max(len(prompt) for prompt in prompts)
        answers = generate(
            self.model,
            prompts,
            end_token_ids=self.end_token_ids,
            max_new_tokens=min(sampling.max_new_tokens, self.context_length - width),
            temperature=sampling.temperature,
            generator=self.generator,
        )
        ended = [(ids, ids[-1] in self.end_token_ids) for ids in answers]
        return _to_samples(self.tokenizer, ended)


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


def _to_samples(tokenizer: Any, ended: list[tuple[list[int], bool]]) -> list[Sample]:
    texts = tokenizer.batch_decode([ids for ids, _ in ended], skip_special_tokens=True)
    return [
        Sample(text, ids, "stop" if is_ended else "length")
        for text, (ids, is_ended) in zip(texts, ended, strict=True)
    ]
