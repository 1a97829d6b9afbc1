"""TensorBoard's events: the lines of metrics.jsonl, each step once."""

import struct
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event

from trainers.config import RunConfig
from trainers.events import EventLog
from trainers.folder import EVENTS
from trainers.run import start


def read_events(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """Steps and values of a folder's one file: records of length, checksum, content, checksum."""
    (file,) = folder.iterdir()
    assert ".tfevents." in file.name
    content, at, found = file.read_bytes(), 0, []
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        event = Event.FromString(content[at + 12 : at + 12 + length])
        found.append((event.step, {value.tag: value.simple_value for value in event.summary.value}))
        at += 16 + length
    return found[1:]  # the first says the format's version


def test_training_and_evaluation_have_tags_of_their_own(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "e", [])
    log.add({"step": 3, "loss": 0.5, "eval_loss": 0.25})
    log.close()
    assert read_events(tmp_path / "e") == [(3, {"train/loss": 0.5, "eval/loss": 0.25})]


def test_a_continued_run_has_each_step_once(tmp_path: Path) -> None:
    first = EventLog(tmp_path / "e", [])
    first.add({"step": 1, "loss": 4.0})
    first.add({"step": 2, "loss": 9.0})
    first.close()
    again = EventLog(tmp_path / "e", [{"step": 1, "loss": 4.0}])
    again.add({"step": 2, "loss": 2.0})
    again.close()
    assert read_events(tmp_path / "e") == [(1, {"train/loss": 4.0}), (2, {"train/loss": 2.0})]


def test_what_is_written_can_be_read_while_the_run_goes_on(tmp_path: Path) -> None:
    times = iter([0.0, 1.0, 2.0])
    log = EventLog(tmp_path / "e", [], clock=lambda: next(times))
    for step in (1, 2, 3):
        log.add({"step": step})
    assert [step for step, _ in read_events(tmp_path / "e")] == [1, 2, 3]
    log.close()


def test_a_run_reports_where_it_is_asked_to(tmp_path: Path) -> None:
    for report_to in ("tensorboard", "none"):
        with start(RunConfig(output_dir=str(tmp_path / report_to), report_to=report_to), "test") as run:  # type: ignore[arg-type]
            run.record({"step": 1, "loss": 4.0})
    assert read_events(tmp_path / "tensorboard" / EVENTS) == [(1, {"train/loss": 4.0})]
    assert not (tmp_path / "none" / EVENTS).exists()
