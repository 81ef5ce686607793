"""What a run leaves besides the soft prompt, and that the soft prompt survives what goes wrong with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sordino import formats
from sordino.errors import BadInput, DataError, OutOfMemory
from sordino.evaluation.analysis.inspection import ATTENTION_WINDOWS, TARGETS, affordable
from sordino.evaluation.config import DistanceConfig
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from sordino.training import execute, result
from sordino.training.checkpoint import FILE
from sordino.training.config import TextPaths, TrainConfig
from sordino.training.events import HTML, Evaluated, OnEvent, RunEvent, Step, Warned, Working, nobody
from sordino.training.execute import follow, read_texts
from sordino.training.job import Job, stored_job
from sordino.training.judging import INSPECTION_POSITIONS, Judging, RunSize, judging_of
from sordino.training.result import TrainResult, measured_result, sample_pairs
from tests.training.runs import days, write_texts

CONFIG = TrainConfig(
    tokens=4, steps=4, batch=2, row_tokens=32, init="vocab", sample_tokens=4, validation_tokens=64, patience=0
)
USUAL = judging_of(replace(CONFIG, measure="full"), RunSize(4, 68, 500, 256))
QUICK = replace(
    USUAL,
    config=replace(USUAL.config, row_tokens=32, limit=128, excerpt_tokens=(8, 16), resamples=100),
    parts=USUAL.parts - {"off_domain"},
)
# And after eight tokens of other text.
REACHING = replace(
    QUICK,
    config=replace(QUICK.config, distance=DistanceConfig((0, 8), ("foreign",), row_tokens=16, limit=64, parts=1)),
    parts=USUAL.parts | {"distance"},
)


def job_in(folder: Path, **changes: Any) -> Job:
    texts = TextPaths((write_texts(folder / "texts", days()),))
    return Job(texts, folder / "v.zip", "tiny", Metadata(name="v"), CONFIG, **changes)


def executed(job: Job, base: Any, on_event: OnEvent = nobody, judging: Judging = QUICK) -> TrainResult:
    made = follow(job, read_texts(job, base), judging=judging, on_event=on_event)
    assert made is not None
    return made


def warnings_of(job: Job, base: Any) -> str:
    events: list[RunEvent] = []
    executed(job, base, events.append)
    return "; ".join(event.message for event in events if isinstance(event, Warned))


def test_a_run_leaves_a_measured_file_and_a_report(tmp_path: Path, base: Any) -> None:
    job = job_in(tmp_path)
    events: list[RunEvent] = []
    made = executed(job, base, events.append)
    stored = formats.read(job.out)
    assert stored.content_hash == made.prompt.content_hash
    assert (made.file, made.folder) == (job.out, job.folder)
    assert [event.report for event in events if isinstance(event, Evaluated)] == [made.report]
    assert stored.metadata.heldout["tokens"] > 0
    assert len(stored.metadata.samples) == 1
    page = (job.folder / "report.html").read_text(encoding="utf-8")
    assert "16 tokens of the training text" in page
    assert "The voice arriving" in page
    for part in (
        "loss if left out",
        "percentile of words",
        "On the held-out texts",
        "of their attention",
        "Of each virtual token",
    ):
        assert part in page, part


@pytest.mark.parametrize("kind", ["embedding", "kv"])
def test_the_report_says_what_is_left_behind_other_text(tmp_path: Path, base: Any, kind: Any) -> None:
    job = job_in(tmp_path)
    job = replace(
        job, config=replace(job.config, kind=kind, lr=0.1), out=tmp_path / ("v.kv.zip" if kind == "kv" else "v.zip")
    )
    made = executed(job, base, judging=REACHING)
    assert made.report is not None
    assert made.report.distance is not None
    assert {tuple(line.gains) for line in made.report.distance.lines} == {(0, 8)}
    assert [line.hold for line in made.report.distance.lines if line.kind == "soft prompt"] == [128, None]
    page = (job.folder / HTML).read_text(encoding="utf-8")
    assert "After other text" in page
    assert "held from 128" in page


def test_trouble_behind_other_text_costs_no_other_number(tmp_path: Path, base: Any) -> None:
    far = replace(REACHING, config=replace(REACHING.config, distance=DistanceConfig((0, 9999), ("foreign",))))
    job, events = job_in(tmp_path), list[RunEvent]()
    made = executed(job, base, events.append, far)
    warned = [event.message for event in events if isinstance(event, Warned)]
    assert (
        len([line for line in warned if line.startswith("it is not known what other text leaves of the gain: ")]) == 1
    )
    assert made.report is not None
    assert made.report.distance is None
    assert formats.read(job.out).metadata.heldout["tokens"] > 0


def test_no_samples_keeps_them_out_of_the_file_only(tmp_path: Path, base: Any) -> None:
    job = job_in(tmp_path, samples=False)
    executed(job, base)
    assert formats.read(job.out).metadata.samples == ()
    assert "With and without" in (job.folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("trouble", [DataError("the held-out texts are too short"), KeyboardInterrupt()])
def test_trouble_in_measuring_does_not_cost_the_soft_prompt(tmp_path, base, monkeypatch, trouble) -> None:
    def fail(*_: object, **__: object) -> None:
        raise trouble

    monkeypatch.setattr(result, "evaluate", fail)
    job = job_in(tmp_path)
    assert "held-out results" in warnings_of(job, base)
    assert formats.read(job.out).metadata.heldout == {}


@pytest.mark.parametrize("trouble", [OutOfMemory("memory ran out in measuring"), KeyboardInterrupt()])
def test_trouble_in_looking_inside_does_not_cost_the_report(tmp_path, base, monkeypatch, trouble) -> None:
    def fail(*_: object, **__: object) -> None:
        raise trouble

    monkeypatch.setattr(result, "depth_of", fail)
    job = job_in(tmp_path)
    assert "inspection" in warnings_of(job, base)
    page = (job.folder / "report.html").read_text(encoding="utf-8")
    assert "nearest words" in page
    assert "loss if left out" not in page


@pytest.mark.parametrize("tokens", [1, 20, 40])
def test_a_look_inside_is_a_small_part_of_a_five_minute_run(tokens: int) -> None:
    targets, row = affordable(tokens, INSPECTION_POSITIONS), QUICK.config.row_tokens
    read = (tokens + 2) * (tokens + targets)
    looked_at = min(ATTENTION_WINDOWS, -(-targets // row)) * (tokens + row)
    steps = 5 * 60 / 2.8
    forward_and_back = 2 * steps * 4 * 128
    assert targets >= TARGETS[0]
    assert (read + looked_at) / forward_and_back < 0.05


@pytest.mark.parametrize("tokens", [60, 2000])
def test_what_a_long_prompt_has_inside_is_left_to_inspect(tokens: int) -> None:
    assert affordable(tokens, INSPECTION_POSITIONS) == 0


def test_the_report_on_a_long_prompt_says_what_was_not_measured(tmp_path: Path, base: Any) -> None:
    job = job_in(tmp_path)
    executed(job, base, judging=replace(QUICK, inspection=100))
    page = (job.folder / "report.html").read_text(encoding="utf-8")
    assert "was not measured" in page
    assert "percentile of words" in page
    assert "loss if left out" not in page


def test_trouble_with_the_samples_does_not_cost_the_soft_prompt(tmp_path, base, monkeypatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OutOfMemory("memory ran out in writing")

    monkeypatch.setattr(result, "complete", fail)
    job = job_in(tmp_path)
    assert "there are no samples: memory ran out" in warnings_of(job, base)
    assert formats.read(job.out).metadata.samples == ()


def test_nothing_held_out_is_nothing_measured() -> None:
    prepared: Any = SimpleNamespace(splits=SimpleNamespace(heldout=()))
    assert measured_result(prepared, SoftPrompt(np.ones((1, 2), dtype=np.float32)), QUICK, nobody) is None


def test_a_file_that_appears_while_training_is_not_overwritten(tmp_path, base, monkeypatch) -> None:
    job = job_in(tmp_path)
    train = execute._train

    def meanwhile(*arguments: Any, **more: Any) -> Any:
        job.out.write_text("mine")
        return train(*arguments, **more)

    monkeypatch.setattr(execute, "_train", meanwhile)
    with pytest.raises(BadInput, match="--resume"):
        executed(job, base)
    assert job.out.read_text() == "mine"


def test_a_new_run_is_not_confused_by_an_old_checkpoint(tmp_path, base, monkeypatch) -> None:
    """Killed before its first checkpoint, it would otherwise be resumed from the older run's."""
    job = job_in(tmp_path)
    job.folder.mkdir()
    (job.folder / FILE).write_text("of an older run")

    def killed(*_: object, **__: object) -> None:
        raise SystemExit(9)

    monkeypatch.setattr(execute, "_train", killed)
    with pytest.raises(SystemExit):
        executed(job, base)
    assert not (job.folder / FILE).exists()


