"""Measures a running gateway: the gold reward of what it answers to prompts, at several best_of.

Everything goes through the gateway as the requests of any client would. The model under test sees the prompt
alone; the gold reward is computed here, from hidden facts that never leave this process.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import aiohttp

from trainers.tiny.generate import Prompt, plain_prompt
from trainers.tiny.gold import gold_reward
from trainers.tiny.preferences import Pair

MAX_TOKENS = 80
CONCURRENCY = 192
"""Candidates under way at once."""


@dataclass(frozen=True)
class Subject:
    """A served model, and whether it is asked by chat or, as a base model must be, by plain text."""

    url: str
    model: str
    chat: bool


async def ask(session: aiohttp.ClientSession, subject: Subject, prompt: Prompt, best_of: int) -> str:
    """One answer to one prompt. Raises aiohttp.ClientError where the gateway does not answer with 200."""
    body: dict[str, Any] = {
        "model": subject.model,
        "best_of": best_of,
        "max_tokens": MAX_TOKENS,
        "temperature": 1.0,
    }
    if subject.chat:
        path, body["messages"] = "/v1/chat/completions", prompt["prompt"]
    else:
        path, body["prompt"], body["stop"] = (
            "/v1/completions",
            plain_prompt(prompt["prompt"]),
            ["\nQuestion:"],
        )
    async with session.post(subject.url + path, json=body) as response:
        if response.status != 200:
            raise aiohttp.ClientPayloadError(f"{path} answered {response.status}: {await response.text()}")
        choice = (await response.json())["choices"][0]
    return str(choice["message"]["content"] if subject.chat else choice["text"]).strip()


async def gold_by_prompt(
    subject: Subject,
    prompts: Sequence[Prompt],
    best_of: int,
    repeats: int,
    on_answer: Callable[[], None],
) -> list[float]:
    """The mean gold reward over `repeats` answers to each prompt, in the order of the prompts."""
    async with open_session() as session:
        slots = asyncio.Semaphore(max(1, CONCURRENCY // best_of))

        async def once(prompt: Prompt) -> float:
            async with slots:
                text = await ask(session, subject, prompt, best_of)
            on_answer()
            return gold_reward(prompt["skill"], prompt["facts"], text)

        rewards = await asyncio.gather(*(once(prompt) for prompt in prompts for _ in range(repeats)))
    return [fmean(rewards[i : i + repeats]) for i in range(0, len(rewards), repeats)]


@dataclass(frozen=True)
class Agreement:
    """How often a reward model prefers what was preferred, in [0, 1]."""

    gold_order: float
    noisy_labels: float
    pairs: int


async def reward_model_agreement(reward_url: str, pairs: Sequence[Pair]) -> Agreement:
    """Scores both answers of each pair on a running rm_server; pairs of equal gold count for labels only."""
    async with open_session() as session:
        slots = asyncio.Semaphore(16)

        async def margin(pair: Pair) -> float:
            texts = [pair["chosen"][0]["content"], pair["rejected"][0]["content"]]
            body = {"messages": pair["prompt"], "responses": texts}
            async with (
                slots,
                session.post(f"{reward_url}/score", json=body, raise_for_status=True) as response,
            ):
                chosen, rejected = (await response.json())["scores"]
            return float(chosen - rejected)

        margins = await asyncio.gather(*map(margin, pairs))
    ordered = [
        (m > 0) == (p["gold_chosen"] > p["gold_rejected"])
        for m, p in zip(margins, pairs, strict=True)
        if p["gold_chosen"] != p["gold_rejected"]
    ]
    return Agreement(fmean(ordered), fmean(m > 0 for m in margins), len(pairs))


@asynccontextmanager
async def open_session() -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        yield session
