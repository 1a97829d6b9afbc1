"""The wire types, and the rule of which best_of wins."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import InvalidRequestError
from gateway.protocol import (
    ChatRequest,
    CompletionRequest,
    choose_best_of,
    header_best_of,
    prompts_of,
    split_model,
    validate,
)

HI = [{"role": "user", "content": "Hi"}]
optional = st.none() | st.integers(1, 64)


@pytest.mark.parametrize(
    ("body", "header", "suffix", "default", "expected"),
    [
        (8, 4, 2, 16, 8),
        (None, 4, 2, 16, 4),
        (None, None, 2, 16, 2),
        (None, None, None, 16, 16),
        (None, None, None, 1, 1),
        (1, 4, None, 16, 1),
    ],
)
def test_the_first_way_that_is_present_wins(
    body: int | None, header: int | None, suffix: int | None, default: int, expected: int
) -> None:
    assert choose_best_of(n=1, body=body, header=header, suffix=suffix, default=default) == expected


def test_a_default_grows_with_n_but_a_default_of_one_leaves_n_unranked() -> None:
    assert choose_best_of(n=6, body=None, header=None, suffix=None, default=4) == 6
    assert choose_best_of(n=6, body=None, header=None, suffix=None, default=1) == 1


@pytest.mark.parametrize("asked", [{"body": 2}, {"header": 2}, {"suffix": 2}, {"suffix": 0}, {"header": 0}])
def test_asking_for_fewer_than_n_is_refused(asked: dict[str, int]) -> None:
    ways: dict[str, int | None] = {"body": None, "header": None, "suffix": None, **asked}
    with pytest.raises(InvalidRequestError) as caught:
        choose_best_of(n=3, default=1, **ways)
    assert caught.value.param == "best_of"


@given(n=st.integers(1, 64), body=optional, header=optional, suffix=optional, default=st.integers(1, 64))
def test_never_fewer_than_n_where_ranking_runs(
    n: int, body: int | None, header: int | None, suffix: int | None, default: int
) -> None:
    try:
        best_of = choose_best_of(n=n, body=body, header=header, suffix=suffix, default=default)
    except InvalidRequestError:
        assert n > next(way for way in (body, header, suffix) if way is not None)
    else:
        assert best_of >= n or best_of == 1


@pytest.mark.parametrize("value", ["", "x", "-1", "2.0", "1e3", "٣", "8,8", "9" * 30])
def test_a_header_that_is_no_whole_number_is_refused(value: str) -> None:
    with pytest.raises(InvalidRequestError):
        header_best_of(value)


def test_a_header_is_a_number_and_may_be_absent() -> None:
    assert header_best_of(" 8 ") == 8
    assert header_best_of(None) is None


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("tiny:best-of-8", ("tiny", 8)),
        ("org/tiny:best-of-16", ("org/tiny", 16)),
        ("a:best-of-2:best-of-4", ("a:best-of-2", 4)),
        ("tiny", ("tiny", None)),
        ("tiny:best-of-", ("tiny:best-of-", None)),
        ("tiny:best-of-x", ("tiny:best-of-x", None)),
        (":best-of-8", (":best-of-8", None)),
    ],
)
def test_the_suffix_of_a_model_name(model: str, expected: tuple[str, int | None]) -> None:
    assert split_model(model) == expected


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": True}, "n"),
        ({"n": "4"}, "n"),
        ({"n": 2.0}, "n"),
        ({"n": 0}, "n"),
        ({"n": -1}, "n"),
        ({"best_of": 10**9}, "best_of"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": [""]}, "stop[0]"),
        ({"stop": 3}, "stop"),
        ({"logit_bias": {"x": 1.0}}, "logit_bias"),
        ({"logit_bias": {"-1": 1.0}}, "logit_bias"),
        ({"logit_bias": {"1": 1e9}}, "logit_bias[...]"),
        ({"logit_bias": {str(i): 1.0 for i in range(301)}}, "logit_bias"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": 5}, "logprobs"),
        ({"seed": 2**63}, "seed"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"stream": "yes"}, "stream"),
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"alignment": {"best_of": 4}}, "alignment"),
        ({"alignment": {"deadline_ms": 0}}, "alignment.deadline_ms"),
        ({"alignment": {"on_reward_failure": "last"}}, "alignment.on_reward_failure"),
        ({"alignment": {"method": "dpo"}}, "alignment.method"),
        ({"alignment": {"ensemble": "median"}}, "alignment.ensemble"),
        ({"alignment": {"objectives": {"a": "1"}}}, "alignment.objectives[...]"),
        ({"alignment": [1]}, "alignment"),
    ],
)
def test_wrong_values_are_refused_by_name_and_not_repeated(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        validate({"messages": HI, **fields}, ChatRequest)
    assert caught.value.param == param
    for sent in ("wizard", "hot", "last", "median"):
        assert sent not in caught.value.message


def test_null_is_absent() -> None:
    names = (
        "n",
        "best_of",
        "alignment",
        "stream",
        "stop",
        "temperature",
        "seed",
        "logit_bias",
        "top_logprobs",
    )
    request = validate({"messages": HI, **dict.fromkeys(names)}, ChatRequest)
    assert all(getattr(request, name) is None for name in names)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        validate({}, CompletionRequest)
    assert (caught.value.param, caught.value.code) == ("prompt", "missing_field")


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a", ["a"]),
        ("", [""]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)
def test_prompts_in_all_their_forms(prompt: Any, expected: list[Any]) -> None:
    assert prompts_of(CompletionRequest(prompt=prompt)) == expected


@pytest.mark.parametrize("prompt", [[], [[]], ["a", 1], [1, True], [[1], "a"], [-1], [2**31], [1.0], [None]])
def test_prompts_that_are_none_of_these(prompt: list[Any]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        prompts_of(CompletionRequest(prompt=prompt))
    assert caught.value.param == "prompt"


@pytest.mark.parametrize("call", ["f", {"function": "f"}, {"function": [1]}, {"function": {"name": 5}}])
def test_tool_calls_in_messages_have_their_shape(call: Any) -> None:
    turn = {"role": "assistant", "tool_calls": [call]}
    with pytest.raises(InvalidRequestError) as caught:
        validate({"messages": [turn]}, ChatRequest)
    assert (caught.value.param or "").startswith("messages[0].tool_calls[0]")


def test_a_header_number_of_any_length_is_a_number() -> None:
    assert header_best_of("9" * 18) == 10**18 - 1
    assert split_model("tiny:best-of-" + "9" * 18) == ("tiny", 10**18 - 1)
