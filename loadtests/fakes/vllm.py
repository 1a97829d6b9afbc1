"""A vLLM OpenAI server without an engine: chats and completions, streamed or not, with n choices."""

import asyncio
from typing import Any

from loadtests.fakes.chunks import Shape, whole_answer, writes
from loadtests.fakes.fake import Fake, body_of
from loadtests.fakes.http_server import LAST_CHUNK, STREAM_HEAD, Call, chunk, whole
from loadtests.fakes.records import Record, now
from loadtests.fakes.script import Fault, VllmScript
from loadtests.fakes.tokens import count_messages, count_text

ERROR_EVENT = b'data: {"error": {"message": "scripted", "type": "InternalServerError", "code": 500}}\n\n'
MAX_MODEL_LEN = 131_072
DONE = b"data: [DONE]\n\n"


class FakeVllm(Fake[VllmScript]):
    """See loadtests.fakes."""

    posts = frozenset({"/v1/chat/completions", "/v1/completions"})

    async def work(self, call: Call, body: dict[str, Any], record: Record, fault: Fault | None) -> None:
        """Generate."""
        shape = shape_of(call.path, body, self.script)
        script, kind = self.script, fault.kind if fault else None
        if script.delay_ms:
            await asyncio.sleep(script.delay_ms / 1000)
        if body.get("stream"):
            await self._stream(call, shape, script, record, kind)
            return
        await asyncio.sleep(script.interval_ms / 1000 * max(shape.lengths))
        if kind == "error_event":
            await call.answer({"error": {"message": "scripted", "code": 500}}, 500)
            return
        answer = whole(whole_answer(shape))
        record.first_at = record.candidates_at = now()
        if kind == "cut":
            await self._cut(call, answer[: len(answer) // 2])
            return
        await call.send(answer)

    async def serve_other(self, call: Call) -> None:
        """/tokenize, and what every fake serves."""
        if (call.method, call.path) != ("POST", "/tokenize"):
            await super().serve_other(call)
        elif (body := await body_of(call)) is not None:
            messages = body.get("messages")
            count = count_messages(messages) if isinstance(messages, list) else count_text(body.get("prompt"))
            await call.answer({"count": count, "max_model_len": MAX_MODEL_LEN, "tokens": list(range(count))})

    async def _stream(
        self, call: Call, shape: Shape, script: VllmScript, record: Record, kind: str | None
    ) -> None:
        parts = writes(shape)
        breaks_at = len(parts) // 2 if kind in {"cut", "error_event"} else None
        loop = asyncio.get_running_loop()
        record.first_at, due = now(), loop.time()
        await call.send(STREAM_HEAD)
        for index, part in enumerate(parts):
            if index == breaks_at:
                await self._break_off(call, kind)
                return
            if part.ends_all:
                record.candidates_at = now()
            await call.send(part.data)
            due += part.steps * script.interval_ms / 1000
            await asyncio.sleep(due - loop.time() if part.steps and script.interval_ms else 0)
        await call.send(LAST_CHUNK)

    async def _break_off(self, call: Call, kind: str | None) -> None:
        if kind == "error_event":
            await call.send(chunk(ERROR_EVENT) + chunk(DONE) + LAST_CHUNK)
        else:
            await self._cut(call, b"")

    async def _cut(self, call: Call, data: bytes) -> None:
        """Send what there is, then break the connection off."""
        await call.send(data)
        await asyncio.sleep(0.001)  # a reset overtakes what the socket has not sent yet
        call.reset()


def shape_of(path: str, body: dict[str, Any], script: VllmScript) -> Shape:
    """The answer that a request gets."""
    prompts = body.get("prompt")
    many = isinstance(prompts, list) and prompts and not isinstance(prompts[0], int)
    choices = (body.get("n") or 1) * (len(prompts) if many and isinstance(prompts, list) else 1)
    most = body.get("max_completion_tokens") or body.get("max_tokens") or 1 << 20
    wanted = [script.tokens + index * script.tokens_step for index in range(choices)]
    options = body.get("stream_options") or {}
    return Shape(
        chat="chat" in path,
        lengths=tuple(min(count, most) for count in wanted),
        reasons=tuple("length" if count > most else "stop" for count in wanted),
        include_usage=bool(options.get("include_usage")),
        continuous_usage=bool(options.get("continuous_usage_stats")),
        stream_interval=body.get("stream_interval") or 1,
        burst=script.burst,
    )
