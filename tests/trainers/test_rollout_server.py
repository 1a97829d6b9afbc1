"""A vLLM server as the sampler: how it gets its weights, what it is asked, what is made of its answers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from tests.trainers.conftest import make_model
from tests.trainers.copied_rollout import CopiedRollout, FakeVllmServer
from tests.trainers.loopback import served
from trainers import ppo
from trainers.__main__ import main
from trainers.devices import Devices
from trainers.errors import ConfigError, RolloutError
from trainers.folder import METRICS
from trainers.rollout import Sampling
from trainers.rollout_server import ServerRollout

Answer = Callable[[httpx.Request], httpx.Response]
MODELS = httpx.Response(200, json={"data": [{"id": "m"}]})


def flags(base: Path, prompts: Path, reward_checkpoint: Path, output: Path, *more: str) -> list[str]:
    named = ["--model_name_or_path", str(base), "--dataset_name", str(prompts), "--output_dir", str(output)]
    small = ["--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "2"]
    short = ["--response_length", "8", "--max_length", "100", "--max_steps", "3", "--learning_rate", "1e-3"]
    return [*named, *small, *short, "--use_cpu", "--reward_model_path", str(reward_checkpoint), *more]


@pytest.mark.parametrize("algorithm", ["ppo", "rloo", "cem"])
def test_a_run_gives_the_server_its_weights_before_each_step(
    algorithm: str, base: Path, prompts: Path, reward_checkpoint: Path, tokenizer: Any, tmp_path: Path
) -> None:
    server = FakeVllmServer(CopiedRollout(make_model(seed=5), tokenizer, [1]))
    with served(server.answer) as url:
        more = ["--use_vllm", "--vllm_mode", "server", "--vllm_server_base_url", url]
        assert main([algorithm, *flags(base, prompts, reward_checkpoint, tmp_path / "out", *more)]) == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / METRICS).read_text().splitlines()]
    assert all(line["rollout_logprob_difference_max"] < 1e-4 for line in lines)
    of_a_step = ["/collective_rpc", "/reset_prefix_cache", "/v1/completions"]
    assert [path for path, _ in server.asked] == ["/v1/models", *of_a_step * 3]
    weights = Path(server.asked[1][1]["kwargs"]["weights_path"])
    assert weights.parent == tmp_path / "out"
    assert not weights.exists()


def test_a_server_that_reads_no_weights_is_found_out(
    base: Path,
    prompts: Path,
    reward_checkpoint: Path,
    tokenizer: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Deaf(FakeVllmServer):
        def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
            return {} if path == "/collective_rpc" else super().answer(path, body)

    with served(Deaf(CopiedRollout(make_model(), tokenizer, [1])).answer) as url:
        more = ["--use_vllm", "--vllm_mode", "server", "--vllm_server_base_url", url]
        assert main(["ppo", *flags(base, prompts, reward_checkpoint, tmp_path / "out", *more)]) == 3
    error = capsys.readouterr().err.splitlines()[-1]
    assert "it does not have the policy's weights" in error
    assert "checkpoint-1; --resume_from_checkpoint continues there" in error


def rollout(answer: Answer, tokenizer: Any, tmp_path: Path) -> ServerRollout:
    return ServerRollout(
        "http://there",
        make_model(),
        tokenizer,
        [1, 4],
        devices=Devices(torch.device("cpu")),
        weights_dir=tmp_path / "weights",
        timeout_s=1,
        transport=httpx.MockTransport(answer),
    )


def test_it_is_asked_for_the_plain_distribution(tokenizer: Any, tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return MODELS
        if request.url.path == "/reset_prefix_cache":
            return httpx.Response(200, json={"success": True})
        asked.append(json.loads(request.content))
        if request.url.path == "/collective_rpc":
            assert (tmp_path / "weights" / "model.safetensors").is_file()
            return httpx.Response(200, json={"results": [None]})
        token = {"finish_reason": "stop", "logprobs": {"token_logprobs": [-0.5]}}
        choices = [{"index": index, "token_ids": [5 + index], **token} for index in (3, 0, 2, 1)]
        return httpx.Response(200, json={"choices": choices})

    target = rollout(answer, tokenizer, tmp_path)
    answers = target.sample([[7, 8], [9]], Sampling(2, 0.7, 6), lambda *_: None)
    assert [[sample.token_ids for sample in group] for group in answers] == [[[5], [6]], [[7], [8]]]
    assert answers[0][0].logprobs == [-0.5]
    load, request = asked
    assert load == {"method": "load_policy", "kwargs": {"weights_path": str(tmp_path / "weights")}}
    said = {"prompt": [[7, 8], [9]], "n": 2, "temperature": 0.7, "max_tokens": 6, "stop_token_ids": [1, 4]}
    plain = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "ignore_eos": True}
    assert request == request | said | plain


def failing(path: str, response: httpx.Response) -> Answer:
    """A server whose one route answers so."""
    good = {
        "/v1/models": MODELS,
        "/collective_rpc": httpx.Response(200),
        "/reset_prefix_cache": httpx.Response(200, json={"success": True}),
    }
    return lambda request: (good | {path: response})[request.url.path]


def choice(**changed: Any) -> httpx.Response:
    usual = {"index": 0, "token_ids": [5], "finish_reason": "stop", "logprobs": {"token_logprobs": [-1.0]}}
    return httpx.Response(200, json={"choices": [usual | changed]})


@pytest.mark.parametrize(
    ("path", "response", "message"),
    [
        ("/v1/models", httpx.Response(200, json={"data": []}), "serves no model"),
        ("/v1/models", httpx.Response(200, text="hello"), "did not answer with JSON"),
        ("/collective_rpc", httpx.Response(404), "start the server with VLLM_SERVER_DEV_MODE=1"),
        ("/collective_rpc", httpx.Response(500), "started with --worker-extension-cls"),
        ("/reset_prefix_cache", httpx.Response(200, json={"success": False}), "prefix cache still holds"),
        ("/v1/completions", httpx.Response(400, text="too long"), "/v1/completions: answered 400 too long"),
        ("/v1/completions", httpx.Response(200, json={"choices": []}), "did not answer with 1 answers"),
        ("/v1/completions", choice(token_ids=None), "with token ids and log-probabilities"),
        ("/v1/completions", choice(logprobs=None), "with token ids and log-probabilities"),
        ("/v1/completions", choice(token_ids=[5, 6]), "1 answers and all their tokens"),
        ("/v1/completions", choice(logprobs={"token_logprobs": [None]}), "token ids and log-probabilities"),
    ],
)
def test_what_the_server_refuses_is_one_line(
    path: str, response: httpx.Response, message: str, tokenizer: Any, tmp_path: Path
) -> None:
    with pytest.raises(RolloutError, match=message):
        rollout(failing(path, response), tokenizer, tmp_path).sample([[5]], Sampling(1, 1.0, 4), print)
    assert not (tmp_path / "weights").exists()


def test_a_server_that_is_not_there_is_said(tokenizer: Any, tmp_path: Path) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(RolloutError, match=r"http://there: is not reachable \(ConnectError\)"):
        rollout(answer, tokenizer, tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vllm_mode": "server"}, "--vllm_mode server goes with --use_vllm"),
        ({"use_vllm": True, "vllm_mode": "server"}, "--vllm_server_base_url goes with"),
        ({"use_vllm": True, "vllm_server_base_url": "http://x"}, "--vllm_server_base_url goes with"),
        ({"vllm_server_base_url": "http://x"}, "--vllm_server_base_url goes with"),
        ({"use_vllm": True, "vllm_weights_dir": "w"}, "--vllm_weights_dir goes with"),
        ({"vllm_logprob_bound": 0.1}, "--vllm_logprob_bound goes with"),
        ({"use_vllm": True, "vllm_logprob_bound": 0.0}, "--vllm_logprob_bound must be above 0"),
        ({"use_vllm": True, "vllm_kv_cache_gib": 0.0}, "--vllm_kv_cache_gib must be above 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ppo.Config(
            model_name_or_path="m", dataset_name="d", output_dir="o", reward_model_path="r", **settings
        )
