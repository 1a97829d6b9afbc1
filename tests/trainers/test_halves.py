"""Two halves: no prompt in both, and curves against arithmetic done by hand."""

import json
import math
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trainers.conftest import WriteRows
from trainers import checkpoint, halves
from trainers.__main__ import main
from trainers.errors import DataError
from trainers.formats import sha256_of


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def pair(prompt: str, number: int) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": f"good {number}", "rejected": f"bad {number}", "source": "é"}


def test_a_split_parts_the_prompts_and_loses_no_row(write_rows: WriteRows, tmp_path: Path) -> None:
    rows = [pair(f"prompt {n % 10}", n) for n in range(40)]
    first, second = halves.split(str(write_rows("p.jsonl", rows)), tmp_path, ("a", "b"), seed=0)
    prompts = [{row["prompt"] for row in rows_of(path)} for path in (first, second)]
    assert not prompts[0] & prompts[1]
    assert [len(side) for side in prompts] == [5, 5]
    both = rows_of(first) + rows_of(second)
    assert sorted(both, key=lambda row: str(row["chosen"])) == sorted(
        rows, key=lambda row: str(row["chosen"])
    )


def test_a_split_is_the_seeds(write_rows: WriteRows, tmp_path: Path) -> None:
    data = str(write_rows("p.jsonl", [pair(f"prompt {n}", n) for n in range(20)]))
    made = [sha256_of(halves.split(data, tmp_path, ("a", "b"), seed=seed)[0]) for seed in (0, 0, 1)]
    assert made[0] == made[1] != made[2]


def test_one_prompt_has_no_halves(write_rows: WriteRows, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="two halves need two prompts"):
        halves.split(str(write_rows("p.jsonl", [pair("q", 0), pair("q", 1)])), tmp_path, ("a", "b"), 0)


def test_best_of_n_by_hand() -> None:
    # By proxy the gold rewards are 5, 1, 3. Of pairs (5, 1) takes 1; (5, 3) and (1, 3) take 3: 7 / 3.
    proxy, gold = [0.1, 0.2, 0.3], [5.0, 1.0, 3.0]
    assert [halves.best_of_n(proxy, gold, n) for n in (1, 2, 3)] == pytest.approx([3.0, 7 / 3, 3.0])


@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=1, max_size=7, unique_by=min))
def test_best_of_n_is_the_mean_over_every_choice(answers: list[tuple[int, int]]) -> None:
    ranked = sorted(answers)
    proxy, gold = [float(p) for p in range(len(ranked))], [float(g) for _, g in ranked]
    for n in range(1, len(ranked) + 1):
        expected = fmean(gold[max(choice)] for choice in combinations(range(len(gold)), n))
        assert halves.best_of_n(proxy, gold, n) == pytest.approx(expected)


def test_the_bound_by_hand() -> None:
    assert halves.kl_bound(1) == 0
    assert halves.kl_bound(4) == pytest.approx(math.log(4) - 0.75)


def test_a_test_model_that_does_not_follow_leaves_a_gap() -> None:
    train = [[0.0, 1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0, 0.0]]
    test = [[1.0] * 5, [3.0] * 5]
    curve = halves.best_of_n_curve(train, test)
    assert [point["n"] for point in curve] == [1, 2, 4, 5]
    assert [point["train"]["mean"] for point in curve] == pytest.approx([2.0, 3.0, 3.8, 4.0])
    assert [point["test"]["mean"] for point in curve] == pytest.approx([2.0] * 4)
    assert [point["gap"]["mean"] for point in curve] == pytest.approx([0.0, 1.0, 1.8, 2.0])
    # Gaps of 3 and 1: deviation sqrt 2, error 1, so 2 -+ 1.96.
    assert curve[-1]["gap"]["ci95"] == pytest.approx([0.04, 3.96])


def test_a_policys_point_and_the_agreement_by_hand() -> None:
    point = halves.policy_point([[1.0, 3.0], [2.0]], [[0.0, 1.0], [1.5]])
    assert (point["train"]["mean"], point["test"]["mean"], point["gap"]["mean"]) == (2.0, 1.0, 1.0)
    assert halves.agreement([[1.0, 2.0], [3.0]], [[2.0, 4.0], [6.0]]) == pytest.approx(1)


# ---- the command ---------------------------------------------------------------------------------------


@pytest.fixture
def samples(write_rows: WriteRows) -> Path:
    rows = [{"prompt": f"Is {n} a number?", "responses": ["yes", "no", "no no", "maybe"]} for n in range(6)]
    return write_rows("samples.jsonl", rows)


def command(base: Path, pairs: Path, samples: Path, output: Path, *more: str) -> list[str]:
    words = ["robustness", "--model_name_or_path", str(base), "--dataset_name", str(pairs)]
    words += ["--samples", str(samples), "--output_dir", str(output), "--use_cpu"]
    return [*words, "--learning_rate", "3e-3", "--num_train_epochs", "4", *more]


def test_it_leaves_two_models_and_what_they_say_of_each_other(
    base: Path, pairs: Path, samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(command(base, pairs, samples, out)) == 0
    assert "best of 4: the train model's score rises by" in capsys.readouterr().err
    report = checkpoint.read_json(out / "robustness.json")
    for name in ("train", "test"):
        assert checkpoint.verify(out / name) is True
        assert report["accuracy"][name]["seen"] > 0.8
        # Both are normalised over these very answers, six times four of them.
        first = report["best_of_n"][0]
        assert first[name]["mean"] == pytest.approx(0, abs=1e-4)
    assert [point["n"] for point in report["best_of_n"]] == [1, 2, 4]
    rewards = [point["train"]["mean"] for point in report["best_of_n"]]
    assert rewards == sorted(rewards)
    assert [policy["samples"] for policy in report["policies"]] == [str(samples)]
    assert (out / "robustness.png").is_file()


def test_continued_it_trains_nothing_twice(
    base: Path, pairs: Path, samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command(base, pairs, samples, tmp_path / "out", "--resume_from_checkpoint")
    assert main(words) == 0
    before = checkpoint.read_json(tmp_path / "out" / "robustness.json")
    capsys.readouterr()
    assert main(words) == 0
    assert "saved" not in capsys.readouterr().err
    assert checkpoint.read_json(tmp_path / "out" / "robustness.json") == before


@pytest.mark.parametrize(
    "flags", [["--num_members", "2"], ["--eval_dataset_name", "e"], ["--resume_from_checkpoint", "there"]]
)
def test_settings_that_have_no_place_are_refused(
    flags: list[str], base: Path, pairs: Path, samples: Path, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(command(base, pairs, samples, tmp_path / "out", *flags))
    assert caught.value.code == 2


def test_samples_without_answers_are_named(
    base: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(base, pairs, pairs, tmp_path / "out")) == 3
    assert "line 1: needs `prompt` and `responses`, as `sample` writes them" in capsys.readouterr().err


def test_one_prompt_has_no_interval(
    base: Path, pairs: Path, write_rows: WriteRows, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = write_rows("one.jsonl", [{"prompt": "q", "responses": ["a", "b"]}])
    assert main(command(base, pairs, samples, tmp_path / "out")) == 3
    assert "needs at least two of them" in capsys.readouterr().err
