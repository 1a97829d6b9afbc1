"""Scripts: what they may say, and which calls meet a fault."""

from collections import Counter
from itertools import islice

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.fakes.script import Fault, RewardScript, Script, VllmScript, fates


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (VllmScript, '{"delays_ms": 1}'),
        (VllmScript, '{"delay_ms": -1}'),
        (VllmScript, '{"tokens": 0}'),
        (VllmScript, '{"faults": [{"kind": "nan"}]}'),
        (VllmScript, '{"faults": [{"kind": "flood"}]}'),
        (VllmScript, '{"faults": [{"kind": "reset", "share": 1.5}]}'),
        (RewardScript, '{"faults": [{"kind": "error_event"}]}'),
        (RewardScript, '{"faults": [{"kind": "status", "status": 200}]}'),
    ],
)
def test_a_script_that_cannot_be_followed_is_refused(kind: type[Script], text: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(text, type=kind)


def test_shares_are_kept() -> None:
    faults = (Fault(kind="reset", share=0.1), Fault(kind="status", share=0.3))
    met = Counter(fault.kind if fault else None for fault in islice(fates(faults, 0), 10_000))
    assert met["reset"] == pytest.approx(1000, rel=0.15)
    assert met["status"] == pytest.approx(3000, rel=0.15)


@given(st.integers())
def test_the_same_seed_meets_the_same_faults(seed: int) -> None:
    faults = (Fault(kind="reset", share=0.5),)
    assert list(islice(fates(faults, seed), 20)) == list(islice(fates(faults, seed), 20))


def test_all_or_none() -> None:
    assert set(islice(fates((Fault(kind="cut"),), 1), 50)) == {Fault(kind="cut")}
    assert set(islice(fates((), 1), 50)) == {None}
