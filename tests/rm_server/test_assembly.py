"""Checkpoints become judges, again and again: what is the same goes on, what is bad is refused."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import weakref
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rm_server.assembly import Assembly, builder
from rm_server.config import parse_args
from rm_server.errors import CheckpointError
from rm_server.judge import Judge
from rm_server.metrics import Metrics
from rm_server.shelf import Shelf
from rm_server.threads import Threads
from tests.rm_server.fakes import app_over, reloader, sample
from tests.rm_server.test_api_server import served
from tests.rm_server.tiny import change_json, save_checkpoint, seal, tiny_model

ASK = {"messages": [{"role": "user", "content": "How many?"}], "responses": ["12", "none"]}


def checkpoint(folder: Path, gain: float = 1.0, num_labels: int = 1) -> Path:
    """One whose rewards are `gain` times those of the tiny model."""
    model = tiny_model(num_labels=num_labels)
    with torch.no_grad():
        model.score.weight.mul_(gain)
    return seal(save_checkpoint(folder, model))


def reseal(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    seal(folder)


class World:
    """A server's judges, from `--model`, that can be looked at again."""

    def __init__(self, executor: Executor, metrics: Metrics, *arguments: str) -> None:
        config = parse_args(arguments)
        assembly = Assembly(builder(config, metrics, Threads(executor, executor)), config, metrics)
        self.shelf = Shelf([assembly.judge(source) for source in config.models], metrics)
        self.metrics = metrics
        [source] = config.models
        make: Callable[..., Judge] = lambda _, current: assembly.judge(source, current)  # noqa: E731
        self.reload = reloader(self.shelf, make, executor, metrics).reload

    async def outcome(self) -> str:
        """Of one more reload."""

        def count(outcome: str) -> float:
            return sample(self.metrics, "reloads_total", model="judge", outcome=outcome)

        before = {outcome: count(outcome) for outcome in ("swapped", "unchanged", "refused")}
        await self.reload()
        [moved] = [outcome for outcome in before if count(outcome) > before[outcome]]
        return moved


async def test_other_content_in_the_same_folder(tmp_path: Path, executor: Executor, metrics: Metrics) -> None:
    folder = checkpoint(tmp_path / "judge")
    world = World(executor, metrics, "--model", str(folder))
    async with served(app_over(world.shelf, metrics)) as http:
        before = (await http.post("/score", json=ASK)).json()
        assert await world.outcome() == "unchanged"
        shutil.rmtree(folder)
        checkpoint(folder, gain=2.0)
        assert await world.outcome() == "swapped"
        after = (await http.post("/score", json=ASK)).json()
    assert after["version"] != before["version"]
    assert after["scores"] == pytest.approx([2 * score for score in before["scores"]], rel=1e-5)


async def test_versions_that_served_are_free_and_a_reload_disturbs_nobody(
    tmp_path: Path, executor: Executor, metrics: Metrics
) -> None:
    folder = checkpoint(tmp_path / "judge")
    world = World(executor, metrics, "--model", str(folder))
    seen: dict[str, set[float]] = {}
    served_models = []
    async with served(app_over(world.shelf, metrics)) as http:
        for k in range(1, 4):
            served_models.append(weakref.ref(world.shelf.current("judge").first))
            shutil.rmtree(folder)
            checkpoint(folder, gain=float(k + 1))
            reload = asyncio.create_task(world.outcome())
            while not reload.done():
                answer = (await http.post("/score", json=ASK)).json()
                seen.setdefault(answer["version"], set()).update(answer["scores"])
            assert reload.result() == "swapped"
        await http.post("/score", json=ASK)  # the threads hold their last work until they have other
        gc.collect()
        assert [model() for model in served_models] == [None] * 3
    assert all(len(scores) == 2 for scores in seen.values())  # each version the same two, loading or not


async def test_a_link_that_is_set_to_another_folder(
    tmp_path: Path, executor: Executor, metrics: Metrics
) -> None:
    one, two = checkpoint(tmp_path / "step-1"), checkpoint(tmp_path / "step-2", gain=2.0)
    latest = tmp_path / "latest"
    latest.symlink_to(one)
    world = World(executor, metrics, "--model", f"judge={latest}")
    async with served(app_over(world.shelf, metrics)) as http:
        before = (await http.post("/score", json=ASK)).json()
        new = tmp_path / "new"
        new.symlink_to(two)
        os.replace(new, latest)
        assert await world.outcome() == "swapped"
        after = (await http.post("/score", json=ASK)).json()
    assert after["scores"] == pytest.approx([2 * score for score in before["scores"]], rel=1e-5)


