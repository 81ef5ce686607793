"""Several processes of one `sordino train` or `sweep`: how many are asked for, and starting them on this machine.

They find each other as under torchrun, by its environment variables. torchrun itself reports a failure in a page of its own
words, and ends processes that still save after 30 s (docs/decisions/0021-several-processes.md).
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from sordino.errors import ConfigError, ProcessLost
from sordino.settings import check_settings, setting

RESUME = "go on with --resume and the run's folder, in as many processes"
# Set for the processes that `launch` starts; torchrun sets the other one for its own.
_LAUNCHED, _TORCHRUN = "SORDINO_LAUNCHED", "TORCHELASTIC_RUN_ID"
LOOPBACK = "127.0.0.1"
# A process that has lost another ends by itself; one that computes has this long to notice.
_GRACE = 15.0
_POLL = 0.1


@dataclass(frozen=True)
class Processes:
    """In how many processes of this machine a command runs; torchrun starts them on several machines."""

    processes: int = setting(
        1,
        "Train in N processes of this machine, each on its own GPU where there are any. On several machines: torchrun.",
        low=1,
        high=4096,
        unit="N",
    )

    shard: bool = setting(
        False,
        "Hold a part of every layer in each process, for base models that one GPU cannot hold; the same result, but slower.",
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if self.shard and self.processes == 1 and not started_in_several():
            raise ConfigError("there is one process", where="--shard", do="give --processes too, or start torchrun")
        if self.processes > 1 and _TORCHRUN in os.environ:
            raise ConfigError("torchrun has started the processes", where="--processes", do="leave it out")

    @property
    def to_launch(self) -> bool:
        """Whether this process is to start the others, and trains nothing itself."""
        return self.processes > 1 and not started_in_several()


def started_in_several() -> bool:
    """Whether this is one of several processes that were started together."""
    return (_LAUNCHED in os.environ or _TORCHRUN in os.environ) and int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_silent() -> bool:
    """Whether another of the processes prints what this one would."""
    return started_in_several() and os.environ["RANK"] != "0"


def is_launched() -> bool:
    """Whether `launch` started this process: it says itself which process was lost."""
    return _LAUNCHED in os.environ


def launch(count: int, arguments: Sequence[str], go_on: str) -> int:
    """Run `sordino` with these arguments in `count` processes; their exit code, which has been explained on standard error.

    Where one fails or is killed, all end. go_on: the command that resumes the run. Raises ProcessLost where none could say why.
    """
    with socket.create_server((LOOPBACK, 0)) as listening:
        port = listening.getsockname()[1]
        # Where the processes meet. Given the socket, it listens on this machine alone.
        store = store_at(LOOPBACK, port, is_master=True, master_listen_fd=listening.detach())
    command = [sys.executable, "-m", "sordino", *arguments]
    started: list[subprocess.Popen[bytes]] = []
    with _passing_on_signals(started):
        try:
            for rank in range(count):
                # Ctrl-C in a terminal goes to a whole group: to this process, which passes it on.
                one = subprocess.Popen(command, env=environment_of(rank, count, port), start_new_session=True)
                started.append(one)
            codes = _ended(started)
        finally:
            _end(started)
            del store
    return _exit_code(codes, go_on)


def store_at(host: str, port: int, **options: Any) -> Any:
    """torch.distributed's TCPStore, where processes find each other. port: 0 for one that is free."""
    from torch import distributed

    # Its types do not list it.
    return distributed.TCPStore(host, port, wait_for_workers=False, **options)  # type: ignore[attr-defined]


def environment_of(rank: int, count: int, port: int, host: str = LOOPBACK) -> dict[str, str]:
    """What torchrun sets, as far as torch.distributed and this package read it, for processes that meet at a store."""
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    threads = max(1, (os.cpu_count() or 1) // count)
    loopback = {"GLOO_SOCKET_IFNAME": "lo"} if host == LOOPBACK and sys.platform == "linux" else {}
    return {
        "OMP_NUM_THREADS": str(threads),
        **loopback,
        **os.environ,
        **{name: str(value) for name, value in own.items()},
        "MASTER_ADDR": host,
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        _LAUNCHED: "1",
    }


def _ended(started: Sequence[subprocess.Popen[bytes]]) -> list[int | None]:
    """The exit codes, when all have ended or one has failed: then the others have had time to notice."""
    deadline = float("inf")
    while time.monotonic() < deadline:
        codes = [process.poll() for process in started]
        if all(code is not None for code in codes):
            break
        if any(codes) and deadline == float("inf"):
            deadline = time.monotonic() + _GRACE
        time.sleep(_POLL)
    return [process.poll() for process in started]


def _end(started: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in started:
        process.kill()
    for process in started:
        process.wait()


def _exit_code(codes: Sequence[int | None], go_on: str) -> int:
    """What a process said of itself, else what was done to it. Raises ProcessLost."""
    lost = ProcessLost.exit_code
    for code in codes:
        if code is not None and code > 0 and code != lost:
            return code
    for rank, code in enumerate(codes):
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            why = ", most likely because the machine's memory ran out" if name == "SIGKILL" else ""
            raise ProcessLost(f"process {rank + 1} of {len(codes)} was ended by {name}{why}", do=go_on)
    if any(codes):
        raise ProcessLost("the processes lost each other", do=go_on)
    return 0


@contextmanager
def _passing_on_signals(started: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Signals that ask this process to end go to the others, which save and end."""

    def forward(number: int, _frame: FrameType | None) -> None:
        for process in started:
            process.send_signal(number)

    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]
    before = {
        number: signal.signal(number, forward) for number in numbers if signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