def test_an_empty_text_has_no_continuation_without_a_bos(base: Any) -> None:
    """With the soft prompt there is something to begin from; without it, on this model, there is not."""
    prompt = SoftPrompt(np.ones((2, base.d_model), dtype=np.float32))
    (empty, given) = sample_pairs(base, prompt, ["", "The"], seed=0, tokens=3)
    assert empty["without"] == ""
    assert all((empty["with"], given["with"], given["without"]))


def _interrupting(kind: str, times: int) -> tuple[list[str], OnEvent]:
    """Ctrl-C at the first `times` events of the measuring from the first one of a kind on."""
    raised: list[str] = []

    def on_event(event: RunEvent) -> None:
        name = event.what if isinstance(event, Working) else type(event).__name__
        if (raised or name == kind) and len(raised) < times:
            raised.append(name)
            raise KeyboardInterrupt

    return raised, on_event


@pytest.mark.parametrize(
    ("kind", "lacks"),
    [
        ("Measuring: samples", {"samples", "heldout", "inside"}),
        ("Measuring: held-out texts", {"heldout", "inside"}),
        ("Measuring: each virtual token", {"inside"}),
    ],
)
def test_an_interrupt_ends_the_measuring_and_keeps_what_was_found(
    tmp_path: Path, base: Any, kind: str, lacks: set[str]
) -> None:
    job = job_in(tmp_path)
    raised, on_event = _interrupting(kind, 1)
    made = executed(job, base, on_event)
    assert raised == [kind]
    stored = formats.read(job.out).metadata
    page = (job.folder / HTML).read_text(encoding="utf-8")
    assert (not stored.samples, not stored.heldout, "loss if left out" not in page) == tuple(
        part in lacks for part in ("samples", "heldout", "inside")
    )
    assert made.prompt.metadata == stored


