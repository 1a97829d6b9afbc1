"""Answers to prompts, and what a reward model says of them: every process samples and judges its part, and
gets all.
"""

from collections.abc import Sequence

import torch

from trainers.formats import Demonstration
from trainers.prompts import Prompt
from trainers.rollout import Rollout, Sample, Sampling
from trainers.run import Run
from trainers.scorers import Scorer


def sample(run: Run, rollout: Rollout, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Sample]]:
    """Answers each prompt; raises what the sampler does."""

    def answer(prompts: Sequence[Prompt]) -> list[list[Sample]]:
        return rollout.sample([prompt.ids for prompt in prompts], sampling, lambda *_: None)

    with run.precision():
        return run.devices.share(answer, prompts)


def judge(run: Run, scorer: Scorer, conversations: Sequence[Demonstration]) -> torch.Tensor:
    """The normalised reward of each conversation's last turn: (E,); raises what the scorer does."""

    def score(conversations: Sequence[Demonstration]) -> list[float]:
        return scorer.score(conversations).tolist() if conversations else []

    return torch.tensor(run.devices.share(score, conversations))
