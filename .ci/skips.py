"""Count the skipped tests of JUnit XML reports, and fail on a skip that is not on the list of allowed ones.

Otherwise a test that is skipped everywhere would go unnoticed. Usage: skips.py ALLOWED REPORT...
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from fnmatch import fnmatchcase
from pathlib import Path


def allowed_patterns(path: Path) -> list[str]:
    """The first word of each line: a pattern for `module::test`, or `reason:` and a pattern for the reason of the skip.

    The rest of the line says why; it is required.
    """
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip() and line[0] != "#"]
    unreasoned = [line for line in lines if len(line.split(maxsplit=1)) < 2]
    if unreasoned:
        sys.exit(f"error: {path}: no reason given for {', '.join(unreasoned)}")
    return [line.split()[0] for line in lines]


def skipped(report: Path) -> list[tuple[str, str]]:
    """(`package.module::test`, reason) of each skipped test. Expected failures do not count."""
    found = []
    for case in ElementTree.parse(report).iter("testcase"):
        mark = case.find("skipped")
        if mark is not None and mark.get("type") != "pytest.xfail":
            found.append((f"{case.get('classname')}::{case.get('name')}", mark.get("message", "")))
    return found


def is_allowed(test: str, reason: str, patterns: list[str]) -> bool:
    return any(fnmatchcase(test, pattern) or fnmatchcase(f"reason:{reason}", pattern) for pattern in patterns)


def main(allowed: Path, reports: list[Path]) -> None:
    patterns = allowed_patterns(allowed)
    skips = [skip for report in reports for skip in skipped(report)]
    unexpected = [skip for skip in skips if not is_allowed(*skip, patterns)]
    print(f"skipped tests: {len(skips)}, of which not on {allowed}: {len(unexpected)}")
    for test, reason in skips:
        print(f"  {'NOT ALLOWED ' if (test, reason) in unexpected else ''}{test}: {reason}")
    sys.exit(1 if unexpected else 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
