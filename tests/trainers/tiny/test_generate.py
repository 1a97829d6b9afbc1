"""The small world's files: each asks its own split's contents alone, and the seed decides all of them."""

import json
from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Any, cast, get_args

import pytest

from trainers.tiny.generate import (
    Sizes,
    contents,
    demonstrations,
    documents,
    generate,
    plain_prompt,
    prompts,
    write_jsonl,
)
from trainers.tiny.skills import SKILLS
from trainers.tiny.world import ENTITIES, Split

SIZES = Sizes(
    documents=600,
    demonstrations=300,
    validation_demonstrations=100,
    train_prompts=400,
    held_out_prompts=200,
)
SPLITS: tuple[Split, ...] = get_args(Split)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def key(skill: str, facts: object) -> str:
    return f"{skill} {json.dumps(facts, sort_keys=True)}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("world")
    generate(data, SIZES, seed=3)
    return data


@pytest.mark.parametrize("name", SKILLS)
def test_the_splits_share_no_content_and_leave_none_out(name: str) -> None:
    found = {split: {key(name, facts) for facts in contents(name, split)} for split in SPLITS}
    for one, other in combinations(SPLITS, 2):
        assert not found[one] & found[other]
    assert set.union(*found.values()) == {key(name, facts) for facts in SKILLS[name].contents()}


def test_every_file_has_its_rows(folder: Path) -> None:
    found = {path.name: len(rows(path)) for path in folder.iterdir()}
    assert found == {
        "corpus.jsonl": SIZES.documents,
        "sft_train.jsonl": SIZES.demonstrations,
        "sft_validation.jsonl": SIZES.validation_demonstrations,
        "prompts.jsonl": SIZES.train_prompts + SIZES.held_out_prompts,
        "train_prompts.jsonl": SIZES.train_prompts,
        "held_out_prompts.jsonl": SIZES.held_out_prompts,
    }


def test_prompts_ask_their_own_splits_contents(folder: Path) -> None:
    asked = rows(folder / "prompts.jsonl")
    assert Counter(row["split"] for row in asked) == {
        "train": SIZES.train_prompts,
        "held_out": SIZES.held_out_prompts,
    }
    for row in asked:
        assert row["facts"] in contents(row["skill"], row["split"])
        assert row["prompt"][-1]["role"] == "user"


def questions(messages: list[dict[str, str]]) -> list[str]:
    """All that the person asks, each turn with what came before it."""
    return [
        json.dumps(messages[: at + 1]) for at, message in enumerate(messages) if message["role"] == "user"
    ]


@pytest.fixture(scope="module")
def held_out_questions() -> set[str]:
    """Every wording in which a held-out content may be asked, first turns included."""
    draw = Random("all wordings")
    asked = [
        SKILLS[name].ask(facts, draw)
        for name in SKILLS
        for facts in contents(name, "held_out")
        for _ in range(60)
    ]
    return {question for messages in asked for question in questions(cast("list[dict[str, str]]", messages))}


@pytest.mark.parametrize("name", ["sft_train.jsonl", "sft_validation.jsonl"])
def test_no_demonstration_asks_what_is_held_out(
    name: str, folder: Path, held_out_questions: set[str]
) -> None:
    learned = [question for row in rows(folder / name) for question in questions(row["messages"])]
    assert len(learned) >= len(rows(folder / name))
    assert [question for question in learned if question in held_out_questions] == []


def test_no_prompt_for_training_asks_what_is_held_out(folder: Path, held_out_questions: set[str]) -> None:
    asked = [row for row in rows(folder / "prompts.jsonl") if row["split"] == "train"]
    train = [question for row in asked for question in questions(row["prompt"])]
    assert [question for question in train if question in held_out_questions] == []


def test_no_page_of_the_corpus_asks_what_is_held_out(folder: Path, held_out_questions: set[str]) -> None:
    pages = "\n".join(row["text"] for row in rows(folder / "corpus.jsonl"))
    assert "Question:" in pages
    asked = {plain_prompt(json.loads(question)) for question in held_out_questions}
    assert [question for question in asked if question in pages] == []


def test_a_demonstration_ends_with_an_answer(folder: Path) -> None:
    for row in rows(folder / "sft_train.jsonl"):
        roles = [message["role"] for message in row["messages"]]
        assert roles in (["user", "assistant"], ["user", "assistant", "user", "assistant"])


def test_the_skills_come_in_turn(folder: Path) -> None:
    held_out = [row for row in rows(folder / "prompts.jsonl") if row["split"] == "held_out"]
    counts = Counter(row["skill"] for row in held_out)
    assert counts.keys() == SKILLS.keys()
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("split", SPLITS)
def test_no_content_comes_again_before_all_have_come(split: Split) -> None:
    size = min(len(contents(name, split)) for name in SKILLS)
    asked = [key(row["skill"], row["facts"]) for row in prompts(split, size * len(SKILLS), seed=1)]
    assert len(set(asked)) == len(asked)


def test_prompts_go_on_when_the_contents_are_used_up() -> None:
    count = 40 * len(SKILLS)
    assert len(list(prompts("validation", count, seed=1))) == count


def test_the_seed_decides_every_byte(folder: Path, tmp_path: Path) -> None:
    generate(tmp_path / "same", SIZES, seed=3)
    generate(tmp_path / "other", SIZES, seed=4)
    for path in folder.iterdir():
        assert (tmp_path / "same" / path.name).read_bytes() == path.read_bytes()
        assert (tmp_path / "other" / path.name).read_bytes() != path.read_bytes()


def test_more_prompts_begin_with_the_same() -> None:
    assert list(prompts("train", 50, seed=0)) == list(prompts("train", 80, seed=0))[:50]


def test_different_files_are_different_draws() -> None:
    asked = [row["prompt"] for row in prompts("train", 50, seed=0)]
    shown = [row["messages"][:-1] for row in demonstrations("train", 50, seed=0)]
    assert asked != shown


def test_the_corpus_tells_of_everybody(folder: Path) -> None:
    texts = [row["text"] for row in rows(folder / "corpus.jsonl")]
    assert all(texts)
    told = " ".join(texts)
    assert [name for name in ENTITIES if name not in told] == []
    assert any(text.startswith("Question:") for text in texts)


def test_a_corpus_of_nothing_is_empty() -> None:
    assert list(documents(0, seed=0)) == []


def test_a_plain_prompt_by_hand() -> None:
    messages = [
        {"role": "user", "content": "Hi?"},
        {"role": "assistant", "content": "Yo."},
        {"role": "user", "content": "And?"},
    ]
    assert plain_prompt(messages) == "Question: Hi?\nAnswer: Yo.\nQuestion: And?\nAnswer:"  # type: ignore[arg-type]


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def broken() -> Iterator[object]:
        yield {"a": 1}
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_jsonl(tmp_path / "rows.jsonl", broken())
    assert not (tmp_path / "rows.jsonl").exists()
    write_jsonl(tmp_path / "rows.jsonl", [{"a": "é"}, {"b": [1]}])
    assert (tmp_path / "rows.jsonl").read_text(encoding="utf-8") == '{"a": "é"}\n{"b": [1]}\n'
