"""What replicas report, as metrics."""

from gateway.metrics import Metrics
from gateway.replica_metrics import ReplicaMetrics
from gateway.replicas import Outcome, Replicas


def test_work_outcomes_ejections_and_retries() -> None:
    metrics = Metrics()

    def value(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(f"bonsai_gateway_{name}", labels)

    replicas = Replicas({"a:1": 1, "b:2": 2}, observer=ReplicaMetrics(metrics, "policy"))
    first = {"kind": "policy", "replica": "a:1"}
    with replicas.using(replicas.all[0], 8) as lease:
        assert value("replica_outstanding", **first) == 8
        lease.note(Outcome.OK)
    assert value("replica_outstanding", **first) == 0
    assert value("upstream_requests_total", **first, outcome="ok") == 1
    for _ in range(5):
        with replicas.using(replicas.all[0]) as lease:
            lease.note(Outcome.TIMEOUT)
    assert value("upstream_requests_total", **first, outcome="timeout") == 5
    assert value("replica_ejected", **first) == 1
    assert replicas.retry(replicas.all[0], Outcome.TIMEOUT) is replicas.all[1]
    assert value("retries_total", reason="timeout") == 1
    replicas.close()
    assert value("replica_ejected", **first) == 0
