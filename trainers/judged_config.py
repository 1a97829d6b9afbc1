"""Settings of runs whose answers a reward model judges: to learn from it, or to see how good they are.

Like config.py this imports neither torch nor transformers.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from trainers.config import TrainingConfig
from trainers.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class JudgedConfig(TrainingConfig):
    """How answers are sampled, and who judges them."""

    reward_model_path: str | None = None
    """The reward model: a checkpoint folder or hub name, loaded in this process."""
    reward_server_url: str | None = None
    """Or a running reward server (`python -m rm_server`), such as http://127.0.0.1:8001."""
    reward_server_model: str | None = None
    """Which of the server's models judges; its first, if not said."""
    reward_server_timeout: float = 60.0
    """Seconds for which a reward server that does not answer is asked again, before the run stops."""
    response_length: int = 53
    """Longest response in tokens; prompts that leave no room for it within --max_length are dropped."""
    temperature: float = 1.0
    """Sampling temperature; log-probabilities, KL and entropy are those of the distribution sampled from."""
    local_rollout_forward_batch_size: int = 64
    """Answers that are sampled, scored and evaluated side by side, without gradients."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(
            ("response_length", "local_rollout_forward_batch_size"), lambda value: value >= 1, "at least 1"
        )
        self._check(("reward_server_timeout",), lambda value: 0 < value < float("inf"), "above 0")
        self._check(("temperature",), lambda value: 0 <= value < float("inf"), "0 or above")
        if self.reward_model_path is not None and self.reward_server_url is not None:
            raise ConfigError("rewards come from --reward_model_path or from --reward_server_url: give one")
        if self.reward_server_model is not None and self.reward_server_url is None:
            raise ConfigError("--reward_server_model goes with --reward_server_url")
        if self.is_judged and self.response_length >= self.max_length:
            raise ConfigError("--response_length must leave room for a prompt within --max_length")

    @property
    def is_judged(self) -> bool:
        """Whether there is a reward model."""
        return self.reward_model_path is not None or self.reward_server_url is not None


@dataclass(frozen=True, kw_only=True)
class JudgedEvaluationConfig(JudgedConfig):
    """A run on data, whose evaluations may also answer held-out prompts and have the answers judged."""

    response_length: int = 128
    """Evaluation by reward: longest answer in tokens."""
    temperature: float = 1.0
    """Evaluation by reward: sampling temperature; 0 takes the likeliest tokens."""
    eval_prompts: str | None = None
    """Evaluation by reward: the held-out prompts, in any of the formats with prompts; by default those of
    --eval_dataset_name."""
    eval_prompts_limit: int = 256
    """Evaluation by reward: the first so many of them are answered, once each."""
    metric_for_best_model: Literal["auto", "loss", "reward"] = "auto"
    """What makes an evaluation the best one: the lowest loss on held-out data, or the highest mean reward of
    the answers to held-out prompts; auto takes the reward where there is a reward model."""

    evaluation_wants: ClassVar[str] = (
        "give --eval_dataset_name, and for the reward --reward_model_path or --reward_server_url"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(("eval_prompts_limit",), lambda value: value >= 1, "at least 1")
        if self.is_judged and self.eval_prompts is None and self.eval_dataset_name is None:
            raise ConfigError("a reward model judges answers to held-out prompts: give --eval_prompts")
        if self.eval_prompts is not None and not self.is_judged:
            raise ConfigError("--eval_prompts goes with --reward_model_path or --reward_server_url")

    @property
    def best_metric(self) -> str:
        """The reward, where there is a reward model and nothing else is said."""
        if self.metric_for_best_model == "auto":
            return "reward" if self.is_judged else "loss"
        return self.metric_for_best_model

    @property
    def is_evaluated(self) -> bool:
        """Whether evaluations will have the metric to choose by."""
        return self.is_judged if self.best_metric == "reward" else self.eval_dataset_name is not None
