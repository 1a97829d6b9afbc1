"""Evaluation by reward: the policy answers held-out prompts, and a reward model judges the answers.

The same prompts are answered by the same random numbers every time, so that evaluations differ by the weights
alone, and an evaluation leaves the run's own random numbers as they were.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from trainers import answers, folder, formats
from trainers import online_setup as setup
from trainers.checkpoint import find
from trainers.formats import Demonstration, Pair, Row, Source
from trainers.inputs import Inputs
from trainers.judged_config import JudgedEvaluationConfig
from trainers.loop import Evaluate
from trainers.prompts import Prompt, encode_prompts
from trainers.rollout import Sampling, TransformersRollout
from trainers.run import Run
from trainers.scorers import Scorer

SHOWN = 3
"""Answers of each evaluation that samples.jsonl keeps."""

Read = Callable[[str], tuple[Sequence[Demonstration | Pair], list[Source]]]


@dataclass(frozen=True, slots=True)
class JudgedAnswers:
    """Answers to held-out prompts, and who judges them."""

    run: Run
    rollout: TransformersRollout
    scorer: Scorer
    prompts: Sequence[Prompt]
    sampling: Sampling
    seed: int

    def evaluate(self, step: int) -> dict[str, float]:
        """The mean normalised reward as eval_reward, with the answers' length and how they ended."""
        self.rollout.update()
        self.rollout.reseed(self.seed)
        sampled = answers.sample(self.run, self.rollout, self.prompts, self.sampling)
        samples = [sample for (sample,) in sampled]
        pairs = list(zip(self.prompts, samples, strict=True))
        conversations = [prompt.answered(sample.text) for prompt, sample in pairs]
        rewards_E = answers.judge(self.run, self.scorer, conversations)
        shown = pairs[:SHOWN] if self.run.devices.is_main else []
        for (prompt, sample), reward in zip(shown, rewards_E.tolist(), strict=False):
            line = {
                "step": step,
                "prompt": prompt.content,
                "response": sample.text,
                "finish_reason": sample.finish_reason,
                "reward": reward,
                "held_out": True,
            }
            folder.append_sample(self.run.output, line)
        num = len(samples)
        return {
            "eval_reward": float(rewards_E.double().mean()),
            "eval_response_length": sum(len(sample.token_ids) for sample in samples) / num,
            "eval_eos_share": sum(sample.finish_reason == "stop" for sample in samples) / num,
        }


def load(
    run: Run, config: JudgedEvaluationConfig, inputs: Inputs[Any], policy: Any, read: Read
) -> JudgedAnswers | None:
    """Finds prompts and reward model, where the settings name one; tells the run (and the user) about them.

    `read` reads --eval_dataset_name, whose prompts are taken where there is no --eval_prompts.
    """
    if not config.is_judged:
        return None
    if config.eval_prompts is not None:
        rows, sources = formats.read_rows(config.eval_prompts)
        run.sources = [*run.sources, *sources]
    else:
        assert config.eval_dataset_name is not None
        rows = prompts_of(read(config.eval_dataset_name)[0])
    prompts = encode_prompts(rows[: config.eval_prompts_limit], inputs.encoder)
    prompts, notes = setup.keep_short(prompts, inputs.max_length - config.response_length)
    for note in notes:
        run.say(f"held-out prompts: {note}")
    scorer = setup.make_scorer(
        run, config, find(config.reward_model_path) if config.reward_model_path else None
    )
    run.reward_model = scorer.identity
    rollout = TransformersRollout.of_policy(
        run.devices,
        policy,
        inputs.tokenizer,
        policy.generation_config.eos_token_id,
        context_length=inputs.max_length,
        seed=config.seed,
        batch_size=config.local_rollout_forward_batch_size,
    )
    sampling = Sampling(1, config.temperature, config.response_length)
    run.say(f"evaluations answer {len(prompts)} held-out prompts")
    return JudgedAnswers(run, rollout, scorer, prompts, sampling, config.seed)


def prompts_of(items: Sequence[Demonstration | Pair]) -> list[tuple[Row, str]]:
    """The prompts of demonstrations (what stands before the last answer) and pairs, each once, as rows."""
    found: dict[str, tuple[Row, str]] = {}
    for item in items:
        messages = item.prompt if isinstance(item, Pair) else item.messages[: _last_answer(item)]
        if messages:
            prompt = messages[0]["content"] if item.is_text else list(messages)
            found.setdefault(json.dumps(prompt), ({"prompt": prompt}, item.where))
    return list(found.values())


def _last_answer(item: Demonstration) -> int:
    answers = [index for index, message in enumerate(item.messages) if message["role"] == "assistant"]
    return answers[-1]


def both(loss: Callable[[], dict[str, float]] | None, judged: JudgedAnswers | None) -> Evaluate | None:
    """The evaluation by held-out loss and by judged answers, or by the one that there is."""
    if loss is None and judged is None:
        return None
    return lambda step: (loss() if loss else {}) | (judged.evaluate(step) if judged else {})
