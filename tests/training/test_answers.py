"""The model's own answers among a run's rows: which runs have them, what they are, what a step learns, and that they stay."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sordino.engine.generate import DrawnText
from sordino.errors import ConfigError, DataError, TrainingError
from sordino.models.base_model import BaseModel
from sordino.models.chat_template import end_of_turn
from sordino.prompts.soft_prompt import Metadata
from sordino.training import answers as answers_module
from sordino.training import run as run_module
from sordino.training.answers import FILE, QUESTIONS, WORK, Questions, check_answers, own_answers, stand_ins
from sordino.training.config import TextPaths, TrainConfig
from sordino.training.contexts import neutral_ids
from sordino.training.events import RunEvent, Working
from sordino.training.execute import answered, dry_run, execute, find_learning_rate, follow
from sordino.training.group import execute_group, new_group, stored_group
from sordino.training.job import Job, stored_job
from sordino.training.loop import train
from sordino.training.members import GroupMember
from sordino.training.run import estimate, prepare
from sordino.training.schedule import answer_rows
from sordino.training.strategy import SINGLE_PROCESS, Strategy
from sordino.training.sweep.execute import Sweep, execute_sweep
from sordino.training.sweep.grid import Spec
from tests.training.gloo_processes import gloo
from tests.training.runs import days, loss_alone, small_base, write_texts

# The tiny model's questions take up to 64 tokens.
ROW = 96
CONFIG = TrainConfig(
    kind="kv",
    tokens=4,
    steps=4,
    batch=2,
    row_tokens=ROW,
    answers=0.5,
    init="vocab",
    sample_tokens=4,
    validation_tokens=64,
    measure="none",
)
OFF = replace(CONFIG, answers=TrainConfig.answers)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return write_texts(tmp_path / "texts", days())


@pytest.fixture
def writings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of requests that answers were written to, a number each time."""
    found: list[int] = []
    draw = answers_module.draw

    def counted(base: BaseModel, requests: Any, *arguments: Any, **keywords: Any) -> Any:
        found.append(len(requests))
        return draw(base, requests, *arguments, **keywords)

    monkeypatch.setattr(answers_module, "draw", counted)
    return found


def job_of(texts: Path, name: str = "v", **settings: Any) -> Job:
    config = replace(CONFIG, **settings)
    return Job(TextPaths((texts,)), texts.with_name(f"{name}.kv.zip"), "tiny", Metadata(name=name), config)


@torch.no_grad()
def likeliest_words(base: BaseModel, ids: tuple[int, ...], most: int) -> tuple[int, ...]:
    """What transformers' own logits give: at most so many words, the end of the turn among them."""
    written: tuple[int, ...] = ()
    while len(written) < most and not set(written) & base.stop_ids:
        logits = base.network(input_ids=torch.tensor([[*base.bos_ids, *ids, *written]])).logits
        written += (int(logits[0, -1].argmax()),)
    end = end_of_turn(base)
    assert end is not None
    return tuple(end if word in base.stop_ids else word for word in written)


def template_of(base: BaseModel, template: str | None) -> BaseModel:
    made = small_base()
    made.tokenizer.chat_template = template
    return made


def test_they_are_off_unless_they_are_asked_for(base: BaseModel) -> None:
    check_answers(base, OFF)
    assert stand_ins(base, OFF) == []
    check_answers(base, CONFIG)
    assert len(stand_ins(base, CONFIG)) == QUESTIONS


@pytest.mark.parametrize("template", [None, "{{ raise_exception('no users') }}"])
def test_a_model_that_cannot_be_asked_gives_none(base: BaseModel, template: str | None) -> None:
    mute = template_of(base, template)
    check_answers(mute, OFF)
    with pytest.raises(ConfigError, match=r"--answers: the model has no chat template"):
        check_answers(mute, CONFIG)


def test_encoder_decoders_give_none() -> None:
    base = small_base("t5")
    check_answers(base, replace(OFF, kind="embedding"))
    with pytest.raises(ConfigError, match="--answers"):
        check_answers(base, replace(CONFIG, kind="embedding"))


def test_answers_that_have_no_room_are_refused(base: BaseModel) -> None:
    with pytest.raises(
        ConfigError, match=r"--answers: the model's answers do not fit into the rows; got --row-tokens 66"
    ):
        check_answers(base, replace(CONFIG, row_tokens=66))


@pytest.mark.parametrize(
    ("share", "batch", "rows"), [(0.5, 4, 2), (0.5, 2, 1), (0.5, 1, 1), (0.1, 4, 1), (2, 3, 6), (0, 4, 0)]
)
def test_a_share_is_of_the_rows_of_texts(share: float, batch: int, rows: int) -> None:
    assert answer_rows(replace(CONFIG, answers=share, batch=batch)) == rows


