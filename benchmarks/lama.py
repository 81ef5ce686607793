"""A relation as in LAMA: which object does the model name, asked by templates and by soft prompts?

    python -m benchmarks.lama DATA_DIR TEMPLATES_FILE [STEPS] [MODEL]

DATA_DIR holds train.jsonl, dev.jsonl and test.jsonl with {"sub": "Poe", "obj": "Boston"} a line; TEMPLATES_FILE
{"template": "[X] was born in [Y] .", "weight": 0.5} a line. Soft prompts are trained on train, the templates to stand after them
are chosen on dev, weights are fitted by EM (of templates on train, of soft prompts on dev), and test is read for the table alone.
benchmarks/relations.py says what is ranked and how.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.relations import (
    Candidates,
    Fact,
    ReportLine,
    Template,
    View,
    known_facts,
    majority_ranks,
    object_candidates,
    ranks,
    read_facts,
    read_templates,
    relation_lines,
    usable_templates,
    view_nlls,
)
from sordino.errors import SordinoError
from sordino.models import base_model
from sordino.models.base_model import BaseModel
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from sordino.texts.examples import make_examples
from sordino.texts.pieces import Piece, data_hash
from sordino.training.config import TrainConfig
from sordino.training.events import Finished
from sordino.training.form import form_of, placement_of
from sordino.training.initialise import initialise
from sordino.training.loop import Run, TrainSet, train
from sordino.training.mixture.em import fit_weights

COMPONENTS = 3


def main(folder: str, templates_file: str, steps: str = "100", model: str = "smollm2") -> None:
    sets = {name: read_facts(Path(folder) / f"{name}.jsonl") for name in ("train", "dev", "test")}
    templates, unusable = usable_templates(read_templates(Path(templates_file)))
    base = base_model.load(model)
    candidates = object_candidates(base, [fact for facts in sets.values() for fact in facts])
    known = {name: known_facts(facts, candidates) for name, facts in sets.items()}
    tell_left_out(sets, known, unusable, candidates)

    # Each template alone on dev: the best one stands for what one would write by hand.
    alone = [ReportLine(template.text, (View(template),)) for template in templates]
    order = np.argsort(-(1 / ranks(base, known["dev"], alone, candidates)).mean(axis=0), kind="stable")
    best = [templates[at] for at in order]

    # A soft prompt for each of the best templates, started from that template's words; measured alone and together.
    views = []
    for template in best[:COMPONENTS]:
        prompt = trained(base, template, known["train"], known["dev"], int(steps))
        views.append(View(template, prompt))

    every = [View(template) for template in templates]
    lines = [
        ReportLine("best single template", (View(best[0]),)),
        ReportLine(
            f"ensemble of {len(every)} templates", tuple(every), tuple(template.weight for template in templates)
        ),
        fitted("the same, weights fitted on train", base, every, known["train"], candidates),
        ReportLine("one soft prompt", (views[0],)),
        # The soft prompts have seen train, so it would flatter them.
        fitted(f"mixture of {len(views)} soft prompts", base, views, known["dev"], candidates),
    ]
    found = ranks(base, known["test"], lines, candidates)
    majority = majority_ranks(known["train"], known["test"], candidates)
    table = np.concatenate([majority[:, None], found], axis=1)
    print(f"{'test, ' + str(len(table)) + ' facts':32}     P@1    P@10     MRR   (95 % interval of P@1)")
    for line in relation_lines(["majority", *(line.label for line in lines)], table):
        values = "".join(f"{value:8.3f}" for value in (line.p1.value, line.p10.value, line.mrr.value))
        # Too few facts for an interval.
        spread = "   [{:.3f}, {:.3f}]".format(*line.p1.interval) if line.p1.interval else ""
        print(f"{line.label:32}{values}{spread}")
    print(f"best single template on dev: {best[0].text}")


def fitted(
    label: str, base: BaseModel, views: Sequence[View], facts: Sequence[Fact], candidates: Candidates
) -> ReportLine:
    """The views with the weights of the highest likelihood of these facts."""
    weights = fit_weights(view_nlls(base, facts, views, candidates)).weights_K
    print(f"{label}: weights {', '.join(f'{weight:.2f}' for weight in weights)}")
    return ReportLine(label, tuple(views), tuple(weights.tolist()))


def tell_left_out(
    sets: dict[str, list[Fact]], known: dict[str, list[Fact]], unusable: Sequence[str], candidates: Candidates
) -> None:
    several = sum(len(ids) > 1 for ids in candidates.tree.ids)
    print(f"{len(candidates.index)} candidates, {several} of them of several tokens")
    for reason, count in Counter(unusable).items():
        print(f"templates left out: {count} ({reason})")
    for reason, count in Counter(candidates.left_out.values()).items():
        print(f"objects left out: {count} ({reason})")
    for name, facts in sets.items():
        if len(known[name]) < len(facts):
            print(f"{name}: {len(facts) - len(known[name])} of {len(facts)} facts left out with their objects")


def trained(base: BaseModel, template: Template, facts: Sequence[Fact], dev: Sequence[Fact], steps: int) -> SoftPrompt:
    """A soft prompt in front of the template, started from the template's words and trained to go on with the object."""
    words = template.text.replace("[X]", "").replace("[Y]", "")
    config = TrainConfig(steps=steps, batch=8, init=f"text:{words}", sample_every=steps + 1, row_tokens=64)
    learned, judged = (pieces_of(template, part) for part in (facts, dev))
    examples, validation = (
        make_examples(pieces, base, max_tokens=config.row_tokens).examples for pieces in (learned, judged)
    )
    data = TrainSet(examples, validation, data_hash(learned + judged))
    placement = placement_of(base, config)
    start = initialise(base, config, form_of(base, config), examples, validation)
    with tempfile.TemporaryDirectory() as folder:
        *_, finished = train(base, Run("", data, config, Path(folder), start.matrix_PD))
    assert isinstance(finished, Finished)
    metadata = Metadata(name=template.text, base=base.ref, placement=placement)
    return SoftPrompt(finished.matrix_PD.numpy(), metadata)


def pieces_of(template: Template, facts: Sequence[Fact]) -> list[Piece]:
    return [Piece(fact.where, "completion", f" {fact.obj}", prompt=template.before(fact.sub)) for fact in facts]


if __name__ == "__main__":
    if not 3 <= len(sys.argv) <= 5 or not "".join(sys.argv[3:4] or "1").isdecimal():
        sys.exit("usage: python -m benchmarks.lama DATA_DIR TEMPLATES_FILE [STEPS] [MODEL]")
    try:
        main(*sys.argv[1:])
    except SordinoError as error:
        print(f"error: {error.message}", file=sys.stderr)
        sys.exit(error.exit_code)
