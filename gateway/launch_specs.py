"""The stack as data: which programs run, with which arguments and environment. Nothing is started here.

On a machine without a GPU vLLM, the reward server and the gateway share the cores, and the engine's OpenMP
threads spin while they wait: with one busy neighbour on its cores it fell from 11,400 to 430 tokens/s. So the
reward model gets one core of every eight, the servers' event loops one, and the engine the rest.
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

LOOPBACK = "127.0.0.1"

SMALL_CACHES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "8", "LRU_CACHE_CAPACITY": "8"}
"""For a vLLM on a CPU. oneDNN and torch's layer over it keep what they prepare for each shape of a product,
1,024 shapes each by default, and every other number of tokens in a batch is another shape: memory grows for
as long as the load is mixed. Eight hold the shapes of a pass, and are as fast."""


@dataclass(frozen=True, kw_only=True)
class ChildSpec:
    """One program of the stack: how it is started, and when it counts as ready."""

    name: str
    command: tuple[str, ...]
    ready_url: str
    """Answers 200 once the child can serve."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Defaults: a variable that the user has set wins."""
    grace_s: float = 10.0
    """From SIGTERM to SIGKILL."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A checkpoint to serve: a local folder, or a name that the server fetches from a hub."""

    source: str
    name: str
    is_local: bool


def threads_for_engine(num_cores: int) -> dict[str, str]:
    """vLLM's environment for this many cores: all but those of the others, bound; a single one unbound.

    A single thread never spins for others, and unbound the kernel may move it away from a busy core.
    """
    others = 1 + threads_for_reward(num_cores)
    if num_cores - others <= 1:
        return {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    return {"VLLM_CPU_OMP_THREADS_BIND": "auto", "VLLM_CPU_NUM_OF_RESERVED_CPU": str(others)}


def threads_for_reward(num_cores: int) -> int:
    """One thread of every eight."""
    return max(1, num_cores // 8)


def policy_spec(
    model: Model,
    *,
    python: str,
    port: int,
    engine: str,
    num_cores: int,
    dtype: str,
    max_model_len: int | None,
    kv_cache_gib: int,
    more_args: str,
) -> ChildSpec:
    """vLLM's OpenAI server on loopback; `engine` is "cpu" or "cuda". `more_args` come last, so they win."""
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", model.source]
    command += ["--served-model-name", model.name, "--host", LOOPBACK, "--port", str(port), "--dtype", dtype]
    command += ["--disable-uvicorn-access-log"]
    # The gateway learns from it which control tokens messages must not spell; it is on loopback only.
    command += ["--enable-tokenizer-info-endpoint"]
    if max_model_len is not None:
        command += ["--max-model-len", str(max_model_len)]
    env = {"VLLM_NO_USAGE_STATS": "1"}
    if model.is_local:
        env["HF_HUB_OFFLINE"] = "1"
    if engine == "cpu":
        command += ["--enforce-eager"]  # starts in half the time, and needs no compiler
        env["VLLM_CPU_KVCACHE_SPACE"] = str(kv_cache_gib)
        threads = threads_for_engine(num_cores)
        env |= threads | SMALL_CACHES
        if threads.get("OMP_NUM_THREADS") == "1":
            # One process fewer, which otherwise spins on a core while it waits for the other: a quarter less
            # time on two cores. vLLM refuses it on CPUs only for the sake of binding several threads.
            command += ["--distributed-executor-backend", "uni"]
            env["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    command += shlex.split(more_args)
    return ChildSpec(
        name="policy", command=tuple(command), ready_url=f"http://{LOOPBACK}:{port}/health", env=env
    )


def reward_spec(
    model: Model, *, python: str, port: int, num_cores: int, dtype: str | None, more_args: str
) -> ChildSpec:
    """The reward-model server on loopback. `more_args` come last, so they win."""
    command = [python, "-m", "rm_server", "--model", f"{model.name}={model.source}"]
    command += ["--host", LOOPBACK, "--port", str(port), "--threads", str(threads_for_reward(num_cores))]
    if dtype is not None:
        command += ["--dtype", dtype]
    command += shlex.split(more_args)
    env = {"HF_HUB_OFFLINE": "1"} if model.is_local else {}
    return ChildSpec(
        name="reward", command=tuple(command), ready_url=f"http://{LOOPBACK}:{port}/health/ready", env=env
    )


def gateway_spec(
    *,
    python: str,
    host: str,
    port: int,
    policy_url: str,
    reward_url: str | None,
    default_best_of: int,
    more_args: str,
) -> ChildSpec:
    """The gateway itself, in front of both; nobody balances load over a local stack, so it need not wait."""
    command = [python, "-m", "gateway", "--host", host, "--port", str(port), "--policy-url", policy_url]
    if reward_url is not None:
        command += ["--reward-url", reward_url]
    command += ["--default-best-of", str(default_best_of), "--drain-delay", "0", *shlex.split(more_args)]
    return ChildSpec(
        name="gateway",
        command=tuple(command),
        ready_url=f"{url_of(host, port)}/health/ready",
        grace_s=40.0,  # its own drain takes up to 30 s
    )


def url_of(host: str, port: int) -> str:
    """Where a server listening on `host` is reached from this machine."""
    reachable = {"0.0.0.0": LOOPBACK, "": LOOPBACK, "::": "::1"}.get(host, host)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"
