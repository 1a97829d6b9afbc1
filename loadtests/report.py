"""A run's report: the same facts as report.html for eyes, report.md for reviews, report.json for programs."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from loadtests.figures import percentile
from loadtests.measures import MEASURES, failures, values
from loadtests.noise import MAX_LAG_S
from loadtests.open_loop import NOT_SENT, lag
from loadtests.page import Line, Picture, render, standalone
from loadtests.pictures import pictures
from loadtests.quality import qualities
from loadtests.scenarios import Load
from loadtests.stages import FIRST, Stage, name_of
from loadtests.tables import Table, number, with_interval
from loadtests.thresholds import Threshold


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What stands around the figures of the stages: the name of the run, and what it has measured besides."""

    title: str
    command: str
    lines: Sequence[Line] = ()
    tables: Sequence[Table] = ()
    pictures: Mapping[str, Picture] = field(default_factory=dict)
    """Also files of their own, NAME.svg, that report.md shows."""
    facts: Mapping[str, Any] = field(default_factory=dict)


def frame_of(load: Load) -> Frame:
    """Of a plain scenario."""
    return Frame(title=f"Load test: {load.scenario}", command=load.command())


def write(
    load: Load,
    stages: Sequence[Stage],
    limits: Sequence[Threshold],
    folder: Path,
    *,
    interrupted: bool,
    frame: Frame | None = None,
) -> list[Path]:
    """The three files; where they are."""
    frame = frame or frame_of(load)
    lines = [*head(load, stages, limits, interrupted=interrupted), *frame.lines]
    tables = [*frame.tables, *all_tables(stages, limits)]
    shown = {picture.title: picture for picture in [*frame.pictures.values(), *pictures(stages)]}
    content = facts(load, stages, limits, interrupted=interrupted) | {"command": frame.command, **frame.facts}
    texts = {
        "report.html": render(frame.title, lines, frame.command, tables, list(shown.values())),
        "report.md": markdown(frame, lines, tables),
        "report.json": json.dumps(content, indent=1) + "\n",
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in frame.pictures.items():
        (folder / f"{name}.svg").write_text(standalone(picture), encoding="utf-8")
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in texts]


def head(
    load: Load, stages: Sequence[Stage], limits: Sequence[Threshold], *, interrupted: bool
) -> list[Line]:
    """What has to be known before any figure is read."""
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    servers = {stage.url: stage for stage in stages}
    lines = [Line(f"{now}. " + "; ".join(f"{url}, model {stage.model}" for url, stage in servers.items()))]
    if interrupted:
        done = sum(len(stage.samples) for stage in stages)
        lines.append(Line(f"Interrupted: {done} of {planned(load)} requests were started.", bad=True))
    missed = [row for row in verdicts(stages, limits) if not row["met"]]
    if limits:
        text = f"{len(missed)} thresholds missed." if missed else "Every threshold was kept."
        lines.append(Line(text, bad=bool(missed)))
    lines.append(lag_line(stages))
    unsent = sum(failures(stage)[NOT_SENT] for stage in stages)
    if unsent:
        lines.append(Line(f"{unsent} requests were not sent: {load.max_in_flight} were in flight.", bad=True))
    if any(stage.noisy for stage in stages):
        lines.append(Line("Noisy: the generator was late, or the machine had other work.", bad=True))
    return lines


def lag_line(stages: Sequence[Stage]) -> Line:
    """Whether the generator kept its schedule: else the run says little."""
    samples = [sample for stage in stages for sample in stage.samples]
    if not samples:
        return Line("No request was started.", bad=True)
    p50, p99 = (lag(samples, share) for share in (0.5, 0.99))
    late = p99 > MAX_LAG_S
    said = f"behind its schedule (goal: p99 {MAX_LAG_S * 1000:g} ms)"
    return Line(f"The generator was p50 {p50 * 1000:.2f} ms, p99 {p99 * 1000:.2f} ms {said}.", bad=late)


def planned(load: Load) -> int:
    """Requests of all stages."""
    servers = 2 if load.compare else 1
    return servers * sum(len(load.instants(rate)) for rate in load.rate)


def verdicts(stages: Sequence[Stage], limits: Sequence[Threshold]) -> list[dict[str, Any]]:
    """Every threshold at every rate of the first server."""
    return [
        {
            "rate": stage.rate,
            "measure": limit.key,
            "target": limit.target,
            "value": _json(values(stage)[limit.key]),
            "met": limit.met(values(stage)[limit.key]),
        }
        for stage in stages
        if stage.label == FIRST
        for limit in limits
    ]


