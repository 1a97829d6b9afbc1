"""The plots of a run."""

from pathlib import Path

from trainers.plots import plot_curves, plot_loss, read_metrics

LINES = '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0, "eval_loss": 1.5}\n'


def test_a_plot_is_a_png(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text(LINES)
    plot_loss(tmp_path / "m.jsonl", tmp_path / "loss.png", "sft")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_to_plot_is_no_plot(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text("")
    plot_loss(tmp_path / "m.jsonl", tmp_path / "loss.png", "sft")
    assert not (tmp_path / "loss.png").exists()


def test_a_line_cut_short_by_a_crash_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text(LINES + '{"step": 3, "lo')
    assert [line["step"] for line in read_metrics(tmp_path / "m.jsonl")] == [1, 2]


def test_the_curves_of_an_online_method(tmp_path: Path) -> None:
    line = '{"step": 1, "reward": 0.5, "eval_reward": 0.4, "kl_nats_per_sequence": 0.1, "loss": 1.0}\n'
    (tmp_path / "m.jsonl").write_text(line)
    plot_curves(tmp_path / "m.jsonl", tmp_path / "curves.png", "ppo")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_where_there_are_no_rewards_there_are_no_curves(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text(LINES)
    plot_curves(tmp_path / "m.jsonl", tmp_path / "curves.png", "sft")
    assert not (tmp_path / "curves.png").exists()
