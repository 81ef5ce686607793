"""benchmarks/table.py: a column for each machine, and bold for what is not reached."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import measuring, table

MACHINE = {"gpu": None, "cores": 2, "threads": 2, "memory_gib": 23.5, "versions": {"torch": "2.13.0"}}
TARGET = ("speed", "8 x 128", "peft/ours", "a step", 1.3, True)


def test_each_machine_has_a_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "RESULTS", tmp_path)
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    for folder, processor, features, ratio in (
        ("amd-epyc", "AMD EPYC", {}, 1.25),
        ("amd-epyc-avx2", "AMD EPYC", {"amx": False, "vectors": "AVX2"}, 1.125),
        ("intel-xeon", "Intel(R) Xeon(R) Processor", {"amx": False, "vectors": "AVX512"}, 1.5),
        ("intel-xeon-amx", "Intel(R) Xeon(R) Platinum 8480C CPU @ 2.00GHz", {"amx": True, "vectors": "AVX512"}, None),
    ):
        (tmp_path / folder).mkdir()
        machine = {**MACHINE, "processor": processor, **features, "date": "2026-11-29"}
        result = {"machine": machine, "rows": [{"rows": "8 x 128", "peft/ours": ratio}]}
        (tmp_path / folder / "speed.json").write_text(json.dumps(result))
    lost = ("lost", "", "ratio", "nobody ran it", 1.0, False)
    assert list(table.targets([TARGET, lost])) == [
        "| what | target | AMD EPYC | AMD EPYC, AVX2 | Intel Xeon | Intel Xeon Platinum 8480C, AMX |",
        "|---|---|---|---|---|---|",
        "| a step | ≥ 1.3 | **1.25** | **1.125** | 1.5 | **not met** |",
        "| nobody ran it | ≤ 1.0 |  |  |  |  |",
    ]
    page = "\n".join(table.page())
    assert "AMD EPYC, 2 cores, 2 threads, 23.5 GiB; torch 2.13.0; 2026-11-29" in page
