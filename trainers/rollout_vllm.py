"""Samples through vLLM in this process: `Rollout` for a checkpoint, `PolicyRollout` for a policy in training.

New weights go from memory into the running engine, under the names of a checkpoint, and the prefix cache,
which holds keys and values of the old ones, is emptied. In float32 the engine's log-probabilities equal the
trainer's to about 1e-5, on a CPU; agreement.py holds it to that. Its random numbers are those of torch's
global generator, so that with the same weights the same seed and the same prompts give the same tokens.
"""

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch

from trainers import adapters
from trainers.errors import RolloutError, translate
from trainers.rollout import OnFinished, Sample, Sampling, to_samples

GIB = 2**30
START_UP_SHARE = 0.01
"""The share of a device's memory that must be free at the start. What the engine takes is said in bytes; its
default share, of nearly everything, would find the trainer's part already taken."""


class VllmRollout:
    """vLLM in this process, with a copy of the weights."""

    def __init__(
        self,
        engine: Any,
        tokenizer: Any,
        end_token_ids: list[int],
        *,
        context_length: int,
        policy: Any | None = None,
    ) -> None:
        self.engine, self.tokenizer, self.end_token_ids = engine, tokenizer, end_token_ids
        self.context_length, self.policy = context_length, policy
        self.is_stale = policy is not None

    @classmethod
    def start(
        cls,
        folder: Path,
        tokenizer: Any,
        end_token_ids: list[int],
        *,
        dtype: str,
        context_length: int,
        seed: int,
        kv_cache_gib: float = 1.0,
        policy: Any | None = None,
    ) -> Self:
        """Starts an engine on a checkpoint.

        With a `policy` it is that model's weights that answer, as they are when `sample` is first called and
        after every `update`; answers carry their log-probabilities then. Raises RolloutError where vLLM
        cannot serve the checkpoint.
        """
        # Read when vLLM is imported: no engine process, threads as the trainer has them, no chatter on
        # standard output.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        logging.getLogger("torch._library.triton").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", category=FutureWarning, module="vllm")
        with _told("vLLM cannot serve this checkpoint"):
            from vllm import LLM

            engine = LLM(
                model=str(folder),
                dtype=dtype,
                max_model_len=context_length,
                seed=seed,
                enforce_eager=True,
                skip_tokenizer_init=True,
                use_tqdm_on_load=False,
                # Of the distribution that is sampled from: after the temperature.
                logprobs_mode="processed_logprobs",
                kv_cache_memory_bytes=int(kv_cache_gib * GIB),
                gpu_memory_utilization=START_UP_SHARE,
                worker_extension_cls="trainers.rollout_worker.PolicyWeights",
            ).llm_engine
        return cls(engine, tokenizer, end_token_ids, context_length=context_length, policy=policy)

    def reseed(self, seed: int) -> None:
        """Makes what is sampled next depend on this seed alone."""
        torch.manual_seed(seed)

    def update(self) -> None:
        """The policy's weights have changed: the engine takes them before it samples again."""
        self.is_stale = self.policy is not None

    def sample(
        self, prompts: Sequence[list[int]], sampling: Sampling, on_finished: OnFinished
    ) -> list[list[Sample]]:
        """Answers each prompt; all are given to the engine at once, which batches them as they end."""
        with _told("vLLM stopped"):
            if self.is_stale:
                self._load(self.policy)
                self.is_stale = False
            return self._sample(prompts, sampling, on_finished)

    def _load(self, policy: Any) -> None:
        weights = iter(weights_of(policy).items())
        self.engine.collective_rpc("load_policy", kwargs={"weights_iterator": weights})
        if not self.engine.reset_prefix_cache():
            raise RolloutError("vLLM: the prefix cache still holds keys and values of earlier weights")

    def _sample(
        self, prompts: Sequence[list[int]], sampling: Sampling, on_finished: OnFinished
    ) -> list[list[Sample]]:
        for index, prompt in enumerate(prompts):
            room = self.context_length - len(prompt)
            request = {"prompt_token_ids": prompt}
            self.engine.add_request(str(index), request, self._params(sampling, room))
        answers: dict[int, list[Sample]] = {}
        num_tokens = 0
        while self.engine.has_unfinished_requests():
            for output in self.engine.step():
                samples = self._read(output.outputs)
                answers[int(output.request_id)] = samples
                num_tokens += sum(len(sample.token_ids) for sample in samples)
            on_finished(len(answers), num_tokens)
        return [answers[index] for index in range(len(prompts))]

    def _params(self, sampling: Sampling, room: int) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            n=sampling.num_samples,
            temperature=sampling.temperature,
            max_tokens=min(sampling.max_new_tokens, room),
            # These, and nothing that the checkpoint's generation_config.json may add.
            stop_token_ids=self.end_token_ids,
            ignore_eos=True,
            logprobs=None if self.policy is None else 0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _read(self, outputs: Sequence[Any]) -> list[Sample]:
        ended = [(list(output.token_ids), output.finish_reason == "stop") for output in outputs]
        logprobs = None if self.policy is None else [_chosen_logprobs(output) for output in outputs]
        return to_samples(self.tokenizer, ended, logprobs)


def weights_of(policy: Any) -> dict[str, torch.Tensor]:
    """A policy's weights, its adapter merged, under the names of a checkpoint, a tied one under its own name
    alone.
    """
    # Here, because transformers takes seconds to import.
    from transformers.core_model_loading import revert_weight_conversion

    tied = getattr(policy, "all_tied_weights_keys", None) or {}
    state = {name: weight for name, weight in adapters.merged(policy).items() if name not in tied}
    weights: dict[str, torch.Tensor] = revert_weight_conversion(policy, state)
    return weights


def _chosen_logprobs(output: Any) -> list[float]:
    pairs = zip(output.token_ids, output.logprobs, strict=True)
    return [float(logprobs[token].logprob) for token, logprobs in pairs]


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Errors of the engine become one line for the user."""
    try:
        yield
    except Exception as error:  # it raises whatever its layers trip over
        if known := translate(error):
            raise known from error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RolloutError(f"{what}: {reason}") from error
