"""Hand-written backward passes against autograd's, and which modules are changed at all."""

import copy
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen3Config,
)
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from tests.trainers.conftest import MODEL_SHAPE
from trainers import fused
from trainers.fused import FusedAttention, FusedGate, FusedLinear, FusedNorm, fuse, rotate

SHAPE = {**MODEL_SHAPE, "pad_token_id": 0}
IDS = torch.tensor([[5, 9, 30, 31, 32], [7, 8, 50, 51, 52]])


def make(config: PretrainedConfig) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():  # norms that scale differ from norms that only divide
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, 1.0, 0.3)
    return model


def changed(model: Any) -> set[str]:
    """Which parts of a model are ours now."""
    kinds = (FusedLinear, FusedNorm, FusedGate, FusedAttention)
    return {kind.__name__ for kind in kinds for module in model.modules() if isinstance(module, kind)}


ALL = {"FusedLinear", "FusedNorm", "FusedGate", "FusedAttention"}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LlamaConfig(**SHAPE), ALL),
        (LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True, hidden_act="gelu"), ALL - {"FusedGate"}),
        (MistralConfig(**SHAPE, sliding_window=2), ALL),
        (Qwen3Config(**SHAPE), ALL),
        # Its norms multiply by 1 + weight, its gates are GELU.
        (Gemma2Config(**SHAPE), {"FusedLinear", "FusedAttention"}),
        # It pairs neighbours instead of halves, and its norms take the mean off.
        (CohereConfig(**SHAPE), {"FusedLinear", "FusedGate"}),
        (GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=99, n_positions=32), {"FusedLinear"}),
    ],
    ids=["llama", "llama, gelu", "mistral", "qwen3", "gemma2", "cohere", "gpt2"],
)
def test_a_fused_model_gives_what_it_gave_before(config: PretrainedConfig, expected: set[str]) -> None:
    model, plain = make(config), make(config)
    fuse(model)
    assert changed(model) == expected
    assert model.state_dict().keys() == plain.state_dict().keys()
    found, wanted = (one(input_ids=IDS, labels=IDS) for one in (model, plain))
    torch.testing.assert_close(found.logits, wanted.logits, atol=1e-5, rtol=1e-5)
    for one in (found, wanted):
        one.loss.backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-4)


def test_a_fused_model_generates_as_before() -> None:
    model, plain = make(LlamaConfig(**SHAPE)), make(LlamaConfig(**SHAPE))
    fuse(model)
    found, wanted = (
        one.generate(IDS, max_new_tokens=8, do_sample=False, attention_mask=torch.ones_like(IDS))
        for one in (model, plain)
    )
    assert found.equal(wanted)


def test_in_bfloat16_a_fused_model_is_as_near_to_float32_as_the_plain_one() -> None:
    model, plain = make(LlamaConfig(**SHAPE)), make(LlamaConfig(**SHAPE))
    exact = plain(input_ids=IDS).logits
    fuse(model)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        errors = [float((one(input_ids=IDS).logits - exact).abs().mean()) for one in (model, plain)]
    assert errors[0] < 1.2 * errors[1]
    assert errors[0] > 0


def test_fusing_twice_changes_nothing_and_a_copy_has_weights_of_its_own() -> None:
    model = make(LlamaConfig(**SHAPE))
    fuse(model)
    before = [type(module) for module in model.modules()]
    fuse(model)
    assert [type(module) for module in model.modules()] == before
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.model.norm.weight.zero_()
    assert not other(input_ids=IDS).logits.any()
    assert model(input_ids=IDS).logits.any()


def test_nothing_is_made_on_another_device() -> None:
    model = make(LlamaConfig(**SHAPE))
    fuse(model)
    ids = IDS.to("meta")
    model.to("meta")(input_ids=ids, labels=ids).loss.backward()
    assert all(parameter.grad.device.type == "meta" for parameter in model.parameters())


def test_rotation_by_hand() -> None:
    # A quarter turn of the pair (3, 5): first half and second half of a head.
    quarter = (torch.zeros(1, 1, 2), torch.ones(1, 1, 2))
    query, key = rotate(torch.tensor([[[[3.0, 5.0]]]]), torch.tensor([[[[1.0, 0.0]]]]), *quarter)
    assert query.flatten().tolist() == [-5.0, 3.0]
    assert key.flatten().tolist() == [0.0, 1.0]


def test_rotation_where_heads_come_after_places() -> None:
    given = torch.randn(2, 5, 3, 8), torch.randn(2, 5, 1, 8)
    angles = torch.randn(2, 5, 4).repeat(1, 1, 2)
    expected = apply_rotary_pos_emb(*given, angles.cos(), angles.sin(), unsqueeze_dim=2)
    for ours, theirs in zip(
        rotate(*given, angles.cos(), angles.sin(), unsqueeze_dim=2), expected, strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_norm_by_hand() -> None:
    # rms(3, 4) = sqrt(12.5)
    normed = fused._RmsNorm.apply(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0]), 0.0, torch.float32)
    torch.testing.assert_close(normed, torch.tensor([3.0, 8.0]) / 12.5**0.5)
