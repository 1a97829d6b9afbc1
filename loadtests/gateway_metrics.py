"""What the gateway says of itself on /metrics."""

import math
from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

from loadtests.errors import LoadTestError
from loadtests.http_client import HttpClient

Labels = tuple[tuple[str, str], ...]
Samples = dict[tuple[str, Labels], float]
"""(name, labels in order) -> value."""
PREFIX = "bonsai_gateway_"


async def scrape(url: str) -> Samples:
    """All samples now. LoadTestError where there are none."""
    async with HttpClient(url) as http:
        reply = await http.send("GET", "/metrics")
    if reply.status != 200:
        raise LoadTestError(f"{url}: no metrics there", exit_code=1)
    return parse(reply.body.decode())


def parse(text: str) -> Samples:
    """Prometheus' text format."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): float(sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def total(samples: Samples, name: str) -> float:
    """A metric of the gateway's, summed over its labels. LoadTestError where it has none of that name."""
    values = [value for (found, _), value in samples.items() if found == PREFIX + name]
    if not values:
        raise LoadTestError(f"the gateway has no metric {PREFIX + name}", exit_code=1)
    return sum(values)


def under_way(samples: Samples) -> float:
    """Requests in flight and waiting, and candidate slots held; not the look at the metrics itself."""
    names = ("in_flight_requests", "queued_requests", "candidate_slots_in_use")
    return sum(total(samples, name) for name in names) - 1


def quantile(before: Samples, after: Samples, name: str, labels: Mapping[str, str], share: float) -> float:
    """Of what a histogram of the gateway's saw between two looks, as Prometheus' histogram_quantile computes
    it: linear inside a bucket, so that its bounds are exact. nan of nothing; inf beyond the last bound."""
    counts = _buckets(before, after, PREFIX + name + "_bucket", labels)
    if not counts or counts[-1][1] == 0:
        return math.nan
    rank = share * counts[-1][1]
    low, seen = 0.0, 0.0
    for bound, count in counts:
        if count >= rank:
            return low + (bound - low) * (rank - seen) / (count - seen) if math.isfinite(bound) else math.inf
        low, seen = bound, count
    return math.inf


def _buckets(
    before: Samples, after: Samples, name: str, labels: Mapping[str, str]
) -> list[tuple[float, float]]:
    """(upper bound, how many at or under it), rising."""
    found = []
    for (sample, sample_labels), value in after.items():
        given = dict(sample_labels)
        if sample == name and labels.items() <= given.items():
            found.append((float(given["le"]), value - before.get((sample, sample_labels), 0.0)))
    return sorted(found)
