"""The reward server: is it quick enough, and does it judge as when it was calibrated?"""

from deploy.grafana.panels import RATE, Dashboard, Panel, Query, Row, mean, quantile, quantiles, rate

RM = "bonsai_rm_"

DRIFT = Row(
    "What it judges",
    [
        Panel(
            title="Scores",
            description="Deciles 1, 5 and 9 of normalised rewards, by model.",
            queries=[
                Query(quantile(share, RM + "score", "model"), f"p{share * 100:g} {{{{model}}}}")
                for share in (0.1, 0.5, 0.9)
            ],
        ),
        Panel(
            title="Shift of the mean",
            description="Mean of the last 1,000 scores less the calibrated, in standard deviations. Its "
            "standard error is 0.03: beyond 0.5 the traffic or the policy is another.",
            queries=[Query(f"avg by (model) ({RM}score_mean_shift)", "{{model}}")],
        ),
        Panel(
            title="Scores by decile of the calibration",
            description="A tenth each while nothing drifts.",
            queries=[
                Query(
                    f"{rate(RM + 'score_decile_total', 'model, decile')}"
                    f" / ignoring (decile) group_left {rate(RM + 'score_decile_total', 'model')}",
                    "{{model}} {{decile}}",
                )
            ],
            unit="percentunit",
        ),
        Panel(
            title="Out of distribution",
            description="Share of responses outside of the calibrated range; 0.2 % by construction.",
            queries=[
                Query(
                    f"{rate(RM + 'out_of_distribution_total', 'model')}"
                    f" / {rate(RM + 'score_count', 'model')}",
                    "{{model}}",
                )
            ],
            unit="percentunit",
        ),
        Panel(
            title="Ensemble spread",
            description="How far members are apart on a response.",
            queries=[
                Query(quantile(0.5, RM + "spread", "model"), "p50 {{model}}"),
                Query(quantile(0.95, RM + "spread", "model"), "p95 {{model}}"),
            ],
        ),
        Panel(
            title="Rewards that were not finite",
            description="Answered as null; their candidates cannot be chosen.",
            queries=[Query(rate(RM + "not_finite_total", "model"), "{{model}}")],
        ),
    ],
)

SPEED = Row(
    "How quickly",
    [
        Panel(
            title="Requests by status",
            description="429: no room. 499: the client went away.",
            queries=[
                Query(rate(RM + "requests_total", "status", 'route!~"/health.*|/metrics"'), "{{status}}")
            ],
            unit="reqps",
            stacked=True,
        ),
        Panel(
            title="Whole requests to /score",
            description="As this server sees them.",
            queries=quantiles(RM + "request_seconds", where='route="/score"'),
            unit="s",
        ),
        Panel(
            title="Where the time goes",
            description="Means: wait for a batch, text to token ids, first batch to last logit.",
            queries=[
                Query(mean(RM + "queue_seconds"), "queue"),
                Query(mean(RM + "tokenize_seconds"), "tokenize"),
                Query(mean(RM + "infer_seconds"), "infer"),
            ],
            unit="s",
            stacked=True,
        ),
        Panel(
            title="Tokens waiting, requests in flight",
            description="Requests beyond --max-queue-tokens are refused.",
            queries=[
                Query(f"sum({RM}queue_tokens)", "tokens waiting"),
                Query(f"sum({RM}in_flight_requests)", "requests in flight"),
            ],
        ),
        Panel(
            title="Conversations per forward pass",
            description="Few: requests come one by one.",
            queries=[
                Query(mean(RM + "batch_rows"), "mean"),
                Query(quantile(0.95, RM + "batch_rows"), "p95"),
            ],
        ),
        Panel(
            title="Forward passes",
            description="How long they take.",
            queries=quantiles(RM + "batch_seconds"),
            unit="s",
        ),
        Panel(
            title="Tokens",
            description="Of the conversations, and computed for them: what they begin with in common is "
            "computed once.",
            queries=[
                Query(rate(RM + "tokens_total"), "judged"),
                Query(rate(RM + "computed_tokens_total"), "computed"),
            ],
        ),
        Panel(
            title="Prompts computed before",
            description="Share of conversations.",
            queries=[
                Query(
                    f"""{rate(RM + "prompt_cache_total", where='outcome="hit"')}"""
                    f""" / {rate(RM + "prompt_cache_total")}""",
                    "hits",
                )
            ],
            unit="percentunit",
        ),
        Panel(
            title="Refused, and left by clients",
            description="Refused with 429 for want of room.",
            queries=[
                Query(rate(RM + "rejected_total"), "refused"),
                Query(rate(RM + "disconnects_total"), "left"),
            ],
            unit="reqps",
        ),
    ],
)

MODELS = Row(
    "Models",
    [
        Panel(
            title="Versions",
            description="Servers by model and version.",
            queries=[Query(f"count by (model, version) ({RM}model_info)", "{{model}} {{version}}")],
        ),
        Panel(
            title="Reloads",
            description="Of the time that is shown. Refused: the old version goes on; the log says why.",
            queries=[
                Query(
                    f"sum by (model, outcome) (increase({RM}reloads_total[$__range]))",
                    "{{model}} {{outcome}}",
                )
            ],
        ),
        Panel(
            title="Responses judged",
            description="By model.",
            queries=[Query(f"sum by (model) (rate({RM}score_count[{RATE}]))", "{{model}}")],
        ),
    ],
)

DASHBOARD = Dashboard(
    uid="bonsai-reward-model",
    title="Bonsai: reward model and drift",
    description="Does it judge as when it was calibrated, and quickly enough?",
    rows=[DRIFT, SPEED, MODELS],
)
