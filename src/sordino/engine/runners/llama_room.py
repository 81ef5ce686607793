"""How large llama.cpp's cache is, which it allocates at its start. A cell holds the keys and values of one position."""

from __future__ import annotations

from dataclasses import dataclass

from sordino.engine.config import EngineOptions
from sordino.errors import OutOfMemory

# llama.cpp rounds up to this itself.
CELLS_STEP = 256
# Positions that a row of a conversation takes, roughly.
_SHORT_ROW = 1024


@dataclass(frozen=True)
class CellPlan:
    """split: whether each sequence has `cells` of its own, or all of them share `cells`."""

    split: bool
    cells: int
    sequences: int

    @property
    def total(self) -> int:
        return self.cells * (self.sequences if self.split else 1)


@dataclass(frozen=True)
class CellBudget:
    """Sequences have cells of their own where `kv_bytes` hold `row_cells` for each (None: never); else they share `max_cells`, or
    as many as fit.
    """

    kv_bytes: int
    max_cells: int
    sequences: int
    row_cells: int | None = None

    def plan(self, cell_bytes: int) -> CellPlan:
        """Raises OutOfMemory where not even a short row fits."""
        affordable = self.kv_bytes // cell_bytes
        own = _rounded_up(self.row_cells or 0)
        if self.sequences > 1 and 0 < own <= affordable // self.sequences:
            return CellPlan(split=True, cells=own, sequences=self.sequences)
        shared = min(self.max_cells, affordable)
        if shared < CELLS_STEP:
            raise OutOfMemory(
                "there is no room for a row",
                expected=f"{CELLS_STEP} positions at least",
                got=f"room for {shared}",
                do="give more --kv-memory",
            )
        return CellPlan(split=False, cells=shared // CELLS_STEP * CELLS_STEP, sequences=self.sequences)


def cell_budget(
    options: EngineOptions, context_length: int, free_bytes: int, *, row_cells: int | None = None
) -> CellBudget:
    """A full context for every row where memory holds that, which is fastest. Else the rows share a pool: what --kv-memory holds,
    or by default one long row or many short ones. row_cells: that the longest row needs, where that is known.
    """
    longest = _rounded_up(row_cells) if row_cells else context_length
    whole = options.rows * longest
    most = max(longest, options.rows * _SHORT_ROW) if options.kv_bytes is None else whole
    return CellBudget(
        kv_bytes=free_bytes // 4 if options.kv_bytes is None else options.kv_bytes,
        max_cells=min(most, whole),
        sequences=options.rows,
        # A quarter more: a prompt that is held has its cells several times.
        row_cells=row_cells or context_length * 5 // 4,
    )


def cell_bytes(layers: int, heads: int, channels: int) -> int:
    """heads: that have keys and values of their own. channels: of a key and a value together, in half precision."""
    return max(1, layers * heads * channels * 2)


def _rounded_up(cells: int) -> int:
    return -(-cells // CELLS_STEP) * CELLS_STEP
