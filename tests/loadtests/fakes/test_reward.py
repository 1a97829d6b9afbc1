"""The fake reward server judges, and misjudges by its script."""

import json
import math

import pytest

from loadtests.fakes.reward import FakeRewardServer, judge
from loadtests.fakes.script import Fault, Kind, RewardScript
from tests.loadtests.fakes.conftest import Serving

MESSAGES = [{"role": "user", "content": "Hi there"}]
BODY = json.dumps({"messages": MESSAGES, "responses": ["a", "aaa"]}).encode()


def test_longer_is_better() -> None:
    answer = json.loads(judge({"messages": MESSAGES, "responses": ["a", "aaa"]}, None))
    assert answer["scores"] == [0.01, 0.03]
    assert answer["usage"] == {"tokens": 2 * (3 + 2 + 3 + 1)}


def test_misjudgements() -> None:
    assert math.isnan(json.loads(judge({"responses": ["a", "b"]}, "nan"))["scores"][0])
    assert json.loads(judge({"responses": ["a", "aa"]}, "wrong_count"))["scores"] == [0.02]
    assert json.loads(judge({}, "wrong_count"))["scores"] == []


@pytest.mark.parametrize(
    ("kind", "status", "error"),
    [
        (None, 200, None),
        ("status", 500, None),
        ("reset", 0, "reset"),
        ("cut", 200, "cut"),
        ("nan", 200, None),
    ],
)
async def test_faults(serving: Serving, kind: Kind | None, status: int, error: str | None) -> None:
    faults = (Fault(kind=kind),) if kind else ()
    fake = FakeRewardServer(RewardScript(delay_ms=1, faults=faults))
    async with serving(fake) as http:
        reply = await http.send("POST", "/score", BODY)
    assert (reply.status, reply.error) == (status, error)
    assert fake.records[0].prompt == "Hi there"
    assert fake.records[0].fault == kind
