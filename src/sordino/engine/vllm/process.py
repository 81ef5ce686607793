"""What Sordino does in the processes that vLLM starts."""

from __future__ import annotations

import os

# The process that serves, which stays where it is.
SERVER_PID = "SORDINO_SERVER_PID"


def leave_terminal() -> None:
    """Ctrl-C at the server's terminal is for the server alone, which lets running requests finish: vLLM's processes would end at
    once.

    A plugin of the group `vllm.general_plugins`, which every process of vLLM calls. It does nothing where `sordino serve` did not
    start vLLM.
    """
    server = os.environ.get(SERVER_PID)
    if server and int(server) != os.getpid():
        os.setpgid(0, 0)
