"""A: the connection to the policy dies or falls silent, at every point of an answer."""

import asyncio
import json
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam

from tests.faults.fakes import Behaviour, hanging_up, silent, streaming, vanishing
from tests.faults.world import CANARY_PROMPT, WAYS, World, texts
from tests.gateway.fake_servers import MODEL, Sample, closing_chunks, event
from tests.gateway.stack import check_envelope, events

ASKED: list[ChatCompletionMessageParam] = [{"role": "user", "content": CANARY_PROMPT}]
SAMPLES = [Sample("grün, größer"), Sample("naïve café"), Sample("日本語のテキスト")]
DONE = b"data: [DONE]\n\n"


def stream_of(samples: list[Sample]) -> bytes:
    """All that the policy streams for these candidates, in as few bytes as that takes. Characters are not
    escaped: they have several."""
    pieces: list[dict[str, Any]] = [
        {"index": i, "delta": {"role": "assistant"}} for i, _ in enumerate(samples)
    ]
    for index, sample in enumerate(samples):
        middle = len(sample.text) // 2
        pieces.append({"index": index, "delta": {"content": sample.text[:middle]}})
        last = {"index": index, "delta": {"content": sample.text[middle:]}, "finish_reason": "stop"}
        pieces.append(last)
    chunks = [json.dumps({"choices": [piece]}, ensure_ascii=False).encode() for piece in pieces]
    return b"".join(b"data: " + chunk + b"\n\n" for chunk in chunks) + DONE


ONE, THREE = stream_of(SAMPLES[:1]), stream_of(SAMPLES)


async def listen(client: AsyncOpenAI, heard: list[ChatCompletionChunk]) -> None:
    """Stream a chat by the official client."""
    async for chunk in await client.chat.completions.create(model=MODEL, messages=ASKED, stream=True):
        heard += [chunk]


@pytest.mark.parametrize("end", [vanishing, hanging_up])
async def test_a_stream_cut_anywhere_raises_in_the_official_client(world: World, end: Behaviour) -> None:
    async with world.client() as client:
        for cut in range(1, len(ONE) - len(DONE) + 10, 7):
            world.policies_do(streaming([ONE[:cut]], then=end))
            heard: list[ChatCompletionChunk] = []
            with pytest.raises(openai.APIError):
                await listen(client, heard)
            text = "".join(chunk.choices[0].delta.content or "" for chunk in heard)
            assert SAMPLES[0].text.startswith(text)


@pytest.mark.parametrize("end", [vanishing, hanging_up])
async def test_a_stream_cut_anywhere_ends_in_one_error_event_and_no_done(
    world: World, end: Behaviour
) -> None:
    for cut in range(1, len(ONE) - len(DONE), 11):
        world.policies_do(streaming([ONE[:cut]], then=end))
        answer = await world.chat(stream=True)
        if answer.status_code == 200:
            *before, last = events(answer.text)
            assert list(last) == ["error"]
            assert "[DONE]" not in before
            assert all("choices" in chunk for chunk in before)
        else:
            check_envelope(answer, answer.status_code)
            assert answer.status_code in {502, 503}


@pytest.mark.parametrize("end", [vanishing, hanging_up])
async def test_best_of_n_never_returns_half_a_candidate(world: World, end: Behaviour) -> None:
    whole = {sample.text for sample in SAMPLES}
    outcomes = set()
    for cut in range(1, len(THREE), 13):
        world.policies_do(streaming([THREE[:cut]], then=end))
        answer = await world.chat(best_of=3)
        outcomes.add(answer.status_code)
        if answer.status_code == 200:
            record = answer.json()["alignment"]
            assert set(texts(answer)) <= whole
            assert record["degraded"] == "candidates_failed" or record["finished"] == 3
        else:
            assert answer.status_code in {502, 503}
    assert 200 in outcomes
    assert outcomes & {502, 503}


async def test_text_is_the_same_wherever_the_network_cuts_it(world: World) -> None:
    for cut in range(1, len(ONE)):
        world.policies_do(streaming([ONE[:cut], ONE[cut:]]))
        assert (await world.chat(stream=True)).content == ONE


async def test_candidates_are_the_same_wherever_the_network_cuts_them(world: World) -> None:
    for cut in range(1, len(THREE), 5):
        world.policies_do(streaming([THREE[:cut], THREE[cut:]]))
        answer = await world.chat(best_of=3)
        assert texts(answer) == [SAMPLES[0].text]
        assert answer.json()["alignment"]["degraded"] is None


@pytest.mark.parametrize("crlf", [False, True])
async def test_byte_by_byte(world: World, crlf: bool) -> None:
    sent = THREE.replace(b"\n", b"\r\n") if crlf else THREE
    world.policies_do(streaming([sent[i : i + 1] for i in range(len(sent))]))
    assert (await world.chat(stream=True)).content == sent
    assert texts(await world.chat(best_of=3)) == [SAMPLES[0].text]
    assert texts(await world.chat(best_of=3, stream=True)) == [SAMPLES[0].text]


@pytest.mark.parametrize("end", [vanishing, hanging_up])
async def test_an_answer_that_dies_before_its_first_byte(world: World, end: Behaviour) -> None:
    world.policies_do(end)
    for answer in (await world.every_way()).values():
        check_envelope(answer, answer.status_code)
        assert answer.status_code in {502, 503}


async def test_nobody_there_is_told_at_once_and_forgotten_when_they_are_back(world: World) -> None:
    for vllm in world.vllms:
        await vllm.stop()
    for answer in (await world.every_way()).values():
        check_envelope(answer, 503, "no_healthy_upstream")
        assert int(answer.headers["retry-after"]) >= 1
    assert (await world.http.get("/health/live")).status_code == 200
    assert (await world.http.get("/health/ready")).status_code == 503
    await world.heal()
    for name, answer in (await world.every_way()).items():
        assert texts(answer) == ["aaaa" if "best_of" in name else "a"]


IMPATIENT = pytest.mark.parametrize("world", [{"policy": {"timeout_s": 0.2}}], indirect=True)


@IMPATIENT
async def test_a_policy_that_accepts_and_never_answers_is_a_504(world: World) -> None:
    world.policies_do(silent)
    answers = await asyncio.gather(*(world.chat(**way) for way in WAYS.values()))
    for answer in answers:
        check_envelope(answer, 504, "deadline_exceeded")


@IMPATIENT
async def test_one_token_and_then_silence(world: World) -> None:
    first = b"".join(event(chunk) for chunk in closing_chunks("chat", 0, Sample("ab", finish_reason=None)))
    world.policies_do(streaming([first], then=silent))
    answer = await world.chat(stream=True)
    *before, last = events(answer.text)
    assert last["error"]["type"] == "timeout_error"
    assert [chunk["choices"][0]["delta"]["content"] for chunk in before] == ["a", "b"]
    check_envelope(await world.chat(best_of=2), 504, "deadline_exceeded")


@IMPATIENT
async def test_silence_after_some_candidates_leaves_those(world: World) -> None:
    first = b"".join(event(chunk) for chunk in closing_chunks("chat", 0, Sample("ab")))
    world.policies_do(streaming([first], then=silent))
    for answer in (await world.chat(best_of=3), await world.chat(best_of=3, stream=True)):
        assert texts(answer) == ["ab"]
    record = (await world.chat(best_of=3)).json()["alignment"]
    assert record["finished"] == record["scored"] == 1
    assert record["degraded"] in {"candidates_failed", "deadline"}
