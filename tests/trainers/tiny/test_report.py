"""The page and the plot say what the results say."""

from pathlib import Path

from tests.trainers.tiny.test_results import PROMPTS, measured
from trainers.tiny.report import markdown, plot
from trainers.tiny.results import CLAIMED, POLICIES


def test_the_page_says_what_was_measured_and_what_failed() -> None:
    page = markdown(measured(dpo_1=0.4))
    table = [line for line in page.splitlines() if line.startswith("|")]
    assert table[0] == "| policy | best_of 1 | best_of 4 | best_of 16 | KL from sft |"
    assert len({line.count("|") for line in table}) == 1
    assert [line.split("|")[1].strip() for line in table[2:]] == list(POLICIES)
    assert [line.split("|")[5].strip() for line in table[2:]] == ["", "", "2.5 nats", "2.5 nats"]
    assert f"on {PROMPTS} held-out prompts" in page
    assert page.count("**NO**") == 1
    assert f"**NO**: {CLAIMED['dpo-sft']}" in page
    assert "nobody could exceed 85.0%" in page
    assert "data 2, sft 20; in all 22" in page
    assert "Peak memory: 3.0 GiB" in page


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    plot(measured(), tmp_path / "results.png")
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["results.png"]
