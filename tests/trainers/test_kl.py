"""The divergence of a policy from itself is nothing, and of small policies what enumeration says."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainers.conftest import WriteRows, make_model
from trainers.__main__ import main
from trainers.episodes import Episode
from trainers.kl import log_ratios
from trainers.prompts import Prompt
from trainers.rollout import Sample


def kl(policy: Path, reference: Path, prompts: Path, *more: str) -> int:
    names = ["--model_name_or_path", str(policy), "--ref_model_name_or_path", str(reference)]
    return main(["kl", *names, "--prompts", str(prompts), "--max_new_tokens", "4", *more])


def other_policy(base: Path, folder: Path, tokenizer: Any) -> Path:
    make_model(seed=7).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_policy_does_not_differ_from_itself(
    base: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "deep" / "kl.json"
    assert kl(base, base, prompts, "--output", str(output)) == 0
    found = json.loads(output.read_text())
    assert found["kl_nats_per_sequence"] == {"mean": 0.0, "ci95": [0.0, 0.0]}
    assert 1 <= found["tokens_per_answer"] <= 4
    assert "KL 0.00 [0.00, 0.00] nats per sequence" in capsys.readouterr().out


def test_it_is_positive_for_others_and_the_seed_decides(
    base: Path, prompts: Path, tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    other = other_policy(base, tmp_path / "other", tokenizer)
    said = []
    for seed in ("1", "1", "2"):
        assert kl(base, other, prompts, "--num_samples", "8", "--seed", seed) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != said[2]
    assert float(said[0].split()[1]) > 0


def test_its_mean_over_all_answers_is_the_divergence() -> None:
    """Two tokens of a vocabulary of three: the nine answers, weighed by the policy, against the sum of each
    position's divergence, worked out from the two models' distributions."""
    policy, reference = (make_model(seed, vocab_size=3).eval() for seed in (1, 2))
    prompt = Prompt([], True, [1, 2], "here")
    answers = list(itertools.product(range(3), repeat=2))
    episodes = [Episode(prompt, Sample("", list(ids), "length")) for ids in answers]
    ratios = log_ratios(policy, reference, episodes, 0, batch_size=4)

    def chances(model: Any, ids: list[int]) -> list[float]:
        with torch.no_grad():
            found: list[float] = model(torch.tensor([ids])).logits[0, -1].double().softmax(-1).tolist()
        return found

    def divergence(ids: list[int]) -> float:
        pairs = zip(chances(policy, ids), chances(reference, ids), strict=True)
        return sum(p * math.log(p / q) for p, q in pairs)

    first = chances(policy, prompt.ids)
    expected = divergence(prompt.ids) + sum(
        first[token] * divergence([*prompt.ids, token]) for token in range(3)
    )
    weights = [first[one] * chances(policy, [*prompt.ids, one])[two] for one, two in answers]
    found = sum(weight * ratio for weight, ratio in zip(weights, ratios, strict=True))
    assert found == pytest.approx(expected, rel=1e-4)
    assert expected > 0


def test_one_prompt_has_no_interval(
    base: Path, write_rows: WriteRows, capsys: pytest.CaptureFixture[str]
) -> None:
    assert kl(base, base, write_rows("p.jsonl", [{"prompt": "a"}])) == 3
    assert "two prompts or more" in capsys.readouterr().err


def test_wrong_settings_are_usage_errors(base: Path, prompts: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        kl(base, base, prompts, "--num_samples", "0")
    assert caught.value.code == 2
