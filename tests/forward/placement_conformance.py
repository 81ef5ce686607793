"""What every `Placement` of a decoder must do. Give `check` a base model, in float64, and the placement."""

from __future__ import annotations

import torch

from sordino.forward.nll import nll_of_rows
from sordino.forward.packing import labelled_rows, with_leading_ids
from sordino.forward.placement import Placement
from sordino.forward.prefix import encode_prefixes
from sordino.models.base_model import BaseModel
from sordino.texts.examples import Example, make_examples
from sordino.texts.pieces import Piece
from tests.parity.plain import plain_nll

# NLL in nats of models in float64.
TOLERANCE = 1e-6


def check(base: BaseModel, placement: Placement) -> None:
    """All of it."""
    check_lengths(base, placement)
    check_gradient(base, placement)
    check_concatenation(base, placement)


def check_lengths(base: BaseModel, placement: Placement) -> None:
    """Lengths are known without a tensor, also of no virtual tokens; leading ids are of the vocabulary."""
    for count in (0, 1, 5):
        embeds = placement.prefix_embeds(base, torch.randn(count, base.d_model))
        assert embeds.shape == (placement.prefix_length(base, count), base.d_model)
        assert embeds.device == base.device
    assert all(0 <= token < base.vocab_size for token in placement.leading_ids(base))


def check_gradient(base: BaseModel, placement: Placement) -> None:
    """Each of the prompt's vectors is in the prefix once, and nothing else has a gradient."""
    matrix_PD = torch.randn(4, base.d_model, requires_grad=True)
    placement.prefix_embeds(base, matrix_PD).sum().backward()
    assert matrix_PD.grad is not None
    torch.testing.assert_close(matrix_PD.grad, torch.ones_like(matrix_PD))


def check_concatenation(base: BaseModel, placement: Placement) -> None:
    """The loss of rows after the shared prefix is that of the prefix and the row in one text."""
    embeds = placement.prefix_embeds(base, torch.randn(4, base.d_model))
    rows = [with_leading_ids(example, placement.leading_ids(base)) for example in examples(base)]
    packed = labelled_rows(rows, [[0], [1]], [0, 0])
    got = nll_of_rows(base.network, encode_prefixes(base.network, [embeds]), packed.rows, packed.labelled_BT)
    expected = torch.cat([plain_nll(base.network, embeds, row.ids, row.labelled) for row in rows])
    torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE)


def examples(base: BaseModel) -> list[Example]:
    pieces = [Piece("a", "text", "A ship was seen; the fog took it."), Piece("b", "text", "The keeper wrote.")]
    return make_examples(pieces, base, max_tokens=64).examples
