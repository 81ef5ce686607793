"""What every benchmark here shares: alternating runs, medians, the machine's description, one JSON file a benchmark and machine."""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

RESULTS = Path(__file__).parent / "results"


def arguments(description: str, *, corpus: str | None = None) -> argparse.ArgumentParser:
    """The options that all benchmarks have. corpus: the default folder under ../shared/data, if one is read."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--device", default=None, help="cpu, cuda or mps")
    parser.add_argument("--dtype", default=None, help="float32, bfloat16 or float16 (both sides alike)")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads, both sides alike (default: PyTorch's)")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds; every round runs all sides in turn")
    if corpus is not None:
        default = Path(__file__).parents[2] / "shared" / "data" / corpus
        parser.add_argument("--corpus", type=Path, default=default, help=f"folder with the corpus ({corpus})")
    return parser


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures were taken on. The processor's model, never the machine's name."""
    names = {"torch", "transformers", "peft", "numpy"}
    return {
        "processor": _processor(),
        "amx": torch.cpu._is_amx_tile_supported(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "cores": psutil.cpu_count(logical=True),
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if device.type == "cuda" else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in sorted(names)},
        "date": time.strftime("%Y-%m-%d"),
    }


def alternate(
    sides: Mapping[str, Callable[[], Any]], rounds: int, device: torch.device, *, pause: float = 0
) -> dict[str, list[float]]:
    """Seconds of every counted run of every side: one warm-up each, then A B A B ..., so that a noisy machine hits all alike.

    pause: seconds between two sides, for what a server still does after its last answer.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        side()
    for _ in range(rounds):
        for name, side in sides.items():
            _wait(device)
            time.sleep(pause)
            began = time.perf_counter()
            side()
            _wait(device)
            seconds[name].append(time.perf_counter() - began)
    return seconds


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in seconds.items()}


def paired_ratio(over: list[float], under: list[float]) -> float:
    """Median of the ratios round by round."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def save(name: str, device: torch.device, rows: list[dict[str, Any]]) -> None:
    """Write results/MACHINE/NAME[-cuda].json and print the rows."""
    path = result_file(name, device)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(device), "rows": rows}, indent=1) + "\n")
    for row in rows:
        print("  ".join(f"{key}={value}" for key, value in row.items()))
    print(f"written to {path.relative_to(Path(__file__).parents[1])}")


def result_file(name: str, device: torch.device) -> Path:
    """Where the results of a benchmark on this machine are kept."""
    suffix = "" if device.type == "cpu" else f"-{device.type}"
    folder = re.sub("[^a-z0-9]+", "-", machine_name(machine(device)).lower())
    return RESULTS / folder / f"{name}{suffix}.json"


def results_of(name: str) -> dict[str, dict[str, Any]]:
    """The results of a benchmark, by machine, the newest first."""
    found = [json.loads(path.read_text()) for path in RESULTS.glob(f"*/{name}.json")]
    found.sort(key=lambda one: str(one["machine"]["date"]), reverse=True)
    return {machine_name(one["machine"]): one for one in found}


def machine_name(machine: Mapping[str, Any]) -> str:
    """The name of its GPU, or else of its processor and what sets it apart: matrix units, or no AVX-512.

    Processors of one maker differ by these as much as two makers' do.
    """
    if machine["gpu"]:
        return str(machine["gpu"])
    name = re.sub(r"\((R|TM)\)| Processor| CPU.*", "", machine["processor"])
    if machine.get("amx"):
        return f"{name}, AMX"
    return f"{name}, AVX2" if machine.get("vectors") == "AVX2" else name


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