def test_the_answers_are_the_models_own_greedy_ones(base: BaseModel, tmp_path: Path) -> None:
    made = own_answers(base, ROW, tmp_path, resume=False, on_event=lambda event: None, strategy=SINGLE_PROCESS)
    asked = Questions.of(base)
    assert asked is not None
    room = asked.room(ROW)
    assert 0 < len(made) <= QUESTIONS
    for example in made[:6]:
        before = example.labelled.index(True)
        answer = example.ids[before:]
        assert example.ids[:before] == asked.ids[example.piece]
        assert all(example.labelled[before:])
        # An answer that was cut short has no end.
        assert answer == likeliest_words(base, example.ids[:before], room)
        assert len(example.ids) <= ROW
    lines = [json.loads(line) for line in (tmp_path / FILE).read_text(encoding="utf-8").splitlines()]
    assert [line["question"] for line in lines] == [example.piece for example in made]
    again = own_answers(base, ROW, tmp_path, resume=True, on_event=lambda event: None, strategy=SINGLE_PROCESS)
    assert again == made


def test_a_model_that_says_nothing_is_refused(base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    silent = Questions({"Hello": (7, 8)}, None)
    monkeypatch.setattr(Questions, "of", lambda base: silent)
    monkeypatch.setattr(answers_module, "draw", lambda *a, **k: [DrawnText((), ended=True)])
    with pytest.raises(DataError, match="--answers off"):
        own_answers(base, ROW, tmp_path, resume=False, on_event=lambda event: None, strategy=SINGLE_PROCESS)
    assert not (tmp_path / FILE).exists()


def test_a_step_learns_texts_and_answers_as_one_batch(base: BaseModel, texts: Path, tmp_path: Path) -> None:
    """The loss is the mean over all labelled tokens of both, behind one prefix."""
    prepared = prepare(base, CONFIG, TextPaths((texts,)))
    (full,) = answered([prepared], tmp_path, resume=False, strategy=SINGLE_PROCESS)
    config = full.config
    member = GroupMember(base, full.run(tmp_path), neutral_ids(base))
    for step in range(3):
        batch = member.batch(step)
        own, beside = batch.examples[: config.batch], batch.examples[config.batch :]
        assert [one in prepared.data.train for one in own] == [True] * config.batch
        assert [one in full.data.answers for one in beside] == [True] * answer_rows(config)
        parts = [replace(member.batch(step), examples=part) for part in (own, beside)]
        together = loss_alone(base, batch)
        expected = sum(loss_alone(base, part) * part.labelled for part in parts) / batch.labelled
        assert together == pytest.approx(expected, rel=1e-5)


def test_a_run_without_its_answers_does_not_begin(base: BaseModel, texts: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="answers"):
        next(iter(train(base, prepare(base, CONFIG, TextPaths((texts,))).run(tmp_path))))


def test_a_run_writes_them_once_before_its_first_step_and_goes_on_with_them(
    base: BaseModel, texts: Path, writings: list[int]
) -> None:
    events: list[RunEvent] = []
    whole = execute(job_of(texts, "whole"), base, on_event=events.append)
    assert whole is not None
    assert whole.prompt.metadata.training["answers"] == CONFIG.answers
    names = [event.what if isinstance(event, Working) else type(event).__name__ for event in events]
    waits = [
        event for event in events if isinstance(event, Working) and event.what == "The model answers 48 questions first"
    ]
    assert (waits[0].done, waits[-1].done, waits[-1].total) == (0, QUESTIONS, QUESTIONS)
    assert names.index("Cost") < names.index(waits[0].what) < names.index("Started") < names.index("Step")
    assert waits[0].what not in names[names.index("Started") :]
    asked = iter((False, True))
    assert execute(job_of(texts, "cut"), base, should_stop=lambda: next(asked)) is None
    assert writings == [QUESTIONS, QUESTIONS]
    cut = execute(stored_job(texts.with_name("cut.kv.run")), base, resume=True)
    assert cut is not None
    assert cut.prompt.content_hash == whole.prompt.content_hash
    assert writings == [QUESTIONS, QUESTIONS]
    without = execute(job_of(texts, "without", answers=0), base)
    assert without is not None
    assert without.prompt.content_hash != whole.prompt.content_hash


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_text("{"), lambda file: file.write_text("")])
def test_a_run_does_not_go_on_without_its_answers(base: BaseModel, texts: Path, damage: Callable[[Path], Any]) -> None:
    asked = iter((False, True))
    execute(job_of(texts), base, should_stop=lambda: next(asked))
    folder = texts.with_name("v.kv.run")
    damage(folder / FILE)
    with pytest.raises(TrainingError, match="answers"):
        execute(stored_job(folder), base, resume=True)


def test_a_run_does_not_go_on_with_other_answers(base: BaseModel, texts: Path) -> None:
    asked = iter((False, True))
    execute(job_of(texts), base, should_stop=lambda: next(asked))
    folder = texts.with_name("v.kv.run")
    first, *others = (folder / FILE).read_text().splitlines(keepends=True)
    (folder / FILE).write_text("".join([*others, first]))
    with pytest.raises(TrainingError, match="the set of answers is not the one that this run began with"):
        execute(stored_job(folder), base, resume=True)


