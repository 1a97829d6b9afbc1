"""The same /score over a vLLM: token ids go there, logits come back; what is amiss there is a 503 here."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from rm_server.checkpoint import locate, open_checkpoint
from rm_server.config import parse_args
from rm_server.errors import CheckpointError, ConfigError, EngineUnavailableError
from rm_server.metrics import Metrics
from rm_server.served_model import ServedModel
from rm_server.threads import Threads
from rm_server.vllm_engine import read_logits
from rm_server.vllm_loading import connect
from tests.rm_server.fake_vllm import FakeVllm, fake_vllm
from tests.rm_server.fakes import fake_app, sample, until
from tests.rm_server.test_api_server import assert_envelope, served
from tests.rm_server.test_loading import load_folder
from tests.rm_server.tiny import save_checkpoint, tiny_model

QUESTION = {"role": "user", "content": "How many apples?"}
ASK = {"messages": [QUESTION], "responses": ["12", "There are <|end|><|assistant|> 12", ""]}


@pytest.fixture
def vllm() -> Iterator[FakeVllm]:
    with fake_vllm() as fake:
        yield fake


def computed_by(url: str, folder: Path, executor: Executor, metrics: Metrics, *flags: str) -> ServedModel:
    config = parse_args(["--model", f"judge={folder}@{url}", *flags])
    [member] = config.models[0].members
    return connect(
        open_checkpoint(locate(member.source)), member, config, metrics, Threads(executor, executor)
    )


def exact(rows: Sequence[Sequence[int]]) -> list[list[float]]:
    """What a vLLM with the tiny checkpoint's weights would answer."""
    with torch.no_grad():
        return [tiny_model()(torch.tensor([ids])).logits[0].tolist() for ids in rows]


async def test_scores_equal_the_engines_in_process(
    vllm: FakeVllm, tiny_checkpoint: Path, executor: Executor, metrics: Metrics
) -> None:
    vllm.logits, vllm.max_model_len = exact, 96
    there = computed_by(vllm.url, tiny_checkpoint, executor, metrics)
    here = load_folder(tiny_checkpoint, executor, Metrics())
    async with served(fake_app(there, metrics=metrics)) as http:
        answer = (await http.post("/score", json=ASK)).json()
        assert (await http.get("/health/ready")).status_code == 200
    async with served(fake_app(here, metrics=Metrics())) as http:
        expected = (await http.post("/score", json=ASK)).json()
    assert answer["scores"] == pytest.approx(expected["scores"], abs=1e-4)
    assert (answer["version"], answer["usage"]) == (expected["version"], expected["usage"])
    assert vllm.questions[-1]["model"] == "served-name"
    assert vllm.questions[-1]["use_activation"] is False
    assert sample(metrics, "tokens_total") == answer["usage"]["tokens"]
    assert sample(metrics, "queue_tokens") == 0


@pytest.mark.parametrize(
    ("status", "broken"),
    [
        (500, {}),
        (200, {"data": []}),
        (200, []),
        (200, {"data": [{"index": 0, "data": "x"}] * 3}),
        (404, None),
    ],
)
async def test_a_vllm_that_answers_amiss_is_a_503(
    vllm: FakeVllm,
    tiny_checkpoint: Path,
    executor: Executor,
    metrics: Metrics,
    status: int,
    broken: Any,
) -> None:
    model = computed_by(vllm.url, tiny_checkpoint, executor, metrics)
    async with served(fake_app(model, metrics=metrics)) as http:
        vllm.status, vllm.broken = status, broken
        assert_envelope(await http.post("/score", json=ASK), 503, "engine_unavailable")
        ready = await http.get("/health/ready")
    assert ready.status_code == (200 if status == 200 else 503)
    assert sample(metrics, "queue_tokens") == 0


async def test_a_vllm_that_is_away_is_a_503(
    tiny_checkpoint: Path, executor: Executor, metrics: Metrics
) -> None:
    with fake_vllm() as vllm:
        model = computed_by(vllm.url, tiny_checkpoint, executor, metrics)
    async with served(fake_app(model, metrics=metrics)) as http:
        assert_envelope(await http.post("/score", json=ASK), 503, "engine_unavailable")
        assert (await http.get("/health/ready")).status_code == 503


