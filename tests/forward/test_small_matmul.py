"""Products of a few rows: the same numbers whichever way they are computed."""

from __future__ import annotations

import pytest
import torch

from sordino.forward import small_matmul
from sordino.forward.small_matmul import times, widened


@pytest.mark.parametrize("intel", [True, False])
@pytest.mark.parametrize(("width", "outputs"), [(64, 96), (576, 1536), (1536, 576), (4096, 64)])
def test_a_product_is_the_plain_one(width: int, outputs: int, intel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_matmul, "on_intel", lambda: intel)
    weight_FD = torch.randn(outputs, width, dtype=torch.float64)
    for rows in (1, 2, 3, 4, 5, 8, 10, 15, 16, 40):
        x_ND = torch.randn(rows, width, dtype=torch.float64)
        torch.testing.assert_close(times(x_ND, weight_FD), x_ND @ weight_FD.t())
        assert torch.equal(widened(x_ND)[:rows], x_ND)


def test_rows_are_widened_to_counts_that_are_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    widths = {}
    for intel in (False, True):
        monkeypatch.setattr(small_matmul, "on_intel", lambda intel=intel: intel)
        widths[intel] = [len(widened(torch.zeros(rows, 4))) for rows in (0, 1, 2, 3, 4, 8, 9, 15, 16, 17)]
    assert widths == {False: [0, 2, 2, 4, 4, 8, 16, 16, 16, 17], True: [0, 1, 2, 3, 4, 8, 9, 15, 16, 17]}
