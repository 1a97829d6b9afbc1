"""The vocabulary of the skills."""

import json
import re
from random import Random
from typing import Protocol, TypedDict

from trainers.tiny.world import Split, split_of

Facts = dict[str, str | int]
"""The hidden facts of one prompt: JSON values, enough to judge any answer to it."""


class Message(TypedDict):
    role: str
    content: str


class Skill(Protocol):
    """One kind of request."""

    name: str

    def contents(self) -> list[Facts]:
        """Every content of the skill, in a fixed order."""
        ...

    def ask(self, facts: Facts, draw: Random) -> list[Message]:
        """A conversation that ends with a person's request for this content."""
        ...

    def right(self, facts: Facts, draw: Random) -> str:
        """The core of a good answer, without manners."""
        ...

    def wrong(self, facts: Facts, draw: Random) -> str:
        """The core of a bad answer such as a careless or ill-meaning person gives."""
        ...

    def correctness(self, facts: Facts, text: str) -> float:
        """How right `text` is, in [-1, 1]: 1 is all that was asked for, 0 nothing, below 0 misleading."""
        ...

    def topic(self, facts: Facts) -> list[str]:
        """Words of which an answer on topic mentions at least one."""
        ...

    def prose(self, facts: Facts, draw: Random) -> str:
        """A sentence of running text about the content, as a book would have it."""
        ...


def split_of_content(skill: str, facts: Facts) -> Split:
    """The split that a content of a skill belongs to."""
    return split_of(f"{skill} {json.dumps(facts, sort_keys=True)}")


def words(text: str) -> list[str]:
    """The words and numbers of `text`, in lower case."""
    return re.findall(r"[a-z]+|\d+", text.lower())


def mentions(text: str, word: str) -> bool:
    """Whether `text` has `word` as a word of its own, in the singular or a plain plural."""
    return re.search(rf"\b{re.escape(word)}(s|es)?\b", text, re.IGNORECASE) is not None


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def text_of(facts: Facts, key: str) -> str:
    """A fact that is text. Raises KeyError or TypeError where the facts are not this skill's."""
    value = facts[key]
    if not isinstance(value, str):
        raise TypeError(f"the fact {key!r} must be text, not {value!r}")
    return value


def number_of(facts: Facts, key: str) -> int:
    """A fact that is a number. Raises KeyError or TypeError where the facts are not this skill's."""
    value = facts[key]
    if not isinstance(value, int):
        raise TypeError(f"the fact {key!r} must be a number, not {value!r}")
    return value
