"""The comparison's arithmetic, and one short run of the real thing."""

from pathlib import Path

import pytest

from loadtests.__main__ import main
from loadtests.figures import Figure
from loadtests.gateway_overhead import Round, figures


def rounds(*rates: float, cpu_ms: float = 0.5, p50_ms: float = 20.0, busy: float = 1.0) -> list[Round]:
    return [Round(per_second=rate, p50_ms=p50_ms, cpu_ms=cpu_ms, busy=busy) for rate in rates]


def compare(gateway: list[Round], plain: list[Round], *, one_core: bool = False) -> dict[str, Figure]:
    alone = {
        "direct": rounds(1, p50_ms=20),
        "gateway": rounds(1, p50_ms=21),
        "pass-through": rounds(1, p50_ms=20.5),
    }
    saturated = {"gateway": gateway, "pass-through": plain}
    return {f.figure: f for f in figures(saturated, alone, one_core=one_core, command="c")}


def test_the_median_round_counts() -> None:
    found = compare(rounds(900, 300, 600, cpu_ms=0.8), rounds(1000, 1000, 10, cpu_ms=0.4))
    ratio = found["saturation, gateway / pass-through"]
    assert (ratio.value, ratio.target, ratio.met) == (0.6, ">= 0.6", True)
    cpu = found["CPU per request, pass-through / gateway"]
    assert (cpu.value, cpu.met) == (0.5, False)
    assert found["gateway: p50 added at one connection"].value == pytest.approx(1.0)
    assert found["pass-through: p50 added at one connection"].value == pytest.approx(0.5)
    assert not ratio.noisy


def test_a_run_that_did_not_saturate_is_noisy() -> None:
    assert compare(rounds(1, busy=0.5), rounds(1))["gateway: saturation"].noisy
    assert compare(rounds(1), rounds(1), one_core=True)["gateway: saturation"].noisy


@pytest.mark.slow
def test_the_real_thing_runs_and_is_written(tmp_path: Path) -> None:
    assert main(["gateway-overhead", "--rounds", "1", "--seconds", "0.5", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "gateway-overhead.json").is_file()
