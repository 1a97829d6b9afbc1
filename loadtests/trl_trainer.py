"""TRL's trainers on the benchmark's work. Run by the interpreter of TRL's own environment, by its path:

    runs/trl-1.16.0/bin/python loadtests/trl_trainer.py sft --model DIR --data FILE --out DIR ...

Writes OUT/metrics.jsonl, a line a step: {"step", "loss", "tokens"}, the tokens without padding and summed up
(0 with PPO), and OUT/model. --order says how rows become batches: `random` as TRL does by default,
`group_by_length`, `packed` (best-fit decreasing, without cross-talk), or `sequential`. PPO, which TRL had up
to 1.12, has further flags, and takes prompts.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from transformers import AutoTokenizer, TrainerCallback


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """What all of them take."""
    return {
        "output_dir": str(args.out),
        "per_device_train_batch_size": args.batch,
        "max_steps": args.steps,
        "learning_rate": args.learning_rate,
        "lr_scheduler_type": "linear",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "bf16": args.bf16,
        "fp16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "max_length": args.max_length,
        "train_sampling_strategy": "random" if args.order == "packed" else args.order,
    }


class Steps(TrainerCallback):  # type: ignore[misc]
    """Writes a line when a step has ended."""

    def __init__(self, file: Path) -> None:
        self.file, self.tokens, self.loss = file, 0, torch.tensor(0.0)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        loss = float(self.loss)
        if state.log_history and "loss/policy_avg" in state.log_history[-1]:
            logged = state.log_history[-1]
            loss = logged["loss/policy_avg"] + args.vf_coef * logged["loss/value_avg"]
        line = {"step": state.global_step, "loss": loss, "tokens": self.tokens}
        with self.file.open("a") as file:
            file.write(json.dumps(line) + "\n")


def noting(trainer_class: Any, steps: Steps) -> Any:
    """The trainer, its losses and tokens noted down."""

    class Noting(trainer_class):  # type: ignore[misc]
        def training_step(self, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
            mask = inputs.get("attention_mask")
            steps.tokens += inputs["input_ids"].numel() if mask is None else int(mask.sum())
            steps.loss = super().training_step(model, inputs, *rest, **more)
            return steps.loss

    return Noting


def build(args: argparse.Namespace, steps: Steps) -> Any:
    """The trainer of args.algorithm."""
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    common: dict[str, Any] = {
        "processing_class": tokenizer,
        "train_dataset": load_dataset("json", data_files=str(args.data), split="train"),
        "model": str(args.model),
    }
    if args.algorithm == "sft":
        sft = SFTConfig(**settings(args), packing=args.order == "packed", completion_only_loss=True)
        return noting(SFTTrainer, steps)(args=sft, **common)
    if args.algorithm == "dpo":
        dpo = DPOConfig(**settings(args), beta=0.1)
        return noting(DPOTrainer, steps)(args=dpo, **common)
    return noting(RewardTrainer, steps)(args=RewardConfig(**settings(args)), **common)


def build_ppo(args: argparse.Namespace) -> Any:
    """The trainer of PPO; what is not said here are its defaults."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(args.model, padding_side="left")
    prompts = load_dataset("json", data_files=str(args.data), split="train")
    ids = prompts.map(
        lambda row: {"input_ids": tokenizer(row["prompt"])["input_ids"]}, remove_columns=prompts.column_names
    )
    known = settings(args)
    for name in ("max_steps", "max_length", "train_sampling_strategy"):
        del known[name]
    ppo = PPOConfig(
        **known,
        gradient_accumulation_steps=args.accumulation,
        total_episodes=args.steps * args.batch * args.accumulation,
        response_length=args.response_length,
        temperature=1.0,
        stop_token="eos",
        num_sample_generations=0,
    )
    # PPO's trainer takes its precision from here, as `accelerate launch --mixed_precision bf16` sets it.
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16" if args.bf16 else "no"
    judges = [AutoModelForSequenceClassification.from_pretrained(args.reward_model) for _ in range(2)]
    return PPOTrainer(
        args=ppo,
        processing_class=tokenizer,
        model=AutoModelForCausalLM.from_pretrained(args.model),
        ref_model=AutoModelForCausalLM.from_pretrained(args.model),
        reward_model=judges[0],
        value_model=judges[1],
        train_dataset=ids,
        eval_dataset=ids.select(range(args.batch)),  # for which it wants a loader, and that it does not read
    )


def main() -> None:
    """The command line, for the benchmark alone."""
    parser = argparse.ArgumentParser()
    parser.add_argument("algorithm", choices=("sft", "dpo", "reward", "ppo"))
    for name in ("model", "data", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name in ("batch", "steps", "max-length"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--order", default="random")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--reward-model", type=Path)
    parser.add_argument("--response-length", type=int)
    parser.add_argument("--accumulation", type=int, default=1)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    steps = Steps(args.out / "metrics.jsonl")
    trainer = build_ppo(args) if args.algorithm == "ppo" else build(args, steps)
    trainer.add_callback(steps)
    trainer.train()
    # PPO's trainer cannot save with this transformers, but its policy can.
    trained = trainer.model.policy if args.algorithm == "ppo" else trainer.model
    trained.save_pretrained(args.out / "model")


if __name__ == "__main__":
    main()
