"""The benchmarks of the gateway before fakes, of the reward server and of the trainers, one a module, in the
order in which `all` runs those that are not APART."""

from loadtests.bench import Bench
from loadtests.benches import (
    best_of_n_overhead,
    disconnect,
    gateway_overhead,
    overload,
    replica_kill,
    reward_server,
    soak,
    stream_relay,
    trainers,
)

BENCHES: tuple[Bench, ...] = (
    gateway_overhead.BENCH,
    stream_relay.BENCH,
    best_of_n_overhead.BENCH,
    disconnect.BENCH,
    overload.BENCH,
    replica_kill.BENCH,
    soak.BENCH,
    reward_server.BENCH,
)
APART: tuple[Bench, ...] = (trainers.BENCH,)
"""Too long for `all`, and in need of more than is installed: run by name."""
