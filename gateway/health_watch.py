"""Asks every replica how it is: at once, then every 5 s, and every second where the last answer was bad or
the replica is ejected.

Two bad answers in a row take a replica out; a good one brings back who was down. Each replica is asked on its
own and at its own slightly irregular times, so that several gateways do not ask in step.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from gateway.replicas import Replica, Replicas

INTERVAL_S = 5.0
TROUBLED_INTERVAL_S = 1.0
PROBE_TIMEOUT_S = 2.0
BAD_PROBES = 2
JITTER = 0.2

logger = logging.getLogger("gateway")
T = TypeVar("T")


class HealthWatch(Generic[T]):
    """The tasks that ask. A probe without an answer within `timeout_s` is a bad one."""

    def __init__(
        self,
        replicas: Replicas[T],
        probe: Callable[[T], Awaitable[bool]],
        *,
        timeout_s: float = PROBE_TIMEOUT_S,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._replicas = replicas
        self._probe = probe
        self._timeout_s = timeout_s
        self._sleep = sleep
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin, in the running event loop."""
        self._tasks = [
            asyncio.create_task(self._watch(replica), name=f"health of {replica.name}")
            for replica in self._replicas.all
        ]

    async def stop(self) -> None:
        """End every task, and wait until they have ended."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    async def _watch(self, replica: Replica[T]) -> None:
        bad = 0
        while True:
            bad = 0 if await self._is_well(replica) else bad + 1
            if bad == 0 or bad >= BAD_PROBES:
                self._replicas.probed(replica, healthy=bad == 0)
            interval = TROUBLED_INTERVAL_S if bad or replica.ejected else INTERVAL_S
            await self._sleep(interval * random.uniform(1 - JITTER, 1 + JITTER))

    async def _is_well(self, replica: Replica[T]) -> bool:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._probe(replica.client)
        except TimeoutError:
            return False
        except Exception:  # a probe that breaks must not end the watch over its replica
            logger.exception("the health probe of %s broke", replica.name)
            return False
