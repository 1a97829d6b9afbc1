"""The stack as data: every flag ends up in the right command."""

import pytest

from gateway.launch_specs import (
    Model,
    gateway_spec,
    policy_spec,
    reward_spec,
    threads_for_engine,
    threads_for_reward,
    url_of,
)

LOCAL = Model(source="/models/dpo", name="dpo", is_local=True)
HUB = Model(source="org/model", name="org/model", is_local=False)


def policy_command(model: Model, engine: str, max_model_len: int | None, more_args: str) -> list[str]:
    spec = policy_spec(
        model,
        python="py",
        port=8100,
        engine=engine,
        num_cores=2,
        dtype="float32",
        max_model_len=max_model_len,
        kv_cache_gib=3,
        more_args=more_args,
    )
    assert spec.ready_url == "http://127.0.0.1:8100/health"
    assert spec.env.get("HF_HUB_OFFLINE") == ("1" if model.is_local else None)
    assert spec.env.get("VLLM_CPU_KVCACHE_SPACE") == ("3" if engine == "cpu" else None)
    assert ("OMP_NUM_THREADS" in spec.env) == (engine == "cpu")
    for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        assert spec.env.get(cache) == ("8" if engine == "cpu" else None)
    assert spec.env.get("VLLM_ENABLE_V1_MULTIPROCESSING") == ("0" if engine == "cpu" else None)
    return list(spec.command)


SMALL_CPU = "--enforce-eager --distributed-executor-backend uni"


def test_the_policy_on_a_cpu() -> None:
    common = "--host 127.0.0.1 --port 8100 --dtype float32 --disable-uvicorn-access-log"
    common += " --enable-tokenizer-info-endpoint"
    expected = (
        "py -m vllm.entrypoints.openai.api_server --model /models/dpo --served-model-name dpo " + common
    )
    assert policy_command(LOCAL, "cpu", None, "") == f"{expected} {SMALL_CPU}".split()
    with_more = policy_command(LOCAL, "cpu", 512, "--chat-template 'a b' --seed 1")
    assert with_more == [
        *expected.split(),
        *f"--max-model-len 512 {SMALL_CPU} --chat-template".split(),
        "a b",
        "--seed",
        "1",
    ]


def test_the_policy_on_a_gpu_compiles_and_may_come_from_a_hub() -> None:
    command = policy_command(HUB, "cuda", None, "")
    assert command[3:7] == ["--model", "org/model", "--served-model-name", "org/model"]
    assert "--enforce-eager" not in command


@pytest.mark.parametrize(
    ("num_cores", "engine", "reward"),
    [
        (1, {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}, 1),
        (2, {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}, 1),
        (3, {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}, 1),
        (4, {"VLLM_CPU_OMP_THREADS_BIND": "auto", "VLLM_CPU_NUM_OF_RESERVED_CPU": "2"}, 1),
        (32, {"VLLM_CPU_OMP_THREADS_BIND": "auto", "VLLM_CPU_NUM_OF_RESERVED_CPU": "5"}, 4),
    ],
)
def test_cores_are_shared_out(num_cores: int, engine: dict[str, str], reward: int) -> None:
    assert threads_for_engine(num_cores) == engine
    assert threads_for_reward(num_cores) == reward


def test_the_reward_server() -> None:
    spec = reward_spec(LOCAL, python="py", port=8200, num_cores=16, dtype=None, more_args="")
    expected = "py -m rm_server --model dpo=/models/dpo --host 127.0.0.1 --port 8200 --threads 2"
    assert list(spec.command) == expected.split()
    assert spec.ready_url == "http://127.0.0.1:8200/health/ready"
    assert spec.env == {"HF_HUB_OFFLINE": "1"}
    more = "--threads 3 --model 'other=a b'"
    hub = reward_spec(HUB, python="py", port=8200, num_cores=2, dtype="bfloat16", more_args=more)
    assert list(hub.command[-6:]) == ["--dtype", "bfloat16", "--threads", "3", "--model", "other=a b"]
    assert hub.env == {}


def test_the_gateway() -> None:
    spec = gateway_spec(
        python="py",
        host="0.0.0.0",
        port=8000,
        policy_url="http://p",
        reward_url="http://r",
        default_best_of=4,
        more_args="--max-queue 7",
    )
    expected = "py -m gateway --host 0.0.0.0 --port 8000 --policy-url http://p --reward-url http://r"
    more = "--default-best-of 4 --drain-delay 0 --max-queue 7"
    assert list(spec.command) == [*expected.split(), *more.split()]
    assert spec.ready_url == "http://127.0.0.1:8000/health/ready"
    assert spec.env == {}


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.1", "http://127.0.0.1:80"), ("0.0.0.0", "http://127.0.0.1:80"), ("::", "http://[::1]:80")],
)
def test_a_server_on_every_address_is_reached_on_loopback(host: str, url: str) -> None:
    assert url_of(host, 80) == url
