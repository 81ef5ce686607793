"""Whatever fits the OpenAPI document, and much that does not, gets an answer that is not an error of the server's."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from sordino.server.serving import ServerLimits
from tests.server.running import running

HERE = Path(__file__).resolve().parent
# 499: the client left; nobody reads that answer.
CONFIG = """
[checks.not_a_server_error]
expected-statuses = ["2xx", "4xx", "501", "503", "507"]
"""


@pytest.mark.slow
@pytest.mark.parametrize("hooks", [False, True], ids=["as generated", "with names and sizes that exist"])
def test_no_answer_is_an_internal_error(tmp_path: Path, hooks: bool) -> None:
    """schemathesis. Of what it generates most is refused for its model's name; the hooks put existing names in."""
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    with running(tmp_path, limits=ServerLimits(max_tokens=8), queue=1000) as live:
        command = [
            sys.executable,
            "-m",
            "schemathesis.cli",
            "run",
            f"{live.url}/openapi.json",
            "--no-color",
            "--seed",
            "1",
        ]
        command += ["--phases", "coverage,fuzzing", "--max-examples", "30", "--checks", "not_a_server_error"]
        ran = subprocess.run(
            [*command, "--continue-on-failure"],
            cwd=tmp_path,
            env={"PYTHONPATH": str(HERE), "PYTHONUTF8": "1"}
            | ({"SCHEMATHESIS_HOOKS": "schema_hooks"} if hooks else {}),
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert live.serving.backend.dead is None
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]
    tested = re.search(r"Tested: (\d+)", ran.stdout)
    cases = re.search(r"(\d+) generated, (\d+) passed", ran.stdout)
    assert tested is not None, ran.stdout
    assert cases is not None, ran.stdout
    assert int(tested[1]) > 20
    assert cases[1] == cases[2]
    assert int(cases[1]) > 500
