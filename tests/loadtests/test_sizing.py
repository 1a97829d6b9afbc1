"""loadtests.sizing by hand: what a load needs."""

import json
from pathlib import Path

import pytest

from gateway.config import Limits
from loadtests.errors import LoadTestError
from loadtests.sizing import SLOTS_OF_A_GATEWAY, Load, cache_bytes_per_token, main, plan

LOAD = Load(
    rate=10,
    best_of=4,
    prompt_tokens=100,
    answer_tokens=50,
    answer_seconds=2,
    policy_tokens_per_second=1000,
    reward_tokens_per_second=2000,
)
FLAGS = (
    "--rate 10 --best-of 1,7 --prompt-tokens 100 --answer-tokens 50 --answer-seconds 2"
    " --policy-tokens-per-second 1000 --reward-tokens-per-second 2000"
).split()


def test_the_three_laws_by_hand() -> None:
    found = plan(LOAD, busy=0.5, slots_of_a_gateway=100)
    assert found.candidates_under_way == 10 * 4 * 2  # a second's, times how long each stays
    assert found.slots == 160
    assert found.gateways == 2
    assert found.generated_per_second == 2000  # 10 requests of 4 answers of 50 tokens
    assert found.policy_replicas == 4  # each for 500 of them
    assert found.judged_per_second == 3000  # 10 times a prompt of 100 and 4 answers of 50
    assert found.reward_replicas == 3
    assert found.cached_tokens == 20 * 300  # 20 requests under way


def test_nothing_to_do_still_needs_one_of_each() -> None:
    found = plan(LOAD.__class__(**{**vars(LOAD), "rate": 1e-6}))
    assert (found.gateways, found.policy_replicas, found.reward_replicas) == (1, 1, 1)


def test_a_gateway_has_as_many_slots_as_it_says() -> None:
    assert Limits().max_concurrent_candidates == SLOTS_OF_A_GATEWAY


def test_keys_and_values_of_a_token() -> None:
    # Llama 3 8B: 32 layers, 8 key-value heads of 128, two bytes, keys and values: 128 KiB
    llama: dict[str, object] = {
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "hidden_size": 4096,
    }
    assert cache_bytes_per_token(llama, "bfloat16") == 128 * 1024
    assert cache_bytes_per_token(llama, "fp8") == 64 * 1024
    assert cache_bytes_per_token({**llama, "head_dim": 64}, "bfloat16") == 64 * 1024
    with pytest.raises(LoadTestError, match="layers"):
        cache_bytes_per_token({"model_type": "mamba"}, "bfloat16")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 128}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main([*FLAGS, "--busy", "0.5", "--policy", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "candidate slots         160 " in shown
    assert "vLLM replicas           4\n" in shown
    assert "1,500 per replica" in shown
    assert main([*FLAGS, "--policy", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "wrong",
    [
        ["--rate", "0"],
        ["--rate", "nan"],
        ["--rate", "ten"],
        ["--slots", "0"],
        ["--busy", "1.1"],
        ["--best-of", "1,,2"],
        ["--best-of", "-1"],
    ],
)
def test_what_is_no_amount_is_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*FLAGS, *wrong])
    assert ended.value.code == 2
    assert wrong[0] in capsys.readouterr().err
