"""Every alert fires when it should, after its time and not before, and is quiet when all is well: promtool's
own unit tests, made of the table below. The rules and the configuration are valid, and the runbook knows each
alert."""

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.prometheus import program

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
RULES = [PROMETHEUS / "rules" / name for name in ("objectives.yaml", "alerts.yaml")]
GATEWAY, RM = "bonsai_gateway_", "bonsai_rm_"
CHAT = GATEWAY + 'requests_total{route="/v1/chat/completions", code="%s"}'
FIRST_BYTE = GATEWAY + "first_byte_seconds_%s"
SELF = GATEWAY + "self_seconds_%s"
LAG = GATEWAY + 'event_loop_lag_seconds_bucket{instance="a", le="%s"}'
CALLS = GATEWAY + 'upstream_requests_total{kind="policy", replica="r", outcome="%s"}'
SCORE = RM + 'request_seconds_bucket{instance="a", route="/score", le="%s"}'

Series = Mapping[str, str]
"""Series -> values, one a minute, in promtool's notation: `0+60x90` rises by one a second for 90 minutes."""


@dataclass(frozen=True)
class Case:
    """What an alert is quiet about, and what makes it fire, with the labels that it then has."""

    well: Series
    ill: Series
    labels: Mapping[str, str] = field(default_factory=dict)


