"""The command line of `gateway up`."""

from pathlib import Path

import pytest

from gateway.launch_flags import Options, read_flags

DEFAULTS = Options(
    policy="m",
    policy_url=None,
    reward_model=None,
    reward_url=None,
    host="127.0.0.1",
    port=8000,
    policy_port=0,
    reward_port=0,
    served_model_name=None,
    dtype="auto",
    reward_dtype=None,
    max_model_len=None,
    kv_cache_gib=1,
    default_best_of=1,
    vllm_args="",
    reward_args="",
    gateway_args="",
    log_dir=Path("runs/up"),
    start_timeout=900.0,
    ready_file=None,
)


def test_a_policy_is_enough() -> None:
    assert read_flags(["--policy", "m"]) == DEFAULTS


def test_every_flag_is_read() -> None:
    line = (
        "--policy-url http://p --reward-url http://r --host 0.0.0.0 --port 1 --policy-port 2 --reward-port 3"
        " --served-model-name n --dtype float32 --reward-dtype bfloat16 --max-model-len 9 --kv-cache-gib 4"
        " --default-best-of 8 --vllm-args --a --gateway-args --b --log-dir l --start-timeout 1.5"
        " --ready-file f --reward-args --c"
    )
    words = line.replace("-args --", "-args=--").split()
    assert read_flags(words) == Options(
        policy=None,
        policy_url="http://p",
        reward_model=None,
        reward_url="http://r",
        host="0.0.0.0",
        port=1,
        policy_port=2,
        reward_port=3,
        served_model_name="n",
        dtype="float32",
        reward_dtype="bfloat16",
        max_model_len=9,
        kv_cache_gib=4,
        default_best_of=8,
        vllm_args="--a",
        reward_args="--c",
        gateway_args="--b",
        log_dir=Path("l"),
        start_timeout=1.5,
        ready_file=Path("f"),
    )


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "one of the arguments --policy --policy-url is required"),
        ("--policy m --policy-url http://p", "not allowed with argument"),
        ("--policy m --reward-model r --reward-url http://r", "not allowed with argument"),
        ("--policy m --default-best-of 4", "needs --reward-model or --reward-url"),
        ("--policy m --default-best-of 0", "whole number of 1 or more"),
        ("--policy m --kv-cache-gib 1.5", "whole number of 1 or more"),
        ("--policy m --port 65536", "a port is a number from 0 to 65535"),
        ("--policy m --port -1", "a port is a number from 0 to 65535"),
        ("--policy m --start-timeout nan", "number of seconds above 0"),
        ("--policy m --start-timeout soon", "number of seconds above 0"),
        ("--policy m --vllm-args '", "cannot be split into words"),
    ],
)
def test_flags_that_make_no_sense_exit_with_2(
    line: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        read_flags(line.split())
    assert caught.value.code == 2
    assert says in capsys.readouterr().err
