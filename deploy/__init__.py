"""What runs Bonsai beyond one process: containers, Kubernetes, Prometheus, Grafana."""