CASES = {
    "BonsaiGatewayDown": Case(
        {'up{job="gateway", instance="a"}': "1x90"},
        {'up{job="gateway", instance="a"}': "0x90"},
        {"job": "gateway", "instance": "a"},
    ),
    "BonsaiErrorBudgetBurnsFast": Case(
        {CHAT % 200: "0+999x90", CHAT % 500: "0+1x90", CHAT % 499: "0+900x90"},
        {CHAT % 200: "0+900x90", CHAT % 500: "0+50x90", CHAT % "stream_error": "0+50x90"},
    ),
    "BonsaiErrorBudgetBurns": Case(
        {CHAT % 200: "0+980x90", CHAT % 500: "0+20x90"},
        {CHAT % 200: "0+960x90", CHAT % 500: "0+40x90"},
    ),
    "BonsaiFirstTokenSlow": Case(
        {
            FIRST_BYTE % 'bucket{mode="pass_through", le="2.5"}': "0+96x90",
            FIRST_BYTE % 'count{mode="pass_through"}': "0+100x90",
            FIRST_BYTE % 'count{mode="best_of_n"}': "0+900x90",
        },
        {
            FIRST_BYTE % 'bucket{mode="pass_through", le="2.5"}': "0+94x90",
            FIRST_BYTE % 'count{mode="pass_through"}': "0+100x90",
        },
    ),
    "BonsaiGatewaySlow": Case(
        {
            SELF % 'bucket{mode="pass_through", le="0.01"}': "0+995x90",
            SELF % 'count{mode="pass_through"}': "0+1000x90",
        },
        {
            SELF % 'bucket{mode="pass_through", le="0.01"}': "0+985x90",
            SELF % 'count{mode="pass_through"}': "0+1000x90",
        },
    ),
    "BonsaiEventLoopLag": Case(
        {LAG % "0.1": "0+995x90", LAG % "0.25": "0+1000x90", LAG % "+Inf": "0+1000x90"},
        {LAG % "0.1": "0+985x90", LAG % "0.25": "0+1000x90", LAG % "+Inf": "0+1000x90"},
        {"instance": "a"},
    ),
    "BonsaiSaturated": Case(
        {
            GATEWAY + 'rejected_total{reason="queue_full"}': "0+5x90",
            GATEWAY + 'rejected_total{reason="key_rate"}': "0+600x90",
        },
        {GATEWAY + 'rejected_total{reason="queue_full"}': "0+12x90"},
        {"reason": "queue_full"},
    ),
    "BonsaiSlotsNearlyTaken": Case(
        {
            GATEWAY + 'candidate_slots_in_use{instance="a"}': "460x90",
            GATEWAY + 'candidate_slots{instance="a"}': "512x90",
        },
        {
            GATEWAY + 'candidate_slots_in_use{instance="a"}': "462x90",
            GATEWAY + 'candidate_slots{instance="a"}': "512x90",
        },
        {"instance": "a"},
    ),
    "BonsaiLogLinesDropped": Case(
        {GATEWAY + 'log_lines_dropped_total{instance="a"}': "7x90"},
        {GATEWAY + 'log_lines_dropped_total{instance="a"}': "7+1x90"},
        {"instance": "a"},
    ),
    "BonsaiReloadRefused": Case(
        {GATEWAY + 'reloads_total{instance="a", result="done"}': "0+1x90"},
        {GATEWAY + 'reloads_total{instance="a", result="refused"}': "0x80 1x20"},
        {"instance": "a", "result": "refused"},
    ),
    "BonsaiPolicyDown": Case(
        {'up{job="vllm", instance="a"}': "1x90"},
        {'up{job="vllm", instance="a"}': "0x90"},
        {"job": "vllm", "instance": "a"},
    ),
    "BonsaiReplicaEjected": Case(
        {GATEWAY + 'replica_ejected{instance="a", kind="policy", replica="r"}': "0x90"},
        {GATEWAY + 'replica_ejected{instance="a", kind="policy", replica="r"}': "1x90"},
        {"instance": "a", "kind": "policy", "replica": "r"},
    ),
    "BonsaiReplicaFails": Case(
        {CALLS % "ok": "0+96x90", CALLS % "broken": "0+4x90", CALLS % "refused": "0+50x90"},
        {CALLS % "ok": "0+94x90", CALLS % "broken": "0+3x90", CALLS % "timeout": "0+3x90"},
        {"kind": "policy", "replica": "r"},
    ),
    "BonsaiRewardCallsFail": Case(
        {GATEWAY + "reward_errors_total": "0+4x90", GATEWAY + "reward_batch_size_count": "0+100x90"},
        {GATEWAY + "reward_errors_total": "0+6x90", GATEWAY + "reward_batch_size_count": "0+100x90"},
    ),
    "BonsaiDegraded": Case(
        {GATEWAY + 'degraded_total{reason="greedy"}': "0+50x90", GATEWAY + "kl_bound_nats_count": "0+100x90"},
        {
            GATEWAY + 'degraded_total{reason="deadline"}': "0+2x90",
            GATEWAY + "kl_bound_nats_count": "0+100x90",
        },
    ),
    "BonsaiCandidatesLost": Case(
        {
            GATEWAY + 'candidates_total{status="scored"}': "0+91x90",
            GATEWAY + 'candidates_total{status="too_long"}': "0+9x90",
        },
        {
            GATEWAY + 'candidates_total{status="scored"}': "0+89x90",
            GATEWAY + 'candidates_total{status="unfinished"}': "0+11x90",
        },
    ),
    "BonsaiChosenOutOfDistribution": Case(
        {
            GATEWAY + 'judged_total{of="chosen", distribution="in"}': "0+91x90",
            GATEWAY + 'judged_total{of="chosen", distribution="out"}': "0+9x90",
            GATEWAY + 'judged_total{of="scored", distribution="out"}': "0+900x90",
        },
        {
            GATEWAY + 'judged_total{of="chosen", distribution="in"}': "0+89x90",
            GATEWAY + 'judged_total{of="chosen", distribution="out"}': "0+11x90",
        },
    ),
    "BonsaiChoiceGainsNothing": Case(
        {
            GATEWAY + "reward_gain_sum": "0+1x90",
            GATEWAY + "reward_gain_count": "0+100x90",
            GATEWAY + 'tokens_total{kind="sampled"}': "0+100x90",
            GATEWAY + 'tokens_total{kind="selected"}': "0+100x90",
        },
        {
            GATEWAY + "reward_gain_sum": "0+1x90",
            GATEWAY + "reward_gain_count": "0+100x90",
            GATEWAY + 'tokens_total{kind="sampled"}': "0+400x90",
            GATEWAY + 'tokens_total{kind="selected"}': "0+100x90",
        },
    ),
    "BonsaiRewardServerDown": Case(
        {'up{job="rm_server", instance="a"}': "1x90"},
        {'up{job="rm_server", instance="a"}': "0x90"},
        {"job": "rm_server", "instance": "a"},
    ),
    "BonsaiRewardServerRefuses": Case(
        {RM + 'rejected_total{instance="a"}': "0+5x90"},
        {RM + 'rejected_total{instance="a"}': "0+12x90"},
        {"instance": "a"},
    ),
    "BonsaiRewardSlow": Case(
        {SCORE % "2.5": "0+96x90", SCORE % "5": "0+100x90", SCORE % "+Inf": "0+100x90"},
        {SCORE % "2.5": "0+94x90", SCORE % "5": "0+100x90", SCORE % "+Inf": "0+100x90"},
        {"instance": "a"},
    ),
    "BonsaiRewardNotFinite": Case(
        {RM + 'not_finite_total{instance="a", model="m"}': "3x90"},
        {RM + 'not_finite_total{instance="a", model="m"}': "0x85 1x20"},
        {"instance": "a", "model": "m"},
    ),
    "BonsaiRewardDrift": Case(
        {RM + 'score_mean_shift{model="m"}': "-0.4x90"},
        {RM + 'score_mean_shift{model="m"}': "-0.6x90"},
        {"model": "m"},
    ),
    "BonsaiRewardReloadRefused": Case(
        {RM + 'reloads_total{instance="a", model="m", outcome="swapped"}': "0+1x90"},
        {RM + 'reloads_total{instance="a", model="m", outcome="refused"}': "0x80 1x20"},
        {"instance": "a", "model": "m", "outcome": "refused"},
    ),
}
LATE = 88
"""Minutes; every alert of something that is ill since the start fires then."""


