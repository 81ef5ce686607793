"""Real processes that reduce over gloo, in which a test runs a function of its own."""

from __future__ import annotations

import os
import pickle
import tempfile
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sordino.models.base_model import BaseModel
from sordino.training.distributed import joined
from sordino.training.launch import LOOPBACK, environment_of, store_at
from sordino.training.strategy import Strategy
from tests.training.runs import small_base
from tests.training.strategy_conformance import Launch
from tests.waiting import until


def gloo(count: int, *, shard: bool = False, **model: Any) -> Launch:
    """Forks, so that the function may be a closure. model: what is to be different from `small_base`'s."""

    def launch(function: Callable[[Strategy, BaseModel], Any]) -> list[Any]:
        with tempfile.TemporaryDirectory() as folder:
            answers, port = [Path(folder) / str(rank) for rank in range(count)], Path(folder) / "port"
            # What the children inherit: random weights come from one stream.
            base = small_base(**model)

            def work(rank: int) -> None:
                until(port.exists)
                os.environ.update(environment_of(rank, count, int(port.read_text())))
                with joined(shard=shard) as strategy:
                    answers[rank].write_bytes(pickle.dumps(function(strategy, base)))
                    # A process that ends while another still connects to it breaks that connection.
                    torch.distributed.barrier()

            # Forked before the store starts: its threads may hold a lock of the C library, and a child would wait for ever.
            children = [_fork(partial(work, rank)) for rank in range(count)]
            meeting = store_at(LOOPBACK, 0, is_master=True)
            (Path(folder) / "new").write_text(str(meeting.port))
            (Path(folder) / "new").rename(port)
            codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
            assert codes == [0] * count
            return [pickle.loads(answer.read_bytes()) for answer in answers]

    return launch


def _fork(work: Callable[[], None]) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        torch.set_num_threads(1)
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        # Nothing of the test's process is to run here.
        os._exit(code)
