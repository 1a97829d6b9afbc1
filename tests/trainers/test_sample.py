"""`sample`: rows in, rows with answers out, whole or not at all."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.trainers.conftest import DATA, WriteRows
from trainers.__main__ import main
from trainers.formats import read_conversations, read_rows

QUESTION = [{"role": "user", "content": "q"}]


def sample(base: Path, prompts: Path, output: Path, *more: str, engine: str = "transformers") -> int:
    words = ["--model_name_or_path", str(base), "--prompts", str(prompts), "--output", str(output)]
    return main(["sample", *words, "--max_new_tokens", "5", "--engine", engine, *more])


def test_rows_keep_their_order_and_their_columns(base: Path, write_rows: WriteRows, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "a", "facts": {"n": 1}},
        {"prompt": QUESTION, "facts": None},
        {"messages": QUESTION},
    ]
    output = tmp_path / "deep" / "out.jsonl"
    assert sample(base, write_rows("p.jsonl", rows), output, "--num_samples", "3") == 0
    answered = [row for row, _ in read_rows(str(output))[0]]
    assert [row["prompt"][0]["content"] for row in answered] == ["a", "q", "q"]
    assert [row.get("facts") for row in answered] == [{"n": 1}, None, None]
    assert "messages" not in answered[2]
    for row in answered:
        assert len(row["responses"]) == len(row["finish_reasons"]) == 3
        assert set(row["finish_reasons"]) <= {"stop", "length"}
    assert len(read_conversations(str(output))[0]) == 9
    assert [path.name for path in output.parent.iterdir()] == ["out.jsonl"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "x" * 200}, "the prompt fills the model's context of 128 tokens"),
        ({"messages": [*QUESTION, {"role": "assistant", "content": "a"}]}, "ends with an assistant turn"),
        ({"text": "q"}, "`prompt` must be a list of messages"),
    ],
)
def test_a_row_that_cannot_be_answered_is_named(
    base: Path,
    write_rows: WriteRows,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    row: dict[str, Any],
    reason: str,
) -> None:
    prompts = write_rows("p.jsonl", [{"prompt": "ok"}, row])
    assert sample(base, prompts, tmp_path / "out.jsonl") == 3
    error = capsys.readouterr().err
    assert f"error: {prompts}, line 2: " in error
    assert reason in error
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    "flags", [["--num_samples", "0"], ["--temperature", "-1"], ["--temperature", "0", "--num_samples", "2"]]
)
def test_settings_that_make_no_sense(base: Path, tmp_path: Path, flags: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        sample(base, tmp_path / "p.jsonl", tmp_path / "out.jsonl", *flags)
    assert caught.value.code == 2


@pytest.mark.slow
def test_vllm_and_transformers_agree_on_the_likeliest_answer(write_rows: WriteRows, tmp_path: Path) -> None:
    model = DATA / "models" / "stories260K"
    if not model.is_dir():
        pytest.skip(f"needs the shared test data at {DATA}")
    prompts = write_rows(
        "p.jsonl", [{"prompt": f"Once upon a time, a {a} dog"} for a in ("big", "tiny", "sad")]
    )
    answers = []
    for engine in ("vllm", "transformers"):
        output = tmp_path / f"{engine}.jsonl"
        flags = ["--temperature", "0", "--dtype", "float32"]
        assert sample(model, prompts, output, *flags, engine=engine) == 0
        answers.append([json.loads(line)["responses"] for line in output.read_text().splitlines()])
    assert answers[0] == answers[1]
