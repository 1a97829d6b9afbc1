"""Which plots a report shows."""

import math
from collections.abc import Callable, Sequence

from loadtests.figures import percentile
from loadtests.measures import values
from loadtests.open_loop import Sample
from loadtests.page import Picture
from loadtests.plots import Point, Series
from loadtests.quality import answered, qualities
from loadtests.stages import Stage, name_of

SHARES = [k / 200 for k in range(1, 200)] + [0.999]


def pictures(stages: Sequence[Stage]) -> list[Picture]:
    """Those that have something to show."""
    candidates = [
        over_time(stages),
        distribution(stages, "Latency: what share of the requests stays under it", _latencies),
        distribution(stages, "First content: what share of the streams stays under it", _firsts),
        distribution(stages, "Between chunks: what share of the gaps stays under it", _gaps),
        by_rate(stages, "latency_p50_ms", "latency_p99_ms"),
        rewards(stages),
        distribution(stages, "The generator's own lag behind its schedule", _lags),
    ]
    return [picture for picture in candidates if any(one.points for one in picture.series)]


def over_time(stages: Sequence[Stage]) -> Picture:
    """Every request that was answered, and when the others failed."""
    series, failed = [], list[Point]()
    for stage in stages:
        begin = stage.samples[0].scheduled_at if stage.samples else 0.0
        good = [s for _, s in answered(stage.samples)]
        points = [(s.scheduled_at - begin, s.latency_s * 1000) for s in good]
        series.append(Series(name_of(stage, stages), points, dots=True))
        lost = [s for s in stage.samples if s.answer.error is not None]
        failed += [(s.scheduled_at - begin, max(s.latency_s * 1000, 0.01)) for s in lost]
    if failed:
        series.append(Series("failed", failed, dots=True))
    return Picture(
        "Latency of every request, by when it was due", "seconds into the run", "ms", series, log=True
    )


def distribution(
    stages: Sequence[Stage], title: str, of: Callable[[Sequence[Sample]], list[float]]
) -> Picture:
    """Percentiles of some milliseconds."""
    series = [
        Series(name_of(stage, stages), percentiles(of([s for _, s in answered(stage.samples)])))
        for stage in stages
    ]
    return Picture(title, "share of all, %", "ms", series, log=True)


def percentiles(found: Sequence[float]) -> list[Point]:
    """(share in %, the value that it stays within)."""
    ordered = sorted(found)
    return [(share * 100, percentile(ordered, share)) for share in SHARES] if ordered else []


def by_rate(stages: Sequence[Stage], *keys: str) -> Picture:
    """Latency over load, where there were several loads."""
    found = [(stage, values(stage)) for stage in stages]
    labels = sorted({stage.label for stage in stages})
    series = [
        Series(
            " ".join([key.split("_")[1], label]).strip(),
            [(stage.rate, row[key]) for stage, row in found if stage.label == label],
        )
        for label in labels
        for key in keys
    ]
    several = len({stage.rate for stage in stages}) > 1
    return Picture("Latency by load", "requests a second", "ms", series if several else [], log=True)


def rewards(stages: Sequence[Stage]) -> Picture:
    """What choosing is worth: rewards by best_of, where there were several."""
    series = []
    for stage in stages:
        rows, name = qualities(stage), name_of(stage, stages)
        kinds = {
            f"returned, {name}": [(float(row.best_of), row.reward) for row in rows],
            f"candidates, {name}": [(float(row.best_of), row.candidates_reward) for row in rows],
            f"by the judge, {name}": [(float(row.best_of), row.judged_reward) for row in rows],
        }
        series += [Series(kind, known) for kind, points in kinds.items() if len(known := _known(points)) > 1]
    return Picture("Reward of the answers", "best_of", "reward", series)


def _known(points: Sequence[Point]) -> list[Point]:
    return [(x, y) for x, y in points if not math.isnan(y)]


def _latencies(samples: Sequence[Sample]) -> list[float]:
    return [sample.latency_s * 1000 for sample in samples]


def _firsts(samples: Sequence[Sample]) -> list[float]:
    return [(s.answer.first_at - s.scheduled_at) * 1000 for s in samples if s.answer.first_at is not None]


def _gaps(samples: Sequence[Sample]) -> list[float]:
    return [gap * 1000 for sample in samples for gap in sample.answer.gaps_s]


def _lags(samples: Sequence[Sample]) -> list[float]:
    return [sample.lag_s * 1000 for sample in samples]
