"""The mix, and the share of faults."""

import pytest

from loadtests.benches.soak import KINDS, policy, reward
from loadtests.fakes.script import Script


def test_every_kind_of_request_is_in_the_mix() -> None:
    kinds = {(path, "best_of" in body, "stream" in body) for path, body in KINDS}
    assert len(kinds) == len(KINDS) == 8


@pytest.mark.parametrize("script", [policy(0.05), reward(0.05)])
def test_the_share_of_faults_is_what_it_says(script: Script) -> None:
    assert sum(fault.share for fault in script.faults) == pytest.approx(0.05)
