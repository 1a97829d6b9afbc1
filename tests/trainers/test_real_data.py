"""Real people's preferences and a real model: reward and DPO on transcripts, SFT on demonstrations."""

import json
from pathlib import Path

import pytest

from tests.trainers.conftest import DATA, WriteRows
from trainers import checkpoint
from trainers.__main__ import main
from trainers.formats import read_pairs

MODEL = DATA / "models" / "stories260K"
TRANSCRIPTS = DATA / "hh_harmless" / "harmless-base.jsonl.gz"

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the shared test data at {DATA}")


def train(algorithm: str, data: Path, output: Path, *more: str) -> dict[str, float]:
    """A few steps with the built-in template; returns the metrics."""
    words = ["--model_name_or_path", str(MODEL), "--dataset_name", str(data), "--output_dir", str(output)]
    steps = ["--max_steps", "6", "--logging_steps", "1", "--learning_rate", "1e-3", "--max_length", "512"]
    assert main([algorithm, *words, *steps, "--chat_template_path", "simple", *more]) == 0
    assert checkpoint.verify(output) is True
    return dict(checkpoint.read_json(output / "alignment.json")["metrics"])


def test_every_transcript_can_be_read() -> None:
    pairs, (source,) = read_pairs(str(TRANSCRIPTS))
    assert len(pairs) == source.rows == 1500
    assert all(pair.chosen[0]["role"] == pair.rejected[0]["role"] == "assistant" for pair in pairs)


@pytest.mark.parametrize("folder", ["pandalm", "llmbar"])
def test_every_pair_of_strings_can_be_read(folder: str) -> None:
    pairs, _ = read_pairs(str(DATA / folder / "pairs.jsonl"))
    assert len(pairs) == 600
    assert all(pair.is_text for pair in pairs)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["reward", "dpo"])
def test_preferences_train_a_real_model(
    algorithm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fewer = ["--normalization_samples", "100"] if algorithm == "reward" else []
    metrics = train(algorithm, TRANSCRIPTS, tmp_path / "out", *fewer)
    assert 0.1 < metrics["loss"] < 3
    said = capsys.readouterr().err
    assert "of 1500 rows, which are longer than 512 tokens" in said
    assert "has no manifest and was not verified" in said
    assert "pad token: <unk> (id 0)" in said
    config = checkpoint.read_json(tmp_path / "out" / "config.json")
    generation = checkpoint.read_json(tmp_path / "out" / "generation_config.json")
    assert config["pad_token_id"] == generation["pad_token_id"] == 0
    ends = generation["eos_token_id"]
    assert 0 not in (ends if isinstance(ends, list) else [ends])


@pytest.mark.slow
def test_demonstrations_train_a_real_model(write_rows: WriteRows, tmp_path: Path) -> None:
    rows = json.loads((DATA / "gpteacher" / "roleplay.json").read_text())[:100]
    data = write_rows("d.jsonl", [{"prompt": r["instruction"], "completion": r["response"]} for r in rows])
    metrics = train("sft", data, tmp_path / "out", "--eval_dataset_name", str(data))
    assert metrics["eval_loss"] < 3.6


def test_a_placeholder_template_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model_name_or_path", str(MODEL), "--dataset_name", str(TRANSCRIPTS)]
    assert main(["reward", *words, "--output_dir", str(tmp_path / "out")]) == 2
    assert "--chat_template_path simple" in capsys.readouterr().err
