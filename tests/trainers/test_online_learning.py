"""The online methods learn what is rewarded, and each knob does what it is for.

The reward is the number of lower-case letters in an answer of 12 tokens (bytes), over 4; a reward server on
a loopback port counts them. The policy is a random Llama of 30,000 parameters, of whose bytes one in twelve
is such a letter at first.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import pytest

from tests.trainers.conftest import WriteRows, chat
from tests.trainers.judge_server import judge_server
from trainers.__main__ import main
from trainers.folder import METRICS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with judge_server(lambda text: sum(c.isascii() and c.islower() for c in text) / 4) as found:
        yield found


@pytest.fixture
def words(base: Path, write_rows: WriteRows, tmp_path: Path, url: str) -> list[str]:
    """A command line without its algorithm."""
    prompts = write_rows("many.jsonl", [{"prompt": f"Say {'x' * n}"} for n in range(16)])
    return [
        *("--model_name_or_path", str(base), "--dataset_name", str(prompts), "--use_cpu"),
        *("--reward_server_url", url, "--output_dir", str(tmp_path / "out"), "--overwrite_output_dir"),
        *("--max_length", "100", "--response_length", "12", "--lr_scheduler_type", "constant"),
        *("--per_device_train_batch_size", "32", "--gradient_accumulation_steps", "2", "--save_steps", "0"),
    ]


def train(tmp_path: Path, algorithm: str, words: list[str], *more: str) -> list[dict[str, float]]:
    """Trains and returns the lines of metrics."""
    assert main([algorithm, *words, *more]) == 0
    return [json.loads(line) for line in (tmp_path / "out" / METRICS).read_text().splitlines()]


def late(lines: list[dict[str, float]], name: str, num_steps: int = 5) -> float:
    """The mean of a metric over the last steps."""
    return fmean(line[name] for line in lines[-num_steps:])


@pytest.mark.parametrize(
    ("algorithm", "flags"),
    [
        ("ppo", ["--learning_rate", "2e-3", "--max_steps", "18"]),
        ("rloo", ["--learning_rate", "3e-3", "--max_steps", "22"]),
        ("rloo", ["--learning_rate", "3e-3", "--max_steps", "22", "--baseline", "batch"]),
        ("cem", ["--learning_rate", "3e-3", "--max_steps", "21"]),
        ("ppo", ["--learning_rate", "5e-3", "--max_steps", "40", "--use_peft"]),
        ("rloo", ["--learning_rate", "2e-2", "--max_steps", "22", "--use_peft"]),
    ],
)
def test_each_raises_the_reward_at_a_bounded_kl(
    algorithm: str, flags: list[str], words: list[str], tmp_path: Path
) -> None:
    lines = train(tmp_path, algorithm, words, *flags)
    assert lines[0]["reward"] < 0.35
    # Of three further seeds (of the last case one) the worst had 0.93 and the most 35 nats: last bits, which
    # processors round as they will, decide what is drawn and in the end as much as a seed.
    assert late(lines, "reward") > 0.85
    assert 3 < late(lines, "kl_nats_per_sequence") < 40


def test_the_kl_coefficient_holds_the_policy_back(words: list[str], tmp_path: Path) -> None:
    flags = ["--learning_rate", "2e-3", "--max_steps", "18", "--kl_coef"]
    free, held = (train(tmp_path, "ppo", words, *flags, coef) for coef in ("0.01", "1"))
    assert late(held, "kl_nats_per_sequence") < 0.5 * late(free, "kl_nats_per_sequence")
    assert late(held, "reward") < late(free, "reward")


def test_the_kl_coefficient_adapts_until_the_target_is_met(words: list[str], tmp_path: Path) -> None:
    flags = ["--learning_rate", "2e-3", "--max_steps", "60", "--kl_coef", "0.01"]
    target = ["--kl_target_nats_per_sequence", "4", "--kl_horizon_episodes", "64"]
    lines = train(tmp_path, "ppo", words, *flags, *target)
    assert lines[-1]["kl_coef"] > 0.02
    assert max(line["kl_nats_per_sequence"] for line in lines) > 5
    # It swings about the target, a time in 25 steps or so.
    assert late(lines, "kl_nats_per_sequence", 20) == pytest.approx(4, rel=0.25)


def test_the_entropy_bonus_keeps_entropy(words: list[str], tmp_path: Path) -> None:
    flags = ["--learning_rate", "2e-3", "--max_steps", "18", "--entropy_coef"]
    plain, bonus = (train(tmp_path, "ppo", words, *flags, coef) for coef in ("0", "0.1"))
    assert late(bonus, "entropy_nats_per_token") > late(plain, "entropy_nats_per_token") + 0.1


def test_the_mix_keeps_what_was_known(words: list[str], write_rows: WriteRows, tmp_path: Path) -> None:
    data = str(write_rows("known.jsonl", [chat(f"{n}?", "0123456789") for n in range(8)]))
    flags = ["--learning_rate", "2e-3", "--max_steps", "18", "--ptx_dataset_name", data, "--ptx_coef"]
    barely, mixed = (train(tmp_path, "ppo", words, *flags, coef) for coef in ("1e-6", "0.3"))
    assert late(mixed, "ptx_loss") < late(barely, "ptx_loss") - 1
    assert late(mixed, "reward") > 0.5


def test_a_penalty_for_no_end_teaches_to_end(words: list[str], tmp_path: Path) -> None:
    flags = [
        "--learning_rate",
        "3e-3",
        "--max_steps",
        "40",
        "--missing_eos_penalty",
        "3",
        "--kl_coef",
        "0.01",
    ]
    lines = train(tmp_path, "rloo", words, *flags)
    assert lines[0]["eos_share"] < 0.15
    assert late(lines, "eos_share") > 0.5
