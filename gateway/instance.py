"""The gateway as it is configured now, and how it becomes another: SIGHUP reads configuration and keys again.

What is under way goes on as it began; a configuration that cannot work leaves the old one in force, with
an error in the log and a count in the metrics.
"""

import asyncio
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

import msgspec

from gateway.admission import Admission
from gateway.config import ConfigError, GatewayConfig
from gateway.examine import examine_at_start
from gateway.keys import KeyRing
from gateway.keys_watch import KeysWatch
from gateway.metrics import Metrics
from gateway.runtime import ConnectPolicy, ConnectReward, Runtime
from gateway.tracing import Tracer

Load = Callable[[], GatewayConfig]
logger = logging.getLogger("gateway")


class Instance:
    """What a reload replaces."""

    def __init__(
        self,
        config: GatewayConfig,
        load: Load,
        admission: Admission,
        metrics: Metrics,
        connect_policy: ConnectPolicy,
        connect_reward: ConnectReward,
        *,
        examine: bool,
        tracer: Tracer | None = None,
    ) -> None:
        self._load = load
        self._admission = admission
        self._metrics = metrics
        self._connect = (connect_policy, connect_reward)
        self._closing: set[asyncio.Task[None]] = set()
        self.runtime = Runtime.build(config, *self._connect)
        self._keys = self._open_keys(config)
        self._watching: asyncio.Task[None] | None = None
        self._examine = examine
        self._examining: asyncio.Task[None] | None = None
        self.tracer = tracer
        """Where requests are traced."""

    @property
    def keys(self) -> KeyRing | None:
        """Who may come in; None is everybody."""
        return None if self._keys is None else self._keys.ring

    @property
    def fingerprint(self) -> str:
        """The same for the same configuration; says nothing about it otherwise."""
        return hashlib.sha256(msgspec.json.encode(self.runtime.config)).hexdigest()[:12]

    async def start(self) -> None:
        """Begin to watch over replicas and keys, and to look whether the servers agree."""
        await self.runtime.start()
        self._begin()

    async def reload(self) -> bool:
        """Read the configuration again; whether it is in force now."""
        old = self.runtime
        try:
            config = self._load()
            keys = self._keys if config.keys_file == old.config.keys_file else self._open_keys(config)
            new = Runtime.build(config, *self._connect, previous=old)
        except ConfigError as error:
            logger.error("reload refused, the configuration stays as it was: %s", error)
            self._metrics.reloads.labels("refused").inc()
            return False
        await new.start(previous=old)
        self._admission.resize(new.config.limits)
        self.runtime = new
        if keys is self._keys and keys is not None:
            keys.reload()
        self._keys = keys
        self._begin()
        closing = asyncio.create_task(old.retire(new))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        self._metrics.reloads.labels("done").inc()
        logger.info("reloaded, configuration %s", self.fingerprint)
        return True

    async def close(self) -> None:
        """Give every connection back, and have what was traced sent."""
        tasks = [*self._closing, *(task for task in (self._watching, self._examining) if task)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.runtime.close()
        if self.tracer is not None:
            await asyncio.to_thread(self.tracer.close)

    def _open_keys(self, config: GatewayConfig) -> KeysWatch | None:
        return None if config.keys_file is None else KeysWatch.open(Path(config.keys_file), self._metrics)

    def _begin(self) -> None:
        for task in (self._watching, self._examining):
            if task is not None:
                task.cancel()
        self._watching = asyncio.create_task(self._keys.run()) if self._keys else None
        self._examining = asyncio.create_task(examine_at_start(self.runtime)) if self._examine else None
