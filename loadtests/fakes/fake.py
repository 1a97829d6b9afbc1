"""What all fakes share: calls counted and recorded, faults met, the script changed while they run."""

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any, Generic, TypeVar

import msgspec

from loadtests.fakes.http_server import Call, CutError
from loadtests.fakes.records import Record, State, now, prompt_of
from loadtests.fakes.script import BREAKS, Fault, ProxyScript, RewardScript, VllmScript, fates

MAX_RECORDS = 20_000
GARBAGE_BYTES = 1024
S = TypeVar("S", VllmScript, RewardScript, ProxyScript)


class Fake(Generic[S]):
    """A server by its script. Subclasses say what they serve."""

    posts: frozenset[str] = frozenset()
    model = "fake"

    def __init__(self, script: S) -> None:
        self.state = State()
        self.records: deque[Record] = deque(maxlen=MAX_RECORDS)
        self.script: S = script
        self._fates = fates(script.faults, script.seed)

    def obey(self, script: S) -> None:
        """Follow another script from the next call on."""
        self.script = script
        self._fates = fates(script.faults, script.seed)

    async def __call__(self, call: Call) -> None:
        """Serve one call."""
        if call.path.startswith("/_ctl/"):
            await self._control(call)
        elif call.method == "POST" and call.path in self.posts:
            await self._serve_post(call)
        else:
            await self.serve_other(call)

    async def work(self, call: Call, body: dict[str, Any], record: Record, fault: Fault | None) -> None:
        """Answer a POST."""
        raise NotImplementedError

    async def _serve_post(self, call: Call) -> None:
        body = await body_of(call)
        if body is not None:
            await self.serve(call, body)

    async def serve(self, call: Call, body: dict[str, Any]) -> None:
        """Answer a call, or let its fault happen."""
        fault = next(self._fates)
        with self._recorded(call, body, fault) as record:
            if not await self._met(call, fault):
                await self._work(call, body, record, fault)
            record.ended_at = now()

    async def _work(self, call: Call, body: dict[str, Any], record: Record, fault: Fault | None) -> None:
        if fault is None or fault.kind not in BREAKS:
            await self.work(call, body, record, fault)
            return
        call.cut_after = fault.after
        try:
            await self.work(call, body, record, fault)
        except CutError:
            call.cut_after = None
            await self._break(call, fault)

    async def _break(self, call: Call, fault: Fault) -> None:
        """What comes instead of the rest of an answer."""
        match fault.kind:
            case "reset":
                await asyncio.sleep(0.001)  # a reset overtakes what the socket has not sent yet
                call.reset()
            case "garbage":
                await call.send(Random(self.script.seed).randbytes(GARBAGE_BYTES))
                call.close()
            case "half_close":
                call.end_sending()
                await asyncio.get_running_loop().create_future()
            case _:
                await asyncio.get_running_loop().create_future()

    @contextmanager
    def _recorded(self, call: Call, body: dict[str, Any], fault: Fault | None) -> Iterator[Record]:
        record = Record(
            path=call.path,
            request_id=call.headers.get("x-request-id", ""),
            prompt=prompt_of(body.get("messages"), body.get("prompt")),
            began_at=now(),
            fault=fault.kind if fault else None,
        )
        self.records.append(record)
        self.state.calls += 1
        self.state.open += 1
        if fault is not None:
            self.state.faults[fault.kind] = self.state.faults.get(fault.kind, 0) + 1
        try:
            yield record
        except asyncio.CancelledError:
            record.aborted_at = now()
            self.state.aborted += 1
            raise
        finally:
            self.state.open -= 1

    async def _met(self, call: Call, fault: Fault | None) -> bool:
        """Let a fault happen that needs no answer of ours; whether it ended the call."""
        match fault:
            case Fault(kind="delay"):
                await asyncio.sleep(fault.ms / 1000)
            case Fault(kind="status"):
                await call.answer({"error": {"message": "scripted", "code": fault.status}}, fault.status)
                return True
            case Fault(kind="reset", after=0):
                call.reset()
                return True
            case Fault(kind="silence", after=0):
                await asyncio.get_running_loop().create_future()
        return False

    async def serve_other(self, call: Call) -> None:
        """What is neither counted nor scripted."""
        if call.path == "/v1/models":
            card = {"id": self.model, "object": "model", "created": 1, "owned_by": "loadtests"}
            await call.answer({"object": "list", "data": [card]})
        elif call.path in {"/health", "/health/ready", "/health/live"}:
            await call.answer({"status": "ok"})
        else:
            await call.answer({"error": {"message": "no such path", "code": 404}}, 404)

    async def _control(self, call: Call) -> None:
        match call.method, call.path:
            case "GET", "/_ctl/state":
                await call.answer(self.state)
            case "GET", "/_ctl/records":
                await call.answer(list(self.records))
            case "DELETE", "/_ctl/records":
                self.records.clear()
                await call.answer({})
            case "GET", "/_ctl/script":
                await call.answer(self.script)
            case "PUT", "/_ctl/script":
                await self._change_script(call)
            case _:
                await call.answer({"error": {"message": "no such path", "code": 404}}, 404)

    async def _change_script(self, call: Call) -> None:
        try:
            self.obey(msgspec.json.decode(call.body, type=type(self.script)))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            await call.answer({"error": {"message": str(error), "code": 400}}, 400)
        else:
            await call.answer(self.script)


async def body_of(call: Call) -> dict[str, Any] | None:
    """A call's JSON object; None where it has none, and has been told so."""
    try:
        return msgspec.json.decode(call.body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        await call.answer({"error": {"message": "not a JSON object", "code": 400}}, 400)
        return None
