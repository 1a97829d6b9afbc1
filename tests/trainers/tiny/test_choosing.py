"""The curve of best-of-N: from a pool of answers to its table and plot."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest

from loadtests.__main__ import build_parser
from tests.trainers.tiny.test_evaluate import prompt
from trainers.tiny.choosing import gateway_points, main, markdown
from trainers.tiny.generate import write_jsonl
from trainers.tiny.gold import gold_reward

ANSWERS = ["It is 4.", "It is 7.", "I do not know.", "Sure! It is 4."]


@pytest.fixture
def demo(tmp_path: Path, reward_checkpoint: Path) -> Path:
    """A folder as the demo leaves it, as far as this needs it."""
    folder = tmp_path / "demo"
    (folder / "sft").mkdir(parents=True)
    (folder / "data").mkdir()
    shutil.copytree(reward_checkpoint, folder / "reward")
    write_jsonl(folder / "data/held_out_prompts.jsonl", [prompt(3, 4), prompt(3, 4)])
    return folder


def answered(output: Path) -> list[list[float]]:
    """Puts answers where the sampled ones would be; their gold rewards."""
    output.mkdir()
    rows = [dict(prompt(3, 4)) | {"responses": ANSWERS}, dict(prompt(3, 4)) | {"responses": ANSWERS[::-1]}]
    write_jsonl(output / "sft-4-0.jsonl", rows)
    return [
        [gold_reward(prompt(3, 4)["skill"], prompt(3, 4)["facts"], text) for text in row["responses"]]
        for row in rows
    ]


def test_the_curve_of_answers_that_are_there(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gold = answered(tmp_path / "out")
    words = ["--folder", str(demo), "--num-samples", "4", "--output", str(tmp_path / "out")]
    assert main(words) == 0
    points = json.loads((tmp_path / "out/curve.json").read_text())
    assert [point["n"] for point in points] == [1, 2, 4]
    assert [point["kl_bound_nats"] for point in points] == pytest.approx(
        [0, math.log(2) - 0.5, math.log(4) - 0.75]
    )
    assert points[0]["gold"]["mean"] == pytest.approx(sum(map(sum, gold)) / 8)  # best of 1: the mean of all
    rewards = [point["reward"]["mean"] for point in points]
    assert rewards == sorted(rewards)  # what it chooses by only rises
    assert points[2]["tokens_sampled"] == pytest.approx(4 * points[0]["tokens_sampled"])
    assert (tmp_path / "out/curve.png").read_bytes().startswith(b"\x89PNG")
    table = (tmp_path / "out/curve.md").read_text()
    assert capsys.readouterr().out == table == markdown(points)
    assert len(table.splitlines()) == 5


def test_sampling_that_fails_is_its_exit_code(demo: Path, tmp_path: Path) -> None:
    assert main(["--folder", str(demo), "--output", str(tmp_path / "out"), "--engine", "transformers"]) == 3


def test_no_demo_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--folder", str(tmp_path)]) == 2
    assert "`make demo` makes it" in capsys.readouterr().err


def test_a_demo_without_results_has_no_points(tmp_path: Path) -> None:
    assert gateway_points(tmp_path / "results.json", "sft") == {}


def test_the_commands_of_the_guide_are_taken(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (Path(__file__).parents[3] / "docs/choosing-n.md").read_text()
    curve, load = re.findall(r"```bash\npython -m (.*?)\n```", text, re.DOTALL)
    (tmp_path / "out").mkdir()
    write_jsonl(tmp_path / "out/sft-16-0.jsonl", [dict(prompt(3, 4)) | {"responses": ANSWERS * 4}] * 2)
    words = curve.replace("runs/demo", str(demo)).replace("runs/choosing", str(tmp_path / "out")).split()
    assert words[0] == "trainers.tiny.choosing"
    assert main(words[1:]) == 0
    shown = re.findall(r"^\| \d+ \|", capsys.readouterr().out, re.MULTILINE)
    assert shown == re.findall(r"^\| \d+ \|", text, re.MULTILINE)  # the guide's table is such a one
    assert load.split()[0] == "loadtests"
    assert build_parser().parse_args(load.split()[1:]).best_of == (1, 2, 4, 8, 16)
