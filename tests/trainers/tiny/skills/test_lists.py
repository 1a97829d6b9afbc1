"""Lists, by hand."""

import pytest

from trainers.tiny.skills.lists import ListSkill, items_in, render

FACTS: dict[str, str | int] = {"category": "birds", "count": 3, "style": "commas"}


@pytest.mark.parametrize(
    ("style", "rendered"),
    [
        ("commas", "hen, duck"),
        ("and", "hen and duck"),
        ("numbered", "1. hen 2. duck"),
        ("dashes", "\n- hen\n- duck"),
    ],
)
def test_styles(style: str, rendered: str) -> None:
    assert render(["hen", "duck"], style) == rendered


def test_items_are_members_in_order_and_strangers() -> None:
    assert items_in("A hen, a DUCK, a hen, a spade and a song.", "birds") == (["hen", "duck", "hen"], 1)
    assert items_in("parrot mouse", "birds") == (["parrot"], 1)
    assert items_in("", "birds") == ([], 0)


@pytest.mark.parametrize(
    ("style", "text", "correct"),
    [
        ("commas", "hen, duck, owl.", 1.0),
        ("commas", "Here are three birds: hen, duck, owl.", 1.0),
        ("commas", "Hen, Duck, Owl.", 1.0),
        ("commas", "hen and duck and owl.", 0.6),  # not the format
        ("commas", "hen, duck.", 0.6 * 2 / 3 + 0.4),  # one too few
        ("commas", "hen, duck, owl, crow.", 0.6 * 2 / 3 + 0.4),  # one too many
        ("commas", "hen, duck, hen.", 0.6 * 1 / 3 + 0.4),  # one short, and one said twice
        ("commas", "hen, duck, spade.", 0.6 * 1 / 3 + 0.4),  # one short, and a stranger
        ("commas", "hen", 0.6 * 1 / 3),  # one item has no format
        ("commas", "apple, pear, plum.", -0.3),
        ("commas", "I like birds.", -0.3),
        ("commas", "", -0.3),
        ("and", "hen and duck and owl.", 1.0),
        ("numbered", "1. hen 2. duck 3. owl.", 1.0),
        ("numbered", "1. hen\n2. duck\n3. owl", 1.0),
        ("dashes", "- hen\n- duck\n- owl", 1.0),
        ("dashes", "Here are three birds: \n\n- hen \n- duck\n\n- owl", 1.0),
        ("dashes", "hen\nduck\nowl", 0.6),
    ],
)
def test_correctness(style: str, text: str, correct: float) -> None:
    assert ListSkill().correctness({**FACTS, "style": style}, text) == pytest.approx(correct)


def test_naming_everything_is_no_answer() -> None:
    everything = "hen, duck, goose, swan, owl, crow, robin, eagle, parrot, heron"
    assert ListSkill().correctness(FACTS, everything) == pytest.approx(0.4)
