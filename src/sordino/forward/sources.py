"""Soft prompts as the tensors that are trained, each with the text that stands between it and its rows: one prefix each.

Shape key: K prefixes, P virtual tokens, W numbers of a virtual token (D of an embedding prompt), D model width, L layers,
H key-value heads, C channels of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sordino.forward.encoder_decoder import AnyPrefixes, InputPrefixes
from sordino.forward.longer import extend_prefixes
from sordino.forward.placement import behind_bos, join_in_order, leading_ids, positions, prefix_embeds
from sordino.forward.prefix import Prefixes, check_spans, encode_prefixes, join_prefixes
from sordino.forward.rows import rows_from_examples
from sordino.forward.weighting import Spans, span_of
from sordino.models.base_model import BaseModel
from sordino.prompts.attention import PLAIN, PromptAttention
from sordino.prompts.kv_prompt import KVShape
from sordino.prompts.soft_prompt import PlacementName


@dataclass(frozen=True, eq=False)
class KVUnits:
    """How a matrix [P + 1, W] stands for a KV prompt, in numbers of about 1 whatever the layer: one learning rate suits all.

    The first P rows times `unit_W` are `KVPrompt.flat_PW`. The first D numbers of the last row times `last_unit` are `last_D`.
    """

    shape: KVShape
    unit_W: Tensor
    last_unit: float
    d_model: int

    @staticmethod
    def of(prefixes: Prefixes) -> KVUnits:
        """The RMS of each layer's keys and values, the attention sink left out, and of the last hidden state, of one prefix."""
        layers, (_, heads, _, channels) = len(prefixes.keys_KHPC), prefixes.keys_KHPC[0].shape
        rms_N = [plane_KHPC[:, :, 1:].float().square().mean().sqrt() for plane_KHPC in prefixes.planes()]
        unit_W = torch.stack(rms_N).cpu().repeat_interleave(heads * channels)
        last = prefixes.last_KD.float().square().mean().sqrt()
        return KVUnits(KVShape(layers, heads, channels), unit_W, float(last), prefixes.last_KD.shape[1])

    def matrix(self, prefixes: Prefixes, tokens: int) -> Tensor:
        """The matrix [P + 1, W] of the last `tokens` positions of one prefix, float32 on the CPU."""
        planes = [plane_KHPC[0, :, -tokens:].transpose(0, 1).flatten(1) for plane_KHPC in prefixes.planes()]
        return self.joined(torch.cat(planes, dim=1).float().cpu(), prefixes.last_KD[0].float().cpu())

    def joined(self, flat_PW: Tensor, last_D: Tensor) -> Tensor:
        """The matrix [P + 1, W] of a KV prompt's two tensors."""
        last_W = torch.nn.functional.pad(last_D / self.last_unit, (0, len(self.unit_W) - len(last_D)))
        return torch.cat([flat_PW / self.unit_W, last_W[None]])

    def split(self, matrix_PW: Tensor) -> tuple[Tensor, Tensor]:
        """(`KVPrompt.flat_PW`, `last_D`), differentiable."""
        return matrix_PW[:-1] * self.unit_W, matrix_PW[-1, : self.d_model] * self.last_unit


@dataclass(frozen=True, eq=False)
class PrefixSource:
    """What becomes one prefix. matrix_PW: of an embedding prompt [P, D]; of a KV prompt as `KVUnits` says. context: ids of text
    between the prompt and its rows.
    """

    matrix_PW: Tensor
    placement: PlacementName
    attention: PromptAttention = PLAIN
    kv: KVUnits | None = None
    context: tuple[int, ...] = ()

    @property
    def n_tokens(self) -> int:
        """P"""
        return len(self.matrix_PW) - (self.kv is not None)

    def of(self, matrix_PW: Tensor) -> PrefixSource:
        """The same with another matrix."""
        return replace(self, matrix_PW=matrix_PW)

    def leading_ids(self, base: BaseModel) -> tuple[int, ...]:
        """What the text after the prompt begins with: the context where there is one, else each row's own text."""
        return leading_ids(base, self.placement)

    def positions(self, base: BaseModel) -> int:
        """Positions of the prefix."""
        text = len(self.context) + len(self.leading_ids(base)) if self.context else 0
        return positions(base, self.n_tokens, self.placement) + text

    def text(self, base: BaseModel) -> tuple[int, ...]:
        """The ids of the prefix after the prompt."""
        return (*self.leading_ids(base), *self.context) if self.context else ()

    def embeds(self, base: BaseModel) -> Tensor:
        """The prefix of an embedding prompt, [positions, D] float32, differentiable."""
        prompt_PD = prefix_embeds(base, self.matrix_PW, self.placement)
        if not self.context:
            return prompt_PD
        text_T = torch.tensor(self.text(base), device=base.device)
        return torch.cat([prompt_PD, base.embed(text_T).detach().to(prompt_PD.dtype)])


def spans_of(base: BaseModel, sources: Sequence[PrefixSource]) -> Spans:
    return [span_of(positions(base, s.n_tokens, s.placement), s.attention) for s in sources]


def encode_sources(base: BaseModel, sources: Sequence[PrefixSource]) -> AnyPrefixes:
    """K sources of any kind as K prefixes, differentiable towards their matrices. Raises ConfigError, see `check_spans`."""
    if base.encoder_decoder is not None:
        check_spans(base.network, spans_of(base, sources))
        return InputPrefixes(tuple(source.embeds(base) for source in sources))
    vectors = [k for k, source in enumerate(sources) if source.kv is None]
    given = [k for k, source in enumerate(sources) if source.kv is not None]
    parts = []
    if vectors:
        chosen = [sources[k] for k in vectors]
        parts.append(encode_prefixes(base.network, [s.embeds(base) for s in chosen], spans_of(base, chosen)))
    if given:
        parts.append(_keys_and_values(base, [sources[k] for k in given]))
    return join_in_order(parts, [*vectors, *given])


def _keys_and_values(base: BaseModel, sources: Sequence[PrefixSource]) -> Prefixes:
    prefixes = join_prefixes([_flat_prefix(base, source) for source in sources])
    texts = [source.text(base) for source in sources]
    if not any(texts):
        return prefixes
    rows = rows_from_examples([[ids] for ids in texts], range(len(sources))).to(base.device)
    return extend_prefixes(base.network, prefixes, rows)


def _flat_prefix(base: BaseModel, source: PrefixSource) -> Prefixes:
    assert source.kv is not None
    flat_PW, last_D = source.kv.split(source.matrix_PW)
    if not positions(base, 0, source.placement):
        # The attention sink stays what it was: where it moves, training diverges (Cartridges, arXiv 2506.06266).
        flat_PW = torch.cat([flat_PW[:1].detach(), flat_PW[1:]])
    shape = source.kv.shape
    by_layer = flat_PW.to(base.device, base.dtype).view(len(flat_PW), shape.layers, 2, shape.heads, shape.channels)
    keys, values = (by_layer[:, :, side].permute(1, 2, 0, 3)[:, None].unbind(0) for side in (0, 1))
    return behind_bos(base, keys, values, last_D[None], source.placement, source.attention)
