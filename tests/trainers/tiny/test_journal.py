"""What was done is not done again, and what has changed is."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from trainers.tiny.journal import Journal, Step, code_digest


class Kitchen:
    """Steps that write their output, and a count of how often each was done."""

    def __init__(self, folder: Path, code: str = "code 1") -> None:
        self.folder, self.code = folder, code
        self.done: list[str] = []

    def journal(self) -> Journal:
        """As a new process would open it."""
        return Journal(self.folder / "journal.json", self.code)

    def step(self, name: str, after: Sequence[str] = (), recipe: Sequence[str] = ("r",)) -> Step:
        return Step(name, name, after, self.folder / name, recipe, self._write(name))

    def _write(self, name: str) -> Callable[[], None]:
        def action() -> None:
            (self.folder / name).write_text("made")
            self.done.append(name)

        return action


@pytest.fixture
def kitchen(tmp_path: Path) -> Kitchen:
    return Kitchen(tmp_path)


def test_a_step_is_done_once(kitchen: Kitchen) -> None:
    step = kitchen.step("a")
    assert not kitchen.journal().is_done(step)
    kitchen.journal().run(step)
    assert kitchen.done == ["a"]
    assert kitchen.journal().is_done(step)
    assert kitchen.journal().seconds()["a"] >= 0


def test_without_its_output_it_is_not_done(kitchen: Kitchen) -> None:
    step = kitchen.step("a")
    kitchen.journal().run(step)
    step.output.unlink()
    assert not kitchen.journal().is_done(step)


@pytest.mark.parametrize("recipe", [("other",), ("r", "more"), (), ("", "r")])
def test_another_recipe_is_another_step(kitchen: Kitchen, recipe: tuple[str, ...]) -> None:
    kitchen.journal().run(kitchen.step("a"))
    assert not kitchen.journal().is_done(kitchen.step("a", recipe=recipe))


def test_recipes_are_compared_part_by_part(kitchen: Kitchen) -> None:
    kitchen.journal().run(kitchen.step("a", recipe=("ab", "c")))
    assert not kitchen.journal().is_done(kitchen.step("a", recipe=("a", "bc")))


def test_changed_code_makes_all_stale(kitchen: Kitchen) -> None:
    kitchen.journal().run(kitchen.step("a"))
    assert not Journal(kitchen.folder / "journal.json", "code 2").is_done(kitchen.step("a"))


def test_what_was_made_of_an_input_goes_stale_with_it(kitchen: Kitchen) -> None:
    first, second, third = kitchen.step("a"), kitchen.step("b", ["a"]), kitchen.step("c", ["b"])
    aside = kitchen.step("d")
    for step in (first, second, third, aside):
        kitchen.journal().run(step)
    assert all(kitchen.journal().is_done(step) for step in (first, second, third, aside))
    kitchen.journal().run(first)  # made anew, though by the same recipe
    assert [kitchen.journal().is_done(step) for step in (first, second, aside)] == [True, False, True]
    kitchen.journal().run(second)
    assert [kitchen.journal().is_done(step) for step in (second, third)] == [True, False]


@pytest.mark.parametrize("again", [False, True])
def test_an_interrupted_step_stays_undone(kitchen: Kitchen, again: bool) -> None:
    """Also where it had been done before, and has left half an output of the second time."""
    whole = kitchen.step("a")
    if again:
        kitchen.journal().run(whole)

    def interrupted() -> None:
        (kitchen.folder / "a").write_text("ma")
        raise KeyboardInterrupt

    half = Step("a", "a", (), kitchen.folder / "a", whole.recipe, interrupted)
    journal = kitchen.journal()
    with pytest.raises(KeyboardInterrupt):
        journal.run(half)
    assert not journal.is_done(whole)
    assert not kitchen.journal().is_done(whole)  # nor for the next process


def test_others_stay_done_when_one_is_interrupted(kitchen: Kitchen) -> None:
    kitchen.journal().run(kitchen.step("a"))

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kitchen.journal().run(Step("b", "b", (), kitchen.folder / "b", (), interrupted))
    assert kitchen.journal().is_done(kitchen.step("a"))


@pytest.mark.parametrize("content", ["", "{", "\x00"])
def test_a_broken_journal_is_an_empty_one(kitchen: Kitchen, content: str) -> None:
    kitchen.journal().run(kitchen.step("a"))
    (kitchen.folder / "journal.json").write_text(content)
    assert not kitchen.journal().is_done(kitchen.step("a"))
    assert kitchen.journal().seconds() == {}


def test_the_code_digest_is_stable() -> None:
    assert code_digest() == code_digest()
    assert len(code_digest()) == 64
