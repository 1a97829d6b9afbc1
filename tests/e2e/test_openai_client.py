"""The official client, unchanged, against the real stack: every form of best-of-N."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.e2e.asking import MESSAGES, PROMPT, check_record, scores
from tests.e2e.commands import Served


@pytest.fixture
def client(served: Served) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{served.url}/v1", api_key="unused", max_retries=0) as opened:
        yield opened


@pytest.fixture
async def async_client(served: Served) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key="unused", max_retries=0) as opened:
        yield opened


def record_of(answer: Any) -> Any:
    return (answer.model_extra or {}).get("alignment")


def test_a_chat_with_one_sample_is_a_plain_answer(client: OpenAI, served: Served) -> None:
    answer = client.chat.completions.create(model=served.model, messages=MESSAGES, max_tokens=40)
    assert answer.object == "chat.completion"
    assert answer.choices[0].finish_reason in {"stop", "length"}
    assert record_of(answer) is None


def test_a_chat_with_the_best_of_four(client: OpenAI, served: Served) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=served.model, messages=MESSAGES, max_tokens=40, extra_body={"best_of": 4}
    )
    answer = raw.parse()
    check_record(record_of(answer), best_of=4, n=1)
    assert len(answer.choices) == 1
    assert raw.headers["x-best-of"] == raw.headers["x-best-of-scored"] == "4"
    assert raw.headers["x-request-id"]
    names = [part.split(";")[0].strip() for part in raw.headers["server-timing"].split(",")]
    assert names == ["queue", "generate", "reward"]


def test_two_of_four_come_best_first(client: OpenAI, served: Served) -> None:
    answer = client.chat.completions.create(
        model=served.model, messages=MESSAGES, max_tokens=40, n=2, extra_body={"best_of": 4}
    )
    check_record(record_of(answer), best_of=4, n=2)
    assert [choice.index for choice in answer.choices] == [0, 1]
    texts = [choice.message.content or "" for choice in answer.choices]
    assert record_of(answer)["rewards"] == pytest.approx(scores(served.reward_url, MESSAGES, texts), abs=1e-5)


@pytest.mark.parametrize("best_of", [1, 4])
def test_a_stream(best_of: int, client: OpenAI, served: Served) -> None:
    chunks = client.chat.completions.create(
        model=f"{served.model}:best-of-{best_of}",
        messages=MESSAGES,
        max_tokens=40,
        stream=True,
        stream_options={"include_usage": True},
    )
    text, records, usage = "", [], None
    for chunk in chunks:
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
        records += [record_of(chunk)] if record_of(chunk) else []
        usage = chunk.usage or usage
    assert usage is not None
    assert usage.prompt_tokens > 0
    assert len(records) == (best_of > 1)
    for record in records:
        check_record(record, best_of, n=1)
        assert record["rewards"] == pytest.approx(scores(served.reward_url, MESSAGES, [text]), abs=1e-5)
        assert usage.completion_tokens == record["usage"]["all_completion_tokens"]


@pytest.mark.parametrize("best_of", [1, 4])
async def test_an_asynchronous_stream(best_of: int, async_client: AsyncOpenAI, served: Served) -> None:
    chunks = await async_client.completions.create(
        model=served.model, prompt=PROMPT, max_tokens=30, best_of=best_of, stream=True
    )
    finishes, records = [], []
    async for chunk in chunks:
        finishes += [choice.finish_reason for choice in chunk.choices if choice.finish_reason]
        records += [record_of(chunk)] if record_of(chunk) else []
    assert len(finishes) == 1
    assert len(records) == (best_of > 1)


async def test_the_asynchronous_client(async_client: AsyncOpenAI, served: Served) -> None:
    answer = await async_client.chat.completions.create(
        model=served.model, messages=MESSAGES, max_tokens=40, extra_body={"best_of": 4}
    )
    check_record(record_of(answer), best_of=4, n=1)


def test_completions_know_best_of_themselves(client: OpenAI, served: Served) -> None:
    answer = client.completions.create(model=served.model, prompt=PROMPT, max_tokens=30, n=2, best_of=4)
    check_record(record_of(answer), best_of=4, n=2)
    judged = [{"role": "user", "content": PROMPT}]
    texts = [choice.text for choice in answer.choices]
    assert record_of(answer)["rewards"] == pytest.approx(scores(served.reward_url, judged, texts), abs=1e-5)


def test_a_list_of_prompts_has_a_list_of_records(client: OpenAI, served: Served) -> None:
    questions = [PROMPT, "Question: Count from 3 to 5.\nAnswer:"]
    answer = client.completions.create(model=served.model, prompt=questions, max_tokens=20, n=2, best_of=4)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    records = record_of(answer)
    assert len(records) == 2
    for at, record in enumerate(records):
        check_record(record, best_of=4, n=2)
        judged = [{"role": "user", "content": questions[at]}]
        texts = [choice.text for choice in answer.choices[2 * at : 2 * at + 2]]
        assert record["rewards"] == pytest.approx(scores(served.reward_url, judged, texts), abs=1e-5)


@pytest.mark.parametrize(
    ("suffix", "headers"), [(":best-of-4", {}), ("", {"X-Best-Of": "4"}), (":best-of-2", {"X-Best-Of": "4"})]
)
def test_the_model_name_and_the_header_choose_it_too(
    suffix: str, headers: dict[str, str], client: OpenAI, served: Served
) -> None:
    answer = client.chat.completions.create(
        model=f"{served.model}{suffix}", messages=MESSAGES, max_tokens=20, extra_headers=headers
    )
    check_record(record_of(answer), best_of=4, n=1)


def test_models(client: OpenAI, served: Served) -> None:
    variants = [f"{served.model}:best-of-{n}" for n in (4, 8, 16)]
    assert [card.id for card in client.models.list()] == [served.model, *variants]
    assert client.models.retrieve(f"{served.model}:best-of-8").id == f"{served.model}:best-of-8"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")


@pytest.mark.parametrize("best_of", [1, 4])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("changes", "kind", "code"),
    [
        ({"model": "nobody"}, openai.NotFoundError, "model_not_found"),
        ({"n": 5, "max_tokens": 4, "best_of": 3}, openai.BadRequestError, "invalid_request"),
        (
            {"messages": [{"role": "user", "content": "word " * 2000}]},
            openai.BadRequestError,
            "context_length_exceeded",
        ),
    ],
)
def test_errors(
    changes: dict[str, Any],
    kind: type[openai.APIStatusError],
    code: str,
    stream: bool,
    best_of: int,
    client: OpenAI,
    served: Served,
) -> None:
    fields = {"model": served.model, "messages": MESSAGES, **changes}
    asked = fields.pop("best_of", best_of)
    with pytest.raises(kind) as caught:
        client.chat.completions.create(**fields, stream=stream, extra_body={"best_of": asked})
    assert caught.value.code == code
    assert caught.value.request_id