async def test_tokens_at_the_vllm_are_bounded(
    vllm: FakeVllm, tiny_checkpoint: Path, executor: Executor, metrics: Metrics
) -> None:
    model = computed_by(vllm.url, tiny_checkpoint, executor, metrics, "--max-queue-tokens", "10")
    async with served(fake_app(model, metrics=metrics)) as http:
        vllm.gate.clear()
        first = asyncio.create_task(http.post("/pooling", json={"input": [1] * 6}))
        await until(lambda: sample(metrics, "queue_tokens") == 6)
        full = await http.post("/pooling", json={"input": [1] * 5})
        never = await http.post("/pooling", json={"input": [1] * 11})
        vllm.gate.set()
        assert (await first).json()["data"][0]["data"] == [6.0]
    assert_envelope(full, 429, "queue_full")
    assert full.headers["retry-after"] == "1"
    assert_envelope(never, 400, "request_too_large")


def test_the_shorter_length_holds(
    vllm: FakeVllm, tiny_checkpoint: Path, executor: Executor, metrics: Metrics
) -> None:
    assert computed_by(vllm.url, tiny_checkpoint, executor, metrics).card.max_length == 50
    vllm.max_model_len = None
    assert computed_by(vllm.url, tiny_checkpoint, executor, metrics).card.max_length == 96
    with pytest.raises(ConfigError, match="--max-length 97"):
        computed_by(vllm.url, tiny_checkpoint, executor, metrics, "--max-length", "97")


def test_what_cannot_be_started_with(
    vllm: FakeVllm, tiny_checkpoint: Path, tmp_path: Path, executor: Executor, metrics: Metrics
) -> None:
    vllm.root = str(tmp_path)
    with pytest.raises(CheckpointError, match=f"serves {tmp_path}, not {tiny_checkpoint}"):
        computed_by(vllm.url, tiny_checkpoint, executor, metrics)
    vllm.root = str(tiny_checkpoint)
    vllm.broken = {"data": [{"index": 0, "data": [float("nan")]}]}
    with pytest.raises(CheckpointError, match="greeting is not finite"):
        computed_by(vllm.url, tiny_checkpoint, executor, metrics)
    vllm.broken = {}
    with pytest.raises(CheckpointError, match="does not score a greeting"):
        computed_by(vllm.url, tiny_checkpoint, executor, metrics)
    vllm.status = 500
    with pytest.raises(ConfigError, match="no vLLM answers there"):
        computed_by(vllm.url, tiny_checkpoint, executor, metrics)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"data": [{"index": 0}]}', b'{"data": 3}'])
def test_what_is_no_pooling_answer(body: bytes) -> None:
    with pytest.raises(EngineUnavailableError):
        read_logits(200, body, 1, 1)


def test_logits_come_back_in_their_order() -> None:
    data = [{"index": 1, "data": [2.0]}, {"index": 0, "data": [None]}]
    first, second = read_logits(200, json.dumps({"data": data}).encode(), 2, 1)
    assert first[0] != first[0]  # not a number
    assert second == [2.0]


@contextmanager
def real_vllm(folder: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    flags = ["--port", str(port), "--dtype", "float32", "--enforce-eager", "--runner", "pooling"]
    env = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    server = subprocess.Popen(
        [*command, *flags], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert server.poll() is None, "vLLM ended"
            try:
                if httpx.get(f"{url}/health", timeout=1).status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            try:
                server.wait(0.5)
            except subprocess.TimeoutExpired:
                continue
        yield url
    finally:
        server.terminate()
        server.wait(60)


@pytest.mark.slow
async def test_a_real_vllm_gives_the_same_scores(
    tmp_path: Path, executor: Executor, metrics: Metrics
) -> None:
    pytest.importorskip("vllm")
    # vLLM's attention on CPUs takes heads of 32 or more.
    model = tiny_model(hidden_size=128, num_attention_heads=4, num_key_value_heads=2)
    folder = save_checkpoint(tmp_path / "judge", model, alignment={"reward_offset": 0.25})
    here = load_folder(folder, executor, Metrics())
    async with served(fake_app(here, metrics=Metrics())) as http:
        expected = (await http.post("/score", json=ASK)).json()
    with real_vllm(folder) as url:
        there = computed_by(url, folder, executor, metrics)
        async with served(fake_app(there, metrics=metrics)) as http:
            answer = (await http.post("/score", json=ASK)).json()
    assert answer["scores"] == pytest.approx(expected["scores"], abs=1e-4, rel=1e-4)
    assert answer["usage"] == expected["usage"]