@pytest.mark.parametrize(
    "kind", ["Measuring: samples", "Measuring: held-out texts", "Evaluated", "Disclosed", "PromptWritten"]
)
def test_a_second_interrupt_ends_the_run_and_the_file_is_there(tmp_path: Path, base: Any, kind: str) -> None:
    job = job_in(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        executed(job, base, _interrupting(kind, 2)[1])
    written = formats.read(job.out)
    assert written.n_tokens == 4
    # It goes on to the report without --overwrite: the file is its own.
    events: list[RunEvent] = []
    again = stored_job(job.folder)
    made = follow(again, read_texts(again, base), judging=QUICK, resume=True, on_event=events.append)
    assert made is not None
    assert made.prompt.content_hash == written.content_hash
    assert formats.read(job.out).metadata.heldout["tokens"] > 0
    assert not any(isinstance(event, Step) for event in events)


def test_the_measuring_has_one_bar_that_never_goes_back(tmp_path: Path, base: Any) -> None:
    events: list[RunEvent] = []
    executed(job_in(tmp_path), base, events.append, REACHING)
    bar = [event for event in events if isinstance(event, Working) and event.what.startswith("Measuring: ")]
    names = list(dict.fromkeys(event.what.removeprefix("Measuring: ") for event in bar))
    assert names == [
        "samples", "held-out texts", "a text in another voice", "after other text", "each virtual token"
    ]  # fmt: skip
    assert len({event.total for event in bar}) == 1
    done = [event.done for event in bar]
    assert done == sorted(done)
    assert done[-1] == bar[0].total


def test_nothing_is_measured_where_nobody_wants_it(tmp_path: Path, base: Any) -> None:
    job = job_in(tmp_path)
    job = replace(job, config=replace(job.config, measure="none", hold=0))
    events: list[RunEvent] = []
    made = follow(job, read_texts(job, base), on_event=events.append)
    assert made is not None
    assert made.report is None
    assert not any(isinstance(event, Evaluated | Warned) for event in events)
    assert not any(isinstance(event, Working) and event.total for event in events)
    assert formats.read(job.out).metadata.heldout == {}
    assert (job.folder / HTML).is_file()
    assert "measure" not in made.prompt.metadata.training
