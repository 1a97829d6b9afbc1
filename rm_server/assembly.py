"""From `--model` to a judge: every member loaded, or taken over from the judge that serves now.

A checkpoint that cannot be used, or members that do not fit together, raise StartError, with one line that
says why, before anything has been served by them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from rm_server.calibration import Calibration, read_stored
from rm_server.checkpoint import Checkpoint, locate, open_checkpoint
from rm_server.config import Config, MemberSource, ModelSource
from rm_server.errors import CheckpointError
from rm_server.judge import Judge, Options
from rm_server.metrics import Metrics
from rm_server.served_model import ServedModel

Build = Callable[[Checkpoint, MemberSource], ServedModel]
"""Makes a model of a checkpoint that passed its checks."""


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
        calibration = _calibration(source, models, version)
        if current is not None and current.version == version and current.calibration == calibration:
            return current
        options = Options(self.config.ensemble, self.config.uncertainty_lambda)
        return Judge(source.name, models, self.metrics, options, calibration)

    def _member(self, member: MemberSource, current: Judge | None) -> ServedModel:
        checkpoint = open_checkpoint(locate(member.source))
        serving = current.members.get(member.name) if current else None
        if serving is not None and serving.card.version == checkpoint.version:
            return serving
        return self.build(checkpoint, member)


def _calibration(source: ModelSource, models: dict[str, ServedModel], version: str) -> Calibration | None:
    if source.calibration is not None:
        return _stored(source, version)
    [*cards] = (model.card for model in models.values())
    return cards[0].calibration if len(cards) == 1 and len(cards[0].labels) == 1 else None


def _stored(source: ModelSource, version: str) -> Calibration:
    path = source.calibration
    assert path is not None
    try:
        stored = json.loads(path.read_bytes())
        calibrated, calibration = read_stored(stored)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a calibration that rm_server.calibrate wrote") from error
    if calibrated != version:
        raise CheckpointError(
            f"{path}: is about version {calibrated}, but {source.name} is version {version}: calibrate again"
        )
    return calibration
