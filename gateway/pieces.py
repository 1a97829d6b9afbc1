"""Which candidates one request upstream samples.

One request with n is the rule: the prompt is read once, seeds are `seed + i`, and one closed connection
aborts everything. More candidates than a server takes at once are cut into pieces, prompt by prompt;
candidates that were lost with a server are gathered into pieces that another one can sample as if nothing
had happened.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

Member = tuple[int, int]
"""(prompt, candidate), both 0-based."""


@dataclass(frozen=True)
class Piece:
    """One request's share: `members[i]` is the choice with index i."""

    members: tuple[Member, ...]

    @property
    def prompts(self) -> tuple[int, ...]:
        """The prompts that it has candidates of, in order."""
        return tuple(dict.fromkeys(prompt for prompt, _ in self.members))

    @property
    def n(self) -> int:
        """Candidates per prompt."""
        return len(self.members) // len(self.prompts)

    @property
    def first(self) -> int:
        """The candidate that it begins with."""
        return self.members[0][1]

    def body(self, whole: dict[str, Any]) -> dict[str, Any]:
        """The request for this piece, from the one for all candidates of all prompts."""
        body = whole | {"n": self.n}
        if self.first and "seed" in body:
            body["seed"] += self.first
        if len(self.prompts) == 1 and isinstance(prompts := body.get("prompt"), list):
            body["prompt"] = prompts[self.prompts[0]] if _is_several(prompts) else prompts
        return body


def cut(num_prompts: int, samples: int, most: int) -> list[Piece]:
    """All candidates of all prompts in as few pieces of at most `most` candidates as there can be, each
    prompt's of nearly equal size; in one piece, if that is enough."""
    if num_prompts * samples <= most:
        return [Piece(tuple((prompt, index) for prompt in range(num_prompts) for index in range(samples)))]
    count = -(-samples // most)
    edges = [samples * i // count for i in range(count + 1)]
    return [
        Piece(tuple((prompt, index) for index in range(begin, end)))
        for prompt in range(num_prompts)
        for begin, end in pairwise(edges)
    ]


def regroup(lost: Iterable[Member], *, seeded: bool) -> list[Piece]:
    """Pieces for candidates that are to be sampled again. With a seed, which counts on from a piece's first
    candidate, only neighbours share a piece."""
    ordered = sorted(lost)
    runs = groupby(
        enumerate(ordered), key=lambda item: (item[1][0], item[1][1] - item[0] if seeded else None)
    )
    return [Piece(tuple(member for _, member in run)) for _, run in runs]


def _is_several(prompts: Sequence[Any]) -> bool:
    """Whether a `prompt` field holds prompts rather than the token ids of one."""
    return not isinstance(prompts[0], int)
