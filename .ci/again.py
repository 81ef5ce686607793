"""Run failed tests that drive programs of others once more, alone on the machine. Usage: again.py REPORT

Such a test waits for a browser, for vLLM's processes or for a Ray cluster while other tests take the cores. Whatever else failed,
or fails again, fails the run. What passes now is named, since its cause is still to be found.
"""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

OF_OTHERS = ("tests/e2e/", "tests/programs/", "tests/several/")
# More than these have one cause, and it is ours.
MOST = 4


def failed(report: Path) -> list[str]:
    """The ids of the tests that failed, or whose fixtures did."""
    cases = ElementTree.parse(report).iter("testcase")
    bad = [one for one in cases if one.find("failure") is not None or one.find("error") is not None]
    return [f"{str(one.get('classname')).replace('.', '/')}.py::{one.get('name')}" for one in bad]


def main(report: Path) -> None:
    if not report.is_file() or not (tests := sorted(set(failed(report)))):
        sys.exit("ci: the tests did not run to their end")
    ours = [one for one in tests if not one.startswith(OF_OTHERS)]
    if ours or len(tests) > MOST:
        sys.exit(f"ci: {len(tests)} failed: {' '.join(tests)}")
    print(f"ci: once more, alone: {' '.join(tests)}", flush=True)
    second = report.with_name(f"{report.stem}-again.xml")
    run = subprocess.run([sys.executable, "-m", "pytest", "-q", f"--junitxml={second}", *tests])
    if run.returncode:
        sys.exit(run.returncode)
    skipped = sum(one.find("skipped") is not None for one in ElementTree.parse(second).iter("testcase"))
    if skipped:
        sys.exit(f"ci: {skipped} skipped the second time")
    print(f"ci: FLAKY, passed only alone, find out why: {' '.join(tests)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
