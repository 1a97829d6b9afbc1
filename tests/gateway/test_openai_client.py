"""The official client, unchanged, against the gateway."""

import asyncio

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionMessageParam

from tests.gateway.fake_servers import MODEL, Sample
from tests.gateway.stack import Stack, running

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hi"}]


def client(stack: Stack) -> AsyncOpenAI:
    """A client that does not retry, so that each error is seen once."""
    return AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="unused", max_retries=0)


async def test_a_chat_with_best_of_in_the_extra_body() -> None:
    async with running() as stack, client(stack) as openai_client:
        answer = await openai_client.chat.completions.create(
            model=MODEL,
            messages=MESSAGES,
            n=2,
            extra_body={"best_of": 4},
        )
        assert [choice.message.content for choice in answer.choices] == ["aaaa", "aaa"]
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 12
        assert answer.model_extra is not None
        assert answer.model_extra["alignment"]["rewards"] == [4.0, 3.0]
        assert answer._request_id


async def test_completions_know_best_of_themselves() -> None:
    async with running() as stack, client(stack) as openai_client:
        answer = await openai_client.completions.create(model=MODEL, prompt="Hi", best_of=4)
        assert answer.choices[0].text == "aaaa"


@pytest.mark.parametrize("best_of", [1, 4])
async def test_streams(best_of: int) -> None:
    async with running() as stack, client(stack) as openai_client:
        chunks = await openai_client.chat.completions.create(
            model=f"{MODEL}:best-of-{best_of}",
            messages=MESSAGES,
            stream=True,
            stream_options={"include_usage": True},
        )
        text, records, usage = "", [], None
        async for chunk in chunks:
            text += "".join(choice.delta.content or "" for choice in chunk.choices)
            extra = chunk.model_extra or {}
            records += [extra["alignment"]] if "alignment" in extra else []
            usage = chunk.usage
        assert text == "a" * best_of
        assert len(records) == (best_of > 1)
        assert usage is not None


async def test_the_streaming_accumulator_works() -> None:
    async with running() as stack, client(stack) as openai_client:
        async with openai_client.chat.completions.stream(
            model=MODEL,
            messages=MESSAGES,
            extra_body={"best_of": 3},
        ) as stream:
            final = await stream.get_final_completion()
        assert final.choices[0].message.content == "aaa"


@pytest.mark.parametrize("best_of", [1, 3])
async def test_a_broken_stream_raises(best_of: int) -> None:
    async with running(heartbeat_s=0.02) as stack, client(stack) as openai_client:
        stack.vllm.samples = [Sample("abc", gate=asyncio.Event()), Sample("b"), Sample("c")]
        stack.vllm.break_after = 3
        stack.vllm.samples[0].gate = None
        stack.rewards.refusal = (500, "")

        async def read() -> None:
            chunks = await openai_client.chat.completions.create(
                model=MODEL,
                messages=MESSAGES,
                stream=True,
                extra_body={"best_of": best_of},
            )
            async for _ in chunks:
                pass

        with pytest.raises(openai.APIError):
            await read()


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"model": "nope"}, openai.NotFoundError),
        ({"n": 3, "extra_body": {"best_of": 2}}, openai.BadRequestError),
        ({"extra_body": {"alignment": {"typo": 1}}}, openai.BadRequestError),
    ],
)
async def test_errors_have_their_types(fields: dict[str, object], kind: type[openai.APIStatusError]) -> None:
    async with running() as stack, client(stack) as openai_client:
        with pytest.raises(kind) as caught:
            await openai_client.chat.completions.create(**{"model": MODEL, "messages": MESSAGES, **fields})  # type: ignore[call-overload]
        assert caught.value.type
        assert caught.value.code
        assert caught.value.request_id


async def test_failures_after_n_generations_are_not_retried_by_the_client() -> None:
    async with running() as stack:
        stack.rewards.refusal = (500, "")
        retrying = AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="unused", max_retries=2)
        with pytest.raises(openai.InternalServerError):
            await retrying.completions.create(model=MODEL, prompt="Hi", best_of=4)
        assert len(stack.vllm.requests) == 1
        await retrying.close()


async def test_the_synchronous_client() -> None:
    def ask(url: str) -> tuple[str | None, list[str]]:
        with OpenAI(base_url=f"{url}/v1", api_key="unused") as openai_client:
            answer = openai_client.chat.completions.create(
                model=MODEL,
                messages=MESSAGES,
                extra_body={"best_of": 2},
            )
            chunks = openai_client.completions.create(model=MODEL, prompt="Hi", best_of=3, stream=True)
            return answer.choices[0].message.content, [c.choices[0].text for c in chunks]

    async with running() as stack:
        content, texts = await asyncio.to_thread(ask, stack.url)
    assert (content, "".join(texts)) == ("aa", "aaa")


async def test_model_lists() -> None:
    async with running() as stack, client(stack) as openai_client:
        assert MODEL in [model.id async for model in openai_client.models.list()]
        assert (await openai_client.models.retrieve(f"{MODEL}:best-of-8")).id == f"{MODEL}:best-of-8"
