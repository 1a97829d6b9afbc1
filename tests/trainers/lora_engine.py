"""Run by test_adapters_engine.py in a process of its own: vLLM with an adapter, asked with and without it.

    python lora_engine.py BASE ADAPTER ID,ID,...

Prints one JSON object for each: the tokens of the likeliest answer, and their log-probabilities.
"""

import json
import os
import sys

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
os.environ |= {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}

from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

base, adapter, prompt = sys.argv[1:]
engine = LLM(model=base, dtype="float32", max_model_len=128, enforce_eager=True, enable_lora=True)
sampling = SamplingParams(temperature=0, max_tokens=20, logprobs=0)
tokens = {"prompt_token_ids": [int(word) for word in prompt.split(",")]}
for request in (None, LoRARequest("tuned", 1, adapter)):
    answer = engine.generate([tokens], sampling, lora_request=request, use_tqdm=False)[0].outputs[0]
    ids = list(answer.token_ids)
    logprobs = [logprob[id_].logprob for logprob, id_ in zip(answer.logprobs, ids, strict=True)]
    print(json.dumps({"ids": ids, "logprobs": logprobs}))
