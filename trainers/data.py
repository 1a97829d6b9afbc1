"""Batches: token ids with the targets that carry loss, of like length, with little padding.

Batches are padded on the right. With causal attention no real position then sees a padded one, so no
attention mask is built. Only the hidden states that predict a target reach the output head: a batch carries
their positions. Rows that are too long are dropped, not cut: a cut answer would teach to stop nowhere.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
import torch

from trainers.errors import DataError
from trainers.packing import Packing, pack

MEGABATCH = 50
"""Batches shuffled together before they are sorted by length: many, to pad little; not all, to mix well."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids, and the positions (all above 0) of those to be predicted."""

    ids: list[int]
    targets: list[int]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class PairTokens:
    """A tokenised preference pair; `index` names it across epochs."""

    chosen: Tokens
    rejected: Tokens
    margin: float
    index: int
    source: str = ""

    def __len__(self) -> int:
        return max(len(self.chosen), len(self.rejected))

    @property
    def candidates(self) -> list[Tokens]:
        """Both answers, the better one first."""
        return [self.chosen, self.rejected]

    @property
    def is_tie(self) -> bool:
        """Whether both sides are the same tokens, so that the pair says nothing."""
        return self.chosen.ids == self.rejected.ids


@dataclass(frozen=True, slots=True)
class ChoiceTokens:
    """A tokenised choice of one answer among several, the best first; the others differ from it."""

    candidates: list[Tokens]
    margin: float
    source: str

    def __len__(self) -> int:
        return max(len(candidate) for candidate in self.candidates)

    @property
    def is_tie(self) -> bool:
        """Whether no other answer was left, so that the choice says nothing."""
        return len(self.candidates) < 2


Preference = PairTokens | ChoiceTokens


class Sized(Protocol):
    """An example: what counts for batching is its length in tokens."""

    def __len__(self) -> int: ...


SizedT = TypeVar("SizedT", bound=Sized)


def keep_usable(examples: Sequence[SizedT], max_length: int) -> tuple[list[SizedT], list[str]]:
    """The examples that can be learned from, with notes on those dropped; DataError if none is left."""
    short = [example for example in examples if len(example) <= max_length]
    kept = [example for example in short if not (isinstance(example, Preference) and example.is_tie)]
    notes = []
    if len(short) < len(examples):
        dropped = len(examples) - len(short)
        notes.append(f"dropped {dropped} of {len(examples)} rows, which are longer than {max_length} tokens")
    if len(kept) < len(short):
        notes.append(f"dropped {len(short) - len(kept)} preferences between answers that are the same")
    if not kept:
        raise DataError(f"nothing is left to train on: {'; '.join(notes)}")
    return kept, notes


def _moved(batch: Any, device: torch.device) -> dict[str, Any]:
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    movable = (torch.Tensor, Packing)
    return {name: value.to(device) for name, value in values.items() if isinstance(value, movable)}


@dataclass(frozen=True, slots=True)
class CausalBatch:
    """Right-padded rows with what a language-model loss needs. T is one less than the longest row: the last
    token is only ever predicted."""

    input_ids_BT: torch.Tensor
    positions_N: torch.Tensor
    """Into the flattened B x T hidden states: those that predict the targets."""
    targets_N: torch.Tensor
    rows_N: torch.Tensor
    """The row of each target."""
    num_tokens: int
    """Tokens that are no padding."""
    packing: Packing | None = None
    """The same rows side by side, without padding where that is worth it."""

    def to(self, device: torch.device) -> Self:
        """The same batch on a device."""
        return replace(self, **_moved(self, device))


@dataclass(frozen=True, slots=True)
class PairBatch:
    """Chosen rows, then as many rejected rows, in one batch."""

    sequences: CausalBatch
    indices: list[int]

    def to(self, device: torch.device) -> Self:
        """The same batch on a device."""
        return replace(self, sequences=self.sequences.to(device))


