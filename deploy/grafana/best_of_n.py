"""What choosing gains, what it costs, and whether its rewards can be believed."""

from deploy.grafana.panels import Dashboard, Panel, Query, Row, mean, quantile, quantiles, rate

GATEWAY = "bonsai_gateway_"

GAIN = Row(
    "What it gains",
    [
        Panel(
            title="Reward: chosen, mean, worst",
            description="Medians over prompts, in standard deviations of the policy's reward.",
            queries=[Query(quantile(0.5, GATEWAY + "reward", "of"), "{{of}}")],
        ),
        Panel(
            title="Gain",
            description="Reward of the chosen less the mean of its candidates: the mean over prompts.",
            queries=[Query(mean(GATEWAY + "reward_gain"), "gain")],
        ),
        Panel(
            title="Win margin",
            description="Reward of the best candidate less the second best's. Near 0: the choice hardly "
            "matters.",
            queries=[
                Query(quantile(0.5, GATEWAY + "win_margin"), "p50"),
                Query(mean(GATEWAY + "win_margin"), "mean"),
            ],
        ),
        Panel(
            title="KL bound spent",
            description="log N - (N-1)/N nats of the candidates that were scored: how far answers may be "
            "from the policy.",
            queries=[
                Query(mean(GATEWAY + "kl_bound_nats"), "mean"),
                Query(quantile(0.99, GATEWAY + "kl_bound_nats"), "p99"),
            ],
        ),
        Panel(
            title="Candidates asked for",
            description="best_of, request by request.",
            queries=[Query(rate(GATEWAY + "best_of_bucket", "le"))],
            kind="heatmap",
        ),
        Panel(
            title="Candidates by what became of them",
            description="Only `scored` ones can be chosen.",
            queries=[Query(rate(GATEWAY + "candidates_total", "status"), "{{status}}")],
            stacked=True,
        ),
    ],
)

COST = Row(
    "What it costs",
    [
        Panel(
            title="Price: tokens sampled per token returned",
            description="Of best-of-N requests; 1 without it.",
            queries=[
                Query(
                    f"""{rate(GATEWAY + "tokens_total", where='kind="sampled"')}"""
                    f""" / {rate(GATEWAY + "tokens_total", where='kind="selected"')}""",
                    "sampled / selected",
                )
            ],
        ),
        Panel(
            title="Tokens of best-of-N",
            description="Sampled, returned, and read by the reward model.",
            queries=[
                Query(rate(GATEWAY + "tokens_total", "kind", 'kind=~"sampled|selected|reward"'), "{{kind}}")
            ],
        ),
        Panel(
            title="First byte of best-of-N streams",
            description="Nothing is sent before the choice, but a heartbeat after 10 s.",
            queries=quantiles(GATEWAY + "first_byte_seconds", where='mode="best_of_n"'),
            unit="s",
        ),
        Panel(
            title="Reward calls",
            description="How long one call to the reward server takes.",
            queries=quantiles(GATEWAY + "reward_seconds"),
            unit="s",
        ),
        Panel(
            title="Texts per reward call",
            description="Candidates that end together share a call.",
            queries=[
                Query(mean(GATEWAY + "reward_batch_size"), "mean"),
                Query(quantile(0.95, GATEWAY + "reward_batch_size"), "p95"),
            ],
        ),
        Panel(
            title="Reward calls that failed",
            description="Share of all; their requests are answered 503, or `degraded` where the first may "
            "win.",
            queries=[
                Query(
                    f"{rate(GATEWAY + 'reward_errors_total')} / {rate(GATEWAY + 'reward_batch_size_count')}",
                    "failed",
                )
            ],
            unit="percentunit",
        ),
    ],
)

TRUST = Row(
    "Whether it can be believed",
    [
        Panel(
            title="Degraded answers by reason",
            description="Answers that fell short of what was asked.",
            queries=[Query(rate(GATEWAY + "degraded_total", "reason"), "{{reason}}")],
        ),
        Panel(
            title="Bypassed",
            description="Requests that asked for best-of-N and cannot have it.",
            queries=[Query(rate(GATEWAY + "bypassed_total", "reason"), "{{reason}}")],
        ),
        Panel(
            title="Out of distribution: chosen against all scored",
            description="Share outside the reward model's calibrated range. Chosen well above scored: "
            "choosing finds what the reward model only believes to be good.",
            queries=[
                Query(
                    f"""{rate(GATEWAY + "judged_total", "of", 'distribution="out"')}"""
                    f""" / {rate(GATEWAY + "judged_total", "of")}""",
                    "{{of}}",
                )
            ],
            unit="percentunit",
        ),
        Panel(
            title="Ensemble spread: chosen against all scored",
            description="How far the members of an ensemble are apart. Chosen well above scored: see above.",
            queries=[Query(mean(GATEWAY + "reward_spread", "of"), "{{of}}")],
        ),
    ],
    across=2,
)

DASHBOARD = Dashboard(
    uid="bonsai-best-of-n",
    title="Bonsai: best-of-N",
    description="What choosing gains, what it costs, whether its rewards can be believed.",
    rows=[GAIN, COST, TRUST],
)
