"""A changed keys file counts without a restart: within a second, or at once on `reload`.

A file that cannot be used changes nothing: the keys that were in force stay so, the log says why, once for
each state of the file, and the counter `key_file_reloads` has it.
"""

import asyncio
import logging
from pathlib import Path

from gateway import keys_file
from gateway.keys import KeyRing, KeysError
from gateway.metrics import Metrics

logger = logging.getLogger("gateway")
LOOK_EVERY_S = 1.0
Stamp = tuple[int, int, int] | None


class KeysWatch:
    """A key ring that follows its file."""

    def __init__(self, path: Path, ring: KeyRing, metrics: Metrics) -> None:
        self._path = path
        self._metrics = metrics
        self._stamp = _stamp(path)
        self.ring = ring

    @classmethod
    def open(cls, path: Path, metrics: Metrics) -> "KeysWatch":
        """Read the file for the first time.

        Raises:
            KeysError: it cannot be used: without keys that once were good there is nothing to serve with.
        """
        watch = cls(path, KeyRing(), metrics)
        watch.ring.replace(watch._read())
        return watch

    def reload(self) -> bool:
        """Read the file again; whether it is good."""
        self._stamp = _stamp(self._path)  # taken first: what is written from now on has another one
        try:
            keys = self._read()
        except KeysError as error:
            logger.error("keys: %s; the keys that were in force stay so", error)
            self._metrics.key_file_reloads.labels("refused").inc()
            return False
        self.ring.replace(keys)
        self._metrics.key_file_reloads.labels("done").inc()
        logger.info("keys: %s: read again, %d keys", self._path, len(keys))
        return True

    def look(self) -> None:
        """Reload if the file is another one than when it was last read."""
        if _stamp(self._path) != self._stamp:
            self.reload()

    async def run(self, every_s: float = LOOK_EVERY_S) -> None:
        """Look until cancelled. In a thread, for the file may lie on a disk that has to be waited for."""
        while True:
            await asyncio.sleep(every_s)
            await asyncio.to_thread(self.look)

    def _read(self) -> keys_file.Keys:
        if keys_file.open_to_others(self._path):
            logger.warning("keys: %s is open to other users; chmod 600 closes it", self._path)
        return keys_file.read(self._path)


def _stamp(path: Path) -> Stamp:
    """What changes whenever a file does, though its size may not."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ctime_ns, found.st_size, found.st_ino
