"""When an answer could have been sent, and what counts as chosen out of all."""

import json

import pytest

from loadtests.benches.best_of_n_overhead import answers_could_be_sent, figures, judged, prompt, scored
from loadtests.fakes.records import Record
from loadtests.http_client import Reply
from loadtests.open_loop import Answer, Sample


def record(index: int, *, first: float | None = None, candidates: float | None = None) -> Record:
    return Record(
        path="", request_id="", prompt=prompt(index), began_at=0.0, first_at=first, candidates_at=candidates
    )


def test_the_later_of_the_last_candidate_and_the_last_reward() -> None:
    policy = [record(0, first=0.1, candidates=5.0), record(1, first=0.1, candidates=9.0), record(2)]
    rewards = [record(0, first=4.0), record(0, first=6.0), record(1, first=8.0)]
    assert answers_could_be_sent(policy, rewards) == {prompt(0): 6.0, prompt(1): 9.0}


def test_figures_by_hand() -> None:
    samples = [
        Sample(0.0, 0.0, Answer(ended_at=1.002)),
        Sample(1.0, 1.0, Answer(ended_at=2.010)),
        Sample(2.0, 2.0, Answer(ended_at=9.0, error="not all scored")),
    ]
    found = figures(samples, {prompt(0): 1.0, prompt(1): 2.0, prompt(2): 3.0})
    assert found == pytest.approx(
        {
            "beyond generating and judging p50": 2.0,
            "beyond generating and judging p99": 10.0,
            "whole answer p50": 1002.0,
            "failed, or not all candidates scored": 1.0,
        }
    )


@pytest.mark.parametrize(("count", "error"), [(8, None), (7, "not all scored")])
@pytest.mark.parametrize("streamed", [True, False])
def test_all_candidates_must_have_been_scored(count: int, error: str | None, streamed: bool) -> None:
    body = json.dumps({"choices": [{"delta": {"content": "a"}}], "alignment": {"scored": count}})
    raw = f"data: {body}\n\ndata: [DONE]\n\n" if streamed else body
    reply = Reply(status=200, pieces=[raw.encode()], times=[1.0])
    assert judged(reply, streamed=streamed).error == error


@pytest.mark.parametrize("body", [b"", b"{}", b'{"alignment": null}', b'data: {"alignment": {}}\n\n'])
@pytest.mark.parametrize("streamed", [True, False])
def test_an_answer_that_does_not_say_was_not_chosen(body: bytes, streamed: bool) -> None:
    assert scored(body, streamed=streamed) == 0
