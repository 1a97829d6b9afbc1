"""Each algorithm learns what its data says, and leaves the checkpoint that it promises."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from tests.trainers.conftest import WriteRows, chat
from trainers import checkpoint, dpo, reward, sft
from trainers.errors import ConfigError


def run(algorithm: Any, base: Path, data: Path, output: Path, *more: str) -> dict[str, Any]:
    """Runs an algorithm and returns its alignment.json."""
    words = ["--model_name_or_path", str(base), "--dataset_name", str(data), "--output_dir", str(output)]
    assert algorithm.main([*words, "--use_cpu", "--logging_steps", "1", *more]) == 0
    assert checkpoint.verify(output) is True
    return checkpoint.read_json(output / "alignment.json")


def first_and_last(output: Path, name: str) -> tuple[float, float]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    values = [line[name] for line in lines if name in line]
    return values[0], values[-1]


def test_sft_learns_its_demonstrations(base: Path, write_rows: WriteRows, tmp_path: Path) -> None:
    data = write_rows("same.jsonl", [chat("q", "ok")] * 8)
    flags = ["--learning_rate", "1e-2", "--max_steps", "40", "--eval_dataset_name", str(data)]
    alignment = run(sft, base, data, tmp_path / "out", *flags)
    first, last = first_and_last(tmp_path / "out", "loss")
    assert first > 4
    assert last < 0.1
    assert alignment["metrics"]["eval_loss"] < 0.1
    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "q"}], add_generation_prompt=True, return_tensors="pt"
    )
    answer = policy.generate(**prompt, max_new_tokens=8, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "ok<|end|>"


def test_sft_loss_is_the_mean_over_assistant_tokens(
    base: Path, write_rows: WriteRows, tmp_path: Path
) -> None:
    data = write_rows("two.jsonl", [chat("a long question", "x"), chat("b", "a long answer")])
    run(sft, base, data, tmp_path / "out", "--max_steps", "1")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base).eval(), AutoTokenizer.from_pretrained(base)
    costs: list[float] = []
    for question, answer in (("a long question", "x"), ("b", "a long answer")):
        prompt = tokenizer(f"<|user|>{question}<|end|>\n<|assistant|>", return_tensors="pt")["input_ids"]
        full = tokenizer(f"<|user|>{question}<|end|>\n<|assistant|>{answer}<|end|>", return_tensors="pt")[
            "input_ids"
        ]
        logprobs_TV = torch.log_softmax(model(full).logits[0], dim=-1).detach()
        costs += [-float(logprobs_TV[at - 1, full[0, at]]) for at in range(prompt.shape[1], full.shape[1])]
    assert first_and_last(tmp_path / "out", "loss")[0] == pytest.approx(sum(costs) / len(costs), rel=1e-5)


def test_sft_in_bfloat16_stays_near_float32(base: Path, demonstrations: Path, tmp_path: Path) -> None:
    losses = []
    for name, flags in (("a", []), ("b", ["--bf16"])):
        run(sft, base, demonstrations, tmp_path / name, "--max_steps", "3", *flags)
        losses.append(first_and_last(tmp_path / name, "loss")[1])
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_reward_learns_which_answer_is_better(base: Path, pairs: Path, tmp_path: Path) -> None:
    flags = ["--learning_rate", "3e-3", "--num_train_epochs", "8", "--eval_dataset_name", str(pairs)]
    alignment = run(reward, base, pairs, tmp_path / "out", *flags)
    assert alignment["metrics"]["eval_accuracy"] == 1.0


def test_rewards_are_normalised_over_the_training_answers(base: Path, pairs: Path, tmp_path: Path) -> None:
    alignment = run(reward, base, pairs, tmp_path / "out", "--learning_rate", "1e-3", "--max_steps", "3")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    rewards = []
    for line in pairs.read_text().splitlines():
        row = json.loads(line)
        for side in ("chosen", "rejected"):
            ids = tokenizer.apply_chat_template(row["prompt"] + row[side], return_tensors="pt")
            rewards.append(model(**ids).logits.item() - alignment["reward_offset"])
    rewards_S = torch.tensor(rewards, dtype=torch.float64)
    assert float(rewards_S.mean()) == pytest.approx(0, abs=1e-4)
    assert float(rewards_S.std(correction=0)) == pytest.approx(1, abs=1e-4)
    assert alignment["calibration"]["quantiles"]["0.5"] == pytest.approx(
        float(rewards_S.quantile(0.5)),
        abs=1e-4,  # of 40 samples the median is the same by any rule
    )
    assert (alignment["calibration"]["samples"], alignment["calibration"]["source"]) == (40, "training")
    assert not any("bias" in name for name in model.state_dict())


def test_rewards_can_be_normalised_over_samples(
    base: Path, pairs: Path, write_rows: WriteRows, tmp_path: Path
) -> None:
    prompt = [{"role": "user", "content": "q"}]
    samples = write_rows("samples.jsonl", [{"prompt": prompt, "responses": ["a", "bb", "c c"]}])
    flags = ["--max_steps", "1", "--normalization_dataset", str(samples)]
    alignment = run(reward, base, pairs, tmp_path / "out", *flags)
    calibration = alignment["calibration"]
    assert (calibration["samples"], calibration["source"]) == (3, "normalization_dataset")
    assert [source["rows"] for source in alignment["data"]] == [20, 1]


def test_enough_held_out_answers_calibrate_what_the_training_pairs_normalised(
    base: Path, pairs: Path, write_rows: WriteRows, tmp_path: Path
) -> None:
    rows = [{"prompt": "q", "chosen": "a" * (1 + i % 9), "rejected": "b" * (1 + i % 7)} for i in range(500)]
    flags = ["--max_steps", "1", "--eval_dataset_name", str(write_rows("held_out.jsonl", rows))]
    calibration = run(reward, base, pairs, tmp_path / "out", *flags)["calibration"]
    assert (calibration["samples"], calibration["source"]) == (1000, "held_out")
    assert calibration["raw_samples"] == 40


def test_margins_and_centring_reach_the_loss(base: Path, write_rows: WriteRows, tmp_path: Path) -> None:
    rows = [{"prompt": "q", "chosen": "a", "rejected": "b"}]
    plain, margin = (
        write_rows(name, [row | extra for row in rows])
        for name, extra in (("plain.jsonl", {}), ("margin.jsonl", {"margin": 3.0}))
    )
    flags = ["--max_steps", "1", "--learning_rate", "1e-6"]
    losses = {}
    for name, data, more in (
        ("plain", plain, []),
        ("margin", margin, []),
        ("centred", plain, ["--center_rewards_coefficient", "0.5"]),
    ):
        run(reward, base, data, tmp_path / name, *flags, *more)
        losses[name] = first_and_last(tmp_path / name, "loss")[0]
    assert losses["margin"] > losses["plain"] + 1
    assert losses["centred"] > losses["plain"]


def test_reward_learns_the_best_of_several(base: Path, write_rows: WriteRows, tmp_path: Path) -> None:
    rows = [
        {
            "prompt": f"Is {n} a number?",
            "responses": ["no", "maybe", "yes", "perhaps"][: 3 + n % 2],
            "best": 2,
        }
        for n in range(20)
    ]
    data = write_rows("choices.jsonl", rows)
    flags = ["--loss_type", "choice", "--learning_rate", "3e-3", "--num_train_epochs", "8"]
    alignment = run(reward, base, data, tmp_path / "out", *flags, "--eval_dataset_name", str(data))
    assert alignment["metrics"]["eval_accuracy"] == 1.0
    assert alignment["metrics"]["eval_margin"] > 1
    assert alignment["calibration"]["samples"] == 70


def test_the_held_out_accuracy_is_reported_by_slice(
    base: Path, pairs: Path, write_rows: WriteRows, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    marked = [row | {"source": "ab"[n % 2], "margin": n / 10} for n, row in enumerate(rows)]
    held_out = write_rows("held_out.jsonl", marked)
    alignment = run(
        reward, base, pairs, tmp_path / "out", "--max_steps", "3", "--eval_dataset_name", str(held_out)
    )
    report = checkpoint.read_json(tmp_path / "out" / "accuracy.json")
    assert report["accuracy"] == alignment["metrics"]["eval_accuracy"]
    assert [(part["slice"], part["preferences"]) for part in report["by"]["source"]] == [("a", 10), ("b", 10)]
    assert [part["preferences"] for part in report["by"]["margin"]] == [5, 5, 5, 5]


def test_dpo_prefers_the_chosen_answers(base: Path, pairs: Path, tmp_path: Path) -> None:
    flags = ["--learning_rate", "1e-3", "--num_train_epochs", "4", "--eval_dataset_name", str(pairs)]
    alignment = run(dpo, base, pairs, tmp_path / "out", *flags)
    first, last = first_and_last(tmp_path / "out", "loss")
    # Policy and reference are the same at first: every pair costs ln 2.
    assert first == pytest.approx(0.693147, abs=1e-5)
    assert last < 0.5
    metrics = alignment["metrics"]
    assert metrics["eval_rewards/accuracies"] == 1.0
    assert metrics["eval_rewards/margins"] == pytest.approx(
        metrics["eval_rewards/chosen"] - metrics["eval_rewards/rejected"], rel=1e-4
    )


def test_label_smoothing_holds_dpo_back(base: Path, pairs: Path, tmp_path: Path) -> None:
    margins = []
    for name, flags in (("a", []), ("b", ["--label_smoothing", "0.4"])):
        run(dpo, base, pairs, tmp_path / name, "--learning_rate", "1e-3", "--num_train_epochs", "4", *flags)
        margins.append(first_and_last(tmp_path / name, "rewards/margins")[1])
    assert margins[1] < margins[0]


@pytest.mark.parametrize("loss_type", [name for name in dpo.KNOBS if name != "sigmoid"])
def test_every_direct_method_prefers_the_chosen_answers(
    loss_type: str, base: Path, pairs: Path, tmp_path: Path
) -> None:
    flags = ["--learning_rate", "1e-3", "--num_train_epochs", "6", "--eval_dataset_name", str(pairs)]
    alignment = run(dpo, base, pairs, tmp_path / "out", "--loss_type", loss_type, *flags)
    first, last = first_and_last(tmp_path / "out", "loss")
    assert last < first
    assert alignment["config"]["loss_type"] == loss_type
    assert alignment["metrics"]["eval_rewards/accuracies"] == 1.0
    before, after = first_and_last(tmp_path / "out", "rewards/margins")
    assert after > before


@pytest.mark.parametrize(
    ("loss_type", "flag"),
    [("sigmoid", "delta"), ("ipo", "label_smoothing"), ("slic_hf", "beta"), ("orpo", "sft_coef")],
)
def test_a_setting_that_the_loss_does_not_read_is_refused(loss_type: str, flag: str) -> None:
    settings: dict[str, Any] = {"loss_type": loss_type, flag: 0.25}
    with pytest.raises(ConfigError, match=f"--{flag} means nothing to --loss_type {loss_type}"):
        dpo.Config(model_name_or_path="m", dataset_name="d", output_dir="o", **settings)
