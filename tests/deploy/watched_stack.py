"""A gateway before two policies, one of which fails often, and a real reward server, a calibrated ensemble; a
mixed load on it; and what vLLM would tell of itself. The fakes tell nothing, so names come from here, and a
test holds them against vLLM's source."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import torch
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

from loadtests.fakes.script import Fault, VllmScript
from loadtests.processes import cores, free_port, server
from loadtests.stand import fake
from rm_server.calibrate import main as calibrate
from tests.rm_server.tiny import save_checkpoint, seal, tiny_model

PROMPT = "q z " * 8
"""Long enough for the reward server to keep what it has computed of it."""
CHAT = {"model": "policy", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 4}
TRUE = {"stream": True}
ROUND: list[tuple[str, dict[str, Any]]] = [
    *[("chat/completions", CHAT)] * 3,
    *[("chat/completions", CHAT | TRUE)] * 3,
    *[("chat/completions", CHAT | {"best_of": 4})] * 3,
    ("chat/completions", CHAT | TRUE | {"best_of": 4}),
    ("chat/completions", CHAT | {"best_of": 2, "temperature": 0}),
    ("chat/completions", CHAT | {"model": "unknown"}),
    ("completions", {"model": "policy", "prompt": "Hi", "max_tokens": 4, "best_of": 2, "echo": True}),
]
"""What a round of the load asks, all at once."""
RUN = {"step": 5, "learning_rate": 1e-4, "loss": 0.6, "grad_norm": 1.3, "tokens_per_second": 3639.0}
RUNS = {
    "reward": RUN
    | {"accuracy": 0.7, "margin": 0.7, "eval_loss": 0.5, "eval_accuracy": 0.7, "eval_margin": 0.6},
    "dpo": RUN
    | {"rewards/accuracies": 0.6, "rewards/margins": 0.3, "logps/chosen": -9.0, "logps/rejected": -12.0},
    "ppo": RUN
    | {"reward": 0.9, "objective": 0.7, "kl_nats_per_sequence": 3.5, "entropy_nats_per_token": 0.8}
    | {"response_length": 16.7, "eos_share": 1.0, "clip_fraction": 0.0, "value_clip_fraction": 0.0}
    | {"explained_variance": 0.5, "policy_loss": -0.002, "value_loss": 0.04},
}
"""The last line of a run's metrics.jsonl, by its algorithm; a test holds the names against the trainers."""
VLLM_COUNTERS = ("prefix_cache_hits", "prefix_cache_queries", "generation_tokens", "num_preemptions")
VLLM_GAUGES = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
VLLM_HISTOGRAMS = ("time_to_first_token_seconds", "inter_token_latency_seconds")


@dataclass(frozen=True)
class Targets:
    """Where the servers tell of themselves: HOST:PORT by job."""

    gateway: str
    rm_server: str
    vllm: str
    training: str


@contextmanager
def running(folder: Path) -> Iterator[Targets]:
    """Everything, under load until the end of this."""
    _, core = cores()
    bad = (Fault(kind="status", share=0.4), Fault(kind="reset", share=0.4))
    with ExitStack() as stack:
        scripts = (VllmScript(tokens=2, tokens_step=1), VllmScript(tokens=2, tokens_step=1, faults=bad))
        policies = [stack.enter_context(fake("vllm", script, core)).server.url for script in scripts]
        judge = stack.enter_context(_judge(folder))
        gateway = stack.enter_context(_gateway(folder, policies, judge))
        vllm = stack.enter_context(_engine())
        runs = stack.enter_context(_runs(folder / "runs"))
        stack.enter_context(_load(gateway))
        yield Targets(*(url.removeprefix("http://") for url in (gateway, judge, vllm, runs)))


