"""What `sordino mixture fit` does, told as it happens: read, train where asked to, fit, measure, write."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from shlex import quote
from typing import Any

import click
import torch
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from sordino.cli.console import err, one_line, out, printable, table, warn
from sordino.cli.loading import check_fits, loaded_model, loaded_prompts
from sordino.errors import BadInput, ConfigError
from sordino.evaluation.analysis.pictures import rendered
from sordino.evaluation.confidence import Estimate
from sordino.formats import file_disclosure, write_mixture
from sordino.forward.token_losses import Progress as Told
from sordino.models.base_model import BaseModel
from sordino.prompts.soft_prompt import Metadata, PlacementName, SoftPrompt
from sordino.storage import write_bytes
from sordino.training.loop import TrainSet
from sordino.training.mixture.contamination import contaminated_components
from sordino.training.mixture.fit import FitConfig, Fitted, Prepared, fit, prepare
from sordino.training.mixture.joint import JointConfig, JointResult, WeightedStep, excerpts_apart, train_jointly
from sordino.training.mixture.picture import report_figure
from sordino.training.mixture.report import TITLES, Report, to_json, verdicts

Labelled = Sequence[tuple[str, SoftPrompt]]


def run(names: Sequence[str], options: Mapping[str, Any]) -> None:
    """The command. Raises SordinoError."""
    config = FitConfig(
        **{key: options[key] for key in ("row_tokens", "context_tokens", "limit", "gate", "pass_tokens", "seed")}
    )
    learning = _joint_config(options) if options["joint"] is not None else None
    given = list(loaded_prompts(options["library"], names).items())
    base = loaded_model(options["model"], options["dtype"], options["device"], ask=not options["as_json"])
    for label, prompt in given:
        check_fits(base, label, prompt, force=options["force"])
    prepared = prepare(base, options["data"], options["heldout"] or None, config, speaker=options["speaker"])
    _tell_data(prepared)
    split = {"speaker": options["speaker"], "ends": base.end_markers}
    for line in contaminated_components(given, options["data"], prepared.splits.heldout, config.seed, **split):
        warn(line)
    name = options["name"] or options["out"].name[: -len(".mix.zip")]
    recipe: dict[str, Any] = {"method": "em"}
    components: Labelled = given
    if learning is not None:
        components, recipe = _trained(base, prepared, given, learning, options["joint"], name)
    metadata = Metadata(
        name=name,
        author=options["author"],
        description=options["description"],
        licence=options["licence"],
        supported=(base.id,),
    )
    with _progress("Measuring") as told:
        fitted = fit(base, components, prepared, config, metadata=metadata, recipe=recipe, progress=told)
    _write(fitted, options)
    if options["as_json"]:
        told_json = {"model": base.name, "seed": config.seed, "out": str(options["out"]), **to_json(fitted.report)}
        click.echo(json.dumps({**told_json, "gate": fitted.mixture.gate is not None}, ensure_ascii=False, indent=2))
    else:
        show(fitted, config, options["out"])


def show(fitted: Fitted, config: FitConfig, path: Path) -> None:
    """The table, what its columns mean, and what came out."""
    report = fitted.report
    out.print(_table(report))
    for line in _explanation(report, config):
        out.print(line)
    out.print()
    for line in verdicts(report):
        out.print(one_line(line), style="bold")
    for note in fitted.notes:
        out.print(f"Note: {one_line(note)}.")
    if fitted.weights.short_by > 1e-6:
        out.print(f"Note: EM stopped within {fitted.weights.short_by:.1e} nats an example of the best weights.")
    kept = "with a gate" if fitted.mixture.gate is not None else "with fixed weights"
    count = len(fitted.mixture.components)
    out.print(f"Written: {path.resolve()} ({count} component{'s' * (count > 1)}, {kept})")
    out.print(f'Try it:  sordino generate "Once" --soft-prompt {quote(str(path))}')


def _write(fitted: Fitted, options: Mapping[str, Any]) -> None:
    path: Path = options["out"]
    if path.exists() and not options["overwrite"]:
        raise BadInput("a file of this name appeared while fitting", where=path, do="move it away, or add --overwrite")
    err.print("The file will disclose:")
    for line in file_disclosure(fitted.mixture):
        err.print(f"  {printable(line)}")
    write_mixture(fitted.mixture, path, force=True)
    if options["picture"] is not None:
        write_bytes(options["picture"], rendered(report_figure(fitted.report), options["picture"].suffix))


# Training -------------------------------------------------------------------------------------------------------------


def _joint_config(options: Mapping[str, Any]) -> JointConfig:
    said = {key: options[key] for key in ("tokens", "steps", "batch", "lr", "seed") if options[key] is not None}
    return JointConfig(**said, pass_tokens=min(options["pass_tokens"], JointConfig().pass_tokens))


def _trained(
    base: BaseModel, prepared: Prepared, given: Labelled, config: JointConfig, count: int, name: str
) -> tuple[Labelled, dict[str, Any]]:
    """The components, trained together, and how they came about."""
    placement = _placement_of(base, given)
    if given:
        starts = [torch.from_numpy(prompt.matrix.copy()) for _, prompt in given]
        init = "the soft prompts " + ", ".join(repr(label) for label, _ in given)
    else:
        with _progress("Choosing excerpts") as told:
            starts = excerpts_apart(base, prepared.train, placement, count, config, told)
        init = "excerpts of the training texts"
    err.print(
        f"Training {count} soft prompts together, from {one_line(init)}. It is not resumed: Ctrl-C throws it away."
    )
    finished = _watch(base, prepared, starts, placement, config)
    recipe = {
        "method": "joint",
        **{key: value for key, value in config.to_json().items() if key not in ("pass_tokens", "seed")},
        "tokens": [len(matrix) for matrix in finished.matrices],
        "init": init,
        "best_step": finished.best_step,
        "validation_nll": round(finished.best_loss, 5) if prepared.validation else None,
    }
    metadata = Metadata(
        base=base.ref,
        supported=(base.id,),
        placement=placement,
        created=datetime.now(UTC).strftime("%Y-%m-%d"),
        training={"method": "joint", "init": init, "data_hash": prepared.data_hash, "seed": config.seed},
    )
    labels = [label for label, _ in given] or [f"{name} {k + 1}" for k in range(count)]
    return [
        (label, SoftPrompt(matrix.numpy(), replace(metadata, name=label)))
        for label, matrix in zip(labels, finished.matrices, strict=True)
    ], recipe


def _placement_of(base: BaseModel, given: Labelled) -> PlacementName:
    places = sorted({prompt.metadata.placement for _, prompt in given})
    if len(places) > 1:
        raise ConfigError(
            "soft prompts that are trained together sit in one place",
            where="--components",
            expected="one placement",
            got=" and ".join(places),
            do="leave --joint out: weights alone may be fitted to them",
        )
    return places[0] if places else base.placement


def _watch(
    base: BaseModel, prepared: Prepared, starts: Sequence[torch.Tensor], placement: PlacementName, config: JointConfig
) -> JointResult:
    columns = (BarColumn(30), TextColumn("step {task.completed:.0f}/{task.total:.0f}  {task.fields[said]}"))
    with Progress(*columns, TimeRemainingColumn(), console=err) as bar:
        task = bar.add_task("", total=config.steps, said="")
        data = TrainSet(prepared.train, prepared.validation, prepared.data_hash)
        for event in train_jointly(base, data, starts, placement, config):
            if isinstance(event, JointResult):
                return event
            if isinstance(event, WeightedStep):
                weights = " ".join(f"{weight:.2f}" for weight in event.weights)
                bar.update(task, completed=event.step.step, said=f"loss {event.step.loss:.3f}  weights {weights}")
            else:
                best = " (best)" if event.best else ""
                bar.console.print(f"step {event.step}/{config.steps}: validation loss {event.loss:.4f}{best}")
    raise AssertionError("training ended without saying so")


# Telling --------------------------------------------------------------------------------------------------------------


def _tell_data(prepared: Prepared) -> None:
    err.print(
        f"Texts: {len(prepared.train)} examples to fit, {len(prepared.validation)} to validate, {len(prepared.heldout)} held out."
    )
    err.print(one_line(prepared.splits.how))
    for note in prepared.notes:
        err.print(one_line(note))
    for line in prepared.splits.duplicates:
        warn(line)


def _table(report: Report) -> object:
    shown = table("what predicts", "#weight", "#loss", "", "#over mixture", "")
    for line in report.lines:
        title = one_line(line.label) if line.kind == "component" else TITLES[line.kind]
        own = line.kind == "mixture"
        shown.add_row(
            title,
            "" if line.weight is None else f"{line.weight:.3f}",
            f"{line.nll.value:.4f}",
            _brackets(line.nll, "{:.3f}"),
            "" if own else f"{line.less_mixture.value:+.4f}",
            "" if own else _brackets(line.less_mixture, "{:+.4f}"),
        )
    return shown


def _explanation(report: Report, config: FitConfig) -> list[str]:
    lines = [
        f"Measured on {report.tokens:,} tokens of {report.pieces:,} held-out texts, in examples of at most {config.row_tokens}; "
        "every line predicts the same tokens.",
        "Loss: nats a token; lower is better. Over mixture: this line's loss less the mixture's; above 0, the mixture is better.",
    ]
    if report.line("mixture").nll.interval is None:
        return [*lines, "There is too little held-out text for intervals."]
    return [*lines, f"In brackets: 95 % intervals, drawn by {report.unit} ({report.units:,} units)."]


def _brackets(estimate: Estimate, form: str) -> str:
    if estimate.interval is None:
        return ""
    low, high = map(form.format, estimate.interval)
    return f"[{low}, {high}]"


@contextmanager
def _progress(doing: str) -> Iterator[Told]:
    columns = (TextColumn(doing), BarColumn(30), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task("")
        yield lambda done, total: bar.update(task, completed=done, total=total)
