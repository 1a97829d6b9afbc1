"""What the tests of rm_server share."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from rm_server.metrics import Metrics
from tests.rm_server.tiny import save_checkpoint, seal


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Tiny models gain nothing from more, and spinning threads stall each other on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture
def executor() -> Iterator[Executor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealed checkpoint with a reward offset, to be read only."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    return seal(save_checkpoint(folder, alignment={"algorithm": "reward", "reward_offset": 0.25}))


@pytest.fixture
def loose_checkpoint(tmp_path: Path) -> Path:
    """An unsealed checkpoint that a test may damage."""
    return save_checkpoint(tmp_path / "loose")
