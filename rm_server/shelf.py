"""Which judge stands under which name now, and the life of its models.

A request holds the judges that it began with until it is answered, so one request is scored by one version.
A judge that another has replaced is kept for the requests that hold it; after the last its models stop, and
their memory is free. Models that the new judge took over from the old one go on.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

from rm_server.errors import NotFoundError
from rm_server.judge import Judge
from rm_server.metrics import Metrics
from rm_server.served_model import ServedModel
from rm_server.tracing import current


class Shelf:
    """The judges by name, of whom there is at least one; the first is meant where a request names none."""

    def __init__(self, judges: Iterable[Judge], metrics: Metrics) -> None:
        self._judges = {judge.name: judge for judge in judges}
        self._metrics = metrics
        self._users: Counter[Judge] = Counter()
        self._working: dict[ServedModel, asyncio.Task[None]] = {}
        self.leaving = False
        """Whether the server has been asked to stop: it is not ready then, and answers all the same."""

    def names(self) -> Sequence[str]:
        """In the order of the command line."""
        return list(self._judges)

    def judges(self) -> Sequence[Judge]:
        """As they stand now."""
        return list(self._judges.values())

    def current(self, name: str | None) -> Judge:
        """Who stands under this name now; for a request, `lend` it. Raises NotFoundError."""
        if name is None:
            return next(iter(self._judges.values()))
        if name not in self._judges:
            raise NotFoundError(
                "No such model here; GET /v1/models lists them", param="model", code="model_not_found"
            )
        return self._judges[name]

    @contextmanager
    def lend(self, *judges: Judge) -> Iterator[None]:
        """Keeps these at work, though others may take their places meanwhile."""
        self._users.update(judges)
        current().judged_by("+".join(j.name for j in judges), "+".join(j.version for j in judges))
        try:
            yield
        finally:
            self._users.subtract(judges)
            self._let_go()

    def put(self, judge: Judge) -> None:
        """Takes the place of the one with this name."""
        old = self._judges[judge.name]
        self._judges[judge.name] = judge
        self._start(judge)
        if old.version != judge.version:
            self._metrics.models.remove(old.name, old.version)
        if old.calibration and not judge.calibration:
            self._metrics.score_mean_shift.remove(old.name)  # there is nothing to have moved from
        self._let_go()

    async def ready(self) -> bool:
        """Whether every model could score now."""
        if self.leaving or not self._working or any(task.done() for task in self._working.values()):
            return False
        models = [model for judge in self.judges() for model in judge.members.values()]
        return all(await asyncio.gather(*(model.engine.ready() for model in models)))

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """Every model works until the end of this."""
        self._start_all()  # not here: a frame that lasts would hold the last of them
        try:
            yield
        finally:
            tasks = list(self._working.values())
            self._working.clear()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _start_all(self) -> None:
        for judge in self.judges():
            self._start(judge)

    def _start(self, judge: Judge) -> None:
        self._metrics.models.labels(judge.name, judge.version).set(1)
        for model in judge.members.values():
            if model not in self._working:
                self._working[model] = asyncio.create_task(model.engine.run())

    def _let_go(self) -> None:
        """Stops the models that nobody holds."""
        self._users += Counter()  # forgets those whom nobody uses
        held = {*self._judges.values(), *self._users}
        models = {model for judge in held for model in judge.members.values()}
        for model in self._working.keys() - models:
            self._working.pop(model).cancel()
