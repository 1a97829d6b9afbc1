"""Each scenario's requests, and what a run's figures say."""

import shlex

import pytest

from loadtests.__main__ import build_parser
from loadtests.open_loop import Answer, Sample
from loadtests.scenarios import Load, figures, request

SCENARIOS = ["chat", "stream", "best-of-n", "score"]


def load(scenario: str, **settings: object) -> Load:
    return Load(scenario=scenario, url="http://127.0.0.1:1", rate=2.5, seconds=4, **settings)  # type: ignore[arg-type]


def test_the_bodies() -> None:
    path, body = request(load("chat", max_tokens=9), "m", 0)
    assert path == "/v1/chat/completions"
    assert (body["model"], body["max_tokens"], "stream" in body, "best_of" in body) == ("m", 9, False, False)
    _, body = request(load("stream"), "m", 0)
    assert (body["stream"], body["stream_options"]) == (True, {"include_usage": True})
    _, body = request(load("best-of-n", best_of=16), "m", 0)
    assert body["best_of"] == 16
    path, body = request(load("score", responses=3), "m", 0)
    assert (path, len(body["responses"]), len(body["messages"])) == ("/score", 3, 1)


def test_no_two_prompts_are_alike() -> None:
    prompts = {str(request(load("chat"), "m", index)[1]["messages"]) for index in range(100)}
    assert len(prompts) == 100


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_command_of_a_figure_repeats_its_run(scenario: str) -> None:
    original = load(scenario, model="a b", best_of=7, responses=6, max_tokens=5)
    words = shlex.split(original.command())
    assert words[:3] == ["python", "-m", "loadtests"]
    parsed = vars(build_parser().parse_args(words[3:]))
    assert parsed.items() <= {**vars(original), "out": parsed["out"]}.items()


def sample(at: float, *, first: float | None = None, end: float, tokens: int = 0, lag: float = 0.0) -> Sample:
    return Sample(at, at + lag, Answer(first_at=first, ended_at=end, tokens=tokens))


def test_figures_by_hand() -> None:
    failed = Sample(2.0, 2.0, Answer(ended_at=2.1, error="status 503"))
    samples = [
        sample(0.0, first=0.1, end=0.2, tokens=10),
        sample(1.0, first=1.3, end=1.4, tokens=30),
        failed,
        sample(3.0, first=3.2, end=4.0, tokens=40),
    ]
    found = {figure.figure: figure.value for figure in figures(load("stream"), samples)}
    assert found == pytest.approx(
        {
            "requests": 4,
            "answered": 0.75,  # 3 within 4 s
            "failed: status 503": 1,
            "latency p50": 400,
            "latency p90": 1000,
            "latency p99": 1000,
            "first content p50": 200,
            "first content p99": 300,
            "tokens": 20,
            "generator's own lag p99": 0,
        }
    )


def test_a_generator_behind_its_schedule_marks_the_run_noisy() -> None:
    assert all(figure.noisy for figure in figures(load("chat"), [sample(0.0, end=1.0, lag=0.006)]))
    assert not any("first content" in f.figure for f in figures(load("chat"), [sample(0.0, end=1.0)]))