@dataclass(frozen=True, slots=True)
class ChoiceBatch:
    """Candidates of several choices, C in all, choice after choice, the best of each first."""

    rows: "RewardBatch"
    counts_C: torch.Tensor
    """How many candidates each choice has."""
    margins_C: torch.Tensor

    def to(self, device: torch.device) -> Self:
        """The same batch on a device."""
        return replace(self, rows=self.rows.to(device), **_moved(self, device))


@dataclass(frozen=True, slots=True)
class RewardBatch:
    """Whole conversations with the position of each one's last token, where the reward is read."""

    input_ids_BT: torch.Tensor
    last_B: torch.Tensor
    margins_P: torch.Tensor
    """One for each pair: rows 0..P-1 are chosen, P..2P-1 rejected. Empty where the rows are no pairs."""
    num_tokens: int
    packing: Packing | None = None
    """The same rows side by side, without padding where that is worth it."""

    def to(self, device: torch.device) -> Self:
        """The same batch on a device."""
        return replace(self, **_moved(self, device))


CollatedT = TypeVar("CollatedT")
ItemT = TypeVar("ItemT")


@dataclass(frozen=True, slots=True)
class Part:
    """Which part of every batch a process takes."""

    index: int = 0
    count: int = 1

    def of(self, items: Sequence[ItemT]) -> list[ItemT]:
        """The part itself; of items sorted by length the parts are alike."""
        return list(items[self.index :: self.count])


WHOLE = Part()


