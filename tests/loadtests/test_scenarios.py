"""Each scenario's requests and schedule."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests import prompts
from loadtests.__main__ import build_parser
from loadtests.command import load_of
from loadtests.errors import LoadTestError
from loadtests.scenarios import BY_NAME, Load, asker, request


def load(scenario: str, **settings: Any) -> Load:
    return Load(
        scenario=scenario, url="http://127.0.0.1:1", **({"rate": (2.5, 5.0), "seconds": 4} | settings)
    )


def test_the_bodies() -> None:
    path, body = request(load("chat", max_tokens=9), "m", 0)
    assert path == "/v1/chat/completions"
    assert (body["model"], body["max_tokens"], "stream" in body, "best_of" in body) == ("m", 9, False, False)
    _, body = request(load("stream"), "m", 0)
    assert (body["stream"], body["stream_options"]) == (True, {"include_usage": True})
    path, body = request(load("score", responses=3), "m", 0)
    assert (path, len(body["responses"]), len(body["messages"])) == ("/score", 3, 1)


def test_best_of_takes_turns_and_1_is_not_sent() -> None:
    mixed = load("best-of-n", best_of=(1, 4, 8))
    asked = [request(mixed, "m", index)[1].get("best_of") for index in range(6)]
    assert asked == [None, 4, 8, None, 4, 8]
    assert [mixed.best_of_of(index) for index in range(4)] == [1, 4, 8, 1]


@pytest.mark.parametrize("scenario", ["chat", "long-prompt"])
def test_no_two_prompts_are_alike(scenario: str) -> None:
    ask = asker(load(scenario, prompt_words=50))
    asked = {str(request(load(scenario), "m", index, ask)[1]["messages"]) for index in range(100)}
    assert len(asked) == 100


def test_a_long_prompt_has_its_words_and_no_common_prefix() -> None:
    one, other = (prompts.long(index, 100)[0]["content"] for index in (1, 2))
    assert one.split()[1:101] == other.split()[1:101]
    assert len(one.split()) == 100 + 4
    assert one[0] != other[0]


def test_prompts_of_a_file_come_in_turns(tmp_path: Path) -> None:
    file = tmp_path / "prompts"
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    answered = [*turns, {"role": "assistant", "content": "a"}]
    rows = ["plain text", json.dumps({"messages": answered}), "", json.dumps({"prompt": "p"})]
    file.write_text("\n".join(rows))
    ask = asker(load("chat", prompts=str(file)))
    assert [ask(index) for index in range(4)] == [
        prompts.user("plain text"),
        turns,
        prompts.user("p"),
        prompts.user("plain text"),
    ]


@pytest.mark.parametrize("text", ["", "\n", "{", "{}", '{"messages": []}', '{"messages": "x"}'])
def test_a_file_without_prompts_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts"
    file.write_text(text)
    with pytest.raises(LoadTestError, match="prompts") as caught:
        prompts.read(file)
    assert caught.value.exit_code == 2
    with pytest.raises(LoadTestError, match="cannot be read"):
        prompts.read(tmp_path / "nowhere")


@pytest.mark.parametrize("scenario", sorted(BY_NAME))
def test_the_command_of_a_figure_repeats_its_run(scenario: str) -> None:
    given_flags = {flag.name for flag in BY_NAME[scenario].flags}
    settings: dict[str, Any] = {
        "best_of": (7, 2),
        "responses": 6,
        "max_tokens": 5,
        "burst": 3,
        "prompt_words": 44,
        "cancel_share": 0.25,
        "cancel_within": 0.5,
    }
    common = {"model": "a b", "poisson": True, "seed": 3, "judge": "http://j", "compare": "http://c"}
    chosen = {name: value for name, value in settings.items() if name in given_flags}
    original = load(scenario, **chosen, **common, max_in_flight=9, timeout=2.5)
    words = shlex.split(original.command())
    assert words[:3] == ["python", "-m", "loadtests"]
    assert load_of(build_parser().parse_args(words[3:])) == original


def test_a_command_does_not_tell_a_key() -> None:
    assert "secret" not in load("chat", api_key="secret", compare_api_key="secret").command()


@given(st.floats(0.5, 500), st.floats(0.1, 5), st.integers(1, 50), st.integers(0, 3))
def test_every_schedule_has_as_many_requests_in_order_and_in_time(
    rate: float, seconds: float, burst: int, seed: int
) -> None:
    steady = load("chat", seconds=seconds).instants(rate)
    at_once = load("burst", seconds=seconds, burst=burst).instants(rate)
    random = load("chat", seconds=seconds, poisson=True, seed=seed).instants(rate)
    assert len(steady) == len(at_once) == len(random) == max(1, round(rate * seconds))
    for instants in (steady, at_once, random):
        assert instants == sorted(instants)
        assert instants[0] >= 0
        assert instants[-1] <= max(seconds, 1 / rate)
    assert all(at_once.count(instant) == burst for instant in {*at_once} - {at_once[-1]})
    assert random == load("chat", seconds=seconds, poisson=True, seed=seed).instants(rate)


def test_who_leaves_is_drawn_once_and_within_its_time() -> None:
    storm = load("cancel", cancel_share=0.5, cancel_within=0.2)
    leaving = [storm.leaves_after(index) for index in range(400)]
    assert leaving == [storm.leaves_after(index) for index in range(400)]
    times = [after_s for after_s in leaving if after_s is not None]
    assert 150 < len(times) < 250
    assert 0 <= min(times) < 0.02 < 0.18 < max(times) <= 0.2
    assert all(load("stream").leaves_after(index) is None for index in range(50))
    assert load("cancel", cancel_share=1.0).leaves_after(3) is not None
