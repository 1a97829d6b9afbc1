"""run.html: a run on one page, which a browser opens from the disk.

Curves of every metric, sample answers, the command, the settings, data and versions. One file without
scripts or anything from elsewhere; what comes from data is escaped, and the page's policy forbids what would
slip through. Written anew, whole or not at all, with every checkpoint and at the end.
"""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from jinja2 import Environment

from trainers import charts, folder, plots
from trainers.config import RunConfig
from trainers.files import write_whole

FILE = "run.html"
PANELS = {
    "reward": ("reward", "objective", "chosen_reward"),
    "loss": ("loss",),
    "KL to the reference, nats per sequence": ("kl_nats_per_sequence",),
    "KL coefficient": ("kl_coef",),
    "entropy, nats per token": ("entropy_nats_per_token",),
    "answer length, tokens": ("response_length",),
    "shares": ("eos_share", "clip_fraction", "value_clip_fraction", "explained_variance", "zero_std_share"),
    "parts of the loss": ("policy_loss", "value_loss", "ptx_loss", "nll_loss"),
    "rewards of pairs": ("rewards/chosen", "rewards/rejected", "rewards/margins"),
    "pairs in the right order": ("rewards/accuracies", "accuracy"),
    "log-probabilities of answers, nats": ("logps/chosen", "logps/rejected"),
    "learning rate": ("learning_rate",),
}
"""Curves that belong into one chart; what is not named here gets a chart of its own."""
NO_CURVES = ("step", "epoch", "tokens", "seconds")
FIRST_SAMPLES, LAST_SAMPLES = 3, 9
"""Answers that are shown: of the beginning, and of the end."""


def write_page(output: Path, config: RunConfig, made: Mapping[str, Any], state: str) -> None:
    """Writes the page of the run in an output folder; `made` is what alignment.json would say of it now."""
    samples = plots.read_metrics(output / folder.SAMPLES)
    metrics = plots.read_metrics(output / folder.METRICS)
    content = TEMPLATE.render(
        title=f"{made['algorithm']}: {output.name}",
        state=state,
        command=command_of(made["algorithm"], config),
        charts=[(title, charts.line_chart(curves)) for title, curves in panels(metrics)],
        samples=[_shown(sample) for sample in chosen_samples(samples)],
        num_samples=len(samples),
        settings=made["config"],
        origin=_origin(made),
        versions=made["versions"],
    )
    write_whole(output / FILE, [content])


def command_of(algorithm: str, config: RunConfig) -> str:
    """A command line that makes this run: the settings that are not the defaults."""
    words = ["python", "-m", "trainers", algorithm]
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name == "resume_from_checkpoint" or value is None or value == field.default:
            continue
        is_switch = isinstance(value, bool)
        values = [str(item) for item in value] if isinstance(value, tuple | list) else [str(value)]
        words += [f"--{field.name}", *(["true" if value else "false"] if is_switch else values)]
    return shlex.join(words)


def panels(lines: Sequence[Mapping[str, Any]]) -> list[tuple[str, dict[str, charts.Points]]]:
    """The charts: their titles, and the curves in them, of which each has a point that is finite."""
    names = list(dict.fromkeys(name.removeprefix("eval_") for line in lines for name in line))
    grouped = {name for group in PANELS.values() for name in group}
    alone = {name: (name,) for name in names if name not in grouped and name not in NO_CURVES}
    found: list[tuple[str, dict[str, charts.Points]]] = []
    for title, group in (PANELS | alone).items():
        both = {
            n: label for name in group for n, label in ((name, name), (f"eval_{name}", f"{name}, held-out"))
        }
        curves: dict[str, charts.Points] = {label: _points(lines, name) for name, label in both.items()}
        if drawn := {label: points for label, points in curves.items() if points}:
            found.append((title, drawn))
    return found


def chosen_samples(samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Some of the first answers and some of the last, the last ones first."""
    last = samples[-LAST_SAMPLES:]
    first = samples[: len(samples) - len(last)][:FIRST_SAMPLES]
    return [*reversed(last), *reversed(first)]


def _points(lines: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    return [(line["step"], line[name]) for line in lines if name in line and math.isfinite(line[name])]


def _shown(sample: Mapping[str, Any]) -> dict[str, str]:
    prompt = sample["prompt"]
    if not isinstance(prompt, str):
        prompt = "\n".join(f"{message['role']}: {message['content']}" for message in prompt)
    numbers = {name: charts.number(sample[name]) for name in ("reward", "kl_nats") if name in sample}
    texts = {"prompt": prompt, "response": sample["response"], "finish_reason": sample["finish_reason"]}
    kind = "held-out" if sample.get("held_out") else "training"
    return {"step": str(sample["step"]), "kind": kind} | texts | numbers


def _origin(made: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What the run was made from: kind, name, SHA-256 or version."""
    parent, judge = made["parent"], made.get("reward_model")
    rows = [("model", parent["path"], parent["sha256"])] if parent else []
    if judge:
        rows.append(
            ("reward model", judge.get("path") or judge["url"], judge.get("sha256") or judge["version"])
        )
    return rows + [("data", source["path"], source["sha256"] or "") for source in made["data"]]


TEMPLATE = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1440px; margin: 2em auto; padding: 0 1em }
pre, td { white-space: pre-wrap; overflow-wrap: anywhere }
pre { background: #8881; padding: .8em }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(420px, 1fr)); gap: 1.2em }
h3 { margin: 0; font-size: 1em }
svg { width: 100% } svg text { font-size: 11px; fill: currentColor; opacity: .75 }
polyline { fill: none; stroke-width: 1.6 } .grid { stroke: #8884 }
.legend { margin: 0; font-size: .85em } .legend span { margin-right: 1em; white-space: nowrap }
.legend i { display: inline-block; width: .8em; height: .8em; margin-right: .3em }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .3em .6em; border-bottom: 1px solid #8883 }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p>{{ state }}</p>
<pre>{{ command }}</pre>
{% if charts %}
<h2>Curves</h2>
<div class="charts">
{% for title, chart in charts %}
<section><h3>{{ title }}</h3>{{ chart }}</section>
{% endfor %}
</div>
{% endif %}
{% if samples %}
<h2>Answers</h2>
<p>{{ samples | length }} of {{ num_samples }}; all are in samples.jsonl.</p>
<table>
<tr><th>step<th>prompts<th>prompt<th>answer<th>ended by<th>reward<th>KL, nats</tr>
{% for it in samples %}
<tr><td>{{ it.step }}<td>{{ it.kind }}<td>{{ it.prompt }}<td>{{ it.response }}
<td>{{ it.finish_reason }}<td>{{ it.reward }}<td>{{ it.kl_nats }}</tr>
{% endfor %}
</table>
{% endif %}
<h2>Made from</h2>
<table>
{% for kind, name, identity in origin %}
<tr><td>{{ kind }}<td>{{ name }}<td>{{ identity }}</tr>
{% endfor %}
{% for name, version in versions.items() %}
<tr><td>version<td>{{ name }}<td>{{ version }}</tr>
{% endfor %}
</table>
<details><summary>All settings</summary>
<table>
{% for name, value in settings.items() %}
<tr><td>{{ name }}<td>{{ value }}</tr>
{% endfor %}
</table>
</details>
</body>
</html>
"""
)
