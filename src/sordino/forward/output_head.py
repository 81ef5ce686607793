"""A network's output head, and how it scales and caps its logits, measured.

Families give their scales names that mean different things: `logits_scaling` divides the logits in Granite, multiplies them in
HyperCLOVA X and divides the head's input in MiniCPM. So no name is trusted: the network runs one token, with known numbers in place
of the outputs of its decoder and its head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from threading import get_ident
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from sordino.errors import ModelError
from sordino.forward.small_matmul import times, widened

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Networks are frozen, so each is measured once.
_known: WeakKeyDictionary[PreTrainedModel, Finish] = WeakKeyDictionary()
_TOLERANCE = 1e-6
# A softcap turns every number this large into the cap.
_HUGE = 1e9


@dataclass(frozen=True)
class Finish:
    """logits = cap * tanh(scale * z / cap) of the head's z = h @ W.T + b; without a softcap scale * z."""

    scale: float = 1.0
    softcap: float | None = None


@dataclass(frozen=True)
class Head:
    """A frozen output head: logits = cap * tanh(scale * (h @ W.T + b) / cap), the cap only where the model has one."""

    weight_VD: Tensor
    bias_V: Tensor | None
    softcap: float | None
    scale: float = 1.0

    @property
    def width(self) -> int:
        """V, the size of the vocabulary."""
        return int(self.weight_VD.shape[0])

    def tile(self, start: int, end: int) -> Head:
        """The head for words `start` to `end` only."""
        bias_V = None if self.bias_V is None else self.bias_V[start:end]
        return Head(self.weight_VD[start:end], bias_V, self.softcap, self.scale)

    def slope(self, logits: Tensor) -> Tensor | None:
        """d logit / d uncapped scaled logit, from capped logits of any shape; None without a cap, where it is 1."""
        return None if self.softcap is None else 1 - (logits / self.softcap).square_()

    def logits_of_few(self, hidden_ND: Tensor) -> Tensor:
        """Logits [N, V] of a few rows in the model's dtype; not always contiguous."""
        return self._finished(times(widened(hidden_ND), self.weight_VD)[: len(hidden_ND)])

    def logits(self, hidden_ND: Tensor, *, out: Tensor | None = None) -> Tensor:
        """Logits [N, V] in the model's dtype, written into `out` where one is given."""
        return self._finished(torch.mm(hidden_ND, self.weight_VD.t(), out=out))

    def _finished(self, logits_NV: Tensor) -> Tensor:
        """Bias, scale and cap, in place."""
        if self.bias_V is not None:
            logits_NV += self.bias_V
        if self.scale != 1:
            logits_NV *= self.scale
        if self.softcap is not None:
            logits_NV.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits_NV


def finish_of(network: PreTrainedModel) -> Finish:
    """Scale and cap of a network. Raises ModelError where it changes its logits in another way."""
    found = _known.get(network)
    if found is None:
        _known[network] = found = _measured(network)
    return found


def added_bias(network: PreTrainedModel) -> Tensor | None:
    """What some encoder-decoders add to the logits outside their head: [V], None for nothing."""
    added_1V: Any = getattr(network, "final_logits_bias", None)
    return added_1V[0] if added_1V is not None and bool(added_1V.any()) else None


def _measured(network: PreTrainedModel) -> Finish:
    head: Any = network.get_output_embeddings()
    width = int(head.weight.shape[0])
    # Apple's GPUs have no float64.
    exact = torch.float32 if network.device.type == "mps" else torch.float64
    z_V = torch.linspace(-8, 8, width, dtype=exact, device=network.device)
    z_V[0], z_V[1 % width], z_V[2 % width] = 1.0, _HUGE, -_HUGE
    into_head, y_V = _tried(network, head, z_V)
    if y_V is None:
        return Finish()
    if (added_V := added_bias(network)) is not None:
        y_V = y_V - added_V.to(exact)
    scale, softcap = float(y_V[0]), None
    if abs(float(y_V[1])) < _HUGE**0.5:
        softcap = float(y_V[1])
        scale = softcap * math.atanh(max(-1.0 + 1e-15, min(1.0 - 1e-15, scale / softcap))) if softcap else 0.0
    found = Finish(scale if abs(scale - 1) > _TOLERANCE else 1.0, softcap)
    expected_V = found.scale * z_V if softcap is None else softcap * torch.tanh(found.scale * z_V / softcap)
    biased = getattr(head, "bias", None) is not None
    if not torch.allclose(y_V, expected_V, rtol=_TOLERANCE, atol=_TOLERANCE) or (biased and into_head != 1):
        raise ModelError(
            "this architecture changes its logits in a way that Sordino does not know",
            where=network.config.model_type,
            expected="a scale, a cap, or both",
            do="choose a model of a family in docs/models.md",
        )
    return Finish(found.scale * into_head, softcap)


def _tried(network: PreTrainedModel, head: Any, z_V: Tensor) -> tuple[float, Tensor | None]:
    """The factor on hidden states before the head, and the logits made of `z_V`; None where the network does not call its head.
    Hooks act on this thread's run only."""
    thread, into_head, called = get_ident(), 1.0, False

    def give_ones(module: object, inputs: object, output: Any) -> Any:
        if get_ident() == thread and hasattr(output, "last_hidden_state"):
            output.last_hidden_state = torch.ones_like(output.last_hidden_state, dtype=z_V.dtype)
        return output

    def look(module: object, inputs: tuple[Any, ...]) -> Any:
        nonlocal into_head
        if get_ident() != thread:
            return None
        into_head = float(inputs[0].flatten()[0])
        return (inputs[0].to(network.dtype), *inputs[1:])

    def give_numbers(module: object, inputs: object, output: Tensor) -> Tensor:
        nonlocal called
        if get_ident() != thread:
            return output
        called = True
        return z_V.expand(output.shape)

    encodes = network.config.is_encoder_decoder
    body: Any = network.get_decoder() if encodes else network.base_model
    hooks = [head.register_forward_pre_hook(look), head.register_forward_hook(give_numbers, prepend=True)]
    if body is not network:
        hooks.append(body.register_forward_hook(give_ones))
    try:
        with torch.inference_mode():
            ids = torch.ones(1, 1, dtype=torch.long, device=network.device)
            logits: Tensor = network(input_ids=ids, **({"decoder_input_ids": ids} if encodes else {})).logits
    finally:
        for hook in hooks:
            hook.remove()
    return into_head, logits[0, -1].to(z_V.dtype) if called else None
