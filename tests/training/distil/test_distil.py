"""A distillation is a run: events, a file, a report; stopped and resumed it gives the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sordino.errors import BadInput, ConfigError, DataError
from sordino.formats import read
from sordino.texts.example_store import Example
from sordino.training.events import Evaluated, RunEvent, Step, TextsRead, Validation
from sordino.training.execute import execute, read_lesson
from sordino.training.form import form_of
from sordino.training.gradient import Batch, losses_and_gradients
from sordino.training.job import check_job, job_from, stored_job
from sordino.training.judging import positions
from sordino.training.loop import train
from tests.training.distil.lessons import WORDS, small_base, small_job


@pytest.mark.parametrize("template", ["chat", "plain"])
def test_a_long_text_becomes_a_file_that_says_what_is_kept(template: str, tmp_path: Path) -> None:
    events: list[RunEvent] = []
    base = small_base()
    made = execute(small_job(tmp_path, template=template), base, on_event=events.append)
    assert made is not None
    assert made.report is not None
    assert made.report.distilled is not None
    (texts,) = [event for event in events if isinstance(event, TextsRead)]
    assert (texts.train + texts.validation + texts.heldout, texts.heldout) == (16, 2)
    assert len([event for event in events if isinstance(event, Step)]) == 4
    assert any(isinstance(event, Evaluated) for event in events)
    line = made.report.heldout.line
    soft, none, text = (line(kind).nll.value for kind in ("soft prompt", "no prompt", "instruction"))
    kept = made.report.distilled.kept
    assert kept is not None
    assert kept.value == pytest.approx((none - soft) / (none - text))
    assert made.report.distilled.text_tokens == len(base.encode(WORDS)) == line("instruction").tokens
    stored = read(made.file).metadata
    assert stored.heldout["distilled"]["kept"] == pytest.approx(kept.value, abs=1e-4)
    assert "of what the text does" in (made.folder / "report.html").read_text()


def test_it_learns(tmp_path: Path) -> None:
    """Far more steps than the text is worth: the student comes near to its teacher on what it was trained on."""
    made = execute(small_job(tmp_path, steps=60, continuations=40, lr=0.5), small_base())
    assert made is not None
    lines = [json.loads(line) for line in (made.folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "validation"]
    assert min(losses) < losses[0] - 0.02


def test_a_stopped_one_goes_on_to_the_same_prompt(tmp_path: Path) -> None:
    base = small_base()
    whole = execute(small_job(tmp_path, "whole"), base)
    asked = iter((False, True))
    assert execute(small_job(tmp_path, "cut"), base, should_stop=lambda: next(asked)) is None
    job = stored_job(tmp_path / "cut.run")
    assert job.distil == small_job(tmp_path, "cut").distil
    cut = execute(job, base, resume=True)
    assert whole is not None
    assert cut is not None
    assert cut.prompt.content_hash == whole.prompt.content_hash
    assert cut.prompt.metadata.heldout == whole.prompt.metadata.heldout


def test_a_kv_prompt_learns_too(tmp_path: Path) -> None:
    base, job = small_base(), small_job(tmp_path, kind="kv", steps=40, continuations=40)
    assert (job.config.kind, job.config.lr, job.config.context) == ("kv", 0.1, 0.0)
    prepared = read_lesson(job, base)
    losses = [event.loss for event in train(base, prepared.run(tmp_path)) if isinstance(event, Validation)]
    assert min(losses) < losses[0] - 0.02


@pytest.mark.parametrize("kind", ["embedding", "kv"])
def test_losses_and_gradients_of_soft_targets_do_not_depend_on_how_a_step_is_cut(kind: str, tmp_path: Path) -> None:
    base, job = small_base(dtype=torch.float64), small_job(tmp_path, kind=kind)
    prepared = read_lesson(job, base)
    form, examples = form_of(base, prepared.config), prepared.data.train[:4]
    soft = [example.soft for example in examples]
    assert None not in soft

    def loss(matrix_PW: torch.Tensor, batch: Sequence[Example], pass_tokens: int) -> float:
        return losses_and_gradients(base, [Batch(form.source(matrix_PW), batch)], pass_tokens)[0]

    found = []
    for pass_tokens in (10_000, 12):
        matrix_PW = prepared.start.matrix_PD.double().requires_grad_()
        found.append((torch.tensor(loss(matrix_PW, examples, pass_tokens)), matrix_PW.grad))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-7)
    hard = [replace(example, soft=None) for example in examples]
    assert abs(loss(prepared.start.matrix_PD.double().requires_grad_(), hard, 10_000) - float(found[0][0])) > 1e-3


def test_measuring_is_counted_and_can_be_left_out(tmp_path: Path) -> None:
    events: list[RunEvent] = []
    base, job = small_base(), small_job(tmp_path)
    prepared = read_lesson(job, base)
    judging = prepared.judging(4)
    costs = positions(judging, prepared.config, prepared.size)
    assert judging.measure is not None
    assert costs["heldout"] == judging.measure.positions > 0
    made = execute(small_job(tmp_path, "none", measure="none"), base, on_event=events.append)
    assert made is not None
    assert made.report is None
    assert not any(isinstance(event, Evaluated) for event in events)


def test_a_run_of_texts_has_nothing_of_it(tmp_path: Path) -> None:
    """Runs of older versions do not say whether they distil."""
    execute(small_job(tmp_path), small_base())
    settings = tmp_path / "v.run" / "settings.json"
    stored = json.loads(settings.read_text())
    del stored["distil"]
    settings.write_text(json.dumps(stored))
    assert job_from(tmp_path / "v.run", overwrite=False).distil is None


def test_what_cannot_be_done_is_refused_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match=r"expected NAME\.kv\.zip"):
        check_job(small_job(tmp_path, kind="kv"))
    check_job(small_job(tmp_path))
    with pytest.raises(DataError, match="no longer than the soft prompt"):
        execute(small_job(tmp_path, tokens=200), small_base())
    with pytest.raises(ConfigError, match="context"):
        execute(small_job(tmp_path, text=WORDS * 20), small_base())
    # A long text is not encoded once more with each opening.
    monkeypatch.setattr("sordino.training.distil.prepare.make_openings", lambda *_: pytest.fail("openings were made"))
    with pytest.raises(ConfigError, match=r"got \d+ BOS \+ \d+ text \+ 6 new"):
        execute(small_job(tmp_path, text=WORDS * 20), small_base())
    assert not (tmp_path / "v.run" / "teacher.jsonl").exists()
