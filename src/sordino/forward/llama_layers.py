"""The parts of Llama's decoder layers: norm, rotary positions, attention in parts, feed-forward.

Two modules put them together: `forward.llama` with a backward pass, for training; `runners.fused_llama` without one, for a step of
the engine. The numbers are those of transformers' modules: tests/parity and tests/engine compare both with them.

Attention is computed in parts, each with its own log-sum-exp; the whole is the sum of the parts weighted by exp(lse_part - lse)
(Dao et al. 2022, arXiv 2205.14135, section 3.1).

Shape key: N positions, T positions of a row, D model width, H heads, C channels of a head, F feed-forward width.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import NoneType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from sordino.models.quantised import QuantisedLinear
from sordino.models.weight_formats import PackedWeight

if TYPE_CHECKING:
    from transformers import PreTrainedModel

attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
attend_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
# Of a linear layer, [out, in].
Weight = Tensor | PackedWeight
W = TypeVar("W", bound=Weight)
_LINEARS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


@dataclass(frozen=True)
class Norm:
    """RMS norm: x / sqrt(mean(x^2) + eps) * weight, as x * w / length with w = sqrt(D) weight, length = hypot(|x|, sqrt(D eps)).

    In float32 at least, as transformers' module.
    """

    w_D: Tensor
    c: Tensor

    @staticmethod
    def of(weight_D: Tensor, eps: float) -> Norm:
        width, exact = weight_D.shape[0], torch.promote_types(weight_D.dtype, torch.float32)
        return Norm(weight_D.to(exact) * width**0.5, torch.tensor((width * eps) ** 0.5, dtype=exact))

    def __call__(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """The normed x, and the length of x [N, 1]."""
        length_N1 = torch.linalg.vector_norm(x_ND, dim=1, keepdim=True, dtype=self.w_D.dtype).hypot_(self.c)
        return (x_ND * self.w_D).div_(length_N1).to(x_ND.dtype), length_N1

    def backward(self, grad_ND: Tensor, x_ND: Tensor, length_N1: Tensor) -> Tensor:
        """The gradient of x; grad_ND may be overwritten."""
        exact_ND, own_ND = grad_ND.to(self.w_D.dtype), x_ND.to(self.w_D.dtype)
        exact_ND.mul_(self.w_D)
        along_N1 = torch.linalg.vecdot(exact_ND, own_ND)[:, None].div_(length_N1.square())
        return exact_ND.addcmul_(own_ND, along_N1, value=-1).div_(length_N1).to(x_ND.dtype)


@dataclass(frozen=True)
class Layer(Generic[W]):
    """One layer's weights [out, in], the width of a head, and the scale of attention."""

    norm1: Norm
    q: W
    k: W
    v: W
    o: W
    norm2: Norm
    gate: W
    up: W
    down: W
    head_width: int
    scale: float


def runs(network: PreTrainedModel, kind: type[nn.Module] = nn.Linear) -> bool:
    """Whether these parts compute what `network` computes, whose linear layers are of this kind."""
    config: Any = network.config
    if config.model_type != "llama" or config.hidden_act != "silu" or (config.attention_dropout and network.training):
        return False
    if network.device.type != "cpu" or network.dtype not in (torch.bfloat16, torch.float32, torch.float64):
        return False
    linears = [layer.get_submodule(name) for layer in layers_of(network) for name in _LINEARS]
    # An adapter would have replaced them by another class. Sharded weights are of another class, too.
    return all(
        type(linear) is kind and linear.bias is None and type(linear.weight) in (nn.Parameter, NoneType)
        for linear in linears
    )


def layers_of(network: PreTrainedModel) -> Any:
    model: Any = network.base_model
    return model.layers


def weights_of(layer: Any) -> Layer[Any]:
    """The weights of a layer that `runs` accepts: tensors, or packed weights."""
    linears = (layer.get_submodule(name) for name in _LINEARS)
    q, k, v, o, gate, up, down = (of.packed if isinstance(of, QuantisedLinear) else of.weight for of in linears)
    norm1, norm2 = (
        Norm.of(norm.weight, norm.variance_epsilon) for norm in (layer.input_layernorm, layer.post_attention_layernorm)
    )
    attention = layer.self_attn
    return Layer(norm1, q, k, v, o, norm2, gate, up, down, attention.head_dim, attention.scaling)


@dataclass(frozen=True)
class Rotation:
    """Rotary positions. Cosines and sines [..., C], the first half of the sines negative: (x1, x2) cos + (x2, x1) sin."""

    cos: Tensor
    sin: Tensor

    @staticmethod
    def of(network: PreTrainedModel, embeds_BTD: Tensor, positions_BT: Tensor, *, heads_at: int) -> Rotation:
        """heads_at: which dimension holds the heads in the tensors to rotate."""
        model: Any = network.base_model
        cos_BTC, sin_BTC = model.rotary_emb(embeds_BTD, positions_BT)
        half = cos_BTC.shape[-1] // 2
        sin_BTC = torch.cat([-sin_BTC[..., :half], sin_BTC[..., half:]], dim=-1)
        return Rotation(cos_BTC.unsqueeze(heads_at), sin_BTC.unsqueeze(heads_at))

    def first(self) -> Rotation:
        """The first row's, without that dimension; contiguous, since small steps read it in every layer."""
        return Rotation(self.cos[0].contiguous(), self.sin[0].contiguous())

    def transposed(self) -> Rotation:
        return Rotation(self.cos.transpose(1, 2), self.sin.transpose(1, 2))

    def turned(self, heads: Tensor, *, back: bool = False) -> Tensor:
        """The rotated heads, or with `back` rotated the other way. Contiguous, as attention needs them."""
        turned = torch.empty(heads.shape, dtype=heads.dtype)
        torch.mul(heads, self.cos, out=turned)
        return turned.addcmul_(heads.roll(heads.shape[-1] // 2, -1), self.sin, value=-1 if back else 1)


def merged(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Two parts of an attention as one: output [..., T, C] (overwrites the first part's) and log-sum-exp [..., T]."""
    (mixed1, lse1), (mixed2, lse2) = one, other
    lse = torch.logaddexp(lse1, lse2)
    share1, share2 = (lse1 - lse).exp_()[..., None], (lse2 - lse).exp_()[..., None]
    # Log-sum-exps are float32 at least.
    whole = mixed1.to(lse.dtype).mul_(share1).addcmul_(mixed2.to(lse.dtype), share2)
    return whole.to(mixed1.dtype), lse


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, the input of the feed-forward part's down projection."""
    return silu(gate).mul_(up)
