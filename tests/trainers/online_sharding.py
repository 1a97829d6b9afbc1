"""Run by `accelerate launch` in test_online_devices.py: writes what the models of an online run look like in
each process, in the middle of every step.

accelerate launch ... tests/trainers/online_sharding.py PPO'S FLAGS
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from trainers import models, online, online_setup
from trainers.config import parse
from trainers.data import Idle
from trainers.episodes import EpisodeBatch, Episodes, ValueBatch
from trainers.launcher import leave
from trainers.logprobs import token_logprobs
from trainers.loop import Loss, Meter, Movable
from trainers.ppo import Config
from trainers.rollout import TransformersRollout
from trainers.run import start


def share_here(model: Any) -> float:
    """The part of a model's parameters that lies in this process."""
    parts = [p.to_local() if isinstance(p, DTensor) else p for p in model.parameters()]
    return sum(part.numel() for part in parts) / sum(p.numel() for p in model.parameters())


def main(argv: list[str]) -> None:
    """Learns something, and looks at the models meanwhile."""
    config = parse(Config, argv, "ppo", __doc__)
    found: list[dict[str, Any]] = []
    with start(config, "ppo") as run:
        setup = online_setup.load(run, config)
        value_model, _ = online_setup.load_value_model(run, setup, None)
        rollout = setup.rollout
        assert isinstance(rollout, TransformersRollout)

        def learn(episodes: Episodes, step: int, _: Meter) -> Iterator[list[Movable | Idle[Movable]]]:
            named = {"policy": setup.policy, "reference": setup.reference, "value_model": value_model}
            policy = dict(setup.policy.named_parameters())
            sampled_from = dict(rollout.model.named_parameters())
            same = [torch.equal(run.devices.whole(policy[name]), p) for name, p in sampled_from.items()]
            found.append(
                {name: share_here(model) for name, model in named.items()}
                | {
                    "sampler": share_here(rollout.model),
                    "is_policy": rollout.model is setup.policy,
                    "is_as_policy": all(same),
                    "sum": sum(float(p.double().sum()) for p in sampled_from.values()),
                    "episodes": [episode.sample.token_ids for episode in episodes.episodes],
                }
            )
            for window in online.minibatches(setup, episodes, range(len(episodes)), step):
                yield [*window, *map(ValueBatch.of, window)]

        def loss_fn(batch: EpisodeBatch) -> Loss:
            if isinstance(batch, ValueBatch):
                return Loss(models.values(value_model, batch.sequences).square(), 0, num_units=0)
            return Loss(token_logprobs(setup.policy, batch.sequences), batch.sequences.num_tokens)

        online.train(run, setup, learn, loss_fn, value_model)
    (Path(config.output_dir) / f"{os.environ['RANK']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
    leave(0)