def _with_tensors(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})
        reseal(folder)

    return damage


def _with_config(**changes: Any) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        change_json(folder / "config.json", **changes)
        reseal(folder)

    return damage


def _flip_a_bit(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def _only_pickle(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_flip_a_bit, "does not match its SHA-256"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "does not match its SHA-256"),
        (lambda f: (f / "config.json").unlink(), "not a checkpoint"),
        (lambda f: shutil.rmtree(f), "no such folder"),
        (_only_pickle, "Pickle checkpoints are not supported"),
        (_with_tensors(lambda t: t.pop("model.norm.weight")), "lacks model.norm.weight"),
        (_with_tensors(lambda t: t.pop("score.weight")), "lacks score.weight"),
        (_with_tensors(lambda t: t["score.weight"].fill_(float("nan"))), "holds NaN"),
        (_with_config(auto_map={"AutoModel": "evil.Model"}), "asks for code of its own"),
        (_with_config(hidden_size=10**9), "config.json"),
        (_with_config(num_hidden_layers=10**9), "num_hidden_layers"),
    ],
)
async def test_a_bad_checkpoint_leaves_the_old_one_serving(
    tmp_path: Path,
    executor: Executor,
    metrics: Metrics,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], object],
    words: str,
) -> None:
    folder = checkpoint(tmp_path / "judge")
    world = World(executor, metrics, "--model", str(folder))
    async with served(app_over(world.shelf, metrics)) as http:
        before = (await http.post("/score", json=ASK)).json()
        damage(folder)
        assert await world.outcome() == "refused"
        assert (await http.post("/score", json=ASK)).json() == before
        assert (await http.get("/health/ready")).status_code == 200
    assert f"judge: still version {before['version']}" in caplog.text
    assert words in caplog.text


async def test_one_member_of_an_ensemble_is_replaced(
    tmp_path: Path, executor: Executor, metrics: Metrics
) -> None:
    one, two = checkpoint(tmp_path / "one"), checkpoint(tmp_path / "two", gain=2.0)
    world = World(executor, metrics, "--model", f"judge={one}+{two}")
    kept = world.shelf.current("judge").members["one"]
    async with served(app_over(world.shelf, metrics)) as http:
        before = (await http.post("/score", json=ASK)).json()
        shutil.rmtree(two)
        checkpoint(two, gain=4.0)
        assert await world.outcome() == "swapped"
        after = (await http.post("/score", json=ASK)).json()
    assert world.shelf.current("judge").members["one"] is kept
    assert before["version"].split("+")[0] == after["version"].split("+")[0]
    # (1 + 2) / 2 and (1 + 4) / 2 times the tiny model's
    assert after["scores"] == pytest.approx([score * 5 / 3 for score in before["scores"]], rel=1e-5)


def test_members_with_different_labels_do_not_fit(
    tmp_path: Path, executor: Executor, metrics: Metrics
) -> None:
    one, two = checkpoint(tmp_path / "one"), checkpoint(tmp_path / "two", num_labels=2)
    with pytest.raises(CheckpointError, match="judge: its members have different labels"):
        World(executor, metrics, "--model", f"judge={one}+{two}")


async def test_the_penalty_counts_the_responses_own_tokens(
    tmp_path: Path, executor: Executor, metrics: Metrics
) -> None:
    world = World(executor, metrics, "--model", f"judge={checkpoint(tmp_path / 'judge')}")
    asked = {**ASK, "responses": ["12", "", "<|end|>"]}
    async with served(app_over(world.shelf, metrics)) as http:
        plain = (await http.post("/score", json=asked)).json()["scores"]
        less = (await http.post("/score", json={**asked, "length_penalty": 1.0})).json()["scores"]
    taken = [before - after for before, after in zip(plain, less, strict=True)]
    # "12" was seen in training and may be one token; "<|end|>" is text here: more than one.
    assert taken[0] in (pytest.approx(1), pytest.approx(2))
    assert taken[1] == pytest.approx(0)
    assert taken[2] > 3
