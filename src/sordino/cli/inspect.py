"""inspect: what is inside soft prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from sordino.cli.console import one_line, print_json, show_measured, show_picture, warn
from sordino.cli.loading import ModelChoice, PromptChoice, TextChoice, heldout_option, measured_options, text_options
from sordino.cli.options import output_options, refuse_alone, setting_options, was_given
from sordino.cli.progress import measuring_bar
from sordino.errors import ConfigError, DoesNotFit
from sordino.evaluation.config import InspectConfig
from sordino.library.outputs import Outputs
from sordino.prompts.description import shape
from sordino.prompts.kv_prompt import KVPrompt
from sordino.prompts.similarity import KINDS, similarity_map
from sordino.prompts.soft_prompt import SoftPrompt

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sordino.evaluation.analysis.inspection import Inspection

_OF_TEXTS = ("--limit", "--speaker", "--row-tokens", "--pass-tokens")


@click.command()
@text_options(
    heldout_option(
        "What importance and attention are measured on; may be repeated.  [default: a packaged text]", flag="--text"
    )
)
@setting_options(InspectConfig, given_as="config")
@output_options(picture="All of it as a picture, .png or .svg.")
@measured_options()
def inspect(
    prompts: PromptChoice, texts: TextChoice, config: InspectConfig, outputs: Outputs, model: ModelChoice, as_json: bool
) -> None:
    """Look inside soft prompts: words, norms, importance, attention.

    For each virtual token: the nearest words, by cosine and by distance; its norm and where that lies among the vocabulary's; how
    the loss changes without it; how much of a text's attention it gets. By layer: the attention on the whole prompt. Of several
    soft prompts: how alike they are. A KV prompt has no words: the norms of its keys and values by layer, beside those of a text.
    """
    if config.quick:
        for flag in (*(["--text"] if texts.heldout else []), *filter(was_given, _OF_TEXTS)):
            raise ConfigError("--quick measures on no text", where=flag, do=f"leave {flag} or --quick out")
    if not texts.heldout:
        refuse_alone("--speaker", needs="--text")
    if outputs.picture is None:
        refuse_alone("--overwrite", needs="--picture")
    loaded = prompts.load_single()
    matrices = {label: prompt for label, prompt in loaded.items() if isinstance(prompt, SoftPrompt)}
    if outputs.picture is not None and len(matrices) < len(loaded):
        raise ConfigError("a KV prompt has no words to draw", where="--picture", do="leave the KV prompts out")
    outputs.check()
    read = texts.read(apart=True)
    base = prompts.load_model(model, loaded)
    from sordino.evaluation.analysis import tables
    from sordino.evaluation.analysis.inspection import inspected
    from sordino.evaluation.analysis.kv_inspection import inspected_kv

    text = (", ".join(read.sets), read.pieces) if read.sets else None
    found = []
    kvs = [inspected_kv(base, label, prompt) for label, prompt in loaded.items() if isinstance(prompt, KVPrompt)]
    for label, prompt in matrices.items():
        with measuring_bar() as progress:
            found.append(inspected(base, label, prompt, text, config, progress=progress))
        if not config.quick and found[-1].depth is None:
            warn(
                f"{label}: importance and attention were not measured, which takes minutes for {prompt.n_tokens} virtual "
                "tokens; --limit 128 measures them all the same"
            )
    alike = _similarity(found)
    if outputs.picture is not None:
        from sordino.evaluation.analysis.pictures import inside_figure

        show_picture(inside_figure(found, alike.get("pooled")), outputs.picture)
    if as_json:
        print_json({"model": base.name, **tables.to_json(found, kvs, alike)})
        return
    for inside in found:
        show_measured(tables.inspection_table(inside), map(one_line, tables.inspection_sentences(inside)))
    for one in kvs:
        says = (
            f"KV prompt: {shape(one.prompt)}. Mean norms over positions and heads, without the first position, beside the "
            "model's own keys and values of a packaged text. It has no matrix, and so no nearest words."
        )
        show_measured(tables.kv_table(one), [says])
    for alike_table in tables.similarity_tables([inside.label for inside in found], alike):
        show_measured(alike_table)


def _similarity(found: Sequence[Inspection]) -> dict[str, NDArray[Any]]:
    """Both measures; none for one soft prompt, or, with a warning, for those that cannot be compared."""
    if len(found) < 2:
        return {}
    try:
        return {kind: similarity_map([inside.prompt for inside in found], kind) for kind in KINDS}
    except DoesNotFit as error:
        warn(error.message)
        return {}
