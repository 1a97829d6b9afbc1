"""`make bench` measures what it can with the models that are there."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from loadtests.bench import Bench, Flag
from loadtests.errors import LoadTestError
from loadtests.everything import run_everything
from loadtests.figures import Figure, Row, Run


def bench(name: str, value: float) -> Bench:
    def run(*, runs: int) -> list[Run]:
        return [Run({"ratio": value, "aside": 7.0})] * runs

    rows = (Row("ratio", "x", at_least=0.5), Row("aside"))
    return Bench(name=name, help="", flags=(Flag("runs", 2, ""),), rows=rows, run=run, takes_s=90)


class Reports:
    """What was reported, by name."""

    def __init__(self) -> None:
        self.found: dict[str, list[float]] = {}

    def __call__(self, name: str, figures: Sequence[Figure]) -> None:
        self.found[name] = [figure.value for figure in figures]


def test_every_benchmark_in_turn_and_one_table_of_what_was_promised(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reports = Reports()
    run_everything(tmp_path, reports, [bench("one", 0.6), bench("other", 0.4)])
    assert reports.found == {"one": [0.6, 7.0], "other": [0.4, 7.0]}
    said = capsys.readouterr().out
    assert said.startswith("about 3 minutes")
    assert "`make demo` makes them" in said
    table = said[said.index("what was promised") :]
    assert table.count("ratio") == 2
    assert "NO" in table
    assert "aside" not in table


def test_models_that_do_not_start_are_an_error_and_no_silence(tmp_path: Path) -> None:
    for name in ("dpo", "reward"):
        (tmp_path / name).mkdir()
    with pytest.raises(LoadTestError, match="did not start") as caught:
        run_everything(tmp_path, Reports(), [])
    assert caught.value.exit_code == 1
