"""Each benchmark from its command line to its file, for a moment: the real gateway before the real fakes.

What it measures in a moment says nothing; that every row is measured and that nothing is lost, it does show.
"""

import json
from pathlib import Path

import pytest

from loadtests.__main__ import main
from loadtests.bench import Bench
from loadtests.benches import BENCHES

SHORT = {
    "gateway-overhead": "--runs 1 --seconds 0.2",
    "stream-relay": "--runs 1 --seconds 0.2",
    "best-of-n-overhead": "--runs 1 --seconds 0.3",
    "disconnect": "--runs 1 --cases 8 --cancels 40",
    "overload": "--runs 1 --seconds 0.5",
    "replica-kill": "--runs 1 --seconds 0.5",
    "soak": "--runs 1 --seconds 0.5",
    "reward-server": "--runs 1 --seconds 0.5",
}
LONGER = {"stream-relay", "replica-kill", "soak", "reward-server"}
NOT_IN_A_MOMENT = {"metric series, more than before"}
"""Its warm-up is as short as it is, so that it cannot have met every kind of failure."""


@pytest.mark.parametrize(
    "bench",
    [
        pytest.param(bench, id=bench.name, marks=[pytest.mark.slow] if bench.name in LONGER else [])
        for bench in BENCHES
    ],
)
def test_a_short_run_measures_every_row_and_loses_nothing(bench: Bench, tmp_path: Path) -> None:
    assert main([bench.name, *SHORT[bench.name].split(), "--out", str(tmp_path)]) == 0
    found = {row["figure"]: row for row in json.loads((tmp_path / f"{bench.name}.json").read_text())}
    assert list(found) == [row.figure for row in bench.rows]
    for row in bench.rows:
        if row.at_most == 0 and row.figure not in NOT_IN_A_MOMENT:
            assert (row.figure, found[row.figure]["value"]) == (row.figure, 0)
