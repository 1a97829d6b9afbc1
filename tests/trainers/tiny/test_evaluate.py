"""What a gateway answers is judged by the gold reward; what a reward model prefers, by the gold order."""

import threading
from typing import Any

import aiohttp
import pytest

from tests.trainers.tiny.fakes import said, serving
from trainers.tiny.evaluate import (
    CONCURRENCY,
    MAX_TOKENS,
    Agreement,
    Subject,
    ask,
    gold_by_prompt,
    open_session,
    reward_model_agreement,
)
from trainers.tiny.generate import Prompt, plain_prompt
from trainers.tiny.gold import gold_reward
from trainers.tiny.preferences import Pair


def prompt(first: int, last: int) -> Prompt:
    return {
        "prompt": [{"role": "user", "content": f"Count from {first} to {last}."}],
        "skill": "counting",
        "facts": {"kind": "up", "first": first, "last": last},
        "split": "held_out",
    }


def pair(chosen: str, rejected: str, gold_chosen: float, gold_rejected: float) -> Pair:
    return {
        "prompt": [{"role": "user", "content": "?"}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "gold_chosen": gold_chosen,
        "gold_rejected": gold_rejected,
    }


@pytest.mark.parametrize("best_of", [1, 16])
async def test_an_aligned_model_is_asked_by_chat(best_of: int) -> None:
    with serving(lambda path, _: (200, said(path, " 3, 4, 5.\n"))) as fake:
        async with open_session() as session:
            subject = Subject(fake.url, "sft", chat=True)
            assert await ask(session, subject, prompt(3, 5), best_of) == "3, 4, 5."
    [(path, body)] = fake.asked
    assert path == "/v1/chat/completions"
    assert body == {
        "model": "sft",
        "messages": prompt(3, 5)["prompt"],
        "best_of": best_of,
        "max_tokens": MAX_TOKENS,
        "temperature": 1.0,
    }


async def test_a_base_model_is_asked_by_plain_text() -> None:
    with serving(lambda path, _: (200, said(path, " 3."))) as fake:
        async with open_session() as session:
            assert await ask(session, Subject(fake.url, "base", chat=False), prompt(3, 5), 4) == "3."
    [(path, body)] = fake.asked
    assert path == "/v1/completions"
    assert body["prompt"] == plain_prompt(prompt(3, 5)["prompt"])
    assert body["stop"] == ["\nQuestion:"]
    assert "messages" not in body


async def test_hidden_facts_stay_hidden() -> None:
    secret: Prompt = {**prompt(3, 5), "facts": {"kind": "up", "first": 3, "last": 99}}
    with serving(lambda path, _: (200, said(path, ""))) as fake:
        await gold_by_prompt(Subject(fake.url, "sft", chat=True), [secret], 4, 1, lambda: None)
    assert "99" not in str(fake.asked)
    assert "skill" not in str(fake.asked)


async def test_a_gateway_that_refuses_is_an_error_that_says_why() -> None:
    with serving(lambda *_: (503, {"error": {"code": "overloaded"}})) as fake:
        async with open_session() as session:
            with pytest.raises(aiohttp.ClientError, match=r"answered 503.*overloaded"):
                await ask(session, Subject(fake.url, "sft", chat=True), prompt(3, 5), 1)


async def test_rewards_are_means_over_the_answers_to_each_prompt_in_order() -> None:
    """Every first answer to a question is right, the others are empty."""
    seen: set[str] = set()
    answers = {"Count from 3 to 5.": "3, 4, 5.", "Count from 6 to 8.": "Sure! 6, 7, 8."}

    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        question = body["messages"][0]["content"]
        text = "" if question in seen else answers[question]
        seen.add(question)
        return 200, said(path, text)

    ticks: list[None] = []
    rows = [prompt(3, 5), prompt(6, 8)]
    with serving(answer) as fake:
        subject = Subject(fake.url, "sft", chat=True)
        found = await gold_by_prompt(subject, rows, CONCURRENCY, 3, lambda: ticks.append(None))
    expected = [
        (
            gold_reward("counting", row["facts"], answers[row["prompt"][0]["content"]])
            + 2 * gold_reward("counting", row["facts"], "")
        )
        / 3
        for row in rows
    ]
    assert found == pytest.approx(expected)
    assert found[1] > found[0]  # politer
    assert len(ticks) == len(fake.asked) == 6


@pytest.mark.parametrize(("best_of", "most"), [(16, CONCURRENCY // 16), (2 * CONCURRENCY, 1)])
async def test_as_many_candidates_as_allowed_are_under_way_and_no_more(best_of: int, most: int) -> None:
    company = threading.Barrier(most)

    def answer(path: str, _: dict[str, Any]) -> tuple[int, Any]:
        company.wait(30)  # each waits for as many as may be under way together
        return 200, said(path, "3")

    rows = [prompt(3, 5)] * (8 * most)
    with serving(answer) as fake:
        await gold_by_prompt(Subject(fake.url, "m", chat=True), rows, best_of, 1, lambda: None)
    assert fake.most_open == most
    assert len(fake.asked) == len(rows)


async def test_agreement_by_hand() -> None:
    """The judge likes longer answers. Gold order: right, wrong, right of 3 (the last has none);
    labels: right, wrong, wrong, right of 4."""
    pairs = [
        pair("aa", "a", 1.0, 0.0),  # label and gold: the longer
        pair("a", "aa", 1.0, 0.0),  # label and gold: the shorter
        pair("a", "aaa", 0.0, 1.0),  # a noisy label: gold says the longer
        pair("aa", "a", 0.5, 0.5),  # equal gold
    ]

    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        assert path == "/score"
        return 200, {"scores": [len(text) for text in body["responses"]]}

    with serving(answer) as fake:
        assert await reward_model_agreement(fake.url, pairs) == Agreement(2 / 3, 2 / 4, 4)
    assert all(body["messages"] == pairs[0]["prompt"] for _, body in fake.asked)


async def test_a_reward_server_that_fails_is_an_error() -> None:
    with serving(lambda *_: (500, {})) as fake, pytest.raises(aiohttp.ClientError):
        await reward_model_agreement(fake.url, [pair("a", "b", 1.0, 0.0)])
