"""The metrics of a server that runs for months."""

from __future__ import annotations

from sordino.server import metrics
from sordino.server.metrics import OTHERS, ServerMetrics


def counted(page: str) -> dict[str, float]:
    lines = (line for line in page.splitlines() if line.startswith("sordino_soft_prompt_requests_total"))
    pairs = (line.rsplit(" ", 1) for line in lines)
    return {label.split('"')[1]: float(count) for label, count in pairs}


def test_names_without_end_do_not_make_labels_without_end() -> None:
    counters = ServerMetrics()
    most = metrics._MOST_NAMES
    for number in range(most + 50):
        counters.count_prompt(f"voice {number}")
    counters.count_prompt("voice 3")
    counters.count_prompt(f"voice {most + 3}")
    found = counted(counters.scrape().decode())
    assert len(found) == most + 1
    assert (found["voice 3"], found[OTHERS]) == (2, 51)
    assert sum(found.values()) == most + 52
