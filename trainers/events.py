"""A run's metrics as TensorBoard's events: `tensorboard --logdir OUTPUT_DIR`.

They are made from metrics.jsonl: a continued run writes them anew from the lines that it keeps, so that steps
done twice are there once. Written by tensorboardX, which needs neither TensorFlow nor TensorBoard. Tags are
transformers': train/loss, eval/loss.
"""

import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary

FLUSH_EVERY_S = 2.0
"""A flush waits for the disk, and steps may take milliseconds."""


class EventLog:
    """The events of one run, in a folder of their own."""

    def __init__(
        self,
        folder: Path,
        earlier: Sequence[Mapping[str, float]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        self.clock, self.last_flush = clock, -math.inf
        self.writer = EventsWriter(str(folder / "events"))
        for line in earlier:
            self._write(line)

    def add(self, line: Mapping[str, float]) -> None:
        """Adds a line of metrics."""
        self._write(line)
        now = self.clock()
        if now - self.last_flush >= FLUSH_EVERY_S:
            self.last_flush = now
            self.writer.flush()

    def close(self) -> None:
        """Writes what is left."""
        self.writer.close()

    def _write(self, line: Mapping[str, float]) -> None:
        values = [
            Summary.Value(tag=_tag(name), simple_value=float(value))
            for name, value in line.items()
            if name != "step"
        ]
        event = Event(wall_time=time.time(), step=int(line["step"]), summary=Summary(value=values))
        self.writer.write_event(event)


def _tag(name: str) -> str:
    held_out = name.removeprefix("eval_")
    return f"train/{name}" if held_out == name else f"eval/{held_out}"
