"""Signs that a run says little: the generator was late, the machine was taken away, or the server under test
had to wait for its core."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

MAX_LAG_S = 0.005
"""The generator's own lag behind its schedule, 99th percentile."""
MAX_STEAL = 0.02
"""Share of the cores' time that the hypervisor gave to others."""
MAX_WAIT = 0.05
"""Share of the time that the server was ready to run and did not: it should have its core to itself."""
MAX_OTHER_WORK = 0.1
"""Share of all cores that was in use before anything was measured."""
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def stolen_s(cores: Sequence[int]) -> float:
    """Seconds stolen from these cores since the machine started; 0 where the system does not say."""
    wanted = {f"cpu{core}" for core in cores}
    try:
        lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
    except OSError:
        return 0.0
    return sum(int(words[8]) for words in lines if words and words[0] in wanted) / TICKS_PER_S


def busy_share(seconds: float = 0.5) -> float:
    """How much of all cores is in use while this process sleeps; 0 where the system does not say."""
    before = _cpu_times()
    time.sleep(seconds)
    total, idle = (after - earlier for after, earlier in zip(_cpu_times(), before, strict=True))
    return 1 - idle / total if total else 0.0


def other_work() -> list[str]:
    """A sign of noise where the machine is busy while nothing is asked of anybody."""
    busy = busy_share()
    return [f"{busy:.0%} of the cores had other work"] if busy > MAX_OTHER_WORK else []


def _cpu_times() -> tuple[float, float]:
    """All cores' time since the machine started, and how much of it was idle, in ticks."""
    try:
        words = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return 0.0, 0.0
    return sum(map(float, words[:8])), float(words[3]) + float(words[4])


def waited_s(pid: int) -> float:
    """Seconds that a process's main thread has stood in a run queue; 0 where the system does not say."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


class Watch:
    """From its making on, what disturbed a run of the server `pid`."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._cores = sorted(os.sched_getaffinity(0) | os.sched_getaffinity(pid))
        self._since = time.perf_counter()
        self._stolen_s = stolen_s(self._cores)
        self._waited_s = waited_s(pid)

    def signs(self, lag_s: float = 0.0) -> list[str]:
        """One line each; none of a quiet run."""
        took = time.perf_counter() - self._since
        stolen = (stolen_s(self._cores) - self._stolen_s) / (took * len(self._cores))
        waited = (waited_s(self._pid) - self._waited_s) / took
        signs = [
            (lag_s > MAX_LAG_S, f"the generator was up to {lag_s * 1000:.1f} ms late (p99)"),
            (stolen > MAX_STEAL, f"{stolen:.0%} of the cores' time was stolen"),
            (waited > MAX_WAIT, f"the server waited for its core {waited:.0%} of the time"),
            (len(self._cores) < 2, "generator and server share one core"),
        ]
        return [text for holds, text in signs if holds]
