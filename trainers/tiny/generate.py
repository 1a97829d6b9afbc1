"""Writes the small world's data into a folder.

    corpus.jsonl          plain text to pre-train on: {"text"}
    sft_train.jsonl       demonstrations: {"messages"}
    sft_validation.jsonl  the same, of other contents
    prompts.jsonl         prompts with their hidden facts: {"prompt", "skill", "facts", "split"}; the split is
                          "train" or "held_out"
    train_prompts.jsonl, held_out_prompts.jsonl   the same, each split by itself

Every file is a function of the seed and the sizes. A content belongs to one split (`split_of_content`):
held-out contents are asked in no question of another file, though the corpus' books tell of the whole world.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TypedDict

from trainers.tiny.demonstrator import demonstrate
from trainers.tiny.skills import SKILLS, Facts, Message
from trainers.tiny.skills.base import split_of_content
from trainers.tiny.world import ENTITIES, Split


class Prompt(TypedDict):
    prompt: list[Message]
    skill: str
    facts: Facts
    split: Split


@dataclass(frozen=True)
class Sizes:
    """How much of everything is written."""

    documents: int = 20_000
    demonstrations: int = 6_000
    validation_demonstrations: int = 300
    train_prompts: int = 3_500
    held_out_prompts: int = 210


def contents(skill: str, split: Split) -> list[Facts]:
    """The contents of a skill in a split, in a fixed order."""
    return [facts for facts in SKILLS[skill].contents() if split_of_content(skill, facts) == split]


def prompts(split: Split, count: int, seed: int) -> Iterator[Prompt]:
    """`count` prompts, the skills in turn; no content comes again before all of its skill came."""
    decks: dict[str, list[Facts]] = {name: [] for name in SKILLS}
    draw = Random(f"{seed} prompts {split}")
    for i in range(count):
        name = list(SKILLS)[i % len(SKILLS)]
        if not decks[name]:
            decks[name] = contents(name, split)
            draw.shuffle(decks[name])
        facts = decks[name].pop()
        yield {"prompt": SKILLS[name].ask(facts, draw), "skill": name, "facts": facts, "split": split}


def demonstrations(split: Split, count: int, seed: int) -> Iterator[dict[str, list[Message]]]:
    """Conversations that end with an answer by people of every level."""
    draw = Random(f"{seed} demonstrations {split}")
    for row in prompts(split, count, seed + 1):
        answer = demonstrate(SKILLS[row["skill"]], row["facts"], draw.random(), draw)
        yield {"messages": [*row["prompt"], {"role": "assistant", "content": answer}]}


def documents(count: int, seed: int) -> Iterator[dict[str, str]]:
    """Books (two thirds) and pages of questions and careless answers (one third), as plain text."""
    draw = Random(f"{seed} documents")
    asked = prompts("train", count, seed + 2)
    everything = [(name, facts) for name in SKILLS for facts in SKILLS[name].contents()]
    for i in range(count):
        if i % 3 == 2:
            yield {"text": _forum(next(asked), draw)}
        elif draw.random() < 0.3:
            yield {"text": _portrait(draw)}
        else:
            yield {"text": _story(draw.sample(everything, 2), draw)}


def _portrait(draw: Random) -> str:
    """All that is to be known of somebody or some place, in any order."""
    entity = draw.choice(list(ENTITIES.values()))
    told = draw.sample(list(entity.values), len(entity.values))
    return " ".join(SKILLS["facts"].prose({"entity": entity.name, "attribute": key}, draw) for key in told)


def _story(told: list[tuple[str, Facts]], draw: Random) -> str:
    """Tells of things, then comes back to each: what was said above helps to foresee what is said below."""
    return " ".join(SKILLS[name].prose(facts, draw) for _ in range(2) for name, facts in told)


def _forum(row: Prompt, draw: Random) -> str:
    answer = demonstrate(SKILLS[row["skill"]], row["facts"], draw.random() * 0.5, draw)
    return f"{plain_prompt(row['prompt'])} {answer}"


def plain_prompt(messages: list[Message]) -> str:
    """A conversation as a page of questions and answers up to the next answer, for a base model to go on."""
    names = {"user": "Question", "assistant": "Answer"}
    return "\n".join(f"{names[m['role']]}: {m['content']}" for m in messages) + "\nAnswer:"


def write_jsonl(path: Path, rows: Iterable[object]) -> None:
    """Writes one JSON value a line; the file appears whole or not at all."""
    part = path.with_suffix(".part")
    with part.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    part.replace(path)


def generate(folder: Path, sizes: Sizes, seed: int) -> None:
    """Writes all files of the small world into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / "corpus.jsonl", documents(sizes.documents, seed))
    write_jsonl(folder / "sft_train.jsonl", demonstrations("train", sizes.demonstrations, seed))
    write_jsonl(
        folder / "sft_validation.jsonl", demonstrations("validation", sizes.validation_demonstrations, seed)
    )
    train = list(prompts("train", sizes.train_prompts, seed + 3))
    held_out = list(prompts("held_out", sizes.held_out_prompts, seed))
    write_jsonl(folder / "prompts.jsonl", [*train, *held_out])
    write_jsonl(folder / "train_prompts.jsonl", train)
    write_jsonl(folder / "held_out_prompts.jsonl", held_out)
