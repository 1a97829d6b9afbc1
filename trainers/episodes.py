"""The bookkeeping of rollouts: episodes (a prompt, an answer, its reward) and what is known of each token.

Quantities of tokens are held as (E, L): episodes by the tokens of the longest response, with `mask_EL` true
where there is a token and 0 elsewhere. A batch takes them out as (N,), in the order of its targets.

Where several processes share the work, every one holds all episodes and all that is known of them. What needs
a model each computes for its part; batches of learning are its parts of theirs together.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch

from trainers.data import CausalBatch, Idle, Tokens, collate_tokens
from trainers.devices import Devices
from trainers.prompts import Prompt
from trainers.rollout import Sample


@dataclass(frozen=True, slots=True)
class Episode:
    """A prompt and one answer to it."""

    prompt: Prompt
    sample: Sample

    @property
    def tokens(self) -> Tokens:
        """Both as token ids; every token of the answer is a target."""
        ids = self.prompt.ids + self.sample.token_ids
        return Tokens(ids, list(range(len(self.prompt.ids), len(ids))))


@dataclass(frozen=True, slots=True)
class EpisodeBatch:
    """Episodes for one forward and backward pass, with quantities of their tokens (N,) and of each (B,)."""

    sequences: CausalBatch
    of_tokens: dict[str, torch.Tensor]
    of_episodes: dict[str, torch.Tensor]

    def to(self, device: torch.device) -> Self:
        """The same batch on a device; its quantities are there already."""
        return type(self)(self.sequences.to(device), self.of_tokens, self.of_episodes)


class ValueBatch(EpisodeBatch):
    """The same, for a value model: a batch of its own, so that the activations of policy and value model are
    not held at once.
    """

    @classmethod
    def of(cls, batch: EpisodeBatch | Idle[EpisodeBatch]) -> Self | Idle[Self]:
        """The value model's part of a batch."""
        if isinstance(batch, Idle):
            return Idle(cls(batch.stand_in.sequences, batch.stand_in.of_tokens, batch.stand_in.of_episodes))
        return cls(batch.sequences, batch.of_tokens, batch.of_episodes)


Share = EpisodeBatch | Idle[EpisodeBatch]
"""This process's part of a batch."""


@dataclass(slots=True)
class Episodes:
    """The episodes of one step, those of one prompt side by side."""

    episodes: Sequence[Episode]
    pad_token_id: int
    devices: Devices
    scores_E: torch.Tensor
    """Normalised rewards of the reward model."""
    of_tokens: dict[str, torch.Tensor] = field(default_factory=dict)
    """Quantities by name: (E, L) each."""
    of_episodes: dict[str, torch.Tensor] = field(default_factory=dict)
    """Quantities by name: (E,) each."""
    tokens: list[Tokens] = field(init=False)
    mask_EL: torch.Tensor = field(init=False)
    prompt_of: list[int] = field(init=False)
    """The number of each episode's prompt: the same tokens are the same prompt."""

    def __post_init__(self) -> None:
        self.tokens = [episode.tokens for episode in self.episodes]
        known: dict[tuple[int, ...], int] = {}
        self.prompt_of = [known.setdefault(tuple(item.prompt.ids), len(known)) for item in self.episodes]
        lengths_E1 = torch.tensor([[len(episode.sample.token_ids)] for episode in self.episodes])
        self.mask_EL = (torch.arange(int(lengths_E1.max())) < lengths_E1).to(self.device)
        self.scores_E = self.scores_E.to(self.device)

    def __len__(self) -> int:
        return len(self.episodes)

    @property
    def device(self) -> torch.device:
        """Where the quantities are."""
        return self.devices.device

    @property
    def lengths(self) -> torch.Tensor:
        """Tokens of each response, its end token included: (E,)."""
        return self.mask_EL.sum(-1)

    @property
    def is_ended(self) -> torch.Tensor:
        """Whether each response ended by itself: (E,)."""
        ended = [episode.sample.finish_reason == "stop" for episode in self.episodes]
        return torch.tensor(ended, device=self.device)

    def each(
        self, model: Any, compute: Callable[[CausalBatch], Sequence[torch.Tensor]], batch_size: int
    ) -> list[torch.Tensor]:
        """What `compute` gives for each target token, (N,) each, of all episodes: (E, L) each.

        It does so with a placed model, which it uses. Episodes of like length are computed side by side,
        `batch_size` of them in every process.
        """
        results: list[torch.Tensor] = []
        for rows in self._cut(range(len(self)), batch_size):
            mine = self.devices.part.of(rows)
            # Without an example of its own a process computes along on one, for others may wait for it.
            values = self.devices.call(model, compute, self._collate(mine or rows[:1]).to(self.device))
            results = results or [torch.zeros(self.mask_EL.shape, device=self.device) for _ in values]
            if mine:
                self._put(results, mine, values)
        return [self.devices.sum(result_EL) for result_EL in results]

    def _put(self, results: Sequence[torch.Tensor], rows: list[int], values: Sequence[torch.Tensor]) -> None:
        mask_BL = self.mask_EL[rows]
        for result_EL, values_N in zip(results, values, strict=True):
            part_BL = torch.zeros(mask_BL.shape, device=self.device)
            part_BL[mask_BL] = values_N.float()
            result_EL[rows] = part_BL

    def minibatches(
        self, rows: Sequence[int], num_mini_batches: int, batch_size: int, random: np.random.Generator
    ) -> Iterator[list[Share]]:
        """Some of the episodes in `num_mini_batches` random parts, each cut into batches of like length, of
        which every process gets `batch_size` episodes.
        """
        for part in np.array_split(random.permutation(np.asarray(rows)), num_mini_batches):
            yield [self._share(chosen) for chosen in self._cut(part.tolist(), batch_size)]

    def _share(self, rows: list[int]) -> Share:
        mine = self.devices.part.of(rows)
        batch = self.batch(mine or rows[:1])
        return batch if mine else Idle(batch)

    def _cut(self, rows: Sequence[int], batch_size: int) -> Iterator[list[int]]:
        """Batches of like length, those of all processes together."""
        order, size = self._longest_first(rows), batch_size * self.devices.part.count
        return (order[at : at + size] for at in range(0, len(order), size))

    def batch(self, rows: Sequence[int]) -> EpisodeBatch:
        """The named episodes with their quantities."""
        chosen = list(rows)
        mask_BL = self.mask_EL[chosen]
        return EpisodeBatch(
            self._collate(chosen),
            {name: values_EL[chosen][mask_BL] for name, values_EL in self.of_tokens.items()},
            {name: values_E[chosen] for name, values_E in self.of_episodes.items()},
        )

    def _collate(self, rows: Sequence[int]) -> CausalBatch:
        groups: dict[int, list[int]] = {}
        for number, row in enumerate(rows):
            groups.setdefault(self.prompt_of[row], []).append(number)
        return collate_tokens([self.tokens[row] for row in rows], self.pad_token_id, list(groups.values()))

    def _longest_first(self, rows: Sequence[int]) -> list[int]:
        """Answers to one prompt stay side by side, so that a batch computes the prompt once."""
        longest: dict[int, int] = {}
        first: dict[int, int] = {}
        for number, row in enumerate(rows):
            prompt = self.prompt_of[row]
            longest[prompt] = max(longest.get(prompt, 0), len(self.tokens[row]))
            first.setdefault(prompt, number)
        prompt_of = self.prompt_of
        return sorted(
            rows, key=lambda row: (-longest[prompt_of[row]], first[prompt_of[row]], -len(self.tokens[row]))
        )
