"""A sweep on a real Ray cluster of two workers, one of which is killed, and from outside of it: the results are one machine's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.programs.environment import environment
from tests.training.runs import days, model_and_texts
from tests.waiting import free_port

pytestmark = pytest.mark.slow

SOURCE = Path(__file__).resolve().parents[2] / "src"
CLUSTER = """
import sys
from ray.cluster_utils import Cluster
small = {"num_cpus": 1, "object_store_memory": 80_000_000}
head = {**small, "include_dashboard": False, "ray_client_server_port": int(sys.argv[1])}
cluster = Cluster(initialize_head=True, head_node_args=head)
cluster.add_node(**small)
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""
STEPS = 800
# Ray's own limits, of 15 and 30 s, are for machines that have nothing else to do.
PATIENT = {
    "RAY_CLIENT_INITIAL_CONNECTION_TIMEOUT_S": "80",
    "RAY_CLIENT_MAX_CONNECTION_TIMEOUT_S": "240",
    "RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S": "240",
}
SMALL = ("--tokens=2,4", "--init=vocab", "--batch=2", "--row-tokens=16", "--dtype=float32", "texts")
SWEEP = ("--lr=0.1,0.5", f"--steps={STEPS}", *SMALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_and_texts(tmp_path_factory.mktemp("ray"), days(12, 3))


@pytest.fixture(scope="module")
def python() -> Path:
    return environment("ray")


@dataclass(frozen=True)
class Running:
    """A cluster. inside: the environment of programs that belong to it; outside: of those that connect to `address`."""

    inside: dict[str, str]
    outside: dict[str, str]
    address: str


@pytest.fixture(scope="module")
def cluster(python: Path) -> Iterator[Running]:
    env = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", **PATIENT}
    port = free_port()
    started = subprocess.Popen(
        [python, "-c", CLUSTER, str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=env,
    )
    assert started.stdout is not None
    address = started.stdout.readline().strip()
    assert address, "the cluster did not start"
    yield Running({**env, "RAY_ADDRESS": address}, env, f"ray://127.0.0.1:{port}")
    started.communicate(timeout=600)


def workers() -> list[psutil.Process]:
    return [one for one in psutil.process_iter(["cmdline"]) if "ray::take_share" in " ".join(one.info["cmdline"] or ())]


def most_steps(folder: Path) -> int:
    """That any of its runs has taken."""
    return max((file.read_text().count('"kind": "step"') for file in folder.glob("*/metrics.jsonl")), default=0)


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_the_results_are_one_machines_though_a_worker_is_killed(folder: Path, python: Path, cluster: Running) -> None:
    env = cluster.inside
    command = [python, "-m", "sordino", "sweep", *SWEEP, f"--model={folder / 'model'}"]
    alone = subprocess.run(
        [*command, "--out-dir=alone"], cwd=folder, capture_output=True, text=True, env=env, timeout=900
    )
    assert alone.returncode == 0, alone.stderr
    going = subprocess.Popen(
        [*command, "--out-dir=spread", "--on=ray"],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env,
    )  # fmt: skip
    try:
        # The first half ends at an eighth of the steps: from there on there is a checkpoint to go on from.
        deadline = time.monotonic() + 600
        while most_steps(folder / "spread" / "1-model") < STEPS // 8 + 5 or len(workers()) < 2:
            assert time.monotonic() < deadline
            assert going.poll() is None, going.communicate()[0]
            time.sleep(0.05)
        first = workers()
        began = (folder / "spread" / "1-model" / "began.json").stat().st_mtime_ns
        first[-1].send_signal(signal.SIGKILL)
        said = going.communicate(timeout=600)[0]
    finally:
        going.kill()
    assert going.returncode == 0, said
    assert "a worker was lost: all go on from the checkpoint" in said
    assert (folder / "spread" / "1-model" / "began.json").stat().st_mtime_ns == began

    assert_alike(results(folder / "alone"), results(folder / "spread"))
    assert "Winner:" in said


def assert_alike(one: dict, other: dict) -> None:
    assert other["winner"] == one["winner"]
    for ours, own in zip(other["models"][0]["runs"], one["models"][0]["runs"], strict=True):
        assert (ours["name"], ours["why"], ours["steps"]) == (own["name"], own["why"], own["steps"])
        assert ours["validation"] == pytest.approx(own["validation"], abs=0.02)


def test_a_sweep_from_outside_the_cluster(folder: Path, python: Path, cluster: Running) -> None:
    command = [python, "-m", "sordino", "sweep", "--steps=16", *SMALL, f"--model={folder / 'model'}"]
    said = {}
    for name, more in (("here", ()), ("outside", (f"--on={cluster.address}",))):
        done = subprocess.run(
            [*command, f"--out-dir={name}", *more],
            cwd=folder, capture_output=True, text=True, env=cluster.outside, timeout=900,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        said[name] = done.stdout
    assert_alike(results(folder / "here"), results(folder / "outside"))
    assert "Winner:" in said["outside"]
