"""LoRA: what is added, what is trained, and that each way of saving it computes the same."""

import json
from pathlib import Path
from shutil import copytree
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaForSequenceClassification

from tests.trainers.conftest import WriteRows, chat, make_model
from tests.trainers.test_algorithms import first_and_last, run
from trainers import adapters, checkpoint, dpo, reward, sft
from trainers.__main__ import main
from trainers.adapter_config import AdapterConfig
from trainers.devices import Devices
from trainers.errors import CheckpointError, ConfigError
from trainers.formats import sha256_of

DEVICES = Devices(torch.device("cpu"))
IDS = torch.tensor([[5, 9, 30, 31, 200, 1]])


def config(**settings: Any) -> AdapterConfig:
    return AdapterConfig(
        model_name_or_path="m", dataset_name="d", output_dir="o", use_peft=True, **({"lora_r": 2} | settings)
    )


def make_gpt2(seed: int = 0) -> Any:
    """A model whose layers are Conv1D, their weights the other way round."""
    torch.manual_seed(seed)
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 128}
    return GPT2LMHeadModel(GPT2Config(vocab_size=261, bos_token_id=1, eos_token_id=1, **sizes)).eval()


def make_reward_model() -> Any:
    settings = make_model().config
    settings.num_labels = 1
    torch.manual_seed(3)
    return LlamaForSequenceClassification(settings).eval()


def moved(model: Any) -> Any:
    """The model after its adapter has learned something: nothing in it is zero any more."""
    random = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=random))
    return model


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    result: torch.Tensor = model(input_ids=IDS).logits
    return result


def trained(model: Any) -> dict[str, torch.Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_a_new_adapter_changes_nothing_and_says_what_will_be_trained() -> None:
    model, plain = make_model(), make_model()
    line = adapters.add(model, config(), "base")
    assert torch.equal(logits(model), logits(plain))
    # Rank 2: q, k, v, o of 32 x 32, gate and up of 32 x 48, down of 48 x 32, in two layers.
    count = 2 * 2 * (4 * (32 + 32) + 2 * (32 + 48) + (48 + 32))
    assert sum(parameter.numel() for parameter in trained(model).values()) == count == 1984
    total = sum(parameter.numel() for parameter in plain.parameters()) + count
    assert line == (
        "LoRA of rank 2 in 14 layers (down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj): "
        f"1,984 of {total:,} parameters are trained ({1984 / total:.1%})"
    )


def test_the_draw_depends_on_the_seed_alone() -> None:
    models = [make_model() for _ in range(3)]
    for model, seed, before in zip(models, (0, 0, 1), (11, 12, 13), strict=True):
        torch.manual_seed(before)
        adapters.add(model, config(seed=seed), "base")
        assert torch.initial_seed() == before
    one, same, other = ({n: t for n, t in trained(model).items() if "lora_A" in n} for model in models)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)


def test_named_layers_alone_are_changed() -> None:
    model = make_model()
    line = adapters.add(model, config(lora_target_modules=["v_proj", "layers.1.mlp.up_proj"]), "base")
    names = sorted({name.rpartition(".lora_")[0] for name in trained(model)})
    expected = ["layers.0.self_attn.v_proj", "layers.1.mlp.up_proj", "layers.1.self_attn.v_proj"]
    assert names == [f"model.{name}" for name in expected]
    assert "in 3 layers (layers.1.mlp.up_proj, v_proj)" in line


@pytest.mark.parametrize("name", ["qproj", "lm_head", "embed_tokens", "proj", "norm"])
def test_a_layer_that_is_not_there_or_not_linear_is_named(name: str) -> None:
    with pytest.raises(
        ConfigError, match=f"^--lora_target_modules {name}: base has no linear layer"
    ) as caught:
        adapters.add(make_model(), config(lora_target_modules=["q_proj", name]), "base")
    assert str(caught.value).endswith("down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj")


def test_a_merge_by_hand() -> None:
    model = make_model()
    adapters.add(model, config(lora_r=1, lora_alpha=3, lora_target_modules=["layers.0.mlp.up_proj"]), "base")
    name = "model.layers.0.mlp.up_proj"
    before = model.state_dict()[f"{name}.base_layer.weight"].clone()
    with torch.no_grad():
        for side, at, value in (("A", (0, 4), 2.0), ("B", (6, 0), 0.5)):
            weight = model.get_parameter(f"{name}.lora_{side}.default.weight")
            weight.zero_()[at] = value
    merged = adapters.merge(model, model.state_dict())
    assert merged.keys() == make_model().state_dict().keys()
    before[6, 4] += 3 / 1 * 0.5 * 2.0
    assert torch.equal(merged[f"{name}.weight"], before)
    assert adapters.merge(model, {}) == {}


