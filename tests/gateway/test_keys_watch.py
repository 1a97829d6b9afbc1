"""A keys file that changes under a running gateway."""

import asyncio
import logging
from collections.abc import Iterable
from pathlib import Path

import pytest

from gateway import keys_file
from gateway.keys import Key, KeyRing, KeysError
from gateway.keys_watch import KeysWatch
from gateway.metrics import Metrics
from tests.gateway.test_keys import key


class Watched:
    """A keys file with one key, whose secret is "first", and who watches it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "keys.json"
        keys_file.update(self.path, lambda _: (key("first"),), create=True)
        self.metrics = Metrics()
        self.watch = KeysWatch.open(self.path, self.metrics)

    def opens(self, *secrets: str) -> list[bool]:
        """Which secrets open the door."""
        return [self.watch.ring.find(secret.encode()) is not None for secret in secrets]

    def reloads(self, result: str) -> float:
        """How often the file was read again, with that result."""
        name = "bonsai_gateway_key_file_reloads_total"
        return self.metrics.registry.get_sample_value(name, {"result": result}) or 0.0


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    """One that watches."""
    return Watched(tmp_path)


def test_a_changed_file_counts_at_the_next_look(watched: Watched) -> None:
    ring = watched.watch.ring
    assert watched.opens("first", "second") == [True, False]
    keys_file.update(watched.path, lambda _: (key("second"),))
    assert watched.opens("first", "second") == [True, False]
    watched.watch.look()
    assert watched.opens("first", "second") == [False, True]
    assert watched.watch.ring is ring, "who holds the ring need not ask for it again"
    watched.watch.look()
    assert (watched.reloads("done"), watched.reloads("refused")) == (1, 0), "an unchanged file is not read"


def test_a_change_of_the_same_length_in_place_is_seen(watched: Watched) -> None:
    text = watched.path.read_text()
    watched.path.write_text(text.replace(key("first").sha256, key("other").sha256))
    watched.watch.look()
    assert watched.opens("first", "other") == [False, True]


@pytest.mark.parametrize("content", [b"", b'{"keys": [{"id": 1}]}', None])
def test_a_bad_file_leaves_the_old_keys_in_force(
    watched: Watched, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    if content is None:
        watched.path.unlink()
    else:
        watched.path.write_bytes(content)
    for _ in range(3):
        watched.watch.look()
    assert watched.opens("first") == [True]
    assert (watched.reloads("done"), watched.reloads("refused")) == (0, 1), "once for each state of the file"
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert str(watched.path) in record.getMessage()
    assert watched.watch.reload() is False, "asked for by name it is tried again"
    watched.path.unlink(missing_ok=True)
    keys_file.update(watched.path, lambda _: (key("second"),), create=True)
    watched.watch.look()
    assert watched.opens("first", "second") == [False, True]


def test_a_reload_reads_an_unchanged_file_too(watched: Watched) -> None:
    assert watched.watch.reload() is True
    assert watched.reloads("done") == 1
    assert watched.opens("first") == [True]


def test_without_a_first_good_file_there_is_no_start(tmp_path: Path) -> None:
    with pytest.raises(KeysError, match="no such file"):
        KeysWatch.open(tmp_path / "keys.json", Metrics())


def test_a_file_that_others_can_read_is_warned_of(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    watched.path.chmod(0o644)
    KeysWatch.open(watched.path, Metrics())
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "chmod 600" in record.getMessage()
    watched.path.chmod(0o600)
    KeysWatch.open(watched.path, Metrics())
    assert len(caplog.records) == 1


class TellingRing(KeyRing):
    """A ring that tells when it has other keys."""

    def __init__(self) -> None:
        self.told = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        super().__init__()

    def replace(self, keys: Iterable[Key]) -> None:
        """See KeyRing."""
        super().replace(keys)
        self._loop.call_soon_threadsafe(self.told.set)


async def test_it_looks_until_it_is_stopped(watched: Watched) -> None:
    ring = TellingRing()
    watching = asyncio.create_task(KeysWatch(watched.path, ring, watched.metrics).run(every_s=0.001))
    await asyncio.sleep(0)
    ring.told.clear()
    keys_file.update(watched.path, lambda _: (key("second"),))
    await asyncio.wait_for(ring.told.wait(), 10)
    assert ring.find(b"second") is not None
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching
