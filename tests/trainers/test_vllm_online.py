"""A real vLLM under PPO, in this process and as the server that docs/online.md starts: its log-probabilities
are the trainer's after every update, and are not where the update is left out.
"""

import importlib.util
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.trainers.conftest import make_model, save_reward_model
from tests.trainers.test_adapters import LORA
from tests.trainers.test_agreement import config, train
from tests.trainers.test_docs_online import PAGE
from tests.trainers.test_rollout_server import flags
from trainers import checkpoint
from trainers.__main__ import main
from trainers.errors import RolloutError
from trainers.folder import METRICS
from trainers.formats import sha256_of
from trainers.online_setup import Online
from trainers.rollout_vllm import VllmRollout

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM"),
]
START_SECONDS = 300
"""What a server may take to start on a machine that does other things besides."""


@pytest.fixture(scope="module", params=[False, True], ids=["head", "tied"])
def policy(request: pytest.FixtureRequest, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy with heads that vLLM takes, its output head its own or the embedding."""
    folder = tmp_path_factory.mktemp("models") / "policy"
    model = make_model(head_dim=32, tie_word_embeddings=request.param)
    checkpoint.save(model, tokenizer, folder, {"algorithm": "test"})
    return folder


def lines_of(output: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (output / METRICS).read_text().splitlines()]


def assert_agreeing(output: Path) -> None:
    lines = lines_of(output)
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert 0 < line["rollout_logprob_difference"] < 1e-5
        assert line["rollout_logprob_difference_max"] < 1e-4
    # The policy has moved far more than that: half the mean square of its log-ratios within a step.
    assert min(line["approx_kl"] for line in lines) > 0.5 * 1e-2**2


@pytest.mark.parametrize("lora", [[], LORA], ids=["whole", "lora"])
def test_in_process_it_agrees_after_every_update_and_a_continued_run_ends_in_the_same_bits(
    lora: list[str], policy: Path, prompts: Path, reward_checkpoint: Path, tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    more = ["--use_vllm", "--vllm_kv_cache_gib", "0.1", "--save_steps", "1", "--temperature", "0.7"]
    more += ["--num_generations", "2", "--save_total_limit", "9", *lora]
    assert main(["ppo", *flags(policy, prompts, reward_checkpoint, whole, *more)]) == 0
    assert_agreeing(whole)
    more += ["--resume_from_checkpoint", str(whole / "checkpoint-1")]
    assert main(["ppo", *flags(policy, prompts, reward_checkpoint, cut, *more)]) == 0
    states = [output / "checkpoint-3" / "training_state.safetensors" for output in (whole, cut)]
    for ours, theirs in (states, [output / "model.safetensors" for output in (whole, cut)]):
        assert sha256_of(ours) == sha256_of(theirs)


class Forgetful(VllmRollout):
    """Leaves out the update."""

    def update(self) -> None:
        """Forgets it."""


def test_in_process_an_update_that_is_left_out_ends_the_run(
    policy: Path, prompts: Path, reward_checkpoint: Path, tmp_path: Path
) -> None:
    def forgetful(setup: Online) -> VllmRollout:
        return Forgetful.start(
            policy,
            setup.tokenizer,
            [1],
            dtype="float32",
            context_length=setup.context_length,
            seed=0,
            kv_cache_gib=0.1,
            policy=setup.policy,
        )

    with pytest.raises(RolloutError, match=r"does not have the policy's weights.*checkpoint-1"):
        train(config(policy, prompts, reward_checkpoint, tmp_path / "out"), forgetful)
    assert len(lines_of(tmp_path / "out")) == 1


@pytest.mark.parametrize("policy", [True], indirect=True, ids=["tied"])
def test_a_server_that_is_started_as_documented_agrees_after_every_update(
    policy: Path, prompts: Path, tmp_path: Path
) -> None:
    judge = save_reward_model(tmp_path / "reward")
    with server(policy, tmp_path) as url:
        more = ["--use_vllm", "--vllm_mode", "server", "--vllm_server_base_url", url]
        assert main(["ppo", *flags(policy, prompts, judge, tmp_path / "out", *more)]) == 0
    assert_agreeing(tmp_path / "out")


@contextmanager
def server(folder: Path, desk: Path) -> Iterator[str]:
    """The documented command with this checkpoint and a free port, and quicker to start; yields the URL."""
    [line] = re.findall(r"^```sh\n(.*)\n```$", PAGE, re.MULTILINE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    variable, _, *words = shlex.split(line)
    words[words.index("--model") + 1], words[words.index("--port") + 1] = str(folder), port
    quick = ["--enforce-eager", "--kv-cache-memory-bytes", str(2**27), "--max-model-len", "128"]
    name, value = variable.split("=")
    own = {name: value, "HF_HUB_OFFLINE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    with (desk / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *words, *quick], env=os.environ | own, stdout=log, stderr=subprocess.STDOUT
        )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_SECONDS
        while not is_healthy(url):
            assert process.poll() is None, (desk / "server.log").read_text()[-3000:]
            assert time.monotonic() < deadline, "vLLM did not start"
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.5)
        yield url
    finally:
        process.terminate()
        process.wait()


def is_healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False
