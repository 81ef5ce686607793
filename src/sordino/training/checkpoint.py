"""A run's whole state in one file, so that a killed run resumes exactly; and the states of a group's runs in one file.

One safetensors file: tensors (parameters, Adam's moments, the weight average, the best matrix) and, as JSON in its metadata,
the counters and the settings. It is replaced atomically: a killed process leaves the old checkpoint or the new one.

The runs of a group must resume from one step, because roundings depend on what shares a pass: so the states of all unfinished
runs are in one file, replaced at once. A finished run has a file of its own in its own folder, written before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sordino.errors import CheckpointError, TrainingError
from sordino.storage import write_bytes
from sordino.training.config import TrainConfig, stored_settings
from sordino.training.state import Progress, RunState

FILE = "checkpoint.safetensors"
VERSION = 2


@contextmanager
def reading_stored(what: str, path: Path, do: str = "", error: type[TrainingError] = CheckpointError) -> Iterator[None]:
    """For what a run left: `error` where it is missing, damaged, or of another shape."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as why:
        raise error(what, where=path, got=why, do=do) from None


@dataclass(frozen=True)
class Snapshot:
    """A run as its checkpoint holds it. identity: what a resumed run must agree with (model, number type, device, texts)."""

    folder: Path
    state: RunState
    config: TrainConfig
    identity: Mapping[str, str]


def save_checkpoint(run: Snapshot) -> None:
    """Raises StorageError."""
    _write(run.folder / FILE, *_serialised(run))


def save_group(folder: Path, runs: Mapping[str, Snapshot]) -> None:
    """The unfinished runs, by name, in one file; of finished ones the names alone. Raises StorageError."""
    tensors: dict[str, Tensor] = {}
    headers: dict[str, Any] = {}
    for index, (name, run) in enumerate(runs.items()):
        if run.state.progress.finished:
            headers[name] = None
            continue
        own, headers[name] = _serialised(run)
        tensors |= {f"{index}/{key}": tensor for key, tensor in own.items()}
    _write(folder / FILE, tensors, {"version": VERSION, "runs": headers})


def load_checkpoint(run: Snapshot) -> None:
    """Fill the run's state with what was saved. Raises CheckpointError where the run was another, or had other settings."""
    header = read_header(run.folder)
    if "runs" in header:
        raise CheckpointError("this is a checkpoint of several runs", where=run.folder / FILE, expected="one run's")
    _fill(run, header, _read_tensors(run.folder), run.folder)


def load_group(folder: Path, runs: Mapping[str, Snapshot]) -> None:
    """Fill the runs' states with what was saved, those of finished runs from their own folders. Raises CheckpointError."""
    headers = read_group(folder)
    if list(headers) != list(runs):
        raise CheckpointError("the runs are others", where=folder, expected=", ".join(headers), got=", ".join(runs))
    tensors = _read_tensors(folder)
    for index, (name, run) in enumerate(runs.items()):
        header = headers[name]
        if header is None:
            load_checkpoint(run)
            continue
        prefix = f"{index}/"
        own = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        _fill(run, header, own, folder)


def read_group(folder: Path) -> dict[str, dict[str, Any] | None]:
    """The settings and counters of the runs of a group by name, None for finished ones. Raises CheckpointError."""
    runs = read_header(folder).get("runs")
    if not isinstance(runs, dict):
        raise CheckpointError("this is not a checkpoint of several runs", where=folder / FILE)
    return runs


def _serialised(run: Snapshot) -> tuple[dict[str, Tensor], dict[str, Any]]:
    state = run.state
    tensors = {f"parameter.{name}": tensor.detach() for name, tensor in state.parameters.items()}
    tensors |= {"average": state.average_PD, "best": state.best_PD}
    moments = state.optimiser.state_dict()["state"]
    for index, moment in moments.items():
        tensors |= {f"adam.{index}.{key}": value for key, value in moment.items()}
    # json writes infinity as a bare word, which other readers refuse.
    progress = {k: (None if v == float("inf") else v) for k, v in asdict(state.progress).items()}
    header = {"version": VERSION, "progress": progress, "config": asdict(run.config), "identity": dict(run.identity)}
    return {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, header


def _write(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    text = json.dumps(header)
    write_bytes(path, save(dict(tensors), {"sordino": text, "sha256": _digest(text, tensors)}))


def _digest(header: str, tensors: Mapping[str, Tensor]) -> str:
    """A checksum over the whole checkpoint: a run resumed from a damaged one would silently be another run."""
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def read_header(folder: Path) -> dict[str, Any]:
    """The settings and counters of the checkpoint in `folder`. Raises CheckpointError where there is none or it is broken."""
    try:
        with safe_open(folder / FILE, "pt") as file:
            header: dict[str, Any] = json.loads(file.metadata()["sordino"])
        if not isinstance(header, dict):
            raise TypeError("its header is no object")
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            "there is no run to resume here",
            where=folder,
            expected=f"a readable {FILE}",
            got=str(error),
            do="start again without --resume",
        ) from None
    if header.get("version") != VERSION:
        raise CheckpointError(
            "the checkpoint is of another version", where=folder, expected=VERSION, got=header.get("version")
        )
    return header


def is_unfinished(folder: Path) -> bool:
    """Whether `folder` holds a run, or a group with one, that can be resumed."""
    try:
        header = read_header(folder)
        if "runs" in header:
            return any(run is not None for run in header["runs"].values())
        return not header["progress"]["finished"]
    except (CheckpointError, KeyError, TypeError, AttributeError):
        return False


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """The checkpoint's tensors. Raises CheckpointError where a byte of it is not what was saved."""
    with safe_open(folder / FILE, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        metadata = file.metadata()
    if metadata.get("sha256") != _digest(metadata["sordino"], tensors):
        raise CheckpointError(
            "the checkpoint is damaged",
            where=folder / FILE,
            expected="the bytes that were saved",
            do="restore the file, or start again without --resume",
        )
    return tensors


def _fill(run: Snapshot, header: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path) -> None:
    state, config = run.state, run.config
    began = stored_settings(header["config"])
    # How the result will be measured changes no step.
    settings = {key: value for key, value in asdict(config).items() if key != "measure"}
    changed = [key for key, value in settings.items() if began.get(key) != value]
    if changed:
        raise CheckpointError(
            "the run began with other settings",
            where=folder,
            expected=", ".join(f"{key} {began.get(key)}" for key in changed),
            got=", ".join(f"{key} {getattr(config, key)}" for key in changed),
            do="resume it with its own, or start a new run",
        )
    for key, value in run.identity.items():
        if header["identity"].get(key) != value:
            raise CheckpointError(
                f"the {key} is not the one that this run began with",
                where=folder,
                expected=header["identity"].get(key),
                got=value,
                do="bring it back, or start a new run without --resume",
            )
    for name, parameter in state.parameters.items():
        parameter.data.copy_(tensors[f"parameter.{name}"])
    state.average_PD.copy_(tensors["average"])
    state.best_PD.copy_(tensors["best"])
    saved = state.optimiser.state_dict()
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("adam."):
            _, index, key = name.split(".")
            moments.setdefault(int(index), {})[key] = tensor
    state.optimiser.load_state_dict({**saved, "state": moments})
    progress = header["progress"]
    state.progress = Progress(
        **{**progress, "best_loss": float("inf") if progress["best_loss"] is None else progress["best_loss"]}
    )
