"""The benchmarks of the gateway before fakes, and of the reward server, one a module, in the order in which
`all` runs them."""

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
