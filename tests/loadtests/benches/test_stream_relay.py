"""What counts as relayed."""

import pytest

from loadtests.benches.stream_relay import check, events_between, firsts_ms
from loadtests.errors import LoadTestError
from loadtests.http_client import Reply
from loadtests.open_loop import Answer, Sample

ONE, DONE = b"data: {}\n\n", b"data: [DONE]\n\n"


def reply(*pieces: bytes, error: str | None = None) -> Reply:
    return Reply(status=200, pieces=list(pieces), times=list(map(float, range(len(pieces)))), error=error)


def test_events_count_in_the_time_in_which_they_came() -> None:
    found = reply(ONE, ONE * 3, ONE * 5, ONE * 7)
    assert events_between(found, 1.0, 3.0) == 3 + 5


def test_first_tokens_count_from_the_scheduled_instant() -> None:
    samples = [Sample(1.0, 1.5, Answer(first_at=1.75)), Sample(2.0, 2.0, Answer())]
    assert firsts_ms(samples) == [750.0]


@pytest.mark.parametrize(
    "broken", [reply(ONE * 3, DONE[:-1]), reply(ONE * 2, DONE), reply(ONE * 3), reply(ONE, error="cut")]
)
def test_a_stream_that_is_not_whole_ends_the_benchmark(broken: Reply) -> None:
    check(reply(ONE * 3, DONE), tokens=2)  # the role chunk, two tokens, [DONE]
    with pytest.raises(LoadTestError, match="not relayed whole"):
        check(broken, tokens=2)
