"""Real people's preferences and a real model: trained by the command lines, served as the demo serves."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from openai import OpenAI

from tests.e2e.asking import MESSAGES, check_record, scores
from tests.e2e.commands import alive, free_ports, trainers
from trainers.tiny.stack import Ports, Stack

DATA = Path(__file__).parents[2].parent / "shared" / "data"
MODEL = DATA / "models" / "stories260K"
TRANSCRIPTS = DATA / "hh_harmless" / "harmless-base.jsonl.gz"

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the shared test data at {DATA}")


@dataclass(frozen=True)
class Running:
    """A stack and its processes."""

    stack: Stack
    folder: Path

    def processes(self) -> list[psutil.Process]:
        """All that it started: the launcher is their parent."""
        pids = json.loads((self.folder / "ready.json").read_text())["pids"].values()
        launcher = psutil.Process(min(pids)).parent()
        assert launcher is not None
        return [launcher, *launcher.children(recursive=True)]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("real")
    for algorithm in ("reward", "dpo"):
        trainers(
            *(algorithm, "--model_name_or_path", MODEL, "--dataset_name", TRANSCRIPTS),
            *("--output_dir", folder / algorithm, "--chat_template_path", "simple", "--max_length", 512),
            *("--max_steps", 6, "--learning_rate", 1e-3, "--save_steps", 0),
            *(("--normalization_samples", 100) if algorithm == "reward" else ()),
        )
    stack = Stack(folder / "reward", Ports(*free_ports(2)))
    try:
        stack.serve(folder / "dpo")
        yield Running(stack, folder)
    finally:
        stack.stop()


def test_it_answers_with_the_best_of_four(running: Running) -> None:
    with OpenAI(base_url=f"{running.stack.url}/v1", api_key="unused", max_retries=0) as client:
        answer = client.chat.completions.create(
            model="dpo", messages=MESSAGES, max_tokens=60, n=2, extra_body={"best_of": 4}
        )
    record = (answer.model_extra or {})["alignment"]
    check_record(record, best_of=4, n=2)
    texts = [choice.message.content or "" for choice in answer.choices]
    assert all(len(text) > 10 for text in texts)
    assert record["rewards"] == pytest.approx(scores(running.stack.reward_url, MESSAGES, texts), abs=1e-5)


def test_a_stream_ends_with_its_record(running: Running) -> None:
    with OpenAI(base_url=f"{running.stack.url}/v1", api_key="unused", max_retries=0) as client:
        chunks = list(
            client.chat.completions.create(
                model="dpo:best-of-4", messages=MESSAGES, max_tokens=60, stream=True
            )
        )
    extras = [chunk.model_extra or {} for chunk in chunks]
    [record] = [extra["alignment"] for extra in extras if "alignment" in extra]
    check_record(record, best_of=4, n=1)


def test_sigterm_leaves_no_child(running: Running) -> None:
    """The last test of this stack."""
    processes = running.processes()
    assert len(processes) >= 4  # the launcher, vLLM, the reward server, the gateway
    running.stack.stop()
    assert alive(processes) == []
