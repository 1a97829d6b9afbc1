"""The comparison's arithmetic."""

import pytest

from loadtests.benches.gateway_overhead import ROWS, Loop, compare


def loop(per_second: float = 1, *, cpu_ms: float = 0.5, p50_ms: float = 20.0) -> Loop:
    return Loop(per_second=per_second, p50_ms=p50_ms, cpu_ms=cpu_ms, busy=1.0)


def test_shares_by_hand() -> None:
    found = compare(
        {"gateway": loop(600, cpu_ms=0.8), "pass-through": loop(1000, cpu_ms=0.4)},
        {"direct": loop(p50_ms=20), "gateway": loop(p50_ms=21), "pass-through": loop(p50_ms=20.5)},
    )
    assert found["saturation, gateway / pass-through"] == 0.6
    assert found["CPU per request, pass-through / gateway"] == 0.5
    assert found["gateway: p50 added at one connection"] == pytest.approx(1.0)
    assert found["pass-through: p50 added at one connection"] == pytest.approx(0.5)
    assert found.keys() <= {row.figure for row in ROWS}
