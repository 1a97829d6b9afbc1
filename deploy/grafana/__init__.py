"""Grafana's dashboards, generated:

    python -m deploy.grafana            # writes deploy/grafana/dashboards/*.json
    python -m deploy.grafana --check    # exit code 1 where a file is not what would be written

Each dashboard is a module that lists rows of panels; `deploy.grafana.panels` makes Grafana's JSON of them. A
test evaluates every query on a real Prometheus that scrapes a running stack.
"""
