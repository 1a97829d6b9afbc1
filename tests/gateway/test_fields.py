"""Which fields go upstream."""

import pytest

from gateway.errors import InvalidRequestError
from gateway.fields import (
    CHAT_FIELDS,
    COMPLETION_FIELDS,
    ENGINE_FIELDS,
    GONE_FIELDS,
    NO_EFFECT_FIELDS,
    OWN_FIELDS,
    forwardable,
    ignored_header,
)

NONE: frozenset[str] = frozenset()


def test_the_lists_do_not_overlap() -> None:
    forwarded = CHAT_FIELDS | COMPLETION_FIELDS
    assert not forwarded & ENGINE_FIELDS
    assert not forwarded & NO_EFFECT_FIELDS
    assert not forwarded & OWN_FIELDS
    assert not (forwarded | ENGINE_FIELDS | NO_EFFECT_FIELDS | OWN_FIELDS) & GONE_FIELDS.keys()


def test_sampling_fields_go_up_own_words_stay_and_unknown_ones_are_named() -> None:
    body = {
        "messages": [],
        "min_p": 0.1,
        "best_of": 4,
        "alignment": {},
        "user": "me",
        "store": True,
        "suffix": "a*",
        "stop": None,
        "shiny": None,
    }
    upstream, ignored = forwardable(body, CHAT_FIELDS, NONE)
    assert upstream == {"messages": [], "min_p": 0.1}
    assert ignored == ["suffix"]  # known, but not of this endpoint


@pytest.mark.parametrize("name", sorted(GONE_FIELDS))
def test_fields_that_are_gone_are_refused_with_what_to_use(name: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        forwardable({name: "secret"}, CHAT_FIELDS, frozenset({name}))
    assert (caught.value.param, caught.value.code) == (name, "unsupported")
    assert f"`{GONE_FIELDS[name]}`" in caught.value.message
    assert GONE_FIELDS[name] in CHAT_FIELDS
    assert "secret" not in caught.value.message
    assert forwardable({name: None}, CHAT_FIELDS, NONE) == ({}, [])


@pytest.mark.parametrize("name", sorted(ENGINE_FIELDS - {"media"}))
def test_engine_fields_are_refused_unless_allowed(name: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        forwardable({name: 1}, CHAT_FIELDS, NONE)
    assert caught.value.param == name
    assert forwardable({name: 1}, CHAT_FIELDS, frozenset({name})) == ({name: 1}, [])
    assert forwardable({name: None}, CHAT_FIELDS, NONE) == ({}, [])


def test_media_goes_up_only_where_it_is_allowed() -> None:
    parts = [{"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}]
    body = {"messages": [{"role": "user", "content": parts}]}
    with pytest.raises(InvalidRequestError) as caught:
        forwardable(body, CHAT_FIELDS, NONE)
    assert (caught.value.param, caught.value.code) == ("media", "field_not_allowed")
    assert forwardable(body, CHAT_FIELDS, frozenset({"media"}))[0] == body


def test_a_seed_of_minus_one_is_none() -> None:
    assert forwardable({"seed": -1}, CHAT_FIELDS, NONE)[0] == {}
    assert forwardable({"seed": 0}, CHAT_FIELDS, NONE)[0] == {"seed": 0}


def test_names_in_the_header_are_safe_and_few() -> None:
    assert ignored_header(["b", "a"]) == "a, b"
    assert ignored_header(["x\r\nset-cookie: 1", "é", "a" * 65]) == "+3 more"
    assert ignored_header([f"f{i:02}" for i in range(25)]).endswith("f19, +5 more")
