"""Figures are computed as defined and written in the form that the contract names."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.figures import Figure, Row, Run, percentile, repeat, save, show, summarise, with_earlier

ROW = Figure(figure="latency p50", value=12.5, unit="ms", command="python -m loadtests chat")


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([3.0, 1.0, 2.0], 0.5, 2.0),
        ([1.0, 2.0, 3.0, 4.0], 0.5, 2.0),
        ([1.0, 2.0, 3.0, 4.0], 0.99, 4.0),
        ([5.0], 0.0, 5.0),
        (list(range(1, 101)), 0.9, 90.0),
    ],
)
def test_percentiles_are_values_that_were_measured(
    values: list[float], share: float, expected: float
) -> None:
    assert percentile(values, share) == expected


def test_nothing_measured_has_no_percentile() -> None:
    assert math.isnan(percentile([], 0.5))


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.001, 1))
def test_at_least_the_share_lies_at_or_below_and_no_smaller_value_does(
    values: list[float], share: float
) -> None:
    found = percentile(values, share)
    assert sum(value <= found for value in values) >= share * len(values)
    assert sum(value < found for value in values) < share * len(values)


def test_the_file_holds_the_rows_of_the_contract(tmp_path: Path) -> None:
    missing = Figure(
        figure="ratio", value=math.nan, unit="x", target=">= 0.6", met=False, noisy=True, command="c"
    )
    path = save(tmp_path / "bench", "chat", [ROW, missing])
    assert path == tmp_path / "bench" / "chat.json"
    assert json.loads(path.read_text()) == [
        {
            "figure": "latency p50",
            "value": 12.5,
            "unit": "ms",
            "target": None,
            "met": None,
            "noisy": False,
            "command": "python -m loadtests chat",
        },
        {
            "figure": "ratio",
            "value": None,
            "unit": "x",
            "target": ">= 0.6",
            "met": False,
            "noisy": True,
            "command": "c",
        },
    ]
    assert [file.name for file in path.parent.iterdir()] == ["chat.json"]


def test_what_was_not_measured_again_stays(tmp_path: Path) -> None:
    new = replace(ROW, value=9.0)
    assert with_earlier(tmp_path, "chat", [new]) == [new]
    other = replace(ROW, figure="not measured", value=math.nan)
    save(tmp_path, "chat", [ROW, other])
    stayed, measured = with_earlier(tmp_path, "chat", [new])
    assert (stayed.figure, measured) == ("not measured", new)
    assert math.isnan(stayed.value)


def test_the_table_says_what_missed_its_target(capsys: pytest.CaptureFixture[str]) -> None:
    many = Figure(figure="many", value=10_063.4, unit="", command="c")
    show(
        "chat", [ROW, many, Figure(figure="r", value=0.5, unit="x", target=">= 0.6", met=False, command="c")]
    )
    shown = capsys.readouterr().out
    assert "latency p50" in shown
    assert "12.5" in shown
    assert "10,063 " in shown
    assert "NO" in shown


def test_the_median_counts_or_the_worst() -> None:
    rows = [
        Row("ratio", "x", at_least=0.6),
        Row("delay", "ms", at_most=3),
        Row("lost", at_most=0, worst=True),
        Row("kept", at_least=100, worst=True),
        Row("aside", "s"),
    ]
    runs = [
        Run({"ratio": 0.5, "delay": 2.0, "lost": 0, "kept": 100, "aside": 1}),
        Run({"ratio": 0.7, "delay": 9.0, "lost": 2, "kept": 99, "aside": 3}),
        Run({"ratio": 0.6, "delay": 3.0, "lost": 0, "kept": 100, "aside": 2}),
    ]
    found = summarise(rows, runs, "c")
    assert [(figure.value, figure.target, figure.met) for figure in found] == [
        (0.6, ">= 0.6", True),
        (3.0, "<= 3", True),
        (2.0, "<= 0", False),
        (99.0, ">= 100", False),
        (2.0, None, None),
    ]
    assert not any(figure.noisy for figure in found)


def test_what_was_not_measured_meets_nothing() -> None:
    rows = [Row("a", at_most=3), Row("b", at_least=3)]
    found = summarise(rows, [Run({"a": math.nan, "b": 5}), Run({"a": 1, "b": math.nan})], "c")
    assert [figure.met for figure in found] == [False, False]
    assert all(math.isnan(figure.value) for figure in found)


def test_one_noisy_run_makes_the_figures_noisy(capsys: pytest.CaptureFixture[str]) -> None:
    signs = iter([[], ["the cat slept on the keys"]])
    runs = repeat(2, lambda: Run({"a": 1.0}, next(signs)))
    assert [figure.noisy for figure in summarise([Row("a")], runs, "c")] == [True]
    assert capsys.readouterr().out == "run 2 of 2 is noisy: the cat slept on the keys\n"
