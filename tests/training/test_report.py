"""The report of a run: complete, whole in one file, and safe to open whatever the texts say."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from sordino import storage
from sordino.errors import StorageError, TrainingError
from sordino.evaluation.conditions import Kind
from sordino.evaluation.confidence import Estimate
from sordino.evaluation.distance_report import DistanceLine, DistanceReport
from sordino.evaluation.report import ConditionLine
from sordino.prompts.soft_prompt import BaseRef, Metadata, SoftPrompt
from sordino.training import report as report_module
from sordino.training.events import METRICS, Sample, Step, Validation
from sordino.training.report import RESULTS, InspectionTable, RunReport, read_events, write_report

EVIL = '"><script src="//evil.example/x.js"></script>\u202e $\\frac{1}{0}$ {{ 7 * 7 }}'
PROMPT = SoftPrompt(
    np.ones((3, 8), dtype=np.float32),
    Metadata(
        name="The Keeper",
        description="Fog and oil",
        author="Ines",
        base=BaseRef(id="org/small"),
        training={"steps": 40, "init": "an excerpt"},
    ),
)
EVENTS = (
    Validation(0, 4.5, best=True),
    *(Step(n, 4.5 - n / 50, 0.25, 1.0, 100, 0.5) for n in range(1, 41)),
    Sample(20, "At dusk", " it was fine."),
    Sample(40, "At dusk", " Herself was lit."),
    Validation(40, 3.9, best=True),
)
EXCERPT = "64 tokens of the training text"


def line(kind: Kind, label: str, tokens: int, nll: Estimate, bits: float, over: Estimate) -> ConditionLine:
    return ConditionLine(kind, label, tokens, nll, bits, {"keeper": over})


FULL = RunReport(
    PROMPT,
    EVENTS,
    nearest=[[(" lamp", 0.912), ("\n", 0.5)], [(" oil", 0.75)], [(" ", 0.25)]],
    heldout=[
        ConditionLine("soft prompt", "keeper", 3, Estimate(3.912, (3.8, 4.0)), 1.201, {}),
        line("no prompt", "no prompt", 0, Estimate(4.512, (4.4, 4.6)), 1.401, Estimate(0.6, (0.5, 0.7))),
        line("instruction", "Write as a keeper", 5, Estimate(4.4, None), 1.3, Estimate(0.488, None)),
        line("excerpt", EXCERPT, 64, Estimate(4.1, (4.0, 4.2)), 1.25, Estimate(0.188, (0.1, 0.3))),
    ],
    verdicts=["These 3 vectors are worth 143 tokens of real text."],
    samples=[{"prompt": "The door", "with": " was Herself's.", "without": " was open."}],
    disclosure=["its name: The Keeper"],
    notes=["split by file"],
)


class Page(HTMLParser):
    """The tags with their attributes, and the text as a reader sees it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.shown = ""
        self._hidden = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._hidden = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._hidden = False

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.shown += data


def written(folder: Path, report: RunReport) -> Page:
    write_report(folder, report)
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_programs_get_the_same_results(tmp_path: Path) -> None:
    write_report(tmp_path, FULL)
    results = json.loads((tmp_path / RESULTS).read_bytes())
    assert results["verdicts"] == FULL.verdicts
    assert results["heldout"][0] == {
        "kind": "soft prompt",
        "label": "keeper",
        "tokens": 3,
        "nll": 3.912,
        "bits_per_byte": 1.201,
        "interval": [3.8, 4.0],
        "difference": None,
        "difference_interval": None,
    }
    assert [(one["kind"], one["nll"], one["difference"]) for one in results["heldout"][1:]] == [
        ("no prompt", 4.512, 0.6),
        ("instruction", 4.4, 0.488),
        ("excerpt", 4.1, 0.188),
    ]
    assert results["heldout"][1]["difference_interval"] == [0.5, 0.7]
    assert (results["distance"], results["samples"], results["notes"]) == (None, FULL.samples, ["split by file"])


def test_it_shows_everything(tmp_path: Path) -> None:
    page = written(tmp_path, FULL)
    for said in (
        "The Keeper",
        "Fog and oil",
        "3 virtual tokens of 8 numbers, for org/small, by Ines",
        "3.912",
        "[3.800, 4.000]",
        "+0.600",
        "[+0.500, +0.700]",
        "1.401",
        "“Write as a keeper”",
        EXCERPT,
        "worth 143 tokens",
        "The door was open.",
        "The door was Herself's.",
        "step 20",
        "At dusk Herself was lit.",
        "lamp 0.91",
        "⏎ 0.50",
        "␣ 0.25",
        "an excerpt",
        "split by file",
        "its name: The Keeper",
    ):
        assert said in page.shown, said
    assert page.shown.index("step 20") < page.shown.index("step 40")


