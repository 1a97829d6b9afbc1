"""A reward server without a model: `POST /score` as this project's rm_server answers it."""

import asyncio
import json
from typing import Any

from loadtests.fakes.fake import Fake
from loadtests.fakes.http_server import Call, whole
from loadtests.fakes.records import Record, now
from loadtests.fakes.script import Fault, RewardScript
from loadtests.fakes.tokens import count_messages


class FakeRewardServer(Fake[RewardScript]):
    """See loadtests.fakes."""

    posts = frozenset({"/score"})
    model = "fake-reward"

    async def work(self, call: Call, body: dict[str, Any], record: Record, fault: Fault | None) -> None:
        """Judge."""
        if self.script.delay_ms:
            await asyncio.sleep(self.script.delay_ms / 1000)
        answer = whole(judge(body, fault.kind if fault else None))
        record.first_at = now()
        if fault is not None and fault.kind == "cut":
            await call.send(answer[: len(answer) // 2])
            await asyncio.sleep(0.001)  # a reset overtakes what the socket has not sent yet
            call.reset()
            return
        await call.send(answer)


def judge(body: dict[str, Any], kind: str | None) -> bytes:
    """The body of an answer. The standard library writes NaN as some servers do, which is no JSON."""
    messages, responses = body.get("messages") or [], body.get("responses") or []
    scores = [len(response) / 100 for response in responses]
    if kind == "nan" and scores:
        scores[0] = float("nan")
    if kind == "wrong_count":
        del scores[:1]
    answer = {
        "model": FakeRewardServer.model,
        "version": "fake-1",
        "scores": scores,
        "usage": {
            "tokens": sum(count_messages([*messages, {"content": response}]) for response in responses)
        },
    }
    return json.dumps(answer).encode()
