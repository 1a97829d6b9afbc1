"""Rewards for answers: from a checkpoint, as the head says; from a server, with patience and suspicion."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from trainers import checkpoint
from trainers.config import RunConfig
from trainers.devices import Devices
from trainers.errors import CheckpointError, ConfigError, RewardServerError
from trainers.formats import Demonstration
from trainers.run import Run
from trainers.scorers import CHUNK, HttpScorer, LocalScorer

URL = "http://judge"


def conversation(answer: str, is_text: bool = False) -> Demonstration:
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]
    return Demonstration(messages, 1, is_text, "here")


def local(folder: Path, tmp_path: Path, batch_size: int = 2) -> LocalScorer:
    run = Run(
        RunConfig(output_dir=str(tmp_path), use_cpu=True),
        "test",
        tmp_path,
        None,
        Devices(torch.device("cpu")),
    )
    return LocalScorer(run, checkpoint.find(str(folder)), None, batch_size)


def test_a_checkpoint_gives_the_normalised_reward_of_the_rendered_conversation(
    reward_checkpoint: Path, tmp_path: Path
) -> None:
    answers = ["a", "a much longer answer", "", "b <|end|> c"]
    found = local(reward_checkpoint, tmp_path).score([conversation(answer) for answer in answers])
    model = AutoModelForSequenceClassification.from_pretrained(reward_checkpoint).eval()
    tokenizer = AutoTokenizer.from_pretrained(reward_checkpoint)
    expected = []
    for answer in answers:
        around = [tokenizer(text)["input_ids"] for text in ("<|user|>q<|end|>\n<|assistant|>", "<|end|>\n")]
        inside = tokenizer(answer, split_special_tokens=True)["input_ids"]
        ids = torch.tensor([around[0] + inside + around[1]])
        expected.append(model(input_ids=ids).logits.item() - 0.25)
    assert found.tolist() == pytest.approx(expected, abs=1e-5)


def test_what_a_reward_model_cannot_read_is_said(reward_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"reads 128 tokens.*lower --response_length"):
        local(reward_checkpoint, tmp_path).score([conversation("x" * 200)])


def test_a_policy_is_no_reward_model(base: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"score\.weight is missing"):
        local(base, tmp_path)


class Judge:
    """The other end of the wire: answers by a script, then with the length of each answer."""

    def __init__(self, *script: httpx.Response | httpx.HTTPError) -> None:
        self.script, self.bodies, self.pauses = list(script), list[Any](), list[float]()
        self.version = "1"

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.bodies.append(json.loads(request.content))
        if len(self.bodies) > 1 and self.script:
            following = self.script.pop(0)
            if isinstance(following, httpx.HTTPError):
                raise following
            return following
        scores = [len(turns[-1]["content"]) for turns in self.bodies[-1]["conversations"]]
        return httpx.Response(200, json={"model": "m", "version": self.version, "scores": scores})

    def scorer(self, model: str | None = None, timeout_s: float = 10.0) -> HttpScorer:
        return HttpScorer(URL, model, timeout_s, httpx.MockTransport(self), self.pauses.append)


def test_a_server_is_asked_in_chunks_and_answers_in_order() -> None:
    judge = Judge()
    answers = ["x" * (number % 7) for number in range(CHUNK + 5)]
    assert judge.scorer("m").score([conversation(answer) for answer in answers]).tolist() == [
        len(answer) for answer in answers
    ]
    assert [len(body["conversations"]) for body in judge.bodies] == [1, CHUNK, 5]
    assert {body["model"] for body in judge.bodies} == {"m"}
    assert judge.bodies[1]["conversations"][3] == [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "xxx"},
    ]


def test_its_identity_is_known_from_the_start() -> None:
    judge = Judge()
    assert judge.scorer().identity == {"url": URL, "model": "m", "version": "1"}
    assert "model" not in judge.bodies[0]


def test_what_is_refused_for_now_is_asked_again() -> None:
    judge = Judge(httpx.Response(503), httpx.Response(429), httpx.ConnectError("gone"))
    assert judge.scorer().score([conversation("abc")]).tolist() == [3]
    assert judge.pauses == [1.0, 2.0, 4.0]


def test_patience_ends() -> None:
    judge = Judge(*[httpx.Response(503)] * 9)
    with pytest.raises(RewardServerError, match=r"answered 503, for 15 seconds"):
        judge.scorer().score([conversation("abc")])
    assert judge.pauses == [1.0, 2.0, 4.0, 8.0]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (httpx.Response(400, text="no such model"), "answered 400: no such model"),
        (httpx.Response(200, text="<html>"), "did not answer with JSON"),
        (httpx.Response(200, json=[]), "one score for each"),
        (httpx.Response(200, json={"version": "1", "scores": [1.0, 2.0]}), "one score for each"),
        (httpx.Response(200, json={"version": "1", "scores": [None]}), "no finite number"),
        (httpx.Response(200, json={"version": "2", "scores": [1.0]}), "changed from version 1 to 2"),
    ],
)
def test_an_answer_that_is_no_reward_of_this_model_is_not_learned_from(
    answer: httpx.Response, reason: str
) -> None:
    with pytest.raises(RewardServerError, match=reason):
        Judge(answer).scorer().score([conversation("abc")])


def test_plain_text_is_not_sent() -> None:
    with pytest.raises(ConfigError, match="no chat template"):
        Judge().scorer().score([conversation("abc", is_text=True)])
