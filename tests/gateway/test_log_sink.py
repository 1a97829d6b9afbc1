"""The sink against real descriptors: slow, full, stuck, closed. What cannot be written is counted, and nobody
waits for it."""

import fcntl
import os
import resource
import socket
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gateway.log_sink import LogSink


class Drops:
    """Counts lost lines, and lets the test wait for them."""

    def __init__(self, sink: LogSink) -> None:
        self.count = 0
        self._more = threading.Condition()
        sink.on_drop = self._add

    def _add(self, count: int) -> None:
        with self._more:
            self.count += count
            self._more.notify_all()

    def reach(self, count: int) -> None:
        """Wait until so many are lost."""
        with self._more:
            assert self._more.wait_for(lambda: self.count >= count, 10)


@contextmanager
def pipe(capacity: int | None = None) -> Iterator[tuple[int, int]]:
    """Both ends, closed at the end, so that a thread that is stuck in it comes free."""
    reading, writing = os.pipe()
    if capacity is not None:
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, capacity)
    try:
        yield reading, writing
    finally:
        os.close(reading)
        os.close(writing)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    for thread in threading.enumerate():
        if thread.name == "log":
            thread.join(10)
    assert threading.active_count() == before


def lines(count: int) -> list[bytes]:
    return [b"line %06d %s\n" % (number, b"x" * (number % 200)) for number in range(count)]


def read_rest(fd: int, sink: LogSink) -> bytes:
    """Everything that comes until the sink has ended; it writes what waits as soon as somebody reads."""
    ending = threading.Thread(target=sink.close, args=(10,))
    ending.start()
    os.set_blocking(fd, False)
    data = b""
    while ending.is_alive() or _readable(fd):
        try:
            data += os.read(fd, 65536)
        except BlockingIOError:
            ending.join(0.01)
    ending.join()
    return data


def _readable(fd: int) -> bool:
    none = bytes(4)
    return fcntl.ioctl(fd, termios.FIONREAD, none) != none


def test_every_line_arrives_in_order_and_whole() -> None:
    with pipe() as (reading, writing):
        sink = LogSink(writing, most=5000)
        for line in lines(5000):
            sink.put(line)
        assert read_rest(reading, sink) == b"".join(lines(5000))
        assert sink.dropped == 0


def test_who_does_not_read_holds_up_nobody_and_what_is_lost_is_counted() -> None:
    with pipe(4096) as (_, writing):
        sink = LogSink(writing, most=50)
        drops = Drops(sink)
        for line in lines(1000):
            sink.put(line)
        assert drops.count == sink.dropped >= 900
        sink.close(0.05)


def test_a_reader_that_comes_back_gets_whole_lines_in_order() -> None:
    with pipe(4096) as (reading, writing):
        sink = LogSink(writing, most=50)
        for line in lines(1000):
            sink.put(line)
        arrived = read_rest(reading, sink).splitlines(keepends=True)
        assert len(arrived) + sink.dropped == 1000
        assert arrived == sorted(set(arrived) & set(lines(1000)))


def test_a_full_disk_loses_lines_and_nothing_else() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    sink = LogSink(full)
    for line in lines(300):
        sink.put(line)
    sink.close(10)
    os.close(full)
    assert sink.dropped == 300


def test_a_log_that_nobody_has_open_any_more_loses_lines() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    sink = LogSink(writing)
    sink.put(b"line\n")
    sink.close(10)
    os.close(writing)
    assert sink.dropped == 1


def test_a_descriptor_that_was_made_non_blocking_is_waited_for() -> None:
    with pipe(4096) as (reading, writing):
        os.set_blocking(writing, False)
        sink = LogSink(writing, most=1000)
        for line in lines(500):
            sink.put(line)
        data = b""
        while len(data) < len(b"".join(lines(500))):
            data += os.read(reading, 4096)
        assert data == b"".join(lines(500))
        sink.close(10)


def test_a_stuck_non_blocking_descriptor_does_not_hold_up_the_end() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        sink = LogSink(theirs.fileno())
        for _ in range(4000):
            sink.put(b"x" * 999 + b"\n")
        sink.close(10)
        assert sink.dropped > 0


def test_after_a_line_that_was_cut_off_the_next_begins_on_a_new_one(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with (tmp_path / "log").open("wb") as file:
        sink = LogSink(file.fileno())
        drops = Drops(sink)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        try:
            for letter in (b"a", b"b", b"c"):
                sink.put(letter * 59 + b"\n")
            drops.reach(2)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        sink.put(b"d" * 59 + b"\n")
        sink.close(10)
    assert (tmp_path / "log").read_bytes().split(b"\n") == [b"a" * 59, b"b" * 40, b"d" * 59, b""]
    assert drops.count == 2


def test_lines_of_several_processes_share_a_pipe_without_mixing() -> None:
    with pipe(65536) as (reading, writing):
        sinks = [LogSink(writing, most=2000) for _ in range(4)]
        for number in range(2000):
            for letter, sink in zip(b"abcd", sinks, strict=True):
                sink.put(bytes([letter]) * (number % 300) + b"\n")
        data = b"".join(read_rest(reading, sink) for sink in sinks)
        assert all(len(set(line)) <= 1 for line in data.split(b"\n"))
        assert data.count(b"\n") == 8000
