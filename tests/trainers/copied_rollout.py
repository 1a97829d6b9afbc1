"""A sampler with a copy of the policy, as vLLM has one: the fake of it, in this process and as a server."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from trainers.data import Tokens, collate_tokens
from trainers.logprobs import token_logprobs
from trainers.rollout import OnFinished, Sample, Sampling, TransformersRollout


class CopiedRollout:
    """Samples from a copy, which takes the policy's weights once it is told that they have changed."""

    def __init__(self, policy: Any, tokenizer: Any, end_token_ids: list[int]) -> None:
        self.policy, self.copy = policy, copy.deepcopy(policy)
        self.inner = TransformersRollout(self.copy, tokenizer, end_token_ids, context_length=128, seed=0)
        self.is_stale, self.num_loads = True, 0

    def reseed(self, seed: int) -> None:
        self.inner.reseed(seed)

    def update(self) -> None:
        self.is_stale = True

    def sample(
        self, prompts: Sequence[list[int]], sampling: Sampling, on_finished: OnFinished
    ) -> list[list[Sample]]:
        if self.is_stale:
            self.copy.load_state_dict(self.policy.state_dict())
            self.is_stale, self.num_loads = False, self.num_loads + 1
        answers = self.inner.sample(prompts, sampling, on_finished)
        return [
            [self._with_logprobs(prompt, sample, sampling.temperature) for sample in samples]
            for prompt, samples in zip(prompts, answers, strict=True)
        ]

    @torch.no_grad()
    def _with_logprobs(self, prompt: list[int], sample: Sample, temperature: float) -> Sample:
        ids = prompt + sample.token_ids
        batch = collate_tokens([Tokens(ids, list(range(len(prompt), len(ids))))], 0)
        logprobs = token_logprobs(self.copy, batch, temperature=temperature).tolist()
        return replace(sample, logprobs=logprobs)


class ForgetfulRollout(CopiedRollout):
    """Leaves out the update."""

    def update(self) -> None:
        """Forgets it."""


class FakeVllmServer:
    """The four routes of a vLLM server that a run uses, over a CopiedRollout; what is asked is kept."""

    def __init__(self, rollout: CopiedRollout) -> None:
        self.rollout, self.asked = rollout, list[tuple[str, dict[str, Any]]]()
        self.rollout.is_stale = False

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        self.asked.append((path, body))
        match path:
            case "/v1/models":
                return {"data": [{"id": "the-model"}]}
            case "/collective_rpc":
                assert body["method"] == "load_policy"
                state = load_file(Path(body["kwargs"]["weights_path"]) / "model.safetensors")
                self.rollout.copy.load_state_dict(state)
                return {"results": [None]}
            case "/reset_prefix_cache":
                return {"success": True}
            case _:
                return self._complete(body)

    def _complete(self, body: dict[str, Any]) -> dict[str, Any]:
        sampling = Sampling(body["n"], body["temperature"], body["max_tokens"])
        groups = self.rollout.sample(body["prompt"], sampling, lambda *_: None)
        choices = [
            {
                "index": index,
                "text": sample.text,
                "token_ids": sample.token_ids,
                "finish_reason": sample.finish_reason,
                "logprobs": {"token_logprobs": sample.logprobs},
            }
            for index, sample in enumerate(sample for group in groups for sample in group)
        ]
        return {"choices": choices[::-1]}
