"""Real processes, on data and online: SIGTERM saves and exits, kill -9 loses nothing, and continued they
end in the bits of a run that nothing stopped.
"""

import signal
from pathlib import Path

import pytest

from tests.trainers.test_resume import start, wait_for_step
from trainers.folder import SAMPLES
from trainers.formats import sha256_of
from trainers.resume import find_checkpoint, step_checkpoints

ONLINE = ["--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "2", "--max_steps", "24"]
ON_DATA = ["--per_device_train_batch_size", "4", "--max_steps", "90"]
CASES = {
    "reward": ("reward", "pairs", ON_DATA),
    "rloo": ("rloo", "prompts", ONLINE),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_stopped_killed_and_continued_it_ends_in_the_same_bits(
    name: str, base: Path, reward_checkpoint: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    algorithm, fixture, flags = CASES[name]
    data: Path = request.getfixturevalue(fixture)
    flags = [*flags, "--model_name_or_path", str(base), "--dataset_name", str(data), "--use_cpu"]
    flags += ["--save_steps", "4", "--logging_steps", "1", "--learning_rate", "1e-3"]
    if fixture == "prompts":
        flags += [
            "--reward_model_path",
            str(reward_checkpoint),
            "--response_length",
            "8",
            "--max_length",
            "100",
        ]
        flags += ["--eval_dataset_name", str(data)]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    with start([*flags, "--output_dir", str(whole)], algorithm) as process:
        assert process.wait() == 0, process.communicate()[1]

    again = [*flags, "--output_dir", str(cut), "--resume_from_checkpoint"]
    with start(again, algorithm) as process:
        wait_for_step(process, cut, 5)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate()
    newest = step_checkpoints(cut)[-1]
    assert process.returncode == 143
    assert f"error: stopped; saved {newest}" in errors
    assert find_checkpoint(cut, "latest") == newest

    with start(again, algorithm) as process:
        wait_for_step(process, cut, int(newest.name.removeprefix("checkpoint-")) + 7)
        process.kill()
    assert not (cut / "manifest.json").exists()

    with start(again, algorithm) as process:
        assert process.wait() == 0, process.communicate()[1]
    assert sha256_of(cut / "model.safetensors") == sha256_of(whole / "model.safetensors")
    if (whole / SAMPLES).exists():
        assert (cut / SAMPLES).read_text() == (whole / SAMPLES).read_text()
