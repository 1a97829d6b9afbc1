"""The servers behind the gateway as it sees them, and the policies' engines as vLLM tells of them."""

from deploy.grafana.panels import RATE, Dashboard, Panel, Query, Row, mean, quantile, quantiles, rate

GATEWAY = "bonsai_gateway_"
BAD = 'outcome=~"broken|error|timeout|unreachable"'

REPLICAS = Row(
    "Replicas",
    [
        Panel(
            title="Calls by how they ended",
            description="refused: a 4xx. overloaded: 429 or 503. unreachable: no connection. broken: it "
            "died.",
            queries=[
                Query(rate(GATEWAY + "upstream_requests_total", "kind, outcome"), "{{kind}} {{outcome}}")
            ],
            unit="reqps",
        ),
        Panel(
            title="Failed calls by replica",
            description="Share of its calls.",
            queries=[
                Query(
                    f"{rate(GATEWAY + 'upstream_requests_total', 'kind, replica', BAD)}"
                    f" / {rate(GATEWAY + 'upstream_requests_total', 'kind, replica')}",
                    "{{kind}} {{replica}}",
                )
            ],
            unit="percentunit",
        ),
        Panel(
            title="Calls by replica",
            description="Work goes where least is outstanding, and to where a prompt's beginning is cached.",
            queries=[
                Query(rate(GATEWAY + "upstream_requests_total", "kind, replica"), "{{kind}} {{replica}}")
            ],
            unit="reqps",
        ),
        Panel(
            title="Outstanding work",
            description="Candidates or texts that a replica works on.",
            queries=[Query(f"sum by (kind, replica) ({GATEWAY}replica_outstanding)", "{{kind}} {{replica}}")],
        ),
        Panel(
            title="Ejected",
            description="Worker processes that give the replica no work because it failed.",
            queries=[Query(f"sum by (kind, replica) ({GATEWAY}replica_ejected)", "{{kind}} {{replica}}")],
        ),
        Panel(
            title="Calls made again elsewhere",
            description="By what had gone wrong; a budget bounds them.",
            queries=[Query(rate(GATEWAY + "retries_total", "reason"), "{{reason}}")],
            unit="reqps",
        ),
        Panel(
            title="Time per request to the policy",
            description="Until its last byte; streams that pass through are not in it.",
            queries=[
                Query(quantile(0.5, GATEWAY + "upstream_seconds", "mode"), "p50 {{mode}}"),
                Query(quantile(0.95, GATEWAY + "upstream_seconds", "mode"), "p95 {{mode}}"),
            ],
            unit="s",
        ),
    ],
)

ENGINES = Row(
    "vLLM",
    [
        Panel(
            title="Sequences running and waiting",
            description="Waiting: beyond --max-num-seqs or the key-value cache; better they waited in the "
            "gateway.",
            queries=[
                Query("sum by (instance) (vllm:num_requests_running)", "running {{instance}}"),
                Query("sum by (instance) (vllm:num_requests_waiting)", "waiting {{instance}}"),
            ],
        ),
        Panel(
            title="Key-value cache in use",
            description="Full: sequences are preempted and computed again.",
            queries=[Query("max by (instance) (vllm:kv_cache_usage_perc)", "{{instance}}")],
            unit="percentunit",
        ),
        Panel(
            title="Prefix cache hits",
            description="Share of prompt tokens found computed: candidates of one prompt share it.",
            queries=[
                Query(
                    f"sum by (instance) (rate(vllm:prefix_cache_hits_total[{RATE}]))"
                    f" / sum by (instance) (rate(vllm:prefix_cache_queries_total[{RATE}]))",
                    "{{instance}}",
                )
            ],
            unit="percentunit",
        ),
        Panel(
            title="Tokens generated",
            description="By engine.",
            queries=[Query(rate("vllm:generation_tokens_total", "instance"), "{{instance}}")],
            stacked=True,
        ),
        Panel(
            title="Time to first token",
            description="As the engine sees it.",
            queries=quantiles("vllm:time_to_first_token_seconds"),
            unit="s",
        ),
        Panel(
            title="Preemptions",
            description="Sequences put off for want of key-value cache.",
            queries=[Query(rate("vllm:num_preemptions_total", "instance"), "{{instance}}")],
        ),
        Panel(
            title="Time between tokens",
            description="The mean, as the engine sees it.",
            queries=[Query(mean("vllm:inter_token_latency_seconds", "instance"), "{{instance}}")],
            unit="s",
        ),
    ],
)

DASHBOARD = Dashboard(
    uid="bonsai-upstreams",
    title="Bonsai: upstreams",
    description="Replicas as the gateway sees them; vLLM's engines.",
    rows=[REPLICAS, ENGINES],
)