def rules() -> dict[str, dict[str, Any]]:
    """The alerts, by name."""
    tree = yaml.safe_load(RULES[1].read_text())
    return {rule["alert"]: rule for group in tree["groups"] for rule in group["rules"]}


def test_every_alert_has_its_case() -> None:
    assert set(CASES) == set(rules())


def promtool_test(name: str) -> dict[str, Any]:
    """Quiet when well; when ill quiet until its time has passed, then firing."""
    rule, case = rules()[name], CASES[name]
    firing = {
        "exp_labels": {**rule["labels"], **case.labels},
        "exp_annotations": rule["annotations"],
    }
    wait = int(rule.get("for", "0m").removesuffix("m"))
    checks = [{"eval_time": f"{LATE}m", "alertname": name, "exp_alerts": [firing]}]
    if wait:
        checks.append({"eval_time": f"{wait - 1}m", "alertname": name, "exp_alerts": []})
    quiet = [{"eval_time": f"{LATE}m", "alertname": name, "exp_alerts": []}]
    return {
        "rule_files": [str(path) for path in RULES],
        "evaluation_interval": "1m",
        "tests": [
            {"interval": "1m", "input_series": _series(case.well), "alert_rule_test": quiet},
            {"interval": "1m", "input_series": _series(case.ill), "alert_rule_test": checks},
        ],
    }


def _series(series: Series) -> list[dict[str, str]]:
    return [{"series": name, "values": values} for name, values in series.items()]


@pytest.mark.parametrize("name", CASES)
def test_an_alert_fires_when_it_should_and_not_before(name: str, tmp_path: Path) -> None:
    file = tmp_path / "test.yaml"
    file.write_text(yaml.safe_dump(promtool_test(name)))
    promtool("test", "rules", str(file))


def test_configuration_and_rules_are_valid() -> None:
    said = promtool("check", "config", str(PROMETHEUS / "prometheus.yml"))
    assert "2 rule files found" in said


def promtool(*words: str) -> str:
    """What it says; a failure of its is ours."""
    done = subprocess.run([program("promtool"), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_runbook_has_a_section_for_each_alert_and_no_other() -> None:
    text = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
    sections = re.findall(r"^### (\w+)\n\n(\S.*)", text, re.MULTILINE)
    assert [name for name, _ in sections] == list(rules())
    for name, rule in rules().items():
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{name.lower()}"
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