@contextmanager
def _judge(folder: Path) -> Iterator[str]:
    members = []
    for seed in (1, 2):
        model = tiny_model()
        torch.manual_seed(seed)
        torch.nn.init.normal_(model.score.weight, std=0.3)
        members.append(str(seal(save_checkpoint(folder / f"seed-{seed}", model))))
    samples, known, flag = folder / "samples.jsonl", folder / "judge.json", f"judge={'+'.join(members)}"
    responses = [f"river stone {number}" for number in range(20)]
    samples.write_text(json.dumps({"messages": CHAT["messages"], "responses": responses}) + "\n")
    assert calibrate(["--model", flag, "--data", str(samples), "--output", str(known)]) == 0
    port = free_port()
    words = ["-m", "rm_server", "--port", str(port), "--model", flag, "--calibration", f"judge={known}"]
    env = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with server(words, url=f"http://127.0.0.1:{port}", ready="/health/ready", env=env) as started:
        yield started.url


@contextmanager
def _gateway(folder: Path, policies: list[str], judge: str) -> Iterator[str]:
    config, port = folder / "gateway.yaml", free_port()
    limits = {
        "max_best_of": 4,
        "max_candidates_per_request": 4,
        "max_concurrent_candidates": 8,
        "max_queue": 4,
    }
    config.write_text(
        json.dumps(  # which is YAML too
            {
                "policies": [{"name": "policy", "model": "fake", "urls": policies}],
                "rewards": [{"name": "judge", "urls": [judge]}],
                "limits": limits,
            }
        )
    )
    words = ["-m", "gateway", "--config", str(config), "--port", str(port), "--drain-delay", "0"]
    with server(words, url=f"http://127.0.0.1:{port}", ready="/health/ready") as started:
        yield started.url


@contextmanager
def _engine() -> Iterator[str]:
    """What a busy vLLM shows, with numbers of no meaning."""
    registry, label = CollectorRegistry(), ["model_name"]
    counters = [Counter(f"vllm:{name}", name, label, registry=registry) for name in VLLM_COUNTERS]
    gauges = [Gauge(f"vllm:{name}", name, label, registry=registry) for name in VLLM_GAUGES]
    histograms = [Histogram(f"vllm:{name}", name, label, registry=registry) for name in VLLM_HISTOGRAMS]
    for gauge in gauges:
        gauge.labels("policy").set(0.5)

    def work() -> None:
        for counter in counters:
            counter.labels("policy").inc(10)
        for histogram in histograms:
            histogram.labels("policy").observe(0.05)

    class Show(BaseHTTPRequestHandler):
        """As plain text whatever is asked for, as vLLM does; OpenMetrics would have no colons in names."""

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", CONTENT_TYPE_LATEST)
            self.end_headers()
            self.wfile.write(generate_latest(registry))

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
            """Nothing to say."""

    with HTTPServer(("127.0.0.1", 0), Show) as httpd, _again_and_again(work):
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{httpd.server_port}"
        finally:
            httpd.shutdown()
            thread.join()


@contextmanager
def _runs(folder: Path) -> Iterator[str]:
    """Three runs, of which one is under way, and the exporter."""
    for run, line in RUNS.items():
        (folder / run).mkdir(parents=True)
        (folder / run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    (folder / "dpo" / "manifest.json").write_text("{}")
    port = free_port()
    words = ["-m", "trainers.exporter", str(folder), "--port", str(port)]
    with server(words, url=f"http://127.0.0.1:{port}", ready="/metrics") as started:
        yield started.url


@contextmanager
def _load(url: str) -> Iterator[None]:
    async def one(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> None:
        await http.post(f"/v1/{path}", json=body)

    async def a_round() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=30) as http:
            await asyncio.gather(*(one(http, path, body) for path, body in ROUND))

    with _again_and_again(lambda: asyncio.run(a_round())):
        yield


@contextmanager
def _again_and_again(work: Callable[[], None]) -> Iterator[None]:
    """In a thread, five times a second at most."""
    over = threading.Event()

    def loop() -> None:
        while not over.wait(0.2):
            work()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
