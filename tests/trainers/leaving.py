"""Run by test_devices.py in two processes, which end while a thread of gloo still works for each of them.

The thread is made slow: what it calls when the work is done wants Python again and again, until after
Python ends.
"""

import sys
import threading
import time

import torch
from torch import distributed

from trainers.launcher import leave
from trainers.processes import join


def linger(_: object) -> None:
    """Gives Python back and wants it again, many times."""
    lingers.set()
    for _ in range(20_000):
        time.sleep(1e-4)


lingers = threading.Event()
join(use_cpu=True, is_sharded=False, reshard_after_forward=False)
work = distributed.all_reduce(torch.ones(1), async_op=True)
assert work is not None
last = work.get_future().then(linger)
lingers.wait()
print("worked", file=sys.stderr)
if sys.argv[1:] == ["--usually"]:
    sys.exit(0)
leave(0)
