"""prune: a soft prompt made shorter by what matters least."""

from __future__ import annotations

import click

from sordino.cli.console import out, print_json, show_measured, show_picture, warn, write_prompt
from sordino.cli.loading import ModelChoice, PromptChoice, TextChoice, heldout_option, measured_options, text_options
from sordino.cli.options import output_options, paths_option, setting_options
from sordino.cli.progress import measuring_bar
from sordino.errors import ConfigError
from sordino.evaluation.config import PruneConfig
from sordino.library.outputs import Outputs


@click.command()
@text_options(
    paths_option("--data", "training", "Texts to choose by, in the prompt's voice; may be repeated.", required=True),
    heldout_option(
        "Other texts, to judge lengths by; may be repeated.  [default: DATA, which gives optimistic losses]"
    ),
)
@setting_options(PruneConfig, given_as="config")
@output_options(
    out="The .zip to write; without it only the table.",
    picture="Loss against length as a picture, .png or .svg.  [default: beside OUT]",
)
@measured_options(click.argument("names", metavar="PROMPT"))
def prune(
    prompts: PromptChoice, texts: TextChoice, config: PruneConfig, outputs: Outputs, model: ModelChoice, as_json: bool
) -> None:
    """Make a soft prompt shorter: drop the virtual tokens that matter least.

    Each token is left out in turn, and the one whose absence costs least is dropped; then the same again. The losses are those of
    the shortened prompt itself. The file records what was dropped.
    """
    loaded = prompts.load()
    (prompt,) = loaded.values()
    if config.tokens is not None and config.tokens >= prompt.n_tokens:
        raise ConfigError(
            "no shorter length", where="--tokens", expected=f"1 to {prompt.n_tokens - 1}", got=config.tokens
        )
    outputs = outputs.with_picture()
    outputs.check()
    read = texts.read()
    if not texts.heldout:
        warn("the loss is measured on the texts that the tokens were chosen by: --heldout gives an unbiased one")
    base = prompts.load_model(model, loaded)
    from sordino.evaluation.analysis.losses import passage_of
    from sordino.evaluation.analysis.pruning import chosen_stage, pruned, stages_of, to_json, verdict
    from sordino.evaluation.analysis.tables import pruning_table

    passage = passage_of(base, read.training, row_tokens=config.row_tokens, limit=config.limit)
    other = passage_of(base, read.pieces, row_tokens=config.row_tokens, limit=config.limit) if read.sets else None
    with measuring_bar() as progress:
        stages = stages_of(base, prompt, passage, other, config, progress=progress)
    chosen = chosen_stage(stages, config)
    report = to_json(stages, chosen, passage, other)
    measured = (other or passage).tokens
    if not as_json:
        show_measured(pruning_table(stages, chosen))
        out.print(verdict(stages, chosen, measured))
    if outputs.picture is not None:
        from sordino.evaluation.analysis.pictures import pruning_figure

        show_picture(pruning_figure(stages, chosen), outputs.picture)
    if outputs.target is not None and len(chosen.kept) == prompt.n_tokens:
        warn("nothing can be dropped within the tolerance: no file was written")
    elif outputs.target is not None:
        report["out"] = write_prompt(outputs, pruned(prompt, stages, chosen, tokens=measured))
    if as_json:
        print_json(report)
