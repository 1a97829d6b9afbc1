"""A reward model or a policy with random weights, for benchmarks, and what plain transformers makes of it.

    python -m loadtests.random_judge make DIR --hidden-size 384 --layers 8 [--policy] [--plain]
    python -m loadtests.random_judge forward DIR --dtype float32 --threads 2

`forward` answers lines on stdin with lines on stdout: a list of texts, which are read in one batch, with
{"seconds", "scores"}; an empty list with {"flops"}, what a large matrix product reaches a second.
"""

import argparse
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from loadtests.judging import TEMPLATE, WORDS, inner_size

CONTROL = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"]
VOCABULARY = 4096
MAX_LENGTH = 2048
HEAD_SIZE = 64  # one that vLLM's attention on CPUs takes
MATMUL = 2048
END_LOGIT = 7.0


def make(folder: Path, hidden_size: int, layers: int, is_policy: bool, is_plain: bool) -> None:
    """Write the checkpoint: a judge, or a policy (embeddings tied), for chats or for plain text."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden_size,
        intermediate_size=inner_size(hidden_size),
        num_hidden_layers=layers,
        num_attention_heads=hidden_size // HEAD_SIZE,
        num_key_value_heads=hidden_size // HEAD_SIZE,
        max_position_embeddings=MAX_LENGTH,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
        initializer_range=0.05,
        tie_word_embeddings=is_policy,
        num_labels=1,
    )
    kind = LlamaForCausalLM if is_policy else LlamaForSequenceClassification
    model = kind(config)
    if is_policy:
        let_answers_end(model)
    model.save_pretrained(folder)
    tokens = tokenizer()
    tokens.chat_template = None if is_plain else TEMPLATE
    tokens.save_pretrained(folder, save_jinja_files=False)


@torch.no_grad()
def let_answers_end(model: Any) -> None:
    """Makes the end token as likely as in answers of some dozens of tokens: its embedding is turned towards
    the mean hidden state."""
    embeddings = model.get_input_embeddings().weight
    mean = model.model(torch.randint(len(CONTROL), VOCABULARY, (16, 64))).last_hidden_state.mean((0, 1))
    embeddings[model.config.eos_token_id] = END_LOGIT * mean / mean.square().sum()


def tokenizer() -> Any:
    """Makes each of WORDS one token."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=CONTROL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    drawn = random.Random(0)
    bpe.train_from_iterator((" ".join(drawn.choices(WORDS, k=50)) for _ in range(400)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        extra_special_tokens=CONTROL[2:],
    )


@torch.inference_mode()
def forward(folder: Path, dtype: str, threads: int) -> None:
    """Answer until stdin ends. Texts of a batch are of one length or padded on the right."""
    torch.set_num_threads(threads)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    tokens = AutoTokenizer.from_pretrained(folder)
    for line in sys.stdin:
        texts = json.loads(line)
        if not texts:
            answer: dict[str, Any] = {"flops": matmul_rate(getattr(torch, dtype))}
        else:
            rows = tokens(texts, add_special_tokens=False, padding=True, return_tensors="pt")
            started = time.perf_counter()
            scores = model(**rows, use_cache=False).logits[:, 0].tolist()
            answer = {"seconds": time.perf_counter() - started, "scores": scores}
        print(json.dumps(answer), flush=True)


def matmul_rate(dtype: torch.dtype) -> float:
    """Floating-point operations a second: the best of some products of large square matrices."""
    one, other = (torch.randn(MATMUL, MATMUL).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        started = time.perf_counter()
        _ = one @ other
        best = min(best, time.perf_counter() - started)
    return 2 * MATMUL**3 / best


def main() -> None:
    """The command line, for the benchmarks alone."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.random_judge")
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make")
    making.add_argument("--hidden-size", type=int, required=True)
    making.add_argument("--layers", type=int, required=True)
    making.add_argument("--policy", action="store_true")
    making.add_argument("--plain", action="store_true")
    reading = commands.add_parser("forward")
    reading.add_argument("--dtype", required=True)
    reading.add_argument("--threads", type=int, required=True)
    for command in (making, reading):
        command.add_argument("folder", type=Path)
    args = parser.parse_args()
    if args.command == "make":
        make(args.folder, args.hidden_size, args.layers, args.policy, args.plain)
    else:
        forward(args.folder, args.dtype, args.threads)


if __name__ == "__main__":
    main()
