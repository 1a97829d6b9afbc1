"""`make bench` measures what it can with the models that are there."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from loadtests.errors import LoadTestError
from loadtests.everything import run_everything
from loadtests.figures import Figure

FIGURE = Figure(figure="ratio", value=1.0, unit="x", command="c")


class Reports:
    """What was reported, by name."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, name: str, figures: Sequence[Figure]) -> None:
        assert figures == [FIGURE]
        self.names.append(name)


def test_without_the_demos_models_it_is_the_overhead_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reports = Reports()
    run_everything(tmp_path, reports, lambda: [FIGURE])
    assert reports.names == ["gateway-overhead"]
    assert "`make demo` makes them" in capsys.readouterr().out


def test_models_that_do_not_start_are_an_error_and_no_silence(tmp_path: Path) -> None:
    for name in ("dpo", "reward"):
        (tmp_path / name).mkdir()
    with pytest.raises(LoadTestError, match="did not start") as caught:
        run_everything(tmp_path, Reports(), lambda: [FIGURE])
    assert caught.value.exit_code == 1
