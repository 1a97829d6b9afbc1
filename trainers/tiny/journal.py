"""Which of the demo's steps are done, so that a second run does only what is missing.

A step is done when its output stands and was made by the same recipe, by the same code, from inputs that
were not made anew since.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict


@dataclass(frozen=True)
class Step:
    """One step; `after` names the steps whose outputs it reads, `recipe` is all that decides its own."""

    name: str
    title: str
    after: Sequence[str]
    output: Path
    recipe: Sequence[str]
    action: Callable[[], None]


class Entry(TypedDict):
    key: str
    made: str
    seconds: float


def code_digest() -> str:
    """A SHA-256 over the source of the trainers: changed code makes what it made stale."""
    package = Path(__file__).resolve().parent.parent
    return _digest(file.read_text(encoding="utf-8") for file in sorted(package.rglob("*.py")))


class Journal:
    """Remembers the steps that were done, in a file; `code` stands for the code that does them."""

    def __init__(self, path: Path, code: str) -> None:
        self._path, self._code = path, code
        try:
            self._done: dict[str, Entry] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self._done = {}

    def is_done(self, step: Step) -> bool:
        """Whether the step's output stands as the step would make it now."""
        entry = self._done.get(step.name)
        return entry is not None and entry["key"] == self._key(step) and step.output.exists()

    def run(self, step: Step) -> None:
        """Does a step and notes it; an interrupted step stays undone."""
        started = time.monotonic()
        if self._done.pop(step.name, None):
            self._save()
        step.action()
        made = _digest([str(time.time_ns())])
        self._done[step.name] = {"key": self._key(step), "made": made, "seconds": time.monotonic() - started}
        self._save()

    def seconds(self) -> dict[str, float]:
        """What each step took when it was done."""
        return {name: entry["seconds"] for name, entry in self._done.items()}

    def _save(self) -> None:
        part = self._path.with_suffix(".part")
        part.write_text(json.dumps(self._done, indent=1), encoding="utf-8")
        part.replace(self._path)

    def _key(self, step: Step) -> str:
        inputs = [self._done[name]["made"] if name in self._done else "missing" for name in step.after]
        return _digest([self._code, *step.recipe, *inputs])


def _digest(parts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part.encode()).digest())
    return digest.hexdigest()
