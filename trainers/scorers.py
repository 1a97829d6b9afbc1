"""Rewards for the answers of an online run, normalised: from a checkpoint, or from a running reward server.

`Scorer` is the seam. Both real ones read conversations by the same rule (each answer as the assistant's turn
of its conversation, in the reward model's own tokens and template), so that they agree to float32's precision
and a policy need not share its reward model's tokenizer. `ScriptedScorer` is the fake for tests.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import httpx
import torch

from trainers import checkpoint, models
from trainers.chat import ChatEncoder
from trainers.checkpoint import Parent
from trainers.data import collate_rewards
from trainers.encoding import tokenize_conversations
from trainers.errors import CheckpointError, ConfigError, RewardServerError
from trainers.formats import Demonstration
from trainers.run import Run

CHUNK = 64
"""Conversations in one request."""


class Scorer(Protocol):
    """Anything that rewards answers."""

    @property
    def identity(self) -> Mapping[str, str]:
        """Which reward model it is, for alignment.json: other weights are another identity."""
        ...

    def score(self, conversations: Sequence[Demonstration]) -> torch.Tensor:
        """The normalised reward of each conversation's last turn, in order: (E,), float32, finite."""
        ...


class LocalScorer:
    """A reward model's checkpoint, in this process."""

    def __init__(self, run: Run, parent: Parent, chat_template_path: str | None, batch_size: int) -> None:
        self.run, self.parent, self.batch_size = run, parent, batch_size
        self.identity = {"path": parent.name, "sha256": parent.sha256}
        self.tokenizer, _ = models.load_tokenizer(parent, chat_template_path)
        self.encoder = ChatEncoder(self.tokenizer)
        model = models.load_reward_model(parent, self.tokenizer, "sdpa", seed=0, has_head=True)
        self.model = model.requires_grad_(False).to(run.device)
        self.offset = reward_offset(parent)
        self.context_length = models.context_length(parent) or math.inf

    def score(self, conversations: Sequence[Demonstration]) -> torch.Tensor:
        """Raises CheckpointError where a conversation is too long for it, or a reward not finite."""
        rows = tokenize_conversations(conversations, self.encoder)
        longest = max(len(row) for row in rows)
        if longest > self.context_length:
            raise CheckpointError(
                f"{self.parent.name}: the reward model reads {self.context_length} tokens, and a prompt "
                f"with its response has {longest}: lower --response_length or --max_length"
            )
        order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
        rewards_E = torch.empty(len(rows))
        with self.run.inference():
            for at in range(0, len(order), self.batch_size):
                chosen = order[at : at + self.batch_size]
                batch = collate_rewards([rows[index] for index in chosen], self.tokenizer.pad_token_id)
                rewards_E[chosen] = models.rewards(self.model, batch.to(self.run.device)).cpu()
        if not bool(rewards_E.isfinite().all()):
            raise CheckpointError(f"{self.parent.name}: the reward model gave a reward that is not finite")
        return rewards_E - self.offset


class HttpScorer:
    """A reward server's POST /score. What it refuses for now is asked again for up to `timeout_s` seconds."""

    def __init__(
        self,
        url: str,
        model: str | None,
        timeout_s: float,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url, self.model, self.timeout_s, self.sleep = url.rstrip("/"), model, timeout_s, sleep
        self.transport = transport
        self.version: str | None = None
        # The first answer says which model it is; a server that is not there fails the run before it starts.
        self.score([Demonstration([_turn("user", "Hello"), _turn("assistant", "Hello")], 1, False, "probe")])

    @property
    def identity(self) -> Mapping[str, str]:
        """Where the rewards come from, and the version of the weights that give them."""
        return {"url": self.url, "model": str(self.model), "version": str(self.version)}

    def score(self, conversations: Sequence[Demonstration]) -> torch.Tensor:
        """Raises RewardServerError where the server does not answer, or not with rewards of the model that
        the run began with.
        """
        if any(item.is_text for item in conversations):
            raise ConfigError(
                "a reward server reads conversations, and the policy's tokenizer has no chat template: pass "
                "--chat_template_path, or rewards from a checkpoint (--reward_model_path)"
            )
        parts = [conversations[at : at + CHUNK] for at in range(0, len(conversations), CHUNK)]
        return torch.tensor([reward for part in parts for reward in self._score(part)])

    def _score(self, conversations: Sequence[Demonstration]) -> list[float]:
        body: dict[str, Any] = {"conversations": [item.messages for item in conversations]}
        answer = self._post(body if self.model is None else body | {"model": self.model})
        scores, version = answer.get("scores"), answer.get("version")
        if not isinstance(scores, list) or len(scores) != len(conversations):
            raise RewardServerError(f"{self.url}: did not answer with one score for each conversation")
        if not all(isinstance(score, int | float) and math.isfinite(score) for score in scores):
            raise RewardServerError(f"{self.url}: gave a score that is no finite number")
        if self.version is None:
            self.model, self.version = str(answer.get("model")), str(version)
        if version != self.version:
            raise RewardServerError(
                f"{self.url}: the reward model changed from version {self.version} to {version}: what was "
                "learned and what would be are rewarded by different models"
            )
        return [float(score) for score in scores]

    def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        waited, pause = 0.0, 1.0
        while isinstance(answer := self._ask(body), str):
            if waited >= self.timeout_s:
                raise RewardServerError(f"{self.url}: {answer}, for {waited:.0f} seconds")
            self.sleep(pause)
            waited, pause = waited + pause, min(2 * pause, 15.0)
        if answer.status_code != 200:
            raise RewardServerError(f"{self.url}: answered {answer.status_code}: {answer.text[:300]}")
        try:
            content = answer.json()
        except ValueError as error:
            raise RewardServerError(f"{self.url}: did not answer with JSON") from error
        return content if isinstance(content, dict) else {}

    def _ask(self, body: dict[str, Any]) -> httpx.Response | str:
        """The answer, or why there is none for now."""
        try:
            # One connection for each request: between two of them a server would close it anyway.
            with httpx.Client(timeout=self.timeout_s, transport=self.transport, trust_env=False) as client:
                answer = client.post(f"{self.url}/score", json=body)
        except httpx.HTTPError as error:
            return f"is not reachable ({type(error).__name__})"
        is_busy = answer.status_code >= 500 or answer.status_code == 429
        return f"answered {answer.status_code}" if is_busy else answer


class ScriptedScorer:
    """Rewards from a function of the answer's text: the fake for tests."""

    def __init__(self, reward: Callable[[str], float]) -> None:
        self.reward = reward
        self.identity = {"path": "scripted"}

    def score(self, conversations: Sequence[Demonstration]) -> torch.Tensor:
        """The function's value for the last turn of each conversation."""
        return torch.tensor([self.reward(item.messages[-1]["content"]) for item in conversations])


def reward_offset(parent: Parent) -> float:
    """What is subtracted from a checkpoint's raw rewards to normalise them; 0 where it does not say."""
    file = parent.folder / checkpoint.ALIGNMENT
    return float(checkpoint.read_json(file).get("reward_offset", 0.0)) if file.is_file() else 0.0


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
