"""One process of a run in two, for a test to start: python -m tests.training.two_processes FOLDER RANK."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from sordino.models.base_model import BaseModel
from sordino.texts.examples import Example
from sordino.training.events import Finished
from sordino.training.loop import Run, train
from sordino.training.strategy import Strategy
from tests.training.runs import CONFIG, small_base, small_set, start_of


@dataclass(frozen=True)
class GlooReplica:
    """One of the processes of torch.distributed's default group, each with every n-th example."""

    @property
    def saves(self) -> bool:
        return dist.get_rank() == 0

    def place(self, base: BaseModel) -> BaseModel:
        return base

    def share(self, examples: Sequence[Example]) -> Sequence[Example]:
        return examples[dist.get_rank() :: dist.get_world_size()]

    def reduce(self, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            dist.all_reduce(tensor)


def trained(strategy: Strategy, folder: Path) -> Tensor:
    base = small_base()
    run = Run("", small_set(base), replace(CONFIG, batch=5), folder, start_of(base))
    *_, finished = train(base, run, strategy=strategy)
    assert isinstance(finished, Finished)
    return finished.matrix_PD


def main() -> None:
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(trained(GlooReplica(), folder)))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
