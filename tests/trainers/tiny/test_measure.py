"""Measurements are kept in files, and read again as they were."""

import io
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from rich.console import Console

from tests.trainers.tiny.fakes import said, serving
from tests.trainers.tiny.test_evaluate import pair, prompt
from trainers.tiny.evaluate import Agreement, Subject
from trainers.tiny.generate import write_jsonl
from trainers.tiny.gold import gold_reward
from trainers.tiny.measure import (
    REPEATS,
    ask_once,
    measure_agreement,
    measure_policy,
    read_agreement,
    read_policy,
)
from trainers.tiny.results import BEST_OF

QUIET = Console(file=io.StringIO())


def test_a_policy_is_measured_at_every_best_of(tmp_path: Path) -> None:
    """The fake answers rightly where there is more than one candidate."""
    prompts, output = [prompt(3, 5), prompt(6, 8)], tmp_path / "measured.json"

    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        first = int(body["messages"][0]["content"].split()[2])
        right = f"{first}, {first + 1}, {first + 2}."
        return 200, said(path, right if body["best_of"] > 1 else "")

    with serving(answer) as fake:
        measure_policy(Subject(fake.url, "sft", chat=True), prompts, QUIET, output)
    found = read_policy("sft", output)
    assert set(found) == {("sft", best_of) for best_of in BEST_OF}
    right = [
        gold_reward("counting", row["facts"], text)
        for row, text in zip(prompts, ["3, 4, 5.", "6, 7, 8."], strict=True)
    ]
    empty = [gold_reward("counting", row["facts"], "") for row in prompts]
    assert found["sft", 1] == pytest.approx(empty)
    assert found["sft", 16] == pytest.approx(right)
    asked = [body["best_of"] for _, body in fake.asked]
    assert {best_of: asked.count(best_of) for best_of in BEST_OF} == {
        best_of: REPEATS[best_of] * len(prompts) for best_of in BEST_OF
    }
    assert [path.name for path in tmp_path.iterdir()] == ["measured.json"]


def test_a_failure_leaves_no_file(tmp_path: Path) -> None:
    with serving(lambda *_: (500, {})) as fake, pytest.raises(aiohttp.ClientError, match="answered 500"):
        measure_policy(Subject(fake.url, "m", chat=True), [prompt(3, 5)] * 2, QUIET, tmp_path / "m.json")
    assert list(tmp_path.iterdir()) == []


def test_agreement_is_kept(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "pairs.jsonl", [pair("aa", "a", 1.0, 0.0), pair("a", "aa", 1.0, 0.0)])
    with serving(lambda _, body: (200, {"scores": list(map(len, body["responses"]))})) as fake:
        measure_agreement(fake.url, tmp_path / "pairs.jsonl", tmp_path / "agreement.json")
    assert read_agreement(tmp_path / "agreement.json") == Agreement(0.5, 0.5, 2)
    assert set(json.loads((tmp_path / "agreement.json").read_text())) == {
        "gold_order",
        "noisy_labels",
        "pairs",
    }


def test_one_answer() -> None:
    with serving(lambda path, _: (200, said(path, " Hello! "))) as fake:
        assert ask_once(Subject(fake.url, "dpo", chat=True), prompt(3, 5), 4) == "Hello!"
