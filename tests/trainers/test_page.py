"""run.html: what it shows, and that nothing in it comes from elsewhere or gets out of its place."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from tests.trainers.conftest import WriteRows, chat
from trainers import ppo, reward, sft
from trainers.__main__ import main
from trainers.folder import METRICS, SAMPLES
from trainers.page import FILE, chosen_samples, command_of, panels, write_page

MADE: dict[str, Any] = {
    "algorithm": "sft",
    "config": {"seed": 7},
    "parent": {"path": "models/base", "sha256": "abc"},
    "reward_model": {"url": "http://127.0.0.1:1", "model": "judge", "version": "v1"},
    "data": [{"path": "demos.jsonl", "sha256": None, "rows": 3}],
    "versions": {"torch": "9.9"},
}
CONFIG = sft.Config(
    model_name_or_path="models/base", dataset_name="my demos.jsonl", output_dir="out", bf16=True
)
HOSTILE = "</td><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7 * 7 }} & \"'"


class Seen(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(output: Path, metrics: list[dict[str, Any]], samples: list[dict[str, Any]]) -> str:
    (output / METRICS).write_text("".join(json.dumps(line) + "\n" for line in metrics))
    (output / SAMPLES).write_text("".join(json.dumps(line) + "\n" for line in samples))
    write_page(output, CONFIG, MADE, "finished")
    assert not [path for path in output.iterdir() if path.name.startswith(".")]
    return (output / FILE).read_text()


def sample(step: int, **more: Any) -> dict[str, Any]:
    return {"step": step, "prompt": "q", "response": "a", "finish_reason": "stop", "reward": 0.5} | more


def test_what_comes_from_data_stays_text(tmp_path: Path) -> None:
    messages = [{"role": HOSTILE, "content": HOSTILE}]
    rows = [sample(1, prompt=HOSTILE, response=HOSTILE), sample(2, prompt=messages, finish_reason=HOSTILE)]
    page = page_of(tmp_path, [{"step": 1, "loss": 1.0, HOSTILE: 2.0}], rows)
    seen = Seen(page)
    assert not {"script", "img", "link", "iframe", "base"} & seen.tags
    assert not [name for name, _ in seen.attributes if name.startswith("on") or name in ("src", "href")]
    assert seen.text.count(HOSTILE) >= 6
    assert "default-src 'none'" in page
    assert "http" not in page.replace(MADE["reward_model"]["url"], "").replace("http-equiv", "")


def test_it_shows_what_the_run_is(tmp_path: Path) -> None:
    metrics = [
        {"step": 1, "loss": 2.0, "learning_rate": 0.1},
        {"step": 2, "loss": 1.0, "eval_loss": 1.5, "eval_reward": 0.75},
    ]
    text = Seen(page_of(tmp_path, metrics, [sample(2, reward=0.123456, held_out=True, kl_nats=2.0)])).text
    shown = [
        "reward, held-out: 0.75",
        "loss: 1",
        "loss, held-out: 1.5",
        "learning_rate: 0.1",
        "0.1235",
        "held-out",
    ]
    shown += [
        "torch",
        "9.9",
        "abc",
        "v1",
        "demos.jsonl",
        "seed",
        "finished",
        "1 of 1; all are in samples.jsonl",
    ]
    assert [part for part in shown if part not in text] == []
    command = "python -m trainers sft --output_dir out --bf16 true --model_name_or_path models/base"
    assert f"{command} --dataset_name 'my demos.jsonl'" in text


def test_a_run_that_has_said_nothing_yet_has_a_page(tmp_path: Path) -> None:
    write_page(tmp_path, CONFIG, MADE | {"parent": None, "reward_model": None}, "saved checkpoint-1")
    page = (tmp_path / FILE).read_text()
    assert "saved checkpoint-1" in page
    assert "<svg" not in page


def test_every_metric_has_a_chart_and_none_that_is_not_finite_a_point() -> None:
    lines = [{"step": 1, "kl_coef": 0.1, "my_own": 1.0}, {"step": 2, "epoch": 1, "loss": float("nan")}]
    found = dict(panels(lines))
    assert found == {"KL coefficient": {"kl_coef": [(1, 0.1)]}, "my_own": {"my_own": [(1, 1.0)]}}


def test_first_and_last_answers_are_shown_the_last_first() -> None:
    rows = [sample(step) for step in range(20)]
    assert [row["step"] for row in chosen_samples(rows)] == [*range(19, 10, -1), 2, 1, 0]
    assert [row["step"] for row in chosen_samples(rows[:10])] == [*range(9, 0, -1), 0]
    assert chosen_samples([]) == []


def test_the_command_makes_the_same_settings() -> None:
    named: dict[str, Any] = {"model_name_or_path": "m", "dataset_name": "d", "output_dir": "o"}
    configs = (
        sft.Config(**named, seed=3, resume_from_checkpoint="latest", use_cpu=True),
        ppo.Config(**named, reward_model_path="a b", kl_target_nats_per_sequence=0.5, temperature=0.7),
        reward.Config(**named, loss_type="choice", num_members=3),
        reward.Config(**named, use_peft=True, lora_target_modules=["q_proj", "v_proj"]),
    )
    names = ("sft", "ppo", "reward", "reward")
    shown = [command_of(name, config) for name, config in zip(names, configs, strict=True)]
    start = "python -m trainers"
    assert shown == [
        f"{start} sft --output_dir o --seed 3 --use_cpu true --model_name_or_path m --dataset_name d",
        f"{start} ppo --output_dir o --model_name_or_path m --dataset_name d --reward_model_path 'a b' "
        "--temperature 0.7 --kl_target_nats_per_sequence 0.5",
        f"{start} reward --output_dir o --model_name_or_path m --dataset_name d --loss_type choice "
        "--num_members 3",
        f"{start} reward --output_dir o --model_name_or_path m --dataset_name d --use_peft true "
        "--lora_target_modules q_proj v_proj",
    ]


def test_a_run_leaves_its_page(base: Path, write_rows: WriteRows, tmp_path: Path) -> None:
    demos = write_rows("demos.jsonl", [chat("q", "a")] * 4)
    flags = [
        "--model_name_or_path",
        str(base),
        "--dataset_name",
        str(demos),
        "--output_dir",
        str(tmp_path / "o"),
    ]
    assert (
        main(["sft", *flags, "--max_steps", "2", "--save_steps", "1", "--logging_steps", "1", "--use_cpu"])
        == 0
    )
    page = (tmp_path / "o" / FILE).read_text()
    assert "finished" in page
    assert str(demos) in page
    assert "<svg" in page
    # A page of a checkpoint would be stale with the next: there is one, of the run.
    assert not (tmp_path / "o" / "checkpoint-2" / FILE).exists()
