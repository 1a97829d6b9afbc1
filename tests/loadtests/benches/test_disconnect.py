"""From the cut to the end of all work."""

import math

import pytest

from loadtests.benches.disconnect import PHASES, until_all_ended
from loadtests.fakes.records import Record

BY_NAME = {phase.name: phase for phase in PHASES}
CHAT, SCORE = "/v1/chat/completions", "/score"


def call(path: str, *, ended: float | None = None, aborted: float | None = None) -> Record:
    return Record(path=path, request_id="", prompt="p", began_at=0.0, ended_at=ended, aborted_at=aborted)


def test_the_last_call_counts() -> None:
    calls = [call(CHAT, aborted=2.1), call(CHAT, aborted=2.4), call(SCORE, ended=1.0)]
    assert until_all_ended(calls, BY_NAME["generating"], 2.0) == pytest.approx(0.4)
    calls = [call(CHAT, ended=1.0), call(SCORE, aborted=2.1)]
    assert until_all_ended(calls, BY_NAME["judging"], 2.0) == pytest.approx(0.1)


def test_work_that_never_ends_is_infinite() -> None:
    calls = [call(CHAT, aborted=2.1), call(SCORE)]
    assert until_all_ended(calls, BY_NAME["generating"], 2.0) == math.inf


@pytest.mark.parametrize(
    ("phase", "calls"),
    [
        ("waiting", []),
        ("streaming", [call(CHAT, ended=1.0)]),
        ("judging", [call(CHAT, aborted=2.1)]),
        ("generating", [call(SCORE, aborted=2.1)]),
    ],
)
def test_a_case_that_was_not_in_its_phase_says_nothing(phase: str, calls: list[Record]) -> None:
    assert math.isnan(until_all_ended(calls, BY_NAME[phase], 2.0))