@pytest.mark.parametrize("make", [make_model, make_gpt2, lambda: make_model(tie_word_embeddings=True)])
def test_every_way_of_saving_computes_the_same(make: Any, tmp_path: Path) -> None:
    model, plain = make(), make()
    adapters.add(model, config(), "base")
    expected = logits(moved(model))
    assert not torch.allclose(expected, logits(plain), atol=0.1)
    for save_adapter, name in ((True, "adapter"), (False, "merged")):
        (tmp_path / name).mkdir()
        adapters.as_result(model, DEVICES, save_adapter).save_pretrained(tmp_path / name)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(logits(merged), expected, atol=1e-5, rtol=0)
    theirs = peft.PeftModel.from_pretrained(make(), str(tmp_path / "adapter"))
    assert torch.equal(logits(theirs), expected)
    torch.testing.assert_close(logits(theirs.merge_and_unload()), logits(merged), atol=1e-5, rtol=0)
    own = {name.replace(".base_layer", ""): tensor for name, tensor in model.state_dict().items()}
    assert all(torch.equal(tensor, own[name]) for name, tensor in plain.state_dict().items())


def test_a_reward_models_head_is_trained_and_saved_with_the_adapter(tmp_path: Path) -> None:
    model = make_reward_model()
    assert " and score: " in adapters.add(model, config(), "base")
    assert "score.weight" in trained(model)
    expected = logits(moved(model))
    adapters.as_step(model, DEVICES).model.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (settings["modules_to_save"], settings["task_type"]) == (["score"], "SEQ_CLS")
    theirs = peft.PeftModel.from_pretrained(make_reward_model(), str(tmp_path))
    assert torch.equal(logits(theirs), expected)


def test_an_adapter_can_be_read_back(tmp_path: Path) -> None:
    model, other = make_model(), make_model()
    adapters.add(model, config(), "base")
    adapters.add(other, config(seed=9), "base")
    adapters.as_step(moved(model), DEVICES).model.save_pretrained(tmp_path)
    adapters.load(other, tmp_path, DEVICES)
    assert torch.equal(logits(other), logits(model))


def test_with_its_adapter_off_a_model_is_what_it_was() -> None:
    model = make_model()
    adapters.add(model, config(), "base")
    learned, names = logits(moved(model)), trained(model).keys()
    with adapters.off(model):
        assert torch.equal(logits(model), logits(make_model()))
        assert trained(model).keys() == names
    assert torch.equal(logits(model), learned)
    assert trained(model).keys() == names


# ---- whole runs --------------------------------------------------------------------------------------------

LORA = ["--use_peft", "--lora_r", "4", "--learning_rate", "1e-2"]
STEPS = ["--num_train_epochs", "2", "--per_device_train_batch_size", "4", "--save_steps", "5"]


@pytest.mark.parametrize("algorithm", [sft, reward, dpo])
def test_a_run_ends_with_the_merged_model_or_with_the_adapter(
    algorithm: Any, base: Path, demonstrations: Path, pairs: Path, tmp_path: Path
) -> None:
    data = demonstrations if algorithm is sft else pairs
    before = sha256_of(base / "model.safetensors")
    for name, flags in (("merged", []), ("adapter", ["--save_adapter"])):
        run(algorithm, base, data, tmp_path / name, *LORA, *STEPS, *flags)
    assert sha256_of(base / "model.safetensors") == before
    first, last = first_and_last(tmp_path / "merged", "loss")
    assert last < first
    merged, alone = (
        load_file(next((tmp_path / name).glob("*.safetensors"))) for name in ("merged", "adapter")
    )
    old = load_file(base / "model.safetensors")
    changed = {name for name in merged if name not in old or not torch.equal(merged[name], old[name])}
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in changed} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        *(["score"] if algorithm is reward else []),
    }
    for name, tensor in merged.items():
        a, b = (alone.get(f"base_model.model.{name.replace('.weight', f'.lora_{s}.weight')}") for s in "AB")
        expected = old.get(name) if a is None or b is None else old[name] + 32 / 4 * b @ a
        if name == "score.weight":
            expected = alone["base_model.model.score.weight"]
        assert expected is not None
        torch.testing.assert_close(tensor, expected, atol=1e-6, rtol=1e-6)
    offsets = [
        checkpoint.read_json(tmp_path / name / "alignment.json")["reward_offset"]
        for name in ("merged", "adapter")
    ]
    assert offsets[0] == offsets[1]
    assert not (tmp_path / "adapter" / "config.json").exists()
    with pytest.raises(CheckpointError, match="an adapter without its model"):
        checkpoint.find(str(tmp_path / "adapter"))


