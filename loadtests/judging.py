"""What the benchmarks of the reward server have in common: models, servers that judge, and what is judged."""

import itertools
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import msgspec

from loadtests.errors import LoadTestError
from loadtests.http_client import HttpClient
from loadtests.processes import Server, free_port, server

TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>' -}}"
    "{%- endfor -%}"
)
SYLLABLES = ("ba", "ke", "lo", "mi", "nu", "ra", "se", "to", "vi", "zu")
WORDS = ["".join(parts) for parts in itertools.product(SYLLABLES, SYLLABLES, "nst")]
VLLM_START_LIMIT_S = 240.0


def inner_size(hidden_size: int) -> int:
    """Of a model's feed-forward layers."""
    return hidden_size * 8 // 3 // 32 * 32


@dataclass(frozen=True)
class Case:
    """A prompt and answers to it, of random words, each a token."""

    prompt: str
    answers: Sequence[str]

    @classmethod
    def draw(cls, drawn: random.Random, *, prompt: int, answers: int, answer: int) -> "Case":
        """With these numbers of words."""
        texts = [" ".join(drawn.choices(WORDS, k=answer)) for _ in range(answers)]
        return cls(" ".join(drawn.choices(WORDS, k=prompt)), texts)

    def rendered(self) -> list[str]:
        """All of them, as TEMPLATE says."""
        prompt = f"<|user|>\n{self.prompt}<|end|><|assistant|>\n"
        return [f"{prompt}{answer}<|end|>" for answer in self.answers]

    def score_body(self) -> bytes:
        """For our /score."""
        messages = [{"role": "user", "content": self.prompt}]
        return msgspec.json.encode({"messages": messages, "responses": self.answers})

    def pooling_body(self) -> bytes:
        """For vLLM's /pooling."""
        return msgspec.json.encode({"model": "judge", "input": self.rendered(), "use_activation": False})


@dataclass(frozen=True)
class Judge:
    """A server that judges, and how it is asked."""

    server: Server
    kind: str

    async def scores(self, http: HttpClient, case: Case) -> list[float]:
        """Of every answer. LoadTestError where there are none."""
        path, body = (
            ("/score", case.score_body()) if self.kind == "bonsai" else ("/pooling", case.pooling_body())
        )
        reply = await http.send("POST", path, body)
        if reply.error is not None or reply.status != 200:
            raise LoadTestError(f"{self.kind} did not judge: {reply.error or reply.status}", exit_code=1)
        content = msgspec.json.decode(reply.body)
        if self.kind == "bonsai":
            return cast(list[float], content["scores"])
        return [row["data"][0] for row in content["data"]]


class PlainForward:
    """transformers itself, in a process of its own."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def ask(self, texts: Sequence[str]) -> dict[str, Any]:
        """See loadtests.random_judge."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(texts) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise LoadTestError("the plain forward ended", exit_code=1)
        return cast(dict[str, Any], json.loads(line))


@contextmanager
def random_judge(
    hidden_size: int, layers: int, *, is_policy: bool = False, is_plain: bool = False
) -> Iterator[Path]:
    """The folder of a checkpoint, of a judge or a policy, for chats or for plain text, for a while."""
    with TemporaryDirectory() as name:
        sizes = ["--hidden-size", str(hidden_size), "--layers", str(layers)]
        command = [sys.executable, "-m", "loadtests.random_judge", "make", *sizes, name]
        command += ["--policy"] if is_policy else []
        command += ["--plain"] if is_plain else []
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode:
            raise LoadTestError(f"could not make a model: {made.stderr.strip()[-200:]}", exit_code=1)
        yield Path(name)


@contextmanager
def plain_forward(folder: Path, dtype: str, threads: int) -> Iterator[PlainForward]:
    """transformers on a checkpoint."""
    command = [sys.executable, "-m", "loadtests.random_judge", "forward", "--dtype", dtype]
    command += ["--threads", str(threads), str(folder)]
    env = {**os.environ, "GOMP_SPINCOUNT": "1000"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env
    ) as process:
        try:
            yield PlainForward(process)
        finally:
            process.terminate()


@contextmanager
def bonsai(folder: Path, dtype: str, threads: int) -> Iterator[Judge]:
    """Our server, with its defaults."""
    port = free_port()
    arguments = ["-m", "rm_server", "--model", f"judge={folder}", "--port", str(port)]
    arguments += ["--dtype", dtype, "--threads", str(threads)]
    with server(arguments, url=f"http://127.0.0.1:{port}", ready="/health/ready") as running:
        yield Judge(running, "bonsai")


@contextmanager
def vllm(folder: Path, dtype: str, threads: int) -> Iterator[Judge]:
    """vLLM, its cache of prefixes on as by default."""
    port = free_port()
    arguments = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--port", str(port)]
    arguments += ["--host", "127.0.0.1", "--served-model-name", "judge", "--runner", "pooling"]
    arguments += ["--dtype", dtype, "--disable-uvicorn-access-log", "--enforce-eager"]
    env = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(threads),
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "600",  # it stands still while others are measured
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    url = f"http://127.0.0.1:{port}"
    with server(arguments, url=url, ready="/health", env=env, limit_s=VLLM_START_LIMIT_S) as running:
        yield Judge(running, "vllm")
