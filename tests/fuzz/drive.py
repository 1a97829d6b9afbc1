"""Many connections to one server, each sending the next case as soon as its last is answered, and what came
back."""

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tests.fuzz.mutate import CANARY, Case

CONNECTIONS = 24
PATIENCE_S = 30
SLOW_S = 1.0


@dataclass
class Answer:
    """A status, its headers, and a body put together from its chunks."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes


@dataclass
class Tally:
    """What a run found."""

    cases: int = 0
    statuses: dict[int, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    slow: int = 0

    def add(self, case: Case, answer: Answer, seconds: float) -> None:
        """Judge an answer."""
        self.cases += 1
        self.statuses[answer.status] = self.statuses.get(answer.status, 0) + 1
        self.slowest_s = max(self.slowest_s, seconds)
        self.slow += seconds > SLOW_S
        fault = fault_of(answer)
        if fault:
            self.faults.append(f"case {case.number} ({case.seed}): {answer.status}, {fault}")

    def report(self, seed: int) -> str:
        """One line."""
        statuses = dict(sorted(self.statuses.items()))
        return (
            f"seed {seed}: {self.cases} cases, {statuses}, {len(self.faults)} faults, "
            f"slowest {self.slowest_s * 1000:.0f} ms, {self.slow} over 1 s"
        )


def fault_of(answer: Answer) -> str | None:
    """What is wrong with an answer, whatever the question was."""
    if b"x-request-id" not in answer.headers:
        return "no x-request-id"
    if answer.status >= 400:
        return _fault_of_error(answer)
    if answer.headers[b"content-type"].startswith(b"text/event-stream"):
        return None if answer.body.endswith(b"data: [DONE]\n\n") else "a stream without [DONE]"
    return None if isinstance(_parsed(answer.body), dict) else "a 200 that is no object"


def _fault_of_error(answer: Answer) -> str | None:
    error = _parsed(answer.body)
    if not isinstance(error, dict) or list(error) != ["error"]:
        return "no envelope"
    if sorted(error["error"]) != ["code", "message", "param", "type"]:
        return "an envelope of another shape"
    if answer.status >= 500 and error["error"]["code"] != "deadline_exceeded":  # which a case may ask for
        return "a 5xx"
    if len(answer.body) > 4096 or answer.headers.get(b"content-type") != b"application/json":
        return "an envelope too large, or of another type"
    return "an error that repeats its input" if CANARY in answer.body else None


def _parsed(body: bytes) -> object:
    try:
        return json.loads(body)
    except ValueError:
        return None


async def drive(url: str, cases: Iterator[Case]) -> Tally:
    """Send every case, and judge every answer."""
    tally = Tally()
    host, port = urlsplit(url).hostname, urlsplit(url).port
    assert host is not None
    assert port is not None
    async with asyncio.TaskGroup() as connections:
        for _ in range(CONNECTIONS):
            connections.create_task(_drive_one(host, port, cases, tally))
    return tally


async def _drive_one(host: str, port: int, cases: Iterator[Case], tally: Tally) -> None:
    link: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
    for case in cases:
        if link is None:
            link = await asyncio.open_connection(host, port)
        reader, writer = link
        begin = time.perf_counter()
        writer.write(_request(case))
        is_kept = False
        try:
            answer = await asyncio.wait_for(_read(reader), PATIENCE_S)
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError) as error:
            tally.faults.append(f"case {case.number} ({case.seed}): no answer, {type(error).__name__}")
        else:
            tally.add(case, answer, time.perf_counter() - begin)
            is_kept = answer.headers.get(b"connection") != b"close"
        if not is_kept:
            writer.close()
            link = None
    if link is not None:
        link[1].close()


def _request(case: Case) -> bytes:
    type_line = b"" if b"Content-Type" in case.header else b"Content-Type: application/json\r\n"
    head = b"POST %b HTTP/1.1\r\nHost: a\r\n%b%bContent-Length: %d\r\n\r\n"
    return head % (case.path.encode(), type_line, case.header, len(case.body)) + case.body


async def _read(reader: asyncio.StreamReader) -> Answer:
    first, *lines = (await reader.readuntil(b"\r\n\r\n"))[:-4].split(b"\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(b": ") for line in lines)}
    if headers.get(b"transfer-encoding") == b"chunked":
        body = await _read_chunks(reader)
    else:
        body = await reader.readexactly(int(headers[b"content-length"]))
    return Answer(int(first.split(b" ")[1]), headers, body)


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    body = bytearray()
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readuntil(b"\r\n")
    return bytes(body)
