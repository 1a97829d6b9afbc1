"""What flags take: numbers, with errors that say which."""

import argparse
from collections.abc import Callable, Sequence


def positive(text: str) -> float:
    """A number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError("must be a number above 0")
    return number


def count(text: str) -> int:
    """A whole number of 1 or more."""
    number = int(text) if text.isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError("must be a whole number of 1 or more")
    return number


def some_of(words: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """Some of these words, with commas."""

    def read(text: str) -> tuple[str, ...]:
        chosen = tuple(text.split(","))
        if unknown := sorted(set(chosen) - set(words)):
            raise argparse.ArgumentTypeError(f"{unknown[0] or 'nothing'} is none of {', '.join(words)}")
        return chosen

    return read


def several(one: Callable[[str], float]) -> Callable[[str], tuple[float, ...]]:
    """A list with commas."""
    return lambda text: tuple(one(part) for part in text.split(","))


def share(text: str) -> float:
    """Of a whole."""
    number = positive(text)
    if number > 1:
        raise argparse.ArgumentTypeError("must be above 0 and at most 1")
    return number
