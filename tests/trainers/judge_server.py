"""A reward server whose rewards are a function of the last turn's text."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from tests.trainers.loopback import served


def judge_server(reward: Callable[[str], float]) -> AbstractContextManager[str]:
    """Serves POST /score as rm_server does; gives the URL."""

    def score(_: str, body: dict[str, Any]) -> dict[str, Any]:
        texts = [conversation[-1]["content"] for conversation in body["conversations"]]
        return {"model": "scripted", "version": "1", "scores": [reward(text) for text in texts]}

    return served(score)