def test_a_run_from_before_answers_goes_on_without(base: BaseModel, texts: Path, writings: list[int]) -> None:
    asked = iter((False, True))
    execute(job_of(texts, answers=0), base, should_stop=lambda: next(asked))
    folder = texts.with_name("v.kv.run")
    stored = json.loads((folder / "settings.json").read_bytes())
    del stored["config"]["answers"]
    (folder / "settings.json").write_text(json.dumps(stored))
    made = execute(stored_job(folder), base, resume=True)
    assert made is not None
    assert made.prompt.metadata.training["answers"] == 0
    assert writings == []


def test_runs_of_a_group_share_them(base: BaseModel, texts: Path, writings: list[int]) -> None:
    named = {"a": texts, "b": texts}

    def group(folder: str) -> Any:
        (texts.parent / folder).mkdir()
        return new_group(job_of(texts), named, texts.parent / folder)

    whole = execute_group(group("whole"), base)
    asked = iter((False, True))
    cut = group("cut")
    assert execute_group(cut, base, should_stop=lambda: next(asked)) is None
    assert (cut.folder / FILE).is_file()
    resumed = execute_group(stored_group(cut.folder), base, resume=True)
    assert whole is not None
    assert resumed is not None
    hashes = [{name: made.prompt.content_hash for name, made in results.items()} for results in (whole, resumed)]
    assert hashes[0] == hashes[1]
    assert writings == [QUESTIONS, QUESTIONS]


def test_runs_of_a_sweep_share_them(base: BaseModel, texts: Path, writings: list[int]) -> None:
    rest = replace(CONFIG, kind="embedding", steps=8, batch=1)
    spec = Spec(("tiny",), ("embedding", "kv"), (2,), (None, 0.2), ("vocab",), ("plain",), (0,), rest, full=True)

    def swept(folder: str, **options: Any) -> dict[str, float]:
        sweep = Sweep(spec, TextPaths((texts,)), texts.parent / folder)
        result = execute_sweep(sweep, lambda model: base, **options)
        return {} if result is None else {run.name: run.heldout.nll for run in result.models[0].runs if run.heldout}

    whole = swept("whole")
    assert writings == [QUESTIONS]
    asked = iter([False] * 3 + [True])
    assert swept("cut", should_stop=lambda: next(asked)) == {}
    assert swept("cut", resume=True) == whole
    assert writings == [QUESTIONS, QUESTIONS]


def test_the_estimate_counts_them_before_they_are_written(
    base: BaseModel, texts: Path, monkeypatch: pytest.MonkeyPatch, writings: list[int]
) -> None:
    seen: list[int] = []
    step = run_module.losses_and_gradients

    def counted(base: BaseModel, batches: Any, *arguments: Any) -> Any:
        seen.append(len(batches[0].examples))
        return step(base, batches, *arguments)

    monkeypatch.setattr(run_module, "losses_and_gradients", counted)
    events: list[RunEvent] = []
    dry_run(job_of(texts), base, on_event=events.append)
    assert set(seen) == {CONFIG.batch + 1}
    assert (writings, list(texts.parent.iterdir())) == ([], [texts])
    monkeypatch.setattr(run_module, "_measured_seconds", lambda runs, strategy: (2.0, 10.0))
    prepared = [
        prepare(base, replace(CONFIG, sample_every=99, **off), TextPaths((texts,))) for off in ({}, {"answers": 0})
    ]
    costs = [estimate([one]).seconds for one in prepared]
    assert costs[0] - costs[1] == pytest.approx(WORK / prepared[0].size.step_work * 2.0)
    assert prepared[0].size.step_positions > prepared[1].size.step_positions + 64


def test_a_learning_rate_is_found_without_them(base: BaseModel, texts: Path, writings: list[int]) -> None:
    find_learning_rate(prepare(base, CONFIG, TextPaths((texts,))))
    assert writings == []


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True])
def test_processes_learn_the_same_answers(shard: bool, tmp_path: Path) -> None:
    """Those of the process that saves: the others write them into no folder."""
    write_texts(tmp_path / "texts", days())

    def made(strategy: Strategy, base: BaseModel) -> list[Any]:
        job = job_of(tmp_path / "texts", f"several{shard}")
        prepared = prepare(base, job.config, job.texts)
        follow(replace(job, config=prepared.config), prepared, strategy=strategy)
        again = own_answers(base, ROW, job.folder, resume=True, on_event=lambda event: None, strategy=strategy)
        return [(one.ids, one.labelled) for one in again]

    alone = own_answers(small_base(), ROW, tmp_path, resume=False, on_event=lambda event: None, strategy=SINGLE_PROCESS)
    for ours in gloo(2, shard=shard)(made):
        assert ours == [(one.ids, one.labelled) for one in alone]
    assert (tmp_path / f"several{shard}.kv.zip").is_file()