def all_tables(stages: Sequence[Stage], limits: Sequence[Threshold]) -> list[Table]:
    """Those that have rows."""
    tables = [
        figures_table(stages),
        quality_table(stages),
        failures_table(stages),
        Table(
            "Thresholds",
            ("measure", "rate", "value", "target", "met"),
            [
                (
                    row["measure"],
                    f"{row['rate']:g}/s",
                    "not measured" if row["value"] is None else number(row["value"]),
                    row["target"],
                    "yes" if row["met"] else "NO",
                )
                for row in verdicts(stages, limits)
            ],
        ),
    ]
    return [table for table in tables if table.rows]


def figures_table(stages: Sequence[Stage]) -> Table:
    """A row for each measure, a column for each stage."""
    found = [values(stage) for stage in stages]
    rows = [
        (measure.figure, *(number(column[measure.key], measure.unit) for column in found))
        for measure in MEASURES
        if any(not math.isnan(column[measure.key]) for column in found)
    ]
    return Table("Figures", ("", *(name_of(stage, stages) for stage in stages)), rows)


def quality_table(stages: Sequence[Stage]) -> Table:
    """What the answers were worth."""
    head = ("", "best_of", "method", "answers", "reward", "candidates' mean", "reward by the judge")
    rows = [
        (
            name_of(stage, stages),
            str(row.best_of),
            row.method,
            str(row.answers),
            with_interval(row.reward, row.reward_ci95),
            with_interval(row.candidates_reward, math.nan),
            with_interval(row.judged_reward, row.judged_reward_ci95),
            number(row.latency_p50_ms),
            number(row.latency_p99_ms),
            number(row.tokens_returned),
            number(row.tokens_sampled),
            str(row.degraded),
        )
        for stage in stages
        for row in qualities(stage)
    ]
    title = "Quality (± half of the 95 % interval)"
    columns = (*head, "p50, ms", "p99, ms", "tokens returned", "sampled", "degraded")
    return Table(title, columns, rows).without_empty_columns()


def failures_table(stages: Sequence[Stage]) -> Table:
    """What went wrong, and how often."""
    rows = [
        (name_of(stage, stages), error, str(count))
        for stage in stages
        for error, count in sorted(failures(stage).items())
    ]
    return Table("Failures", ("", "what", "requests"), rows)


def markdown(frame: Frame, lines: Sequence[Line], tables: Sequence[Table]) -> str:
    """report.md."""
    said = [f"**{line.text}**" if line.bad else line.text for line in lines]
    shown = [f"![{picture.title}]({name}.svg)" for name, picture in frame.pictures.items()]
    parts = [
        f"# {frame.title}",
        *said,
        f"    {frame.command}",
        *shown,
        *(table.markdown() for table in tables),
    ]
    return "\n\n".join(parts) + "\n"


def facts(
    load: Load, stages: Sequence[Stage], limits: Sequence[Threshold], *, interrupted: bool
) -> dict[str, Any]:
    """report.json. What was not measured is null."""
    return {
        "scenario": load.scenario,
        "interrupted": interrupted,
        "planned_requests": planned(load),
        "thresholds": verdicts(stages, limits),
        "stages": [
            {
                "server": stage.label,
                "url": stage.url,
                "model": stage.model,
                "rate": stage.rate,
                "noisy": stage.noisy,
                "figures": {key: _json(value) for key, value in values(stage).items()},
                "failures": dict(failures(stage)),
                "quality": [
                    {key: _json(value) for key, value in asdict(row).items()} for row in qualities(stage)
                ],
                "by_second": by_second(stage),
            }
            for stage in stages
        ],
    }


def by_second(stage: Stage) -> list[dict[str, Any]]:
    """The run second by second, by when requests were due."""
    rows: dict[int, list[Any]] = {}
    for sample in stage.samples:
        rows.setdefault(int(sample.scheduled_at - stage.samples[0].scheduled_at), []).append(sample)
    return [
        {
            "second": second,
            "requests": len(samples),
            "failed": sum(sample.answer.error is not None for sample in samples),
            "latency_p50_ms": _json(percentile(good, 0.5)),
            "latency_max_ms": _json(percentile(good, 1.0)),
        }
        for second, samples in sorted(rows.items())
        for good in [
            [s.latency_s * 1000 for s in samples if s.answer.error is None and not s.answer.cancelled]
        ]
    ]


def _json(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
