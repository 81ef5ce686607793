"""A run in several processes, on one machine or many: torchrun, or `launch.py`, starts them, and torch.distributed joins them.

Every process runs the same command. What they exchange in a step is the gradients of the prompts and the losses.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from sordino.errors import ConfigError, ProcessLost
from sordino.models.base_model import BaseModel
from sordino.training.launch import RESUME, started_in_several, store_at
from sordino.training.strategy import SINGLE_PROCESS, Item, Strategy

# A process may load or measure for hours while the others wait. One that ends closes its connections, and is noticed at once.
_PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class JoinedProcess:
    """One of several processes. Each holds the whole base model, quantised or not; with `shard` a part of every layer."""

    rank: int
    processes: int
    shard: bool = False

    @property
    def together(self) -> bool:
        return self.shard

    @property
    def saves(self) -> bool:
        return self.rank == 0

    def place(self, base: BaseModel) -> BaseModel:
        if not self.shard:
            return base
        from sordino.training.sharding import sharded

        return sharded(base, self.processes)

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        return items[self.rank :: self.processes]

    def reduce(self, tensors: Sequence[Tensor]) -> None:
        # One message: on a network a message costs more than its bytes.
        flat = torch.cat([tensor.reshape(-1).double() for tensor in tensors])
        with noticing_loss():
            dist.all_reduce(flat)
        for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))


@contextmanager
def noticing_loss() -> Iterator[None]:
    """Raises ProcessLost where what fails is the exchange with another process."""
    try:
        yield
    except RuntimeError as error:
        # Gloo's errors have no class of their own.
        if not isinstance(error, dist.DistError) and "gloo/transport" not in str(error):
            raise
        raise ProcessLost("another process of this run ended", do=RESUME) from error


@contextmanager
def joined(*, shard: bool = False) -> Iterator[Strategy]:
    """This process as one of those that were started together, with the GPU that is its own. Raises ConfigError, ProcessLost."""
    if not started_in_several():
        yield SINGLE_PROCESS
        return
    _take_gpu(int(os.environ["LOCAL_RANK"]))
    with noticing_loss():
        # Gradients are exchanged on the CPU, whatever runs the base model; the parts of a layer where it runs.
        backends = "cpu:gloo,cuda:nccl" if shard and torch.cuda.is_available() else "gloo"
        dist.init_process_group(backends, timeout=_PATIENCE)
    try:
        with noticing_loss():
            yield JoinedProcess(dist.get_rank(), dist.get_world_size(), shard)
    finally:
        with suppress(RuntimeError):
            dist.destroy_process_group()


def _take_gpu(number: int) -> None:
    if not torch.cuda.is_available():
        return
    gpus = torch.cuda.device_count()
    if number >= gpus:
        raise ConfigError("there are more processes than GPUs", expected=f"{gpus} at most", do="start fewer processes")
    torch.cuda.set_device(number)


def is_first_to_fail() -> bool:
    """Whether this process is the first of those started together that asks: what the others say then is a consequence."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        store = store_at(address, port, timeout=timedelta(seconds=10))
        # torchrun starts the processes anew in the same store where it is told to.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return bool(store.add(f"sordino/failed/{attempt}", 1) == 1)
    except RuntimeError:
        # Who started them is gone, too.
        return True
