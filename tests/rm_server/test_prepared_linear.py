"""Prepared layers multiply as the layers they stand in for, and give them back unchanged."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from rm_server.prepared_linear import PreparedLinear, prepare, restore

WEIGHTS_SHAPES = [(7, 5), (64, 33), (1, 8)]


@pytest.mark.parametrize("shape", WEIGHTS_SHAPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 3, 1500])
def test_it_multiplies_as_before(shape: tuple[int, int], bias: bool, rows: int) -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(shape[1], shape[0], bias=bias)
    states = torch.randn(1, rows, shape[1])
    with torch.inference_mode():
        torch.testing.assert_close(PreparedLinear(linear)(states), linear(states))


def two_layers(dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    torch.manual_seed(0)
    inner = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Tanh())
    return torch.nn.Sequential(inner, torch.nn.Linear(4, 2, bias=False)).to(dtype)


def test_all_linear_layers_are_replaced_and_come_back_to_the_bit() -> None:
    model = two_layers()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    assert prepare(model) == 2
    assert not any(isinstance(module, torch.nn.Linear) for module in model.modules())
    restore(model)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_other_precisions_stay_as_they_are() -> None:
    assert prepare(two_layers(torch.bfloat16)) == 0


MANY_SHAPES = """
import rm_server
import torch
from pathlib import Path
from rm_server.prepared_linear import PreparedLinear

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

def compute(numbers_of_rows):
    with torch.inference_mode():
        for rows in numbers_of_rows:
            layer(torch.ones(rows, 256))

torch.set_num_threads(1)
layer = PreparedLinear(torch.nn.Linear(256, 1024, bias=False))
compute([1, 1200, 600])
before = resident()
compute(range(100, 1100, 2))
print((resident() - before) >> 20)
"""


def test_five_hundred_shapes_are_not_all_remembered() -> None:
    found = subprocess.run([sys.executable, "-c", MANY_SHAPES], capture_output=True, text=True, check=True)
    assert int(found.stdout) < 200  # MiB; with oneDNN's defaults 1,100
