"""What a fake is told to do: how long it takes, how much it says, and how often it fails."""

from collections.abc import Iterator, Sequence
from random import Random
from typing import Annotated, Literal

import msgspec

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Milliseconds = Annotated[float, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]

Kind = Literal[
    "delay",
    "status",
    "reset",
    "half_close",
    "garbage",
    "silence",
    "cut",
    "error_event",
    "nan",
    "wrong_count",
]
BREAKS = frozenset({"reset", "half_close", "garbage", "silence"})
"""Faults that happen once `after` bytes of an answer are sent."""


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Something that happens to a share of the calls.

    delay: `ms` longer before the first byte. status: `status` instead of an answer.
    After `after` bytes of the answer, head and framing included: reset, the connection is reset; half_close,
    the server says that no more will come, and reads on; garbage, random bytes come instead of the rest, and
    the connection is closed; silence, nothing comes any more. An answer of no more bytes than that is whole.
    cut (not of the proxy): the connection is reset in the middle of the answer. error_event (vLLM only): a
    stream brings an error object in the middle, then `[DONE]`; an answer that is not streamed is a 500.
    nan, wrong_count (reward server only): the first score is NaN, or missing.
    """

    kind: Kind
    share: Share = 1.0
    ms: Milliseconds = 1000.0
    status: Annotated[int, msgspec.Meta(ge=400, le=599)] = 500
    after: Annotated[int, msgspec.Meta(ge=0)] = 0


class VllmScript(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the fake vLLM server generates."""

    delay_ms: Milliseconds = 0.0
    """Before the first token."""
    tokens: Count = 16
    """Of candidate 0; a smaller max_tokens of the request wins."""
    tokens_step: Annotated[int, msgspec.Meta(ge=0)] = 0
    """More for each next candidate, so that they end at different times."""
    interval_ms: Milliseconds = 0.0
    """Between two tokens; 0 is as fast as the reader takes them."""
    burst: Count = 1
    """Steps of decoding that one write to the socket holds."""
    seed: int = 0
    """Of the choice which calls meet a fault."""
    faults: tuple[Fault, ...] = ()

    def __post_init__(self) -> None:
        _refuse(self.faults, {"nan", "wrong_count"})


class RewardScript(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the fake reward server judges: a text's score is its length in characters over 100."""

    delay_ms: Milliseconds = 0.0
    seed: int = 0
    faults: tuple[Fault, ...] = ()

    def __post_init__(self) -> None:
        _refuse(self.faults, {"error_event"})


class ProxyScript(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the proxy does to the answers that pass through it."""

    seed: int = 0
    faults: tuple[Fault, ...] = ()

    def __post_init__(self) -> None:
        _refuse(self.faults, {"cut", "error_event", "nan", "wrong_count"})


Script = VllmScript | RewardScript | ProxyScript


def _refuse(faults: Sequence[Fault], kinds: set[str]) -> None:
    for fault in faults:
        if fault.kind in kinds:
            raise ValueError(f"this server cannot have the fault `{fault.kind}`")


def fates(faults: Sequence[Fault], seed: int) -> Iterator[Fault | None]:
    """Call by call, the fault that it meets; the same for the same seed. Shares beyond 1 in sum never come
    up."""
    random = Random(seed)
    while True:
        point, found = random.random(), None
        for fault in faults:
            if point < fault.share:
                found = fault
                break
            point -= fault.share
        yield found
