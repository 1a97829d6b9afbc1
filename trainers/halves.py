"""Two reward models from two halves of the preferences, and what each makes of the same answers."""

import json
import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from statistics import correlation
from typing import Any

import numpy as np

from trainers import accuracy, checkpoint, formats, models, normalization
from trainers.chat import ChatEncoder
from trainers.data import Preference, Tokens, keep_usable
from trainers.encoding import tokenize_conversations
from trainers.errors import DataError
from trainers.formats import Demonstration
from trainers.intervals import mean
from trainers.preferences import FORMS
from trainers.run import Run

BATCH_SIZE = 16

Answers = list[list[Demonstration]]
"""By prompt, the conversations that end in its answers."""
Scores = list[list[float]]
"""The same, as rewards."""


def split(dataset_name: str, folder: Path, names: Sequence[str], seed: int) -> list[Path]:
    """Writes two halves of a data set, no prompt in both, as NAME.jsonl; the same for the same seed."""
    rows, _ = formats.read_rows(dataset_name)
    choices, _ = formats.read_choices(dataset_name)
    prompts = [_prompt_of(choice.candidates[0]) for choice in choices]
    distinct = list(dict.fromkeys(prompts))
    if len(distinct) < len(names):
        raise DataError(f"{dataset_name}: two halves need two prompts")
    order = np.random.default_rng(seed).permutation(len(distinct))
    half_of = {distinct[index]: place % len(names) for place, index in enumerate(order)}
    paths = [folder / f"{name}.jsonl" for name in names]
    for half, path in enumerate(paths):
        kept = [row for (row, _), prompt in zip(rows, prompts, strict=True) if half_of[prompt] == half]
        path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    return paths


def _prompt_of(conversation: Demonstration) -> str:
    return json.dumps(conversation.messages[: conversation.learn_from])


def read_answers(name: str) -> Answers:
    """The answers of a file that `sample` wrote, by prompt."""
    rows, _ = formats.read_rows(name)
    for row, where in rows:
        if not isinstance(row.get("responses"), list):
            raise DataError(f"{where}: needs `prompt` and `responses`, as `sample` writes them")
    if len(rows) < 2:
        raise DataError(f"{name}: an interval over prompts needs at least two of them")
    conversations, _ = formats.read_conversations(name)
    ends = [0, *accumulate(len(row["responses"]) for row, _ in rows)]
    return [conversations[start:end] for start, end in pairwise(ends)]


class Judge:
    """A trained reward model that gives normalised rewards."""

    def __init__(self, run: Run, folder: Path) -> None:
        parent = checkpoint.find(str(folder))
        self.run = run
        self.tokenizer, _ = models.load_tokenizer(parent, None)
        self.encoder = ChatEncoder(self.tokenizer)
        self.model = models.load_reward_model(parent, self.tokenizer, "sdpa", seed=0).to(run.device)
        self.offset = float(checkpoint.read_json(folder / checkpoint.ALIGNMENT)["reward_offset"])
        self.max_length = models.context_length(parent)

    def score(self, answers: Answers) -> Scores:
        """Normalised rewards. DataError for an answer that is longer than the model reads."""
        flat = tokenize_conversations([item for group in answers for item in group], self.encoder)
        if self.max_length is not None and any(len(tokens) > self.max_length for tokens in flat):
            raise DataError(f"--samples: an answer is longer than the {self.max_length} tokens of the model")
        rewards = iter(self._raw(flat))
        return [[next(rewards) - self.offset for _ in group] for group in answers]

    def accuracy(self, file: Path, loss_type: str, limit: int, seed: int) -> float:
        """The share of a half's preferences, or of `limit` of them, in which the best answer has the highest
        reward.
        """
        form = FORMS[loss_type]
        rows, _ = form.read(str(file))
        tokens: list[Preference] = form.tokenize(rows, self.encoder)
        kept, _ = keep_usable(tokens, self.max_length or max(map(len, tokens)))
        drawn = normalization.choose_samples(kept, limit, seed)
        judged = accuracy.judge(self.run, self.model, drawn, self.tokenizer.pad_token_id, BATCH_SIZE)
        return sum(item.right for item in judged) / len(judged)

    def _raw(self, flat: Sequence[Tokens]) -> list[float]:
        pad_token_id = self.tokenizer.pad_token_id
        raw_S = normalization.score_in_order(self.run, self.model, flat, pad_token_id, BATCH_SIZE)
        return [float(value) for value in raw_S]


def best_of_n(proxy: Sequence[float], gold: Sequence[float], n: int) -> float:
    """The mean gold reward of the answer with the highest proxy among n of these, over every choice of n.

    Nakano et al. 2021, appendix I: with answers sorted by proxy, ascending, the i-th of N is the best of
    C(i - 1, n - 1) of the C(N, n) choices.
    """
    ordered = [gold[index] for index in sorted(range(len(proxy)), key=lambda index: proxy[index])]
    ways = math.comb(len(ordered), n)
    return math.fsum(math.comb(i, n - 1) / ways * value for i, value in enumerate(ordered))


def kl_bound(n: int) -> float:
    """The most that best-of-n can differ from the policy that it samples: log n - (n - 1) / n nats."""
    return math.log(n) - (n - 1) / n


def best_of_n_curve(train: Scores, test: Scores) -> list[dict[str, Any]]:
    """Both models' scores of what the train model picks among n = 1, 2, 4, ... answers, with their gap."""
    most = min(map(len, train))
    ns = [2**power for power in range(most.bit_length()) if 2**power < most] + [most]
    return [
        {"n": n, "kl_bound_nats": kl_bound(n)}
        | _point(
            [best_of_n(scores, scores, n) for scores in train],
            [best_of_n(scores, other, n) for scores, other in zip(train, test, strict=True)],
        )
        for n in ns
    ]


def policy_point(train: Scores, test: Scores) -> dict[str, Any]:
    """Both models' mean scores of a policy's answers, with their gap."""
    return _point(*([math.fsum(scores) / len(scores) for scores in side] for side in (train, test)))


def _point(train: Sequence[float], test: Sequence[float]) -> dict[str, Any]:
    """Means over prompts with 95 % intervals; the gap is paired by prompt."""
    gaps = [a - b for a, b in zip(train, test, strict=True)]
    point: dict[str, Any] = {}
    for name, values in (("train", train), ("test", test), ("gap", gaps)):
        found = mean(values)
        point[name] = {"mean": found.mean, "ci95": list(found.ci95)}
    return point


def agreement(train: Scores, test: Scores) -> float:
    """Pearson's correlation of both models' scores over all answers."""
    return correlation(*([score for scores in side for score in scores] for side in (train, test)))
