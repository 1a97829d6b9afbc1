"""What the demo measured, what it claims from that, and whether the claims hold."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainers.intervals import Mean, mean, paired_gain
from trainers.tiny.evaluate import Agreement

POLICIES = ("base", "sft", "dpo", "ppo")
ALIGNED = ("dpo", "ppo")
"""Those that went from the SFT model towards the preferences."""
BEST_OF = (1, 4, 16)
GOLD_ORDER_GOAL = 0.75
NOISY_LABEL_GOAL = 0.70

GAINS = {
    "sft-base": (("sft", 1), ("base", 1)),
    "dpo-sft": (("dpo", 1), ("sft", 1)),
    "ppo-sft": (("ppo", 1), ("sft", 1)),
    "sft best_of 4-1": (("sft", 4), ("sft", 1)),
    "sft best_of 16-4": (("sft", 16), ("sft", 4)),
    "dpo best_of 16-1": (("dpo", 16), ("dpo", 1)),
}
"""Name -> what is compared with what; all but the last are claimed to be gains."""
CLAIMED = {
    "sft-base": "SFT is above base",
    "dpo-sft": "DPO is above SFT",
    "ppo-sft": "PPO is above SFT",
    "sft best_of 4-1": "best_of 4 is above best_of 1 (SFT)",
    "sft best_of 16-4": "best_of 16 is above best_of 4 (SFT)",
}

Cell = tuple[str, int]
"""A policy and a best_of."""


@dataclass(frozen=True)
class Claim:
    text: str
    evidence: str
    holds: bool


@dataclass(frozen=True)
class Results:
    """The figures of one demo; `noisy_ceiling` is the best accuracy on noisy labels there can be, `kl` the
    divergence of each aligned policy from the SFT model, in nats per sequence."""

    gold: Mapping[Cell, Mean]
    gains: Mapping[str, Mean]
    prompts: int
    agreement: Agreement
    noisy_ceiling: float
    kl: Mapping[str, Mean]
    seconds: Mapping[str, float]
    peak_memory_bytes: int

    def claims(self) -> list[Claim]:
        """The claims, each with its evidence; a gain holds if its whole 95 % interval is above zero."""
        gains = [_gain_claim(text, self.gains[name]) for name, text in CLAIMED.items()]
        noisy, gold = self.agreement.noisy_labels, self.agreement.gold_order
        return [
            *gains,
            Claim(
                f"the reward model agrees with at least {NOISY_LABEL_GOAL:.0%} of the noisy labels",
                f"{noisy:.1%} (nobody could exceed {self.noisy_ceiling:.1%})",
                noisy >= NOISY_LABEL_GOAL,
            ),
            Claim(
                f"the reward model agrees with at least {GOLD_ORDER_GOAL:.0%} of the gold order",
                f"{gold:.1%}",
                gold >= GOLD_ORDER_GOAL,
            ),
        ]

    def as_json(self) -> dict[str, Any]:
        """The form of results.json."""
        gold: dict[str, dict[str, Any]] = {}
        for (policy, best_of), value in self.gold.items():
            gold.setdefault(policy, {})[str(best_of)] = {**asdict(value), "prompts": self.prompts}
        return {
            "gold_reward": gold,
            "paired_gain": {name: asdict(value) for name, value in self.gains.items()},
            "reward_model": {
                "held_out_accuracy": self.agreement.gold_order,
                "noisy_label_accuracy": self.agreement.noisy_labels,
                "noisy_label_ceiling": self.noisy_ceiling,
                "pairs": self.agreement.pairs,
            },
            "kl_nats_per_sequence": {policy: asdict(value) for policy, value in self.kl.items()},
            "seconds": dict(self.seconds),
            "peak_memory_bytes": self.peak_memory_bytes,
        }


def summarize(
    rewards: Mapping[Cell, Sequence[float]],
    agreement: Agreement,
    noisy_ceiling: float,
    kl: Mapping[str, Mean],
    seconds: Mapping[str, float],
    peak_memory_bytes: int,
) -> Results:
    """Results from one mean gold reward a prompt, for each policy and best_of, prompts in the same order."""
    return Results(
        gold={cell: mean(values) for cell, values in rewards.items()},
        gains={name: paired_gain(rewards[after], rewards[before]) for name, (after, before) in GAINS.items()},
        prompts=len(rewards[POLICIES[0], BEST_OF[0]]),
        agreement=agreement,
        noisy_ceiling=noisy_ceiling,
        kl=kl,
        seconds=seconds,
        peak_memory_bytes=peak_memory_bytes,
    )


def load(path: Path) -> Results:
    """Reads results.json. Raises OSError, ValueError or KeyError where it is none."""
    content = json.loads(path.read_text(encoding="utf-8"))
    model = content["reward_model"]
    gold = {
        (policy, int(best_of)): _mean(value)
        for policy, by_best_of in content["gold_reward"].items()
        for best_of, value in by_best_of.items()
    }
    return Results(
        gold=gold,
        gains={name: _mean(value) for name, value in content["paired_gain"].items()},
        prompts=content["gold_reward"][POLICIES[0]][str(BEST_OF[0])]["prompts"],
        agreement=Agreement(model["held_out_accuracy"], model["noisy_label_accuracy"], model["pairs"]),
        noisy_ceiling=model["noisy_label_ceiling"],
        kl={policy: _mean(value) for policy, value in content["kl_nats_per_sequence"].items()},
        seconds=content["seconds"],
        peak_memory_bytes=content["peak_memory_bytes"],
    )


def peak_memory_of(path: Path) -> int:
    """Of an earlier run, whichever version made it; 0 where there was none."""
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["peak_memory_bytes"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def show(value: Mean) -> str:
    """A mean with its interval."""
    return f"{value.mean:+.2f} [{value.ci95[0]:+.2f}, {value.ci95[1]:+.2f}]"


def _gain_claim(text: str, gain: Mean) -> Claim:
    return Claim(text, show(gain), gain.clearly_positive)


def _mean(value: Mapping[str, Any]) -> Mean:
    low, high = value["ci95"]
    return Mean(value["mean"], (low, high))
