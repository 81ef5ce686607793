"""A sweep on a Ray cluster. Each GPU, or each machine without one, gets a process: a task that trains its share of the runs.

The processes are joined as under torchrun, so the sweep is the one that `--processes` runs. Where one is lost, all go on from the
sweep's checkpoint, with what the cluster then has. Texts, models and the sweep's folder have the same paths on all machines.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sordino.errors import ConfigError, MissingExtra, ProcessLost, TrainingError
from sordino.training.events import RunEvent, Warned
from sordino.training.execute import ShouldStop, alone_in
from sordino.training.failure import Failure
from sordino.training.launch import RESUME, environment_of, store_at
from sordino.training.sweep.execute import (
    ModelStarted,
    OnSweepEvent,
    Sweep,
    SweepResult,
    execute_sweep,
    store_sweep,
    stored_sweep,
)

LOCAL, REMOTE = "ray", "ray://"
# What is lost again and again is not lost by chance.
_ATTEMPTS = 3
# Seconds: to wait for room in the cluster; between polls of the tasks; for tasks that lost another one to end.
_ROOM, _LOOK, _GRACE = 600.0, 0.5, 60.0


def check_ray(on: str) -> None:
    """Raises ConfigError for what is no cluster, MissingExtra."""
    _, _, port = on.rpartition(":")
    if on != LOCAL and not (on.startswith(REMOTE) and port.isdecimal()):
        raise ConfigError("this is no cluster", where="--on", expected="ray or ray://HOST:PORT", got=on)
    # For ray://, Ray's client also needs grpc, which ray alone does not install.
    for needed in ("ray",) if on == LOCAL else ("ray", "grpc"):
        if find_spec(needed) is None:
            what = "Ray" if needed == "ray" else "Ray's client"
            raise MissingExtra(
                f"{what} is not installed", where="--on", got=f"no {needed}", do="pip install 'sordino[ray]'"
            )


def sweep_on_ray(
    sweep: Sweep, on: str, *, resume: bool, on_event: OnSweepEvent, should_stop: ShouldStop
) -> SweepResult | None:
    """As `execute_sweep`, on the cluster that this machine belongs to (`ray`) or another (`ray://HOST:PORT`).

    Raises ProcessLost where workers are lost again and again, and as `execute_sweep`.
    """
    folder = sweep.folder.resolve()
    if not resume:
        with alone_in(folder):
            store_sweep(replace(sweep, folder=folder))
    with _connected(on):
        for attempt in range(_ATTEMPTS):
            if attempt:
                on_event("", Warned("a worker was lost: all go on from the checkpoint"))
            ended = _attempted(folder, on_event, should_stop)
            if not isinstance(ended, WorkerLost):
                return ended
    raise ProcessLost(f"a worker was lost {_ATTEMPTS} times", do=RESUME)


class WorkerLost:
    """The result of a process that lost contact with another."""


@contextmanager
def _connected(on: str) -> Iterator[None]:
    import ray

    try:
        with warnings.catch_warnings():
            # Ray warns about what it then raises as an error.
            warnings.simplefilter("ignore")
            ray.init(address="auto" if on == LOCAL else on, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError) as error:
        raise TrainingError("there is no Ray cluster here", where=on, got=error, do="ray start --head") from None
    try:
        yield
    finally:
        ray.shutdown()


class Meeting:
    """An actor: where the processes find each other, and what they and the command line say to each other."""

    def __init__(self) -> None:
        import ray

        self._host = ray.util.get_node_ip_address()
        self._store = store_at(self._host, 0, is_master=True)
        self._events: list[tuple[str, RunEvent | ModelStarted]] = []
        self._stopping = False

    def address(self) -> tuple[str, int]:
        return self._host, int(self._store.port)

    def note(self, name: str, event: RunEvent | ModelStarted) -> None:
        self._events.append((name, event))

    def noted(self) -> list[tuple[str, RunEvent | ModelStarted]]:
        """Since the last call."""
        events, self._events = self._events, []
        return events

    def stop(self) -> None:
        self._stopping = True

    def is_stopping(self) -> bool:
        return self._stopping


def take_share(rank: int, count: int, meeting: Any, folder: Path) -> SweepResult | Failure | WorkerLost | None:
    """A task: one process of the sweep in `folder`. The first process returns the result, or None if it was asked to stop."""
    import ray

    from sordino.models.base_model import BaseModel, load
    from sordino.training.distributed import joined

    host, port = ray.get(meeting.address.remote())
    # Ray shows a task the GPU that it gave it, and no other.
    os.environ.update({**environment_of(rank, count, port, host), "LOCAL_RANK": "0"})
    try:
        sweep = stored_sweep(folder)

        def load_base(model: str) -> BaseModel:
            return load(model, **asdict(sweep.loading))

        with joined() as strategy:
            return execute_sweep(
                sweep,
                load_base,
                resume=True,
                on_event=meeting.note.remote if strategy.saves else lambda name, event: None,
                should_stop=lambda: strategy.saves and bool(ray.get(meeting.is_stopping.remote())),
                strategy=strategy,
            )
    except ProcessLost:
        return WorkerLost()
    except Exception as error:
        return Failure.of(error)


@dataclass(frozen=True)
class _Places:
    """Where the processes run: how many there are, and the CPUs and GPUs that each takes."""

    count: int
    cpus: int
    gpus: int

    @staticmethod
    def of_cluster() -> _Places:
        """One for each GPU; without any, one for each machine, which then has all its processors."""
        import ray

        machines = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
        gpus = sum(int(machine.get("GPU", 0)) for machine in machines)
        if gpus:
            return _Places(gpus, 1, 1)
        if not machines:
            raise TrainingError("no machine of the Ray cluster has a processor to give", do="see `ray status`")
        return _Places(len(machines), min(int(machine["CPU"]) for machine in machines), 0)


def _attempted(folder: Path, on_event: OnSweepEvent, should_stop: ShouldStop) -> SweepResult | WorkerLost | None:
    """All processes, until they end."""
    import ray
    from ray.util import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    places = _Places.of_cluster()
    reserved = placement_group([{"CPU": places.cpus, "GPU": places.gpus}] * places.count, strategy="SPREAD")
    meeting = ray.remote(num_cpus=0)(Meeting).remote()
    # Processes of their own: torch.distributed joins once. Ray's own retry would begin one of them again alone.
    task = ray.remote(num_cpus=places.cpus, num_gpus=places.gpus, max_calls=1, max_retries=0)(take_share)
    tasks: list[Any] = []
    try:
        ray.get(reserved.ready(), timeout=_ROOM)
        for rank in range(places.count):
            place = PlacementGroupSchedulingStrategy(reserved, placement_group_bundle_index=rank)
            tasks.append(task.options(scheduling_strategy=place).remote(rank, places.count, meeting, folder))
        _followed(tasks, meeting, on_event, should_stop)
        return _result_of([_ended(one) for one in tasks])
    except ray.exceptions.GetTimeoutError:
        raise TrainingError(
            "the Ray cluster is busy",
            got=f"no room for {places.count} processes in {_ROOM:.0f} s",
            do="see `ray status`",
        ) from None
    except ray.exceptions.RayActorError:
        return WorkerLost()
    finally:
        for one in tasks:
            ray.cancel(one, force=True)
        if tasks:
            ray.wait(tasks, num_returns=len(tasks), timeout=_GRACE)
        ray.kill(meeting)
        remove_placement_group(reserved)


def _followed(tasks: list[Any], meeting: Any, on_event: OnSweepEvent, should_stop: ShouldStop) -> None:
    """Until all have ended, or one was lost and the others had time to notice."""
    import ray

    left, stopping = tasks, False
    while left:
        done, left = ray.wait(left, timeout=_LOOK)
        for name, event in ray.get(meeting.noted.remote()):
            on_event(name, event)
        if any(isinstance(_ended(one), WorkerLost) for one in done):
            _, left = ray.wait(left, num_returns=len(left), timeout=_GRACE) if left else ([], [])
            return
        if should_stop() and not stopping:
            stopping = True
            meeting.stop.remote()


def _ended(task: Any) -> SweepResult | Failure | WorkerLost | None:
    """What a task gave; `WorkerLost` too where it has not ended, or its worker did not last."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        ended: SweepResult | Failure | WorkerLost | None = ray.get(task, timeout=0)
        return ended
    except RayTaskError as error:
        return Failure(f"a process of the sweep could not begin: {str(error.cause).strip().splitlines()[-1]}")
    except RayError:
        return WorkerLost()


def _result_of(ended: list[SweepResult | Failure | WorkerLost | None]) -> SweepResult | WorkerLost | None:
    """Raises SordinoError: what failed in a process that lost no other."""
    for one in ended:
        if isinstance(one, Failure):
            raise TrainingError(one.what, where=one.where, expected=one.expected, got=one.got, do=one.do)
    if any(isinstance(one, WorkerLost) for one in ended):
        return WorkerLost()
    return next((one for one in ended if isinstance(one, SweepResult)), None)
