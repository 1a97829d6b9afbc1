"""What `Replicas` report, as metrics, ejections in the log, and retries in the request's trace. Replicas are
named in the configuration, so that the label is bounded."""

import logging

from gateway import tracing
from gateway.metrics import Metrics

logger = logging.getLogger("gateway")


class ReplicaMetrics:
    """The observer of the replicas of one kind, such as `policy` or `reward`."""

    def __init__(self, metrics: Metrics, kind: str) -> None:
        self._metrics = metrics
        self._kind = kind

    def took(self, replica: str, work: int) -> None:
        """Work began."""
        self._metrics.replica_outstanding.labels(self._kind, replica).inc(work)

    def gave_back(self, replica: str, work: int, outcome: str) -> None:
        """Work ended."""
        self._metrics.replica_outstanding.labels(self._kind, replica).dec(work)
        self._metrics.upstream_requests.labels(self._kind, replica, outcome).inc()

    def ejected(self, replica: str, is_out: bool) -> None:
        """The replica went out, or came back."""
        self._metrics.replica_ejected.labels(self._kind, replica).inc(1 if is_out else -1)
        if is_out:
            logger.warning("%s %s is ejected: it failed again and again", self._kind, replica)
        else:
            logger.info("%s %s is not ejected any more", self._kind, replica)

    def retried(self, reason: str) -> None:
        """A call is made again."""
        self._metrics.retries.labels(reason).inc()
        tracing.current().event("retry", {"bonsai.retry.kind": self._kind, "bonsai.retry.reason": reason})
