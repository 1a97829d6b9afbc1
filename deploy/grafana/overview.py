"""Are the objectives met, and if not, is it the gateway, what is behind it, or too much work?"""

from deploy.grafana.panels import Dashboard, Panel, Query, Row, mean, quantile, quantiles, rate

GATEWAY = "bonsai_gateway_"
GENERATION = 'route=~"/v1/(chat/)?completions"'
FAILED = f'{GENERATION}, code=~"5..|stream_error"'
SHORT = 'reason!="greedy"'
ANSWERED = f'{GENERATION}, code!="499"'


def over_range(metric: str, where: str = "") -> str:
    """How much a counter rose in the time that the dashboard shows."""
    return f"sum(increase({GATEWAY}{metric}{{{where}}}[$__range]))"


def share_within(histogram: str, bound: str, mode: str) -> str:
    """Of what a histogram saw in the time shown, the share at most `bound`, which is one of its buckets."""
    within, all_of_them = f'mode="{mode}", le="{bound}"', f'mode="{mode}"'
    return f"{over_range(histogram + '_bucket', within)} / {over_range(histogram + '_count', all_of_them)}"


OBJECTIVES = Row(
    "Objectives",
    [
        Panel(
            title="Requests answered (objective 99.5 %)",
            description="Of generation requests, those without a 5xx and without a stream that broke; "
            "clients that left are not counted.",
            queries=[
                Query(
                    f"1 - ({over_range('requests_total', FAILED)} or vector(0))"
                    f" / {over_range('requests_total', ANSWERED)}"
                )
            ],
            unit="percentunit",
            kind="stat",
            good=0.995,
        ),
        Panel(
            title="First token within 2.5 s (objective 95 %)",
            description="Of streams that pass through.",
            queries=[Query(share_within("first_byte_seconds", "2.5", "pass_through"))],
            unit="percentunit",
            kind="stat",
            good=0.95,
        ),
        Panel(
            title="Own overhead within 10 ms (objective 99 %)",
            description="The gateway's own part of requests that pass through.",
            queries=[Query(share_within("self_seconds", "0.01", "pass_through"))],
            unit="percentunit",
            kind="stat",
            good=0.99,
        ),
        Panel(
            title="Best-of-N as asked (objective 99 %)",
            description="Answers that fell short of nothing; greedy requests, which cannot have more, are "
            "not counted as short.",
            queries=[
                Query(f"1 - {over_range('degraded_total', SHORT)} / {over_range('kl_bound_nats_count')}")
            ],
            unit="percentunit",
            kind="stat",
            good=0.99,
        ),
    ],
    across=4,
)

TRAFFIC = Row(
    "Traffic",
    [
        Panel(
            title="Requests by status",
            description="499: the client went away. stream_error: a stream broke after its first byte.",
            queries=[Query(rate(GATEWAY + "requests_total", "code", GENERATION), "{{code}}")],
            unit="reqps",
            stacked=True,
        ),
        Panel(
            title="Errors by code",
            description="The `code` of the error body.",
            queries=[Query(rate(GATEWAY + "errors_total", "code"), "{{code}}")],
            unit="reqps",
        ),
        Panel(
            title="Requests by model",
            description="`other` is a model that is not here.",
            queries=[Query(rate(GATEWAY + "requests_total", "model", GENERATION), "{{model}}")],
            unit="reqps",
            stacked=True,
        ),
        Panel(
            title="First token of streams",
            description="From arrival to the first event of streams that pass through.",
            queries=quantiles(GATEWAY + "first_byte_seconds", where='mode="pass_through"'),
            unit="s",
        ),
        Panel(
            title="Whole requests",
            description="From arrival to the last byte.",
            queries=quantiles(GATEWAY + "request_seconds", where=GENERATION),
            unit="s",
        ),
        Panel(
            title="The gateway's own part",
            description="Without queue, policy and reward; requests that were not streamed.",
            queries=[
                Query(quantile(share, GATEWAY + "self_seconds", "mode"), f"p{share * 100:g} {{{{mode}}}}")
                for share in (0.5, 0.99)
            ],
            unit="s",
        ),
    ],
)

ADMISSION = Row(
    "Admission",
    [
        Panel(
            title="Candidate slots",
            description="A slot is one sample being generated. Where they are all in use, requests wait.",
            queries=[
                Query(f"sum({GATEWAY}candidate_slots_in_use)", "in use"),
                Query(f"sum({GATEWAY}candidate_slots)", "there are"),
            ],
        ),
        Panel(
            title="Requests in flight and waiting",
            description="Waiting: for candidate slots.",
            queries=[
                Query(f"sum({GATEWAY}in_flight_requests)", "in flight"),
                Query(f"sum({GATEWAY}queued_requests)", "waiting"),
            ],
        ),
        Panel(
            title="Wait for slots",
            description="Of the requests that got them.",
            queries=quantiles(GATEWAY + "queue_seconds"),
            unit="s",
        ),
        Panel(
            title="Refused at admission",
            description="queue_full, queue_timeout, retry_shed: the gateway is at its limit; key_...: an "
            "API key is.",
            queries=[Query(rate(GATEWAY + "rejected_total", "reason"), "{{reason}}")],
            unit="reqps",
        ),
        Panel(
            title="Tokens",
            description="As policy and reward server count them.",
            queries=[
                Query(rate(GATEWAY + "tokens_total", "kind", 'kind=~"prompt|completion|reward"'), "{{kind}}")
            ],
        ),
    ],
)

PROCESS = Row(
    "The servers themselves",
    [
        Panel(
            title="Servers that answer Prometheus",
            description="Of each job, how many.",
            queries=[Query('sum by (job) (up{job=~"gateway|rm_server|vllm"})', "{{job}}")],
        ),
        Panel(
            title="Event loop lag",
            description="How late the gateway's event loop gets to what is due: beyond 0.1 s a worker's "
            "core is full.",
            queries=quantiles(GATEWAY + "event_loop_lag_seconds"),
            unit="s",
        ),
        Panel(
            title="Reloads and lost log lines",
            description="Of configuration and keys file; log lines that could not be written.",
            queries=[
                Query(
                    f"sum by (result) (increase({GATEWAY}reloads_total[$__range]))",
                    "configuration {{result}}",
                ),
                Query(
                    f"sum by (result) (increase({GATEWAY}key_file_reloads_total[$__range]))",
                    "keys {{result}}",
                ),
                Query(f"sum(increase({GATEWAY}log_lines_dropped_total[$__range]))", "log lines lost"),
            ],
        ),
        Panel(
            title="Versions",
            description="Gateways by version.",
            queries=[Query(f"count by (version) ({GATEWAY}build_info)", "{{version}}")],
        ),
        Panel(
            title="Policy's time per request",
            description="The mean until the last byte from the policy; streams that pass through are not in "
            "it.",
            queries=[Query(mean(GATEWAY + "upstream_seconds", "mode"), "{{mode}}")],
            unit="s",
        ),
    ],
)

DASHBOARD = Dashboard(
    uid="bonsai-overview",
    title="Bonsai: overview",
    description="Objectives, traffic, admission.",
    rows=[OBJECTIVES, TRAFFIC, ADMISSION, PROCESS],
)
