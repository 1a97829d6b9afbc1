"""Samples through a running vLLM server, which is given the policy's weights after every update.

    VLLM_SERVER_DEV_MODE=1 vllm serve runs/sft --dtype float32 --logprobs-mode processed_logprobs
    --worker-extension-cls trainers.rollout_worker.PolicyWeights

Weights go through a folder that both see under the same path: a checkpoint is written, the server told to
read it (/collective_rpc) and to empty its prefix cache, and the checkpoint removed. The server serves this
run alone meanwhile. It draws its own random numbers, so that a run is not repeatable.
"""

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from trainers import adapters
from trainers.devices import Devices
from trainers.errors import RolloutError
from trainers.rollout import OnFinished, Sample, Sampling, to_samples

LOAD = "/collective_rpc"
COMPLETE = "/v1/completions"
PLAIN = {
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
"""The plain distribution."""


class ServerRollout:
    """A vLLM server's POST /v1/completions, token ids in and out."""

    def __init__(
        self,
        url: str,
        policy: Any,
        tokenizer: Any,
        end_token_ids: list[int],
        *,
        devices: Devices,
        weights_dir: Path,
        timeout_s: float,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url, self.policy, self.tokenizer = url.rstrip("/"), policy, tokenizer
        self.end_token_ids, self.weights_dir = end_token_ids, weights_dir.resolve()
        self.devices = devices
        self.timeout_s, self.transport = timeout_s, transport
        self.is_stale = True
        served = self._ask("GET", "/v1/models").get("data")
        if not isinstance(served, list) or not served:
            raise RolloutError(f"{self.url}: serves no model")
        self.model = served[0].get("id")

    def reseed(self, seed: int) -> None:
        """Nothing: seeds of single requests are slow in vLLM on a CPU, and crash it on some batches."""

    def update(self) -> None:
        """The policy's weights have changed: the server is given them before it samples again."""
        self.is_stale = True

    def sample(
        self, prompts: Sequence[list[int]], sampling: Sampling, on_finished: OnFinished
    ) -> list[list[Sample]]:
        """Answers each prompt; all are in one request."""
        if self.is_stale:
            self._load()
            self.is_stale = False
        if not prompts:
            return []
        answer = self._ask("POST", COMPLETE, self._request(prompts, sampling))
        samples = self._read(answer, len(prompts) * sampling.num_samples)
        on_finished(len(prompts), sum(len(sample.token_ids) for sample in samples))
        return [
            samples[at : at + sampling.num_samples] for at in range(0, len(samples), sampling.num_samples)
        ]

    def _load(self) -> None:
        """Wanted in all processes at once, of which the first speaks."""
        kept = adapters.as_result(self.policy, self.devices, save_adapter=False)
        self.devices.on_main(partial(self._give, kept))

    def _give(self, kept: adapters.Saveable) -> None:
        folder = self.weights_dir
        try:
            kept.save_pretrained(folder)
            self._ask("POST", LOAD, {"method": "load_policy", "kwargs": {"weights_path": str(folder)}})
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        if self._ask("POST", "/reset_prefix_cache").get("success") is not True:
            raise RolloutError(f"{self.url}: the prefix cache still holds keys and values of earlier weights")

    def _request(self, prompts: Sequence[list[int]], sampling: Sampling) -> dict[str, Any]:
        return {
            "model": self.model,
            "prompt": list(prompts),
            "n": sampling.num_samples,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            # Said, because the server's defaults are those of the checkpoint's generation_config.json.
            **PLAIN,
            "stop_token_ids": self.end_token_ids,
            "ignore_eos": True,
            "logprobs": 0,
            "return_token_ids": True,
        }

    def _read(self, answer: dict[str, Any], count: int) -> list[Sample]:
        try:
            choices = sorted(answer["choices"], key=lambda choice: choice["index"])
            ended = [(list(choice["token_ids"]), choice["finish_reason"] == "stop") for choice in choices]
            logprobs = [list(map(float, choice["logprobs"]["token_logprobs"])) for choice in choices]
        except (KeyError, TypeError, ValueError) as error:
            raise RolloutError(f"{self.url}: does not answer with token ids and log-probabilities") from error
        lengths = [len(ids) for ids, _ in ended]
        if len(choices) != count or lengths != [len(values) for values in logprobs] or 0 in lengths:
            raise RolloutError(f"{self.url}: did not answer with {count} answers and all their tokens")
        return to_samples(self.tokenizer, ended, logprobs)

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        try:
            # One connection for each request: between two of them a server would close it anyway.
            with httpx.Client(timeout=self.timeout_s, transport=self.transport, trust_env=False) as client:
                answer = client.request(method, f"{self.url}{path}", json=body)
        except httpx.HTTPError as error:
            raise RolloutError(f"{self.url}: is not reachable ({type(error).__name__})") from error
        if answer.status_code == 404 and path == LOAD:
            raise RolloutError(f"{self.url}: takes no weights: start the server with VLLM_SERVER_DEV_MODE=1")
        if answer.status_code != 200:
            advice = ": was the server started with --worker-extension-cls?" if path == LOAD else ""
            raise RolloutError(f"{self.url}{path}: answered {answer.status_code}{advice} {answer.text[:300]}")
        try:
            content = answer.json() if answer.content else {}
        except ValueError as error:
            raise RolloutError(f"{self.url}: did not answer with JSON") from error
        return content if isinstance(content, dict) else {}
