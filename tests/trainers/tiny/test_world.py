"""The world stays the same, and its contents keep to their splits."""

from collections import Counter
from itertools import chain

from trainers.tiny.world import (
    CATEGORIES,
    DOMAINS,
    ENTITIES,
    NOUNS,
    PEOPLE,
    PERSON_DOMAINS,
    PLACE_DOMAINS,
    PLACES,
    TOWNS,
    split_of,
)


def test_everybody_has_one_value_for_each_attribute() -> None:
    for entities, domains in ((PEOPLE, PERSON_DOMAINS), (PLACES, PLACE_DOMAINS)):
        for entity in entities:
            assert entity.values.keys() == domains.keys()
            assert all(entity.values[key] in domains[key] for key in domains)


def test_names_are_unique_and_no_name_is_a_value() -> None:
    assert len(ENTITIES) == len(PEOPLE) + len(PLACES)
    values = {word for key, words in DOMAINS.items() if key != "town" for word in words}
    assert not ENTITIES.keys() & values
    assert [place.name for place in PLACES] == TOWNS


def test_no_two_values_of_a_domain_can_be_taken_for_each_other() -> None:
    for words in DOMAINS.values():
        assert len({word.lower().removesuffix("s") for word in words}) == len(words)


def test_rivers_and_goods_tell_the_places_apart() -> None:
    for attribute in ("river", "goods"):
        assert len({place.values[attribute] for place in PLACES}) == len(PLACES)


def test_words_are_listed_once() -> None:
    assert len(set(NOUNS)) == len(NOUNS)
    for words in chain(CATEGORIES.values(), DOMAINS.values()):
        assert len(set(words)) == len(words)


def test_the_splits_have_their_sizes() -> None:
    counts = Counter(split_of(f"content {n}") for n in range(20_000))
    assert abs(counts["held_out"] / 20_000 - 0.20) < 0.02  # seven standard deviations
    assert abs(counts["validation"] / 20_000 - 0.08) < 0.02
    assert counts.total() == 20_000


def test_a_content_keeps_its_split_in_every_process() -> None:
    """SHA-256 of "a" begins with ca978112, 10 modulo 100; "b": 3e23e816, 66; "h": aaa94026, 26."""
    assert [split_of(content) for content in "abh"] == ["held_out", "train", "validation"]
