"""New versions without a gap: loaded beside the one that serves, and swapped in when they have shown that
they can score. What is bad is refused, and the old version goes on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Literal, TypeAlias, get_args

from rm_server.config import ModelSource
from rm_server.errors import StartError
from rm_server.judge import Judge
from rm_server.metrics import Metrics
from rm_server.shelf import Shelf

logger = logging.getLogger(__name__)

Outcome: TypeAlias = Literal["swapped", "unchanged", "refused"]

Make: TypeAlias = Callable[[ModelSource, Judge], Judge]
"""The judge of what lies at its source now, or the current one itself; raises StartError (see assembly)."""


class Reloader:
    """Looks again at where the models came from: a folder with other content, a link to another folder, a hub
    name with a newer revision."""

    def __init__(
        self,
        shelf: Shelf,
        sources: Sequence[ModelSource],
        make: Make,
        executor: Executor,
        metrics: Metrics,
    ) -> None:
        self._shelf = shelf
        self._sources = sources
        self._make = make
        self._executor = executor  # not those of requests, which loading would hold up
        self._metrics = metrics
        self._one_at_a_time = asyncio.Lock()
        for source in sources:
            for outcome in get_args(Outcome):  # there at once: an alert sees no step to 1 from nowhere
                metrics.reloads.labels(source.name, outcome)

    async def reload(self) -> None:
        """One model after the other, so that at most one is in memory twice."""
        async with self._one_at_a_time:
            for source in self._sources:
                outcome = await self._reload(source)
                self._metrics.reloads.labels(source.name, outcome).inc()

    async def _reload(self, source: ModelSource) -> Outcome:
        current = self._shelf.current(source.name)
        loop = asyncio.get_running_loop()
        try:
            judge: Judge = await loop.run_in_executor(self._executor, self._make, source, current)
        except StartError as error:
            logger.error("%s: still version %s: %s", source.name, current.version, error)
            return "refused"
        except Exception:  # whatever a checkpoint can bring about, the old version must go on
            logger.exception("%s: still version %s", source.name, current.version)
            return "refused"
        if judge is current:
            logger.info("%s: version %s, as before", source.name, current.version)
            return "unchanged"
        self._shelf.put(judge)
        logger.info("%s: version %s instead of %s", source.name, judge.version, current.version)
        return "swapped"
