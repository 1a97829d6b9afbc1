"""Ends the stack's process groups when the launcher is gone, even by SIGKILL.

Run as a script by `gateway.launch_stack`. A parent-death signal reaches a direct child only and leaves vLLM's
engine process behind; a pipe whose other end dies with the launcher reaches this process always. It reads
`+PGID` and `-PGID` lines on its standard input, and at the end of the input sends what is left SIGTERM, then
SIGKILL. Standard library only, so that it starts in 30 ms.
"""

import os
import signal
import sys
import time

GRACE_S = 3.0


def read_groups(lines: list[str]) -> list[int]:
    """The groups that were added and not removed, in order."""
    groups: list[int] = []
    for line in lines:
        group = int(line[1:])
        if line.startswith("+"):
            groups.append(group)
        elif group in groups:
            groups.remove(group)
    return groups


def send(groups: list[int], number: signal.Signals) -> list[int]:
    """Signal each group; the groups that still exist."""
    alive = []
    for group in groups:
        try:
            os.killpg(group, number)
        except (ProcessLookupError, PermissionError):
            continue
        alive.append(group)
    return alive


def end(groups: list[int], grace_s: float) -> None:
    """SIGTERM, some time to obey, SIGKILL."""
    send(groups, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while groups and time.monotonic() < deadline:
        time.sleep(0.05)
        groups = [group for group in groups if group_exists(group)]
    send(groups, signal.SIGKILL)


def group_exists(group: int) -> bool:
    """Whether any process of the group, zombies included, is still there."""
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


if __name__ == "__main__":
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    end(read_groups(sys.stdin.readlines()), GRACE_S)