def join_parts(parts: Sequence[Sequence[ItemT]]) -> list[ItemT]:
    """What `Part.of` took apart, in order again."""
    count = len(parts)
    return [parts[at % count][at // count] for at in range(sum(map(len, parts)))]


@dataclass(frozen=True, slots=True)
class Idle(Generic[CollatedT]):
    """The part of a process for which a small batch has no example left.

    It computes along with the others, who may wait for it, on an example that does not count.
    """

    stand_in: CollatedT

    def to(self, device: torch.device) -> Self:
        """The same on a device."""
        movable: Any = self.stand_in
        return replace(self, stand_in=movable.to(device))


def pad_rows(rows: Sequence[Sequence[int]], pad_token_id: int, length: int) -> torch.Tensor:
    """Rows of ids as one (B, length) tensor, cut or padded on the right."""
    padded = np.full((len(rows), length), pad_token_id, dtype=np.int64)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row[:length]
    return torch.from_numpy(padded)


Groups = Sequence[Sequence[int]]
"""Numbers of rows that are likely to begin with the same tokens."""


def collate_tokens(
    examples: Sequence[Tokens], pad_token_id: int, groups: Groups | None = None
) -> CausalBatch:
    """Builds a batch for a language-model loss."""
    length = max(len(example) for example in examples) - 1
    targets = [np.asarray(example.targets, dtype=np.int64) for example in examples]
    counts = np.asarray([len(part) for part in targets])
    rows = np.repeat(np.arange(len(examples)), counts)
    ids = [
        np.asarray(example.ids, dtype=np.int64)[part] for example, part in zip(examples, targets, strict=True)
    ]
    return CausalBatch(
        input_ids_BT=pad_rows([example.ids[:length] for example in examples], pad_token_id, length),
        positions_N=torch.from_numpy(rows * length + np.concatenate(targets) - 1),
        targets_N=torch.from_numpy(np.concatenate(ids)),
        rows_N=torch.from_numpy(rows),
        num_tokens=sum(len(example) for example in examples),
        packing=_pack(examples, groups, length),
    )


def _pack(rows: Sequence[Tokens], groups: Groups | None, length: int) -> Packing:
    """Each row is cut before its last token where that is only predicted."""
    return pack([row.ids for row in rows], groups or [[row] for row in range(len(rows))], length)


def _pairs_of(num_pairs: int) -> Groups:
    """The rows of each pair in a batch of all chosen, then all rejected rows."""
    return [[pair, pair + num_pairs] for pair in range(num_pairs)]


def collate_pairs(pairs: Sequence[PairTokens], pad_token_id: int) -> PairBatch:
    """Builds one batch of all chosen, then all rejected rows, so that one forward pass serves both."""
    rows = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    return PairBatch(
        collate_tokens(rows, pad_token_id, _pairs_of(len(pairs))), [pair.index for pair in pairs]
    )


def collate_rewards(rows: Sequence[Tokens], pad_token_id: int, groups: Groups | None = None) -> RewardBatch:
    """Builds a batch of conversations to be scored."""
    lengths = [len(row) for row in rows]
    return RewardBatch(
        input_ids_BT=pad_rows([row.ids for row in rows], pad_token_id, max(lengths)),
        last_B=torch.tensor(lengths) - 1,
        margins_P=torch.empty(0),
        num_tokens=sum(lengths),
        packing=_pack(rows, groups, max(lengths)),
    )


def collate_reward_pairs(pairs: Sequence[PairTokens], pad_token_id: int) -> RewardBatch:
    """Builds a batch of pairs to be scored, all chosen rows first."""
    rows = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    margins = torch.tensor([pair.margin for pair in pairs], dtype=torch.float32)
    return replace(collate_rewards(rows, pad_token_id, _pairs_of(len(pairs))), margins_P=margins)


def collate_choices(choices: Sequence[ChoiceTokens], pad_token_id: int) -> ChoiceBatch:
    """Builds a batch of choices to be scored."""
    candidates = [candidate for choice in choices for candidate in choice.candidates]
    numbers = iter(range(len(candidates)))
    groups = [[next(numbers) for _ in choice.candidates] for choice in choices]
    return ChoiceBatch(
        rows=collate_rewards(candidates, pad_token_id, groups),
        counts_C=torch.tensor([len(choice.candidates) for choice in choices]),
        margins_C=torch.tensor([choice.margin for choice in choices], dtype=torch.float32),
    )


ExampleT = TypeVar("ExampleT", bound=Sized)


class Batches(Generic[ExampleT, CollatedT]):
    """Batches of like length in an order that depends on the seed and the epoch alone.

    Each epoch shuffles the examples, sorts them by length within megabatches, cuts batches and shuffles
    those. Every example comes once an epoch; only one batch may be smaller. Unshuffled, the examples come
    longest first.

    Where several processes share the work, `batch_size` is that of each, and a batch is as long as theirs
    together; of it every process takes each count-th example, from its own index on.
    """

    def __init__(
        self,
        examples: Sequence[ExampleT],
        collate: Callable[[Sequence[ExampleT]], CollatedT],
        batch_size: int,
        seed: int | None,
        part: Part = WHOLE,
    ) -> None:
        self.examples, self.collate, self.seed, self.part = examples, collate, seed, part
        self.batch_size = batch_size * part.count

    def __len__(self) -> int:
        return -(-len(self.examples) // self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[CollatedT | Idle[CollatedT]]:
        """This process's part of each batch of an epoch, from the `start`-th on."""
        for indices in self.order(epoch)[start:]:
            mine = self.part.of(indices)
            batch = self.collate([self.examples[index] for index in mine or indices[:1]])
            yield batch if mine else Idle(batch)

    def order(self, epoch: int) -> list[list[int]]:
        """Which examples make up each batch of an epoch, the parts of all processes together."""
        lengths = np.asarray([len(example) for example in self.examples])
        if self.seed is None:
            return self._cut(np.argsort(-lengths, kind="stable"))
        random = np.random.default_rng([self.seed, epoch])
        shuffled = random.permutation(len(lengths))
        size = MEGABATCH * self.batch_size
        batches: list[list[int]] = []
        for at in range(0, len(shuffled), size):
            part = shuffled[at : at + size]
            batches += self._cut(part[np.argsort(-lengths[part], kind="stable")])
        return [batches[index] for index in random.permutation(len(batches))]

    def _cut(self, indices: "np.ndarray[Any, np.dtype[np.int64]]") -> list[list[int]]:
        return [indices[at : at + self.batch_size].tolist() for at in range(0, len(indices), self.batch_size)]
