"""`python -m gateway` as a real process with real signals, and a client for it."""

import asyncio
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

LISTENING = re.compile(rb"serving on (http://127\.0\.0\.1:\d+)")
PATIENCE_S = 30


@dataclass
class Running:
    """A gateway that serves."""

    process: Process
    url: str
    http: httpx.AsyncClient
    stderr: asyncio.Task[bytes]
    """What it says, to the end: read all the time, or it could not end."""

    def workers(self) -> list[int]:
        """The process ids of its workers."""
        return children(self.process.pid)

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that carry these labels."""
        text = (await self.http.get("/metrics")).text
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        full = f"bonsai_gateway_{name}"
        return sum(s.value for s in samples if s.name == full and labels.items() <= s.labels.items())

    async def in_flight(self, count: int) -> None:
        """Until so many requests are in flight, beside the one that asks."""
        async with asyncio.timeout(PATIENCE_S):
            while await self.metric("in_flight_requests") != count + 1:
                pass

    async def unready(self) -> None:
        """Until it says that it is leaving."""
        async with asyncio.timeout(PATIENCE_S):
            while (await self.http.get("/health/ready")).status_code == 200:
                pass

    async def refuses(self) -> None:
        """Until new connections are refused."""
        host, port = self.url.removeprefix("http://").split(":")
        async with asyncio.timeout(PATIENCE_S):
            with suppress(ConnectionError):
                while True:
                    _, writer = await asyncio.open_connection(host, int(port))
                    writer.close()

    async def ends_well(self) -> None:
        """It ends by itself, with exit code 0, without a traceback and without leaving a worker behind."""
        workers = self.workers()
        stderr = await asyncio.wait_for(asyncio.shield(self.stderr), PATIENCE_S)
        await asyncio.wait_for(self.process.wait(), PATIENCE_S)
        assert self.process.returncode == 0, stderr.decode()
        assert b"Traceback" not in stderr, stderr.decode()
        assert [pid for pid in workers if is_there(pid)] == []


@asynccontextmanager
async def gateway(*argv: str, open_files: int | None = None, **env: str) -> AsyncGenerator[Running, None]:
    """The process, which does not outlive this block, and a client; `env` is added to its environment, and it
    may have no more than `open_files`."""
    command = [sys.executable, "-m", "gateway", "--port", "0", *argv]
    if open_files is not None:
        command = ["sh", "-c", f'ulimit -n {open_files} && exec "$@"', "sh", *command]
    process = await asyncio.create_subprocess_exec(*command, stderr=PIPE, env=os.environ | env)
    assert process.stderr is not None
    try:
        url = await asyncio.wait_for(_address(process.stderr), PATIENCE_S)
        stderr = asyncio.create_task(process.stderr.read())
        # A connection for each request, as a paused worker must not be the one that keeps it.
        limits = httpx.Limits(max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S, limits=limits) as http:
            yield Running(process, url, http, stderr)
    finally:
        workers = children(process.pid)
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        for pid in workers:
            await gone(pid)


def children(pid: int) -> list[int]:
    """The process ids of a process's children; none when it has gone."""
    with suppress(FileNotFoundError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


@contextmanager
def paused(*pids: int) -> Iterator[None]:
    """Processes that are stopped during this block: what would be their work is done by others."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


async def gone(pid: int) -> None:
    """Until this process has ended."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(fd, ended.set)
    try:
        await asyncio.wait_for(ended.wait(), PATIENCE_S)
    finally:
        loop.remove_reader(fd)
        os.close(fd)


def is_there(pid: int) -> bool:
    """Whether a process of this id runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def _address(stderr: asyncio.StreamReader) -> str:
    said = b""
    async for line in stderr:
        said += line
        if found := LISTENING.search(line):
            return found[1].decode()
    raise AssertionError(f"the gateway did not start: {said.decode()}")
