"""The settings that PPO, RLOO and the cross-entropy method share: prompts, rollouts, rewards, KL.

Like config.py this imports neither torch nor transformers.
"""

from dataclasses import dataclass
from typing import Literal

from trainers.adapter_config import AdapterConfig
from trainers.errors import ConfigError
from trainers.judged_config import JudgedConfig
from trainers.launcher import count_processes


@dataclass(frozen=True, kw_only=True)
class OnlineConfig(JudgedConfig, AdapterConfig):
    """A run that learns from rewards of its own answers."""

    dataset_name: str
    """The prompts: rows with `prompt` (a string or a list of messages), or `messages` that end before the
    assistant's turn; a .jsonl or .json file (.gz too), a folder of them, or a hub name."""
    eval_dataset_name: str | None = None
    """Held-out prompts in the same format, answered once each and reported as eval_* metrics."""
    learning_rate: float = 3e-6
    """Peak learning rate, after warm-up; small models bear more (3e-5 for 3M parameters)."""
    adam_epsilon: float = 1e-5
    """AdamW: added to the denominator."""
    gradient_accumulation_steps: int = 8
    """With --per_device_train_batch_size: their product is the number of episodes in one step, for each
    process."""
    logging_steps: int = 1
    """Steps between lines of metrics.jsonl; a step is a batch of episodes and all that is learned from it."""
    save_steps: int = 50
    """Steps between checkpoint-N folders; 0 saves the final model only."""
    total_episodes: int | None = None
    """Episodes (answers) in all; wins over --num_train_epochs, which counts passes over the prompts."""
    response_length: int = 53
    """Longest response in tokens; prompts that leave no room for it within --max_length are dropped."""
    stop_token: Literal["eos", "none"] = "eos"
    """What ends a response: the policy's end tokens, or nothing but its length."""
    metric_for_best_model: Literal["reward", "objective"] = "reward"
    """What makes an evaluation the best one: the highest mean reward, or reward less KL."""
    missing_eos_penalty: float | None = None
    """Subtracted from the reward of a response that --response_length cut off."""
    num_generations: int = 1
    """Answers to each prompt of a step."""
    num_ppo_epochs: int = 4
    """Passes over the episodes of a step."""
    num_mini_batches: int = 1
    """Optimizer steps in each pass."""
    kl_coef: float = 0.05
    """Weight of the KL to the reference, which is taken off the reward; the first one, if it adapts."""
    kl_estimator: Literal["k1", "k3"] = "k1"
    """The estimate of the KL that is taken off: k1 is the log-ratio, k3 is never negative."""
    kl_target_nats_per_sequence: float | None = None
    """Adapts the KL coefficient until the KL, summed over a response, is this."""
    kl_horizon_episodes: float = 10_000.0
    """How slowly it adapts: by at most a fifth in so many episodes."""
    use_vllm: bool = False
    """Sample through vLLM instead of transformers; it is given the policy's weights after every update."""
    vllm_mode: Literal["colocate", "server"] = "colocate"
    """Where vLLM runs: in this process, or as a server (rollout_server.py says how it is started)."""
    vllm_server_base_url: str | None = None
    """The server, such as http://127.0.0.1:8000."""
    vllm_server_timeout: float = 240.0
    """Seconds that the server may take for a step's answers, or to take the weights, before the run stops."""
    vllm_weights_dir: str | None = None
    """Folder through which the server gets the weights: it must see it under the same path. By default it
    is in the output folder."""
    vllm_kv_cache_gib: float = 1.0
    """Memory for keys and values of vLLM in this process, in GiB, beside its copy of the weights."""
    vllm_logprob_bound: float | None = None
    """Nats per token by which vLLM's log-probabilities and the trainer's may differ in the mean of a step
    before the run stops; by default 0.0001, with --bf16 0.05."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one = ("num_generations", "num_ppo_epochs", "num_mini_batches")
        self._check(at_least_one, lambda value: value >= 1, "at least 1")
        finite = float("inf")
        self._check(("temperature", "kl_horizon_episodes"), lambda value: 0 < value < finite, "above 0")
        self._check(("kl_coef",), lambda value: 0 <= value < finite, "0 or above")
        optional = ("missing_eos_penalty", "kl_target_nats_per_sequence", "total_episodes")
        given = [name for name in (*optional, "vllm_logprob_bound") if getattr(self, name) is not None]
        self._check(given, lambda value: 0 < value < finite, "above 0")
        self._check(("vllm_server_timeout", "vllm_kv_cache_gib"), lambda value: 0 < value < finite, "above 0")
        self._check_combinations()
        self._check_vllm()

    @property
    def episodes_per_step(self) -> int:
        """Answers that are sampled, and learned from, in one step, by all processes together."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * count_processes()

    @property
    def prompts_per_step(self) -> int:
        """Prompts that are answered in one step."""
        return self.episodes_per_step // self.num_generations

    def _check_combinations(self) -> None:
        if not self.is_judged:
            raise ConfigError("rewards come from --reward_model_path or from --reward_server_url: give one")
        for name in ("num_generations", "num_mini_batches"):
            if self.episodes_per_step % getattr(self, name):
                raise ConfigError(
                    f"--{name} {getattr(self, name)} does not divide the {self.episodes_per_step} episodes "
                    "of a step (--per_device_train_batch_size times --gradient_accumulation_steps, in each "
                    "process)"
                )
        if self.missing_eos_penalty is not None and self.stop_token == "none":
            raise ConfigError("--missing_eos_penalty: with --stop_token none no response ends by itself")
        if self.kl_target_nats_per_sequence is not None and self.kl_coef == 0:
            raise ConfigError("--kl_target_nats_per_sequence: a --kl_coef of 0 stays 0, however it adapts")

    def _check_vllm(self) -> None:
        is_server = self.use_vllm and self.vllm_mode == "server"
        if not self.use_vllm and self.vllm_mode == "server":
            raise ConfigError("--vllm_mode server goes with --use_vllm")
        if is_server is not (self.vllm_server_base_url is not None):
            raise ConfigError("--vllm_server_base_url goes with --use_vllm --vllm_mode server")
        if self.vllm_weights_dir is not None and not is_server:
            raise ConfigError("--vllm_weights_dir goes with --use_vllm --vllm_mode server")
        if self.use_vllm and not is_server and count_processes() > 1:
            raise ConfigError(
                "--use_vllm: several processes take their answers from one server: give --vllm_mode server "
                "and --vllm_server_base_url, or leave it out"
            )
        if self.vllm_logprob_bound is not None and not self.use_vllm:
            raise ConfigError("--vllm_logprob_bound goes with --use_vllm")
