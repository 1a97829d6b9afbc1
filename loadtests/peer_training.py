"""Training runs as processes, ours and TRL's, on the same rows: what a step costs in time, processor and
memory. TRL has environments of its own under runs/, made when they are first needed: one with 1.12 for PPO,
which it has dropped since, and one with a current release.
"""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from loadtests.errors import LoadTestError
from loadtests.judging import WORDS
from loadtests.processes import cpu_seconds

TRL, TRL_WITH_PPO = "1.16.0", "1.12.0"
ENVIRONMENTS = Path("runs")
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
RUNNER = Path(__file__).with_name("trl_trainer.py")
BATCH = 8
MAX_LENGTH = 512
ACCUMULATION = 4
"""Of PPO, with which a step is BATCH times as many episodes."""
RESPONSE_LENGTH = 53
LEARNING_RATES = {"sft": 1e-4, "dpo": 1e-6, "reward": 1e-5, "ppo": 3e-6}
"""Low enough that a batch is not learned by heart within some steps."""
WARMUP = 2
"""Steps that do not count."""
POLL_S = 0.005


def trl_python(algorithm: str) -> str:
    """The interpreter of the environment of the TRL that has it, which is made with our torch and
    transformers if it is not there yet."""
    release = TRL_WITH_PPO if algorithm == "ppo" else TRL
    folder = ENVIRONMENTS / f"trl-{release}"
    python, done = folder / "bin" / "python", folder / "complete"
    if not done.exists():
        print(f"installing TRL {release} into {folder}", flush=True)
        same = [f"{name}=={version(name)}" for name in ("torch", "transformers")]
        install = [str(python), "-m", "pip", "install", "--quiet", f"trl=={release}", *same]
        for command in (
            [sys.executable, "-m", "venv", str(folder)],
            [*install, "--extra-index-url", TORCH_CPU_INDEX],
        ):
            made = subprocess.run(command, capture_output=True, text=True, check=False)
            if made.returncode:
                raise LoadTestError(f"could not install TRL: {made.stderr.strip()[-300:]}", exit_code=1)
        done.touch()
    return str(python)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is trained: the same for all."""

    algorithm: str
    """Of `python -m trainers`."""
    model: Path
    data: Path
    out: Path
    bf16: bool
    threads: int
    steps: int
    judge: Path | None = None
    """With PPO: the reward model, from which the value model starts too."""

    def at(self, name: str) -> "Work":
        """The same, with its output elsewhere."""
        return replace(self, out=self.out / name)

    @property
    def environment(self) -> dict[str, str]:
        """Of the process. No run looks for anything on the network, and no waiting thread keeps a core busy
        (our trainers see to that themselves)."""
        quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "GOMP_SPINCOUNT": "1000"}
        return {**os.environ, **quiet, "OMP_NUM_THREADS": str(self.threads)}


def ours(work: Work) -> list[str]:
    """The command of our trainer, the defaults where nothing is said."""
    flags: dict[str, Any] = {
        "model_name_or_path": work.model,
        "dataset_name": work.data,
        "output_dir": work.out,
        "per_device_train_batch_size": BATCH,
        "max_steps": work.steps,
        "max_length": MAX_LENGTH,
        "learning_rate": LEARNING_RATES[work.algorithm],
        "logging_steps": 1,
        "save_steps": 0,
        "bf16": str(work.bf16).lower(),
    }
    if work.judge is not None:
        flags |= {"reward_model_path": work.judge, "gradient_accumulation_steps": ACCUMULATION}
        flags |= {"response_length": RESPONSE_LENGTH}
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "trainers", work.algorithm, *words]


def trl(work: Work, order: str = "random") -> list[str]:
    """The command of TRL's; `order` as its runner says."""
    command = [trl_python(work.algorithm), str(RUNNER), work.algorithm, "--model", str(work.model)]
    command += ["--data", str(work.data), "--out", str(work.out), "--batch", str(BATCH)]
    command += ["--steps", str(work.steps), "--max-length", str(MAX_LENGTH), "--order", order]
    command += ["--learning-rate", str(LEARNING_RATES[work.algorithm])]
    if work.judge is not None:
        command += ["--reward-model", str(work.judge), "--accumulation", str(ACCUMULATION)]
        command += ["--response-length", str(RESPONSE_LENGTH)]
    return [*command, "--bf16"] if work.bf16 else command


@dataclass(frozen=True)
class Cost:
    """What the steps after the warm-up took."""

    units: int
    """Tokens that are no padding; episodes, of PPO."""
    tokens: int
    """Of PPO those of every epoch, as we count them; TRL does not."""
    seconds: float
    cpu_s: float
    peak_bytes: int
    """Of the whole process, from its start to its saved model."""
    losses: Sequence[float]
    """Of every step, the warm-up's too."""

    @property
    def rate(self) -> float:
        """Units a second."""
        return self.units / self.seconds

    @property
    def cpu_rate(self) -> float:
        """The same, a second of processor time."""
        return self.units / self.cpu_s


def watch(command: Sequence[str], work: Work) -> Cost:
    """Run it to its end. LoadTestError where it fails."""
    work.out.mkdir(parents=True)
    metrics = work.out / "metrics.jsonl"
    with (work.out.parent / f"{work.out.name}.log").open("w+") as log:
        process = subprocess.Popen(command, env=work.environment, stdout=log, stderr=log)
        marks = [_mark(process, metrics, count) for count in (WARMUP, work.steps)]
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode or None in marks:
            log.seek(0)
            last = log.read().strip().rpartition("\n")[2]
            raise LoadTestError(f"{' '.join(command[:4])} failed: {last}", exit_code=1)
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    (start, cpu_before), (end, cpu_after) = (mark for mark in marks if mark is not None)
    tokens = lines[work.steps - 1]["tokens"] - lines[WARMUP - 1]["tokens"]
    return Cost(
        units=tokens if work.judge is None else (work.steps - WARMUP) * BATCH * ACCUMULATION,
        tokens=tokens,
        seconds=end - start,
        cpu_s=cpu_after - cpu_before,
        peak_bytes=used.ru_maxrss * 1024,
        losses=[line["loss"] for line in lines],
    )


def _mark(process: "subprocess.Popen[bytes]", metrics: Path, count: int) -> tuple[float, float] | None:
    """Time and processor time when a run has written so many lines; None if it ends before."""
    while True:
        has_ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        written = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
        if written >= count:
            return time.perf_counter(), cpu_seconds(process.pid)
        if has_ended:
            return None
        time.sleep(POLL_S)


def write_rows(file: Path, algorithm: str, count: int) -> None:
    """Rows of random words, each a token.

    Prompts of 8 to 48. Demonstrations: such prompts, completions of 8 to 128. Pairs: prompts of 32 to 96,
    answers of as many, so that prompts are half of the tokens; those of a reward model are chats.
    """
    drawn = random.Random(0)

    def words(low: int, high: int) -> str:
        return " ".join(drawn.choices(WORDS, k=drawn.randint(low, high)))

    def row() -> dict[str, Any]:
        if algorithm == "ppo":
            return {"prompt": words(8, 48)}
        if algorithm == "sft":
            return {"prompt": words(8, 48), "completion": " " + words(8, 128)}
        texts = {"prompt": words(32, 96), "chosen": " " + words(32, 96), "rejected": " " + words(32, 96)}
        if algorithm == "dpo":
            return dict(texts)
        roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
        return {name: [{"role": roles[name], "content": text.strip()}] for name, text in texts.items()}

    file.write_text("".join(json.dumps(row()) + "\n" for _ in range(count)))
