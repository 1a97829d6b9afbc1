"""What the tests of the real stack ask, and what any record of best-of-N must hold."""

import math
from typing import Any

import httpx
from openai.types.chat import ChatCompletionMessageParam

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "How can I clean the boat?"}]
PROMPT = "Question: How can I clean the boat?\nAnswer:"
RECORD = {
    "method",
    "best_of",
    "finished",
    "scored",
    "reward_model",
    "reward_model_version",
    "rewards",
    "reward_mean",
    "kl_bound_nats",
    "usage",
    "degraded",
}
OPTIONAL = {"candidates", "out_of_distribution", "server_timing"}


def check_record(record: dict[str, Any], best_of: int, n: int) -> None:
    """A record of best-of-N in which nothing failed."""
    assert set(record) - OPTIONAL == RECORD
    # The trainer's reward models are calibrated, so each reward comes with what the server thinks of it.
    assert [type(strange) for strange in record.get("out_of_distribution", [True] * n)] == [bool] * n
    assert record["method"] == "best_of_n"
    assert record["best_of"] == record["finished"] == record["scored"] == best_of
    assert record["degraded"] is None
    assert record["reward_model"] == "reward"
    assert record["reward_model_version"]
    assert len(record["rewards"]) == n
    assert record["rewards"] == sorted(record["rewards"], reverse=True)
    assert record["reward_mean"] <= record["rewards"][0] + 1e-9
    assert math.isclose(record["kl_bound_nats"], math.log(best_of) - (best_of - 1) / best_of, abs_tol=1e-9)
    usage = record["usage"]
    assert set(usage) == {"selected_completion_tokens", "all_completion_tokens", "reward_tokens"}
    assert 0 < usage["selected_completion_tokens"] <= usage["all_completion_tokens"]
    assert usage["reward_tokens"] > 0


def scores(reward_url: str, messages: Any, responses: list[str]) -> list[float]:
    """What the reward server says of these answers."""
    body = {"messages": messages, "responses": responses}
    answer = httpx.post(f"{reward_url}/score", json=body, timeout=60).raise_for_status().json()
    return list(answer["scores"])


def metric(url: str, name: str, **labels: str) -> float:
    """The sum of a metric's samples with these labels."""
    lines = httpx.get(f"{url}/metrics", timeout=60).text.splitlines()
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    samples = [line for line in lines if line.split("{")[0].split(" ")[0] == name]
    return sum(float(line.rsplit(" ", 1)[1]) for line in samples if all(label in line for label in wanted))
