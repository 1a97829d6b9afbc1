"""Normalising by hand: the gain in the head, the offset beside it."""

import pytest
import torch

from trainers import normalization
from trainers.data import Tokens
from trainers.errors import DataError


class Head(torch.nn.Module):
    """A reward model that is nothing but its head."""

    def __init__(self) -> None:
        super().__init__()
        self.score = torch.nn.Linear(2, 1, bias=False)
        torch.nn.init.constant_(self.score.weight, 6.0)


def test_by_hand() -> None:
    # Raw 1, 3, 5, 7: mean 4, deviation sqrt(5); the head is divided by sqrt(5), the offset is 4 / sqrt(5).
    model = Head()
    normalized, raw, offset = normalization.normalize(model, torch.tensor([1.0, 3.0, 5.0, 7.0]))
    assert offset == pytest.approx(1.7888544)
    assert model.score.weight.flatten().tolist() == pytest.approx([2.6832816] * 2)
    assert raw == {"raw_samples": 4, "raw_mean": 4.0, "raw_std": pytest.approx(2.2360680)}
    assert normalized.tolist() == pytest.approx([value / 2.2360680 for value in (-3, -1, 1, 3)])
    calibration = normalization.calibrate(normalized, "training")
    assert (calibration["source"], calibration["samples"]) == ("training", 4)
    assert calibration["mean"] == pytest.approx(0)
    assert calibration["std"] == pytest.approx(1)
    # The median of the normalised scores -3, -1, 1, 3 over sqrt(5).
    assert calibration["quantiles"]["0.5"] == pytest.approx(0)
    # Weibull: 0.25 (4 + 1) = 1.25, a quarter of the way from the first to the second.
    assert calibration["quantiles"]["0.25"] == pytest.approx(-2.5 / 2.2360680, abs=1e-6)
    # 0.001 (4 + 1) is before the first of them, so that one it is.
    assert calibration["quantiles"]["0.001"] == pytest.approx(-3 / 2.2360680, abs=1e-6)


def test_a_new_sample_lies_outside_a_quantile_as_often_as_it_says() -> None:
    # Of 1,999 uniform numbers the quantiles 0.001 and 0.999 leave out 0.1 % on each side, in the mean.
    generator = torch.Generator().manual_seed(0)
    outside = []
    for _ in range(200):
        drawn = torch.rand(1999, generator=generator, dtype=torch.float64)
        quantiles = normalization.calibrate(drawn, "training")["quantiles"]
        outside.append(quantiles["0.001"] + 1 - quantiles["0.999"])
    # Each is Beta-distributed with deviation 0.001; the mean of 200 has 0.00007.
    assert sum(outside) / len(outside) == pytest.approx(0.002, abs=0.0003)


def test_a_model_that_tells_nothing_apart_is_refused() -> None:
    with pytest.raises(DataError, match="learned nothing"):
        normalization.normalize(Head(), torch.full((9,), 3.3))


def test_samples_are_drawn_by_the_seed() -> None:
    samples = [Tokens([index], []) for index in range(100)]
    one, same, other = (normalization.choose_samples(samples, 10, seed) for seed in (0, 0, 1))
    assert one == same != other
    assert len({sample.ids[0] for sample in one}) == 10
    assert normalization.choose_samples(samples[:5], 10, 0) == samples[:5]


def test_the_line_for_the_user() -> None:
    calibration = {"raw_samples": 4, "raw_mean": 4.0, "raw_std": 2.236}
    assert normalization.describe(calibration, {}) == "normalised over 4 answers (raw 4 ± 2.24)"
    assert normalization.describe(calibration, {"eval_accuracy": 0.75}).endswith("held-out accuracy 75.0%")
