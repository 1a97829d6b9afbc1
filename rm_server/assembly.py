"""From `--model` to a judge: every member loaded, or taken over from the judge that serves now.

A checkpoint that cannot be used, or members that do not fit together, raise StartError, with one line that
says why, before anything has been served by them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rm_server.calibration import Calibration, Stored, read_stored
from rm_server.checkpoint import Checkpoint, locate, open_checkpoint
from rm_server.config import Config, MemberSource, ModelSource
from rm_server.errors import CheckpointError
from rm_server.judge import Judge, Options
from rm_server.loading import build_model
from rm_server.metrics import Metrics
from rm_server.served_model import ServedModel
from rm_server.threads import Threads
from rm_server.vllm_loading import connect

Build = Callable[[Checkpoint, MemberSource], ServedModel]
"""Makes a model of a checkpoint that passed its checks."""


def builder(config: Config, metrics: Metrics, threads: Threads) -> Build:
    """Loads a checkpoint into this process, or connects with the vLLM that has it."""

    def build(checkpoint: Checkpoint, member: MemberSource) -> ServedModel:
        make = connect if member.vllm_url else build_model
        return make(checkpoint, member, config, metrics, threads)

    return build


@dataclass(frozen=True)
class Assembly:
    """What judges are made with."""

    build: Build
    config: Config
    metrics: Metrics

    def judge(self, source: ModelSource, current: Judge | None = None) -> Judge:
        """The judge of what lies there now; `current` itself where nothing has changed. Raises StartError."""
        models = {member.name: self._member(member, current) for member in source.members}
        labels = {tuple(model.card.labels) for model in models.values()}
        if len(labels) > 1:
            raise CheckpointError(f"{source.name}: its members have different labels")
        version = "+".join(model.card.version for model in models.values())
        calibration = self._calibration(source, models, version)
        if current is not None and current.version == version and current.calibration == calibration:
            return current
        options = Options(self.config.ensemble, self.config.uncertainty_lambda)
        return Judge(source.name, models, self.metrics, options, calibration)

    def _member(self, member: MemberSource, current: Judge | None) -> ServedModel:
        checkpoint = open_checkpoint(locate(member.source))
        serving = current.members.get(member.name) if current else None
        if serving is not None and serving.card.version == checkpoint.version:
            return serving
        if serving is not None and member.vllm_url:
            raise CheckpointError(
                f"{checkpoint.folder}: holds another version than the vLLM that computes it was asked with: "
                "restart both"
            )
        return self.build(checkpoint, member)

    def _calibration(
        self, source: ModelSource, models: Mapping[str, ServedModel], version: str
    ) -> Calibration | None:
        if source.calibration is None:
            [card, *others] = (model.card for model in models.values())
            return card.calibration if not others and len(card.labels) == 1 else None
        stored = _read(source.calibration)
        found = f"version {stored.version}, lambda {stored.uncertainty_lambda:g}"
        wanted = f"version {version}, lambda {self.config.uncertainty_lambda:g}"
        if found != wanted:
            raise CheckpointError(
                f"{source.calibration}: is about {found}, but {source.name} is {wanted}: calibrate again"
            )
        return stored.calibration


def _read(path: Path) -> Stored:
    try:
        return read_stored(json.loads(path.read_bytes()))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a calibration that rm_server.calibrate wrote") from error
