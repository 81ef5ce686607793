"""A long benchmark in stages, each stored when it is done: one that was stopped goes on with the next."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sordino.storage import write_bytes


@dataclass(frozen=True)
class Cost:
    """What it takes to make something: seconds, those of the processor (of all threads), and the bytes of its file."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    bytes: int = 0


@dataclass(frozen=True)
class Stages:
    """What is done already: a JSON file for each stage."""

    folder: Path

    def of(self, name: str, make: Callable[[], Any]) -> Any:
        path = self.folder / f"{name}.json"
        if not path.is_file():
            began, cpu = time.monotonic(), time.process_time()
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, json.dumps(make()).encode())
            took = f"{time.monotonic() - began:.0f} s, {time.process_time() - cpu:.0f} s of the processor"
            print(f"{time.strftime('%H:%M:%S')} {path.relative_to(self.folder.parent)}: {took}", flush=True)
        return json.loads(path.read_text())

    def cost(self, name: str, file: Path, make: Callable[[], None]) -> Cost:
        """Of making a file, or a folder of files."""

        def timed() -> dict[str, Any]:
            began, cpu = time.monotonic(), time.process_time()
            make()
            files = file.glob("adapter_*") if file.is_dir() else [file]
            size = sum(path.stat().st_size for path in files)
            return asdict(Cost(round(time.monotonic() - began, 1), round(time.process_time() - cpu, 1), size))

        return Cost(**self.of(name, timed))
