"""Runs the steps of a Dockerfile's stage in a folder, where no engine builds images.

What is kept of an engine: stages that start from others, ARG and ENV with their `$NAME`s, COPY from the
context and from stages, RUN by a shell. Absolute paths lie under one folder, which holds one stage at a time,
so that a virtual environment comes into the next stage without changing its path, as in an image. Commands
that an engine alone can run (users, Debian's packages: `LEFT_OUT`) are left out.
"""

import io
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dockerfile_parse import DockerfileParser

LEFT_OUT = re.compile(r"^(useradd|apt-get|install --directory --owner)\b")
ABSOLUTE = re.compile(r"(?<![\w.$}/:-])/(app|opt)\b")
IGNORED = shutil.ignore_patterns("__pycache__", "*.egg-info")


@dataclass
class Stage:
    """One FROM, and what follows it."""

    name: str
    parent: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def last(self, instruction: str) -> str | None:
        """The value of an instruction of which the last counts."""
        return next((value for name, value in reversed(self.steps) if name == instruction), None)

    def words(self, instruction: str) -> list[str]:
        """An instruction in its JSON form; [] where there is none."""
        words = json.loads(self.last(instruction) or "[]")
        assert isinstance(words, list)
        return words


def read_stages(dockerfile: Path) -> tuple[dict[str, str], dict[str, Stage]]:
    """The arguments before the first FROM, and the stages by their names."""
    arguments: dict[str, str] = {}
    stages: dict[str, Stage] = {}
    current: Stage | None = None
    for step in DockerfileParser(fileobj=io.BytesIO(dockerfile.read_bytes())).structure:
        instruction, value = step["instruction"], step["value"]
        if instruction == "FROM":
            parent, _, name = value.partition(" AS ")
            current = stages[name] = Stage(name, parent)
        elif current is not None:
            current.steps.append((instruction, value))
        elif instruction == "ARG":
            name, _, default = value.partition("=")
            arguments[name] = default
    return arguments, stages


@dataclass
class Builder:
    """Builds stages below `folder` from the files in `context`; `python` is what a base image brings."""

    context: Path
    folder: Path
    python: Path
    stages: dict[str, Stage]
    environment: dict[str, str] = field(default_factory=dict)
    _built: dict[str, Path] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        """Where the stage that is being built has its absolute paths."""
        return self.folder / "root"

    def build(self, target: str) -> None:
        """Run the stages that `target` needs; its own files stay in `root`."""
        order = list(self._needed(target))
        for name in order:
            self._run(self.stages[name])
            if name != target:
                self._built[name] = self.folder / name
                self.root.rename(self._built[name])

    def run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        """Run a program as a container of the built stage would."""
        return subprocess.run(
            command, cwd=self.root / "app", env=self._variables(), capture_output=True, text=True, check=False
        )

    def _needed(self, name: str) -> Iterator[str]:
        """What must be built before a stage, and the stage."""
        stage = self.stages[name]
        before = [stage.parent] if stage.parent in self.stages else []
        before += [match[1] for _, value in stage.steps if (match := re.match(r"--from=(\S+)", value))]
        seen: list[str] = []
        for other in before:
            seen += [found for found in self._needed(other) if found not in seen]
        yield from [*seen, name]

    def _run(self, stage: Stage) -> None:
        parent = self._built.get(stage.parent)
        if parent is None:
            (self.root / "app").mkdir(parents=True)
            (self.root / "bin").mkdir()
            for name in ("python", "python3"):
                (self.root / "bin" / name).symlink_to(self.python)
            self.environment["PATH"] = f"{self.root / 'bin'}:/usr/bin:/bin"
        else:
            shutil.copytree(parent, self.root, symlinks=True)
        for instruction, value in stage.steps:
            if instruction == "COPY":
                self._copy(value)
            elif instruction == "RUN":
                self._shell(value)
            elif instruction in ("ENV", "ARG"):
                self._set(value)

    def _set(self, value: str) -> None:
        for pair in value.split():
            name, _, text = pair.partition("=")
            expanded = re.sub(r"\$(\w+)", lambda match: self.environment.get(match[1], ""), text)
            self.environment[name] = self._below(expanded)

    def _copy(self, value: str) -> None:
        found = re.match(r"--from=(\S+) ", value)
        start = self._built[found[1]] if found else self.context
        *sources, target = value[found.end() if found else 0 :].split()
        for source in sources:
            origin = start / source.lstrip("/")
            place = self._place(target) / origin.name if target.endswith("/") else self._place(target)
            place.parent.mkdir(parents=True, exist_ok=True)
            if origin.is_dir():
                shutil.copytree(origin, place, symlinks=True, ignore=IGNORED)
            else:
                shutil.copy(origin, place)

    def _place(self, target: str) -> Path:
        return self.root / target.lstrip("/") if target.startswith("/") else self.root / "app" / target

    def _shell(self, value: str) -> None:
        commands = [part for part in value.split(" && ") if not LEFT_OUT.match(part.strip())]
        if not commands:
            return
        line = self._below(" && ".join(commands))
        (self.root / "opt").mkdir(exist_ok=True)
        done = self.run(["sh", "-ec", line])
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]

    def _below(self, text: str) -> str:
        return ABSOLUTE.sub(lambda match: f"{self.root}/{match[1]}", text)

    def _variables(self) -> dict[str, str]:
        """Nothing of this process's own environment but the way to packages and certificates."""
        kept = {name: text for name, text in os.environ.items() if re.match(r"PIP_|SSL_|\w*_proxy$", name)}
        return {**kept, "HOME": str(self.folder), **self.environment}
