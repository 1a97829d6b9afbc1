"""Parts of Llama's kind of layer with backward passes written by hand, in fewer passes over memory.

Composed of torch's elementwise operations a norm, a gated unit or a rotation reads and writes its tensors a
dozen times, keeps several for its backward pass, and under autocast has them cast for each product that they
go into. Here each is one function that keeps its inputs alone and gives the type that the next product wants.
In float32 on a CPU linear layers are multiplied by oneDNN, as torch does in bfloat16: MKL, which torch takes
otherwise, does not use all of what other makers' processors can do.

`fuse` changes modules whose results it finds to be the same, and no others; parameters and their names stay,
so that checkpoints, adapters, DDP and FSDP2 notice nothing. Formulas: Zhang and Sennrich 2019 (RMSNorm),
Shazeer 2020 (SwiGLU), Su et al. 2021 (rotary positions, with a head's two halves as the pairs).
"""

from functools import cache
from inspect import signature
from types import FunctionType
from typing import Any

import torch
from torch import nn

SAME = 1e-5
"""Of the largest value: as near as the results of both must be, in float32."""
ROTATION = "apply_rotary_pos_emb"
"""As transformers calls it wherever a model has it."""


def fuse(model: nn.Module) -> None:
    """Changes the linear layers, norms, gated units and attentions that do the same as those here."""
    for module in model.modules():
        kind: Any = type(module)
        for mixin in (FusedLinear, FusedNorm, FusedGate, FusedAttention):
            if not isinstance(module, mixin) and mixin.fits(module):
                module.__class__ = _mixed(mixin, kind)
                if not mixin.is_same(module, kind):
                    module.__class__ = kind


@cache
def _mixed(mixin: Any, kind: Any) -> type[nn.Module]:
    return type(kind.__name__, (mixin, kind), {"__module__": kind.__module__})


def _is_near(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return found.shape == expected.shape and torch.allclose(
        found, expected, rtol=0, atol=SAME * float(expected.abs().max())
    )


def next_dtype(given: torch.Tensor) -> torch.dtype:
    """What the next matrix product computes in."""
    device = given.device.type
    is_cast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if is_cast else given.dtype


class FusedNorm(nn.Module):
    """x / rms(x) * weight."""

    weight: torch.Tensor
    variance_epsilon: float

    @staticmethod
    def fits(module: nn.Module) -> bool:
        """Whether a module looks like it."""
        return {name for name, _ in module.named_parameters()} == {"weight"} and isinstance(
            getattr(module, "variance_epsilon", None), float
        )

    @staticmethod
    @torch.no_grad()
    def is_same(module: nn.Module, kind: type[nn.Module]) -> bool:
        """Whether a changed module still gives what its own class does."""
        given = _some(3, *module.get_parameter("weight").shape)
        return _is_near(module(given), kind.forward(module, given))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(..., D) -> (..., D), in autocast's type."""
        dtype = next_dtype(hidden_states)
        normed: torch.Tensor = _RmsNorm.apply(hidden_states, self.weight, self.variance_epsilon, dtype)
        return normed


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, given: torch.Tensor, weight_D: torch.Tensor, epsilon: float, dtype: torch.dtype
    ) -> torch.Tensor:
        size = given.shape[-1]
        norm = torch.linalg.vector_norm(given, dim=-1, keepdim=True, dtype=torch.float32)
        inverse = norm.square_().div_(size).add_(epsilon).rsqrt_()
        ctx.save_for_backward(given, weight_D, inverse)
        normed: torch.Tensor = (given * inverse).mul_(weight_D)
        return normed.to(dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, None, None]:
        given, weight_D, inverse = ctx.saved_tensors
        grad, whole = grad.float(), given.float()
        aligned = grad * whole  # times `inverse`: of each weight its gradient, before the sum over places
        of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = (inverse.flatten() @ aligned.flatten(0, -2)).to(weight_D.dtype)
        share = (aligned @ weight_D.float())[..., None].mul_(inverse.square()).div_(-given.shape[-1])
        of_given = torch.addcmul(grad * weight_D, whole, share).mul_(inverse)
        return of_given.to(given.dtype), of_weight, None, None


