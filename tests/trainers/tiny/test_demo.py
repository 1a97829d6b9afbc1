"""The demo around its engines: what is there is not made again, and what is wrong is said in one line."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tests.trainers.tiny.test_evaluate import pair
from trainers.tiny.demo import Config, Demo, main
from trainers.tiny.evaluate import Agreement
from trainers.tiny.generate import write_jsonl
from trainers.tiny.results import ALIGNED, BEST_OF, POLICIES


@contextmanager
def listening() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def finished(folder: Path) -> Demo:
    """A demo whose steps have all been done, with made-up outputs; only its summary is missing."""
    demo = Demo(Config(folder=folder))
    for policy in POLICIES:
        level = POLICIES.index(policy)
        rewards = {str(n): [level + n / 20 + p / 10 for p in range(5)] for n in BEST_OF}
        (folder / f"measured-{policy}.json").write_text(json.dumps(rewards))
    (folder / "agreement.json").write_text(json.dumps(asdict(Agreement(0.9, 0.8, 2))))
    for policy in ALIGNED:
        (folder / f"kl-{policy}.json").write_text('{"kl_nats_per_sequence": {"mean": 2.5, "ci95": [2, 3]}}')
    (folder / "pairs").mkdir()
    write_jsonl(folder / "pairs" / "held_out.jsonl", [pair("a", "b", 1.0, 0.0), pair("a", "b", 0.5, 0.5)])
    for step in demo.all_steps():
        if not step.output.exists():
            step.output.mkdir()
        demo.journal.run(replace(step, action=lambda: None))
    return demo


def test_every_step_comes_after_what_it_reads(tmp_path: Path) -> None:
    made: set[str] = set()
    for step in Demo(Config(folder=tmp_path)).all_steps():
        assert set(step.after) <= made, step.name
        assert step.name not in made
        made.add(step.name)
    assert {f"measure {policy}" for policy in POLICIES} <= made


def test_no_stack_is_started_twice(tmp_path: Path) -> None:
    """The reward model is judged beside the SFT policy; what is served in the end is measured last."""
    names = [step.name for step in Demo(Config(folder=tmp_path)).all_steps()]
    assert names.index("judge the judge") == names.index("measure sft") + 1
    assert names[-1] == "measure dpo"


def test_what_is_there_is_not_made_again(tmp_path: Path) -> None:
    finished(tmp_path)
    measured = Demo(Config(folder=tmp_path)).results()  # a new process; any real step would fail here
    assert measured.gold["dpo", 16].mean == pytest.approx(2 + 16 / 20 + 0.2)
    assert all(claim.holds for claim in measured.claims())
    assert 0.5 < measured.noisy_ceiling < 1
    assert {path.name for path in tmp_path.glob("results.*")} == {"results.json", "results.md", "results.png"}
    assert Demo(Config(folder=tmp_path)).results() == measured


def test_saved_results_are_believed_while_all_steps_stand(tmp_path: Path) -> None:
    finished(tmp_path).results()
    saved = json.loads((tmp_path / "results.json").read_text())
    saved["peak_memory_bytes"] = 12345
    (tmp_path / "results.json").write_text(json.dumps(saved))
    assert Demo(Config(folder=tmp_path)).results().peak_memory_bytes == 12345


@pytest.mark.parametrize("flag", ["--port", "--reward-port"])
def test_a_port_in_use_is_one_line_and_code_2(
    flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = {"--port": "--reward-port", "--reward-port": "--port"}[flag]
    with listening() as port:
        assert main(["--folder", str(tmp_path / "demo"), flag, str(port), other, "0"]) == 2
    assert capsys.readouterr().err.startswith(f"error: port {port} is in use")
    assert not (tmp_path / "demo").exists()
