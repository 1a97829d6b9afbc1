"""Whether scores still come as they did when the judge was calibrated: metrics over the latest scores."""

from __future__ import annotations

from collections import deque

from rm_server.calibration import Distribution
from rm_server.metrics import Metrics

WINDOW = 1000
"""Scores over which the shift of the mean is taken: its standard error is then 0.03."""
DECILES = 10


class Drift:
    """Counts a judge's scores by decile of its calibration, and how far their mean has moved."""

    def __init__(self, name: str, calibration: Distribution, metrics: Metrics) -> None:
        self._calibration = calibration
        self._window: deque[float] = deque(maxlen=WINDOW)
        self._sum = 0.0
        self._deciles = [metrics.score_decile.labels(name, str(k + 1)) for k in range(DECILES)]
        self._shift = metrics.score_mean_shift.labels(name)

    def note(self, score: float) -> None:
        """One more score."""
        decile = min(int(DECILES * self._calibration.level(score)), DECILES - 1)
        self._deciles[decile].inc()
        if len(self._window) == WINDOW:
            self._sum -= self._window[0]
        self._window.append(score)
        self._sum += score
        shift = self._sum / len(self._window) - self._calibration.mean
        self._shift.set(shift / (self._calibration.std or 1.0))
