"""A reward in an answer is the checkpoint's own score, by the reward server and by a plain forward."""

import json
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from tests.e2e.asking import MESSAGES, check_record, scores
from tests.e2e.commands import Served
from trainers.chat import ChatEncoder, Rendering

TOLERANCE = 1e-5  # of the larger of 1 and the score, in float32

torch.set_num_threads(1)


def ask(served: Served, **fields: Any) -> Any:
    body = {"model": served.model, "messages": MESSAGES, "max_tokens": 40, **fields}
    answer = httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=60)
    return answer.raise_for_status().json()


def own_scores(served: Served, conversations: list[list[dict[str, str]]]) -> list[float]:
    """As the trainer computes them: its tokens, a forward of each text alone, less the offset."""
    tokenizer = AutoTokenizer.from_pretrained(served.reward_model)
    model = AutoModelForSequenceClassification.from_pretrained(
        served.reward_model, dtype=torch.float32
    ).eval()
    offset = json.loads((served.reward_model / "alignment.json").read_text())["reward_offset"]
    encoded = ChatEncoder(tokenizer).encode([Rendering(c, False, "here") for c in conversations])
    with torch.no_grad():
        return [float(model(torch.tensor([ids])).logits[0, 0]) - offset for ids in encoded]


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "How can I clean the boat?"}],
        [
            {"role": "user", "content": "Where does Mira live?"},
            {"role": "assistant", "content": "Mira lives in Ashby. <|end|>"},
            {"role": "user", "content": " And her job?\n"},
        ],
    ],
)
def test_every_candidates_reward_is_its_own_score(messages: list[dict[str, str]], served: Served) -> None:
    answer = ask(served, messages=messages, best_of=8, n=2, alignment={"return_candidates": True})
    record = answer["alignment"]
    check_record(record, best_of=8, n=2)
    candidates = record["candidates"]
    texts = [candidate["message"]["content"] or "" for candidate in candidates]
    rewards = [candidate["reward"] for candidate in candidates]
    assert rewards == pytest.approx(scores(served.reward_url, messages, texts), abs=TOLERANCE)
    conversations = [[*messages, {"role": "assistant", "content": text}] for text in texts]
    assert rewards == pytest.approx(own_scores(served, conversations), abs=TOLERANCE, rel=TOLERANCE)
    assert len({round(reward, 4) for reward in rewards}) > 1
    # the two best, the lower index of equals, and the sums
    best = sorted(range(8), key=lambda i: (-rewards[i], i))[:2]
    assert [choice["message"]["content"] or "" for choice in answer["choices"]] == [texts[i] for i in best]
    assert record["rewards"] == [rewards[i] for i in best]
    assert record["reward_mean"] == pytest.approx(sum(rewards) / 8)
    tokens = [candidate["completion_tokens"] for candidate in candidates]
    assert record["usage"]["all_completion_tokens"] == sum(tokens) == answer["usage"]["completion_tokens"]
    assert record["usage"]["selected_completion_tokens"] == sum(tokens[i] for i in best)


def test_usage_counts_the_prompt_once_and_what_the_reward_model_read(served: Served) -> None:
    answer = ask(served, best_of=4, alignment={"return_candidates": True})
    prompt = AutoTokenizer.from_pretrained(served.policy).apply_chat_template(
        MESSAGES, add_generation_prompt=True, return_dict=False
    )
    assert answer["usage"]["prompt_tokens"] == len(prompt)
    texts = {candidate["message"]["content"] for candidate in answer["alignment"]["candidates"]}
    body = {"messages": MESSAGES, "responses": sorted(texts)}
    judged = httpx.post(f"{served.reward_url}/score", json=body).json()
    assert answer["alignment"]["usage"]["reward_tokens"] == judged["usage"]["tokens"]
    assert answer["alignment"]["reward_model_version"] == judged["version"]


def test_logprobs_are_the_winners_own(served: Served) -> None:
    """As a plain forward of the policy gives them for the tokens of the answer."""
    answer = ask(served, best_of=4, logprobs=True, return_token_ids=True, return_tokens_as_token_ids=True)
    choice = answer["choices"][0]
    said = choice["logprobs"]["content"]
    ids = [int(entry["token"].removeprefix("token_id:")) for entry in said]
    tokenizer = AutoTokenizer.from_pretrained(served.policy)
    assert tokenizer.decode(ids, skip_special_tokens=True) == choice["message"]["content"]
    assert len(ids) == answer["alignment"]["usage"]["selected_completion_tokens"]
    prompt = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    policy = AutoModelForCausalLM.from_pretrained(served.policy, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = policy(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
    own = logits.log_softmax(-1).gather(-1, torch.tensor(ids)[:, None])[:, 0]
    assert [entry["logprob"] for entry in said] == pytest.approx(own.tolist(), abs=1e-4)


@pytest.mark.parametrize("stream", [False, True])
def test_empty_answers_are_judged_like_any_other(stream: bool, served: Served) -> None:
    """The end token at once, four times over."""
    end = AutoTokenizer.from_pretrained(served.policy).eos_token_id
    body = {
        "model": served.model,
        "messages": MESSAGES,
        "best_of": 4,
        "logit_bias": {str(end): 100},
        "stream": stream,
    }
    answer = httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=60).raise_for_status()
    if stream:
        events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        [record] = [event["alignment"] for event in events if "alignment" in event]
    else:
        assert answer.json()["choices"][0]["message"]["content"] == ""
        record = answer.json()["alignment"]
    check_record(record, best_of=4, n=1)
    assert record["rewards"] == pytest.approx(scores(served.reward_url, MESSAGES, [""]), abs=TOLERANCE)