class FusedLinear(nn.Module):
    """A linear layer by oneDNN, in float32 on a CPU; elsewhere as torch has it."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    @staticmethod
    def fits(module: nn.Module) -> bool:
        """Whether it is one, and torch has the operator (which is torch.compile's)."""
        has_operator = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        return type(module) is nn.Linear and has_operator

    @staticmethod
    @torch.no_grad()
    def is_same(module: Any, kind: type[nn.Module]) -> bool:
        """Whether a changed module still gives what its own class does."""
        given = _some(3, module.in_features)
        return _is_near(module(given), kind.forward(module, given))

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - torch's name
        """(..., inputs) -> (..., outputs)."""
        is_plain = input.device.type == "cpu" and type(self.weight) is nn.Parameter
        if not is_plain or next_dtype(input) != torch.float32 or self.weight.dtype != torch.float32:
            return nn.functional.linear(input, self.weight, self.bias)
        product: torch.Tensor = _Product.apply(input, self.weight, self.bias)
        return product


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, given: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(given, weight)
        return _by_onednn(given, weight, bias)

    @staticmethod
    def backward(
        ctx: Any, grad: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        given, weight = ctx.saved_tensors
        of_given, of_weight, of_bias = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])
        return (
            _by_onednn(grad, weight.t(), None) if of_given else None,
            rows.t() @ given.reshape(len(rows), -1) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


def _by_onednn(given: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
        given.contiguous(), weight, bias, "none", [], ""
    )
    return product


class FusedGate(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    @staticmethod
    def fits(module: nn.Module) -> bool:
        """Whether a module looks like it."""
        children = dict(module.named_children())
        names = children.keys() - {"act_fn"}
        is_gate = names == {"gate_proj", "up_proj", "down_proj"} and "act_fn" in children
        return is_gate and isinstance(children["gate_proj"], nn.Linear)

    @staticmethod
    @torch.no_grad()
    def is_same(module: Any, kind: type[nn.Module]) -> bool:
        """Whether a changed module still gives what its own class does."""
        given = _some(3, module.gate_proj.in_features)
        return _is_near(module(given), kind.forward(module, given))

    def forward(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        """(..., D) -> (..., D)."""
        gated = _SwiGlu.apply(self.gate_proj(hidden_states), self.up_proj(hidden_states))
        down: torch.Tensor = self.down_proj(gated)
        return down


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        gated: torch.Tensor = nn.functional.silu(gate).mul_(up)
        return gated

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up = ctx.saved_tensors
        of_up = nn.functional.silu(gate).mul_(grad)
        of_gate: torch.Tensor = torch.ops.aten.silu_backward(grad * up, gate)
        return of_gate, of_up


class FusedAttention(nn.Module):
    """An attention's own code, which rotates queries and keys in one go."""

    @staticmethod
    def fits(module: nn.Module) -> bool:
        """Whether its code rotates as is done here."""
        forward = type(module).forward
        return isinstance(forward, FunctionType) and _rotates(forward.__globals__.get(ROTATION))

    @staticmethod
    def is_same(_: nn.Module, kind: type[nn.Module]) -> bool:
        """Whether it is that code which calls the rotation."""
        return ROTATION in kind.forward.__code__.co_names

    def forward(self, *args: Any, **options: Any) -> Any:
        """As its class has it."""
        return _rotating(_own(type(self)).forward)(self, *args, **options)


def _own(kind: type[nn.Module]) -> type[nn.Module]:
    """Of a mixed class the one that was there before."""
    order = kind.__mro__
    return order[order.index(FusedAttention) + 1]


@cache
def _rotating(forward: FunctionType) -> FunctionType:
    """The same function, with our rotation."""
    names = {**forward.__globals__, ROTATION: rotate}
    changed = FunctionType(
        forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__
    )
    changed.__kwdefaults__ = forward.__kwdefaults__
    return changed


@cache
@torch.no_grad()
def _rotates(function: Any) -> bool:
    """Whether a function does the same as `rotate`."""
    if function is None or signature(function).parameters.keys() != signature(rotate).parameters.keys():
        return False
    query, key, angles = _some(1, 2, 3, 8), _some(1, 1, 3, 8), _some(1, 3, 4).repeat(1, 1, 2)
    given = (query, key, angles.cos(), angles.sin())
    return all(map(_is_near, rotate(*given), function(*given)))


def rotate(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys, (B, heads, T, D) each, turned by the angles of their places, (B, T, D).

    With `unsqueeze_dim` 2 heads come after T. The results have autocast's type.
    """
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return _Rotation.apply(q, cos, sin), _Rotation.apply(k, cos, sin)


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, given: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.dtype = given.dtype
        return _turn(given, cos, sin, next_dtype(given))

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        half = sin.shape[-1] // 2
        back = torch.cat([sin[..., half:], sin[..., :half]], -1).neg_()
        # Heads beside each other, as the product before has them.
        return (
            _turn(grad.transpose(1, 2), cos.transpose(1, 2), back.transpose(1, 2), ctx.dtype).transpose(1, 2),
            None,
            None,
        )


def _turn(given: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Each head times cos; of its halves the one less the other times sin, and the other plus the one."""
    half, whole = given.shape[-1] // 2, given.float()
    turned = torch.mul(whole, cos, out=whole.new_empty(given.shape))
    turned[..., :half].addcmul_(whole[..., half:], sin[..., :half], value=-1)
    turned[..., half:].addcmul_(whole[..., :half], sin[..., half:])
    return turned.to(dtype)


def _some(*shape: int) -> torch.Tensor:
    """Numbers to try a module with, which leave the global generator as it is."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))