@pytest.mark.parametrize("algorithm", ["sft", "reward", "dpo"])
def test_a_continued_run_ends_in_the_same_bits(
    algorithm: str, base: Path, demonstrations: Path, pairs: Path, tmp_path: Path
) -> None:
    data = demonstrations if algorithm == "sft" else pairs
    whole, cut = tmp_path / "whole", tmp_path / "cut"

    def words(output: Path, *more: str) -> list[str]:
        named = ["--model_name_or_path", str(base), "--dataset_name", str(data), "--output_dir", str(output)]
        return [algorithm, *named, "--use_cpu", *LORA, *STEPS, *more]

    assert main(words(whole)) == 0
    cut.mkdir()
    copytree(whole / "checkpoint-5", cut / "checkpoint-5")
    assert main(words(cut, "--resume_from_checkpoint")) == 0
    assert sha256_of(cut / "model.safetensors") == sha256_of(whole / "model.safetensors")
    # One may still change one's mind about what is saved: the same folder, the same run.
    assert main(words(cut, "--resume_from_checkpoint", "--save_adapter")) == 0
    assert checkpoint.verify(cut)
    assert [path.name for path in cut.glob("*.safetensors")] == ["adapter_model.safetensors"]
    last = max(whole.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    if algorithm != "reward":  # whose head is normalised after the last step
        assert sha256_of(cut / "adapter_model.safetensors") == sha256_of(last / "adapter_model.safetensors")
    assert main(words(cut, "--resume_from_checkpoint")) == 0
    assert sha256_of(cut / "model.safetensors") == sha256_of(whole / "model.safetensors")
    assert checkpoint.verify(cut)
    assert main(words(cut, "--resume_from_checkpoint", "--lora_alpha", "8")) == 2


def test_step_checkpoints_hold_the_adapter_and_its_moments_alone(
    base: Path, demonstrations: Path, tmp_path: Path
) -> None:
    run(sft, base, demonstrations, tmp_path / "out", *LORA, *STEPS)
    folder = tmp_path / "out" / "checkpoint-5"
    adapter, state = (
        load_file(folder / name) for name in ("adapter_model.safetensors", "training_state.safetensors")
    )
    count = sum(tensor.numel() for tensor in adapter.values())
    assert count == 4 * 2 * (4 * (32 + 32) + 2 * (32 + 48) + (48 + 32))
    moments = {name: tensor for name, tensor in state.items() if "exp_avg" in name}
    assert sum(tensor.numel() for tensor in moments.values()) == 2 * count
    assert [path.name for path in folder.glob("*.safetensors")].count("model.safetensors") == 0


def test_the_best_evaluation_of_an_adapter_is_taken(
    base: Path, demonstrations: Path, write_rows: WriteRows, tmp_path: Path
) -> None:
    # Of what is learned nothing helps with these answers: they get ever less likely.
    others = write_rows("others.jsonl", [chat(f"What is {'x' * n}?", "ZQZQZQ") for n in range(4)])
    flags = ["--eval_dataset_name", str(others), "--eval_steps", "2", "--load_best_model_at_end"]
    rate = ["--learning_rate", "0.1", "--lr_scheduler_type", "constant"]
    alignment = run(
        sft, base, demonstrations, tmp_path / "out", *LORA, *STEPS, *flags, *rate, "--save_adapter"
    )
    best = alignment["metrics"]["step"]
    assert best < alignment["metrics"]["last_step"]
    kept = tmp_path / "out" / f"checkpoint-{best}" / "adapter_model.safetensors"
    assert sha256_of(kept) == sha256_of(tmp_path / "out" / "adapter_model.safetensors")


def test_dpo_without_its_adapter_is_the_reference(base: Path, pairs: Path, tmp_path: Path) -> None:
    references = []
    for name, flags in (("whole", []), ("lora", LORA)):
        run(dpo, base, pairs, tmp_path / name, *STEPS, *flags)
        state = load_file(tmp_path / name / "checkpoint-5" / "training_state.safetensors")
        references.append(state["memory.reference_logps"])
        assert first_and_last(tmp_path / name, "loss")[0] == pytest.approx(0.693147, abs=1e-6)
        assert first_and_last(tmp_path / name, "rewards/margins")[0] == pytest.approx(0, abs=1e-6)
    # Also of the batches that first came up when the adapter had already learned something.
    torch.testing.assert_close(references[1], references[0], atol=1e-5, rtol=1e-6)


def test_an_adapter_in_bfloat16_learns(base: Path, demonstrations: Path, tmp_path: Path) -> None:
    run(sft, base, demonstrations, tmp_path / "out", *LORA, *STEPS, "--bf16")
    first, last = first_and_last(tmp_path / "out", "loss")
    assert last < first


def test_a_folder_with_a_model_and_an_adapter_is_refused(base: Path, tmp_path: Path) -> None:
    both = copytree(base, tmp_path / "both")
    (both / "manifest.json").unlink()
    (both / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere"}')
    with pytest.raises(CheckpointError, match="holds a model and an adapter"):
        checkpoint.find(str(both))


def test_members_are_not_saved_as_adapters() -> None:
    with pytest.raises(ConfigError, match="--save_adapter goes with one model"):
        reward.Config(
            model_name_or_path="m",
            dataset_name="d",
            output_dir="o",
            use_peft=True,
            save_adapter=True,
            num_members=2,
        )
