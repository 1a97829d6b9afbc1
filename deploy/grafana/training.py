"""Runs of training: do they go on, do they learn, do they stay near to where they came from?"""

from deploy.grafana.panels import Dashboard, Panel, Query, Row

TRAINING = "bonsai_training_"


def values(*names: str) -> list[Query]:
    """The newest figures of these names, a line for each run and name."""
    chosen = "|".join(names)
    return [Query(f'{TRAINING}value{{name=~"{chosen}"}}', "{{run}} {{name}}")]


PROGRESS = Row(
    "Progress",
    [
        Panel(
            title="Steps",
            description="Optimizer steps done.",
            queries=values("step"),
        ),
        Panel(
            title="Seconds since the last figures",
            description="Of runs that are not finished: much more than a step takes, and the run hangs or "
            "has ended.",
            queries=[
                Query(
                    f"(time() - {TRAINING}updated_timestamp_seconds) and {TRAINING}finished == 0",
                    "{{run}}",
                )
            ],
            unit="s",
        ),
        Panel(
            title="Tokens a second",
            description="As the trainer counts them.",
            queries=values("tokens_per_second"),
        ),
        Panel(
            title="Runs",
            description="Under the exporter's folder; it shows the newest.",
            queries=[
                Query(f"sum({TRAINING}runs)", "found"),
                Query(f"count({TRAINING}finished)", "shown"),
                Query(f"sum({TRAINING}finished)", "shown and finished"),
            ],
        ),
    ],
    across=4,
)

LEARNING = Row(
    "Learning",
    [
        Panel(
            title="Loss",
            description="Of training, and of evaluation where there is one.",
            queries=values("loss", "eval_loss"),
        ),
        Panel(
            title="Gradient norm",
            description="Before clipping.",
            queries=values("grad_norm"),
        ),
        Panel(
            title="Learning rate",
            description="By its schedule.",
            queries=values("learning_rate"),
        ),
    ],
)

PREFERENCES = Row(
    "From preferences",
    [
        Panel(
            title="Pairs in the right order",
            description="By the reward model, or by DPO's implicit rewards.",
            queries=values("accuracy", "eval_accuracy", "rewards/accuracies"),
            unit="percentunit",
        ),
        Panel(
            title="Margin",
            description="Reward of the chosen less that of the rejected.",
            queries=values("margin", "eval_margin", "rewards/margins"),
        ),
        Panel(
            title="Log-probability of the answers",
            description="If that of the chosen falls far, the policy moves away from both.",
            queries=values("logps/chosen", "logps/rejected"),
        ),
    ],
)

REWARDS = Row(
    "From rewards",
    [
        Panel(
            title="Reward",
            description="Of the policy's own answers; the objective is it less the price of the KL.",
            queries=values("reward", "objective"),
        ),
        Panel(
            title="KL from the reference",
            description="Nats per sequence. Reward that rises with nothing but this is bought dearly.",
            queries=values("kl_nats_per_sequence"),
        ),
        Panel(
            title="Entropy",
            description="Nats per token: near 0 all answers are alike.",
            queries=values("entropy_nats_per_token"),
        ),
        Panel(
            title="Length of answers",
            description="Tokens. Rewards like length: see whether they rise together.",
            queries=values("response_length"),
        ),
        Panel(
            title="Answers that end",
            description="Share that ends before the limit of tokens.",
            queries=values("eos_share"),
            unit="percentunit",
        ),
        Panel(
            title="Losses of policy and value",
            description="PPO's.",
            queries=values("policy_loss", "value_loss"),
        ),
        Panel(
            title="Clipped, explained",
            description="Shares of clipped ratios; of the rewards' variance that the value model explains.",
            queries=values("clip_fraction", "value_clip_fraction", "explained_variance"),
            unit="percentunit",
        ),
    ],
)

DASHBOARD = Dashboard(
    uid="bonsai-training",
    title="Bonsai: training runs",
    description="The newest figures of each run, from python -m trainers.exporter.",
    rows=[PROGRESS, LEARNING, PREFERENCES, REWARDS],
)