def test_gains_behind_other_text_have_a_table_and_a_picture(tmp_path: Path) -> None:
    gains = {0: Estimate(0.452, (0.4, 0.5)), 256: Estimate(0.309, (0.2, 0.4))}
    near = DistanceLine("foreign", "", "soft prompt", "<b>", 128, False, 20, gains, {256: Estimate(0.684, (0.5, 0.8))})
    report = replace(FULL, distance=DistanceReport((0, 256), 768, 2, "piece", 9, (near,), ()))
    page = written(tmp_path, report)
    for said in (
        "After other text",
        "soft prompt <b>, held from 128",
        "+0.452",
        "+0.309",
        "68%",
        "[50%, 80%]",
        "768 held-out tokens",
    ):
        assert said in page.shown, said
    assert "After other text" not in written(tmp_path, FULL).shown


def test_the_page_is_whole_and_fetches_nothing(tmp_path: Path) -> None:
    page = written(tmp_path, FULL)
    assert {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "a", "form", "base"} == set()
    assert [attrs["src"][:22] for _, attrs in page.tags if attrs.get("src")] == ["data:image/png;base64,"]
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"url\(|@import|https?:|src=.?//", text)
    assert "default-src 'none'" in text


def test_the_picture_is_the_one_in_the_page(tmp_path: Path) -> None:
    from base64 import b64decode

    page = written(tmp_path, FULL)
    picture = (tmp_path / "report.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n")
    (shown,) = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
    assert b64decode(shown.partition(",")[2]) == picture
    written(tmp_path, FULL)
    assert (tmp_path / "report.png").read_bytes() == picture


def test_the_picture_shows_the_numbers(tmp_path: Path) -> None:
    """Read off the drawing itself: the curves' data, the dots, the intervals."""
    loss, rate, heldout = report_module._figure(FULL).axes
    curves = {curve.get_label(): curve.get_xydata().tolist() for curve in loss.lines}
    assert curves["validation"] == [[0, 4.5], [40, 3.9]]
    assert curves["kept: step 40"] == [[40, 3.9]]
    assert len(curves["training, running mean"]) == 40
    assert set(rate.lines[0].get_ydata()) == {0.25}
    assert [label.get_text().split("\n")[0] for label in heldout.get_yticklabels()] == [
        "soft prompt",
        "real excerpt,",
        "an instruction",
        "nothing in front",
    ]
    assert [mark.get_xdata().tolist() for mark in heldout.lines[:2]] == [[3.8, 4.0], [3.912]]


def test_what_files_say_stays_text(tmp_path: Path) -> None:
    """In every place that a text from outside can reach."""
    known = replace(PROMPT.metadata, name=EVIL, author=EVIL, description=EVIL, licence=EVIL, created=EVIL)
    known = replace(known, base=BaseRef(id=EVIL), training={EVIL: EVIL, "list": [EVIL], "bad": "\ud800"})
    page = written(
        tmp_path,
        RunReport(
            SoftPrompt(PROMPT.matrix, known),
            [*EVENTS, Sample(40, EVIL, EVIL)],
            nearest=[[(EVIL, 0.5)]],
            inside=InspectionTable(b"", [EVIL], [EVIL], [[EVIL]]),
            heldout=[replace(condition, label=EVIL) for condition in FULL.heldout],
            verdicts=[EVIL],
            samples=[{"prompt": EVIL, "with": EVIL, "without": EVIL}],
            disclosure=[EVIL],
            notes=[EVIL],
        ),
    )
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.shown.count("<script") >= 23
    assert "{{ 7 * 7 }}" in page.shown


def test_a_bare_run_has_a_report_too(tmp_path: Path) -> None:
    """No validation set, no held-out texts, no samples, one step, a soft prompt that says nothing about itself."""
    prompt = SoftPrompt(PROMPT.matrix)
    page = written(tmp_path, RunReport(prompt, [Step(1, 4.5, 0.1, 1.0, 10, 0.5)], nearest=[]))
    assert "A soft prompt" in page.shown
    assert "With and without" not in page.shown
    write_report(tmp_path, RunReport(prompt, [], nearest=[]))


def test_events_are_read_back(tmp_path: Path) -> None:
    lines = [json.dumps({"kind": type(event).__name__.lower(), **asdict(event)}) for event in EVENTS]
    (tmp_path / METRICS).write_text("\n".join(lines) + "\n")
    assert read_events(tmp_path) == list(EVENTS)


@pytest.mark.parametrize("text", [None, "{", "[]", '{"kind": "party"}', '{"kind": "step", "loss": 1}', b"\xff"])
def test_broken_metrics_are_our_error(tmp_path: Path, text: str | bytes | None) -> None:
    if text is not None:
        (tmp_path / METRICS).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(TrainingError, match=METRICS):
        read_events(tmp_path)


def test_a_full_disk_keeps_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_report(tmp_path, FULL)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.os, "replace", full)
    with pytest.raises(StorageError):
        write_report(tmp_path, replace(FULL, notes=["another"]))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
