"""Evaluation by reward: what is answered and judged, and runs that end with the best answers."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.trainers.conftest import WriteRows
from tests.trainers.judge_server import judge_server
from trainers.__main__ import main
from trainers.folder import METRICS, SAMPLES
from trainers.formats import Demonstration, Pair, sha256_of
from trainers.held_out import prompts_of
from trainers.resume import step_checkpoints


def turns(*contents: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[index % 2], "content": content} for index, content in enumerate(contents)]


def test_prompts_are_what_stands_before_the_last_answer_each_once() -> None:
    items = [
        Demonstration(turns("a", "b", "c", "d"), 0, False, "1"),
        Pair(turns("q"), turns("", "x")[1:], turns("", "y")[1:], False, 0.0, "2"),
        Demonstration(turns("q", "z"), 1, False, "3"),
        Demonstration(turns("", "no prompt")[1:], 0, False, "4"),
        Demonstration(turns("text", "more"), 1, True, "5"),
    ]
    assert prompts_of(items) == [
        ({"prompt": turns("a", "b", "c")}, "1"),
        ({"prompt": turns("q")}, "2"),
        ({"prompt": "text"}, "5"),
    ]


def words(algorithm: str, base: Path, data: Path, output: Path, *more: str) -> list[str]:
    named = ["--model_name_or_path", str(base), "--dataset_name", str(data), "--output_dir", str(output)]
    steps = [
        "--max_steps",
        "12",
        "--eval_steps",
        "2",
        "--save_steps",
        "5",
        "--logging_steps",
        "1",
        "--use_cpu",
    ]
    small = ["--response_length", "6", "--max_length", "100", "--learning_rate", "3e-3"]
    return [algorithm, *named, *steps, *small, *more]


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def by_reward(output: Path) -> list[tuple[int, float]]:
    lines = lines_of(output / METRICS)
    return [(line["step"], line["eval_reward"]) for line in lines if "eval_reward" in line]


CHOOSING = ("--load_best_model_at_end", "--save_total_limit", "9")


@pytest.mark.parametrize("algorithm", ["sft", "dpo"])
def test_a_run_ends_with_the_weights_that_answer_best(
    algorithm: str,
    base: Path,
    reward_checkpoint: Path,
    demonstrations: Path,
    pairs: Path,
    prompts: Path,
    tmp_path: Path,
) -> None:
    data, output = demonstrations if algorithm == "sft" else pairs, tmp_path / "out"
    judged = ["--reward_model_path", str(reward_checkpoint), "--eval_prompts", str(prompts)]
    flags = [*judged, "--eval_dataset_name", str(data), *CHOOSING]
    assert main(words(algorithm, base, data, output, *flags)) == 0
    found = by_reward(output)
    assert [step for step, _ in found] == [2, 4, 6, 8, 10, 12]
    best_step, best = max(found, key=lambda point: point[1])
    chosen = output / f"checkpoint-{best_step}" / "model.safetensors"
    assert sha256_of(output / "model.safetensors") == sha256_of(chosen)
    alignment = json.loads((output / "alignment.json").read_text())
    assert alignment["metrics"].items() >= {"step": best_step, "last_step": 12, "eval_reward": best}.items()
    assert "eval_loss" in alignment["metrics"]
    assert alignment["reward_model"]["path"] == str(reward_checkpoint)
    assert str(prompts) in [source["path"] for source in alignment["data"]]
    assert (output / "curves.png").is_file()
    samples = lines_of(output / SAMPLES)
    assert [sample["step"] for sample in samples] == [step for step, _ in found for _ in range(3)]
    # From each of its checkpoints a run continues to the same choice.
    for folder in step_checkpoints(output):
        cut = tmp_path / folder.name
        again = ["--resume_from_checkpoint", str(folder)]
        assert main(words(algorithm, base, data, cut, *flags, *again)) == 0
        assert sha256_of(cut / "model.safetensors") == sha256_of(chosen)


def test_looking_changes_nothing_that_is_learned(
    base: Path, reward_checkpoint: Path, demonstrations: Path, tmp_path: Path
) -> None:
    assert main(words("sft", base, demonstrations, tmp_path / "plain")) == 0
    judged = ["--reward_model_path", str(reward_checkpoint), "--eval_dataset_name", str(demonstrations)]
    assert main(words("sft", base, demonstrations, tmp_path / "judged", *judged)) == 0
    plain, seen = (sha256_of(tmp_path / name / "model.safetensors") for name in ("plain", "judged"))
    assert plain == seen
    assert len(by_reward(tmp_path / "judged")) == 6


def test_a_running_server_judges_and_patience_stops(
    base: Path, demonstrations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    with judge_server(lambda text: 1.0) as url:
        judged = ["--reward_server_url", url, "--eval_dataset_name", str(demonstrations)]
        flags = [*judged, "--eval_prompts_limit", "5", *CHOOSING, "--early_stopping_patience", "2"]
        assert main(words("sft", base, demonstrations, output, *flags)) == 0
    # Of equal rewards the first is the best; the second and the third exhaust the patience.
    assert by_reward(output) == [(2, 1.0), (4, 1.0), (6, 1.0)]
    errors = capsys.readouterr().err
    assert "sft: evaluations answer 5 held-out prompts" in errors
    assert "sft: stopping at step 6: no better eval_reward since 2" in errors
    assert "sft: took the weights of step 2, the best by eval_reward" in errors
    assert [folder.name for folder in step_checkpoints(output)] == ["checkpoint-2", "checkpoint-5"]


def test_an_online_method_chooses_by_its_own_evaluations(
    base: Path, reward_checkpoint: Path, prompts: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    judged = ["--reward_model_path", str(reward_checkpoint), "--eval_dataset_name", str(prompts)]
    flags = [*judged, *CHOOSING, "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2"]
    assert main(words("rloo", base, prompts, output, *flags)) == 0
    best_step, _ = max(by_reward(output), key=lambda point: point[1])
    chosen = output / f"checkpoint-{best_step}" / "model.safetensors"
    assert sha256_of(output / "model.safetensors") == sha256_of(chosen)


def test_a_reward_model_is_chosen_by_its_accuracy(base: Path, pairs: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    flags = ["--eval_dataset_name", str(pairs), "--metric_for_best_model", "accuracy", *CHOOSING]
    named = ["--model_name_or_path", str(base), "--dataset_name", str(pairs), "--output_dir", str(output)]
    steps = ["--max_steps", "6", "--eval_steps", "2", "--learning_rate", "1e-3", "--use_cpu"]
    assert main(["reward", *named, *steps, *flags]) == 0
    found = {
        line["step"]: line["eval_accuracy"] for line in lines_of(output / METRICS) if "eval_accuracy" in line
    }
    best_step = max(found, key=lambda step: found[step])
    metrics = json.loads((output / "alignment.json").read_text())["metrics"]
    assert (metrics["step"], metrics["eval_accuracy"]) == (best_step, found[best_step])


def test_prompts_without_room_for_an_answer_are_refused(
    base: Path, reward_checkpoint: Path, demonstrations: Path, write_rows: WriteRows, tmp_path: Path
) -> None:
    long = write_rows("long.jsonl", [{"prompt": "x" * 95}])
    judged = ["--reward_model_path", str(reward_checkpoint), "--eval_prompts", str(long)]
    assert main(words("sft", base, demonstrations, tmp_path / "out", *judged)) == 3
