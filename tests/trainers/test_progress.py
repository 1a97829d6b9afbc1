"""Plain lines where there is no terminal: few, and the last one always."""

from collections.abc import Iterator

import pytest

from trainers.progress import ProgressBar


def seconds(*values: float) -> Iterator[float]:
    yield from values


def test_a_line_every_few_seconds_and_for_the_last_step(capsys: pytest.CaptureFixture[str]) -> None:
    clock = seconds(0.0, 2.0, 6.0, 7.0, 8.0)
    with ProgressBar("sft", total=4, clock=lambda: next(clock)) as bar:
        for step in range(1, 5):
            bar.update(step, 1234.5, loss=2.0 / step)
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines == [
        "sft 2/4  loss 1  1,234 tokens/s  0:06 left",
        "sft 4/4  loss 0.5  1,234 tokens/s  0:00 left",
    ]


def test_a_continued_run_counts_its_own_time(capsys: pytest.CaptureFixture[str]) -> None:
    clock = seconds(0.0, 10.0)
    with ProgressBar("sft", total=100, start=90, clock=lambda: next(clock)) as bar:
        bar.update(95, 10.0)
    # Five steps took ten seconds, and five are left.
    assert "0:10 left" in capsys.readouterr().err


def test_counts_become_a_rate(capsys: pytest.CaptureFixture[str]) -> None:
    clock = seconds(0.0, 4.0, 4.0)
    with ProgressBar("sample", total=1, clock=lambda: next(clock)) as bar:
        bar.update_counts(1, 100)
    assert "sample 1/1  25 tokens/s" in capsys.readouterr().err
