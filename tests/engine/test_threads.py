"""A thread that computed and ended leaves no team of OpenMP's behind."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from sordino.engine.waiting import in_thread_of_its_own
from sordino.errors import ConfigError

# Where two may compute, whatever this process was allowed.
_SCRIPT = """
import time, psutil, torch
from sordino.engine.waiting import in_thread_of_its_own

def count():
    return psutil.Process().num_threads()

def computing():
    large = torch.ones(512, 512)
    (large @ large).relu()
    return count()

alone = count()
during = in_thread_of_its_own(computing)
deadline = time.monotonic() + 10
while count() > alone and time.monotonic() < deadline:
    time.sleep(0.01)
print(during - alone, count() - alone)
computing()
print(count() - alone)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="OpenMP's teams are counted on Linux")
def test_its_threads_end_with_it() -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", _SCRIPT], env=env, capture_output=True, text=True, check=True)
    during, after, in_main = map(int, done.stdout.split())
    assert (during, after) == (2, 0), "itself and its team, and nobody afterwards"
    assert in_main == 1, "the team of a thread that lives on stays"


def test_what_fails_in_it_fails_here() -> None:
    def failing() -> None:
        raise ConfigError("no")

    with pytest.raises(ConfigError, match="no"):
        in_thread_of_its_own(failing)
