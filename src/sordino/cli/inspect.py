"""inspect: what is inside soft prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from sordino.cli.console import one_line, out, print_json, printable, table, warn
from sordino.cli.descriptions import shape
from sordino.cli.loading import ModelChoice, PromptChoice, TextChoice, heldout_option, measured_options, text_options
from sordino.cli.options import output_options, refuse_alone, setting_options, was_given
from sordino.cli.outputs import show_picture
from sordino.cli.progress import measuring_bar
from sordino.errors import ConfigError, DoesNotFit
from sordino.evaluation.config import InspectConfig
from sordino.library.outputs import Outputs
from sordino.prompts.kv_prompt import KVPrompt
from sordino.prompts.soft_prompt import SoftPrompt

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sordino.evaluation.analysis.inspection import Inspection
    from sordino.evaluation.analysis.kv_inspection import KVInspection

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
    base = model.load()
    prompts.check(base, loaded)
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
                f"{label}: importance and attention were not measured: of {prompt.n_tokens} virtual tokens it takes minutes; "
                "--limit 128 measures them all the same"
            )
    alike = _similarity(found)
    if outputs.picture is not None:
        from sordino.evaluation.analysis.pictures import inside_figure

        show_picture(inside_figure(found, alike.get("pooled")), outputs.picture)
    if as_json:
        print_json(_json(base.name, found, kvs, alike))
        return
    for inside in found:
        _show(inside)
    for one in kvs:
        _show_kv(one)
    if alike:
        _show_similarity([inside.label for inside in found], alike)


def _similarity(found: Sequence[Inspection]) -> dict[str, NDArray[Any]]:
    """Both measures; none for one soft prompt, or, with a warning, for those that cannot be compared."""
    from sordino.prompts.similarity import KINDS, similarity_map

    if len(found) < 2:
        return {}
    try:
        return {kind: similarity_map([inside.prompt for inside in found], kind) for kind in KINDS}
    except DoesNotFit as error:
        warn(error.message)
        return {}


def _json(
    model: str, found: Sequence[Inspection], kvs: Sequence[KVInspection], alike: Mapping[str, NDArray[Any]]
) -> dict[str, Any]:
    from sordino.evaluation.analysis import kv_inspection
    from sordino.evaluation.analysis.inspection import to_json

    shown = [*map(to_json, found), *map(kv_inspection.to_json, kvs)]
    report: dict[str, Any] = {"model": model, "soft_prompts": shown}
    if alike:
        report["similarity"] = {kind.replace(" ", "_"): values.tolist() for kind, values in alike.items()}
    return report


def _show(inside: Inspection) -> None:
    from sordino.evaluation.analysis.inspection import findings

    surface, depth = inside.surface, inside.depth
    deep = ["#left out", "#attention"] if depth else []
    shown = table("#", "nearest by cosine", "nearest by distance", "#norm", "#percentile", *deep, title=inside.label)
    for at in range(inside.prompt.n_tokens):
        more = [f"{depth.importance.costs[at]:+.4f}", f"{depth.attention.by_token_P[at]:.1%}"] if depth else []
        shown.add_row(
            str(at + 1),
            _words(surface.by_cosine[at]),
            _words(surface.by_distance[at]),
            f"{surface.norms_P[at]:.2f}",
            f"{surface.percentiles_P[at]:.0f}",
            *more,
        )
    out.print(shown)
    low, middle, high = surface.vocabulary
    out.print(f"Norms of the vocabulary's words: half below {middle:.2f}, 90 % from {low:.2f} to {high:.2f}.")
    if depth:
        for line in findings(depth):
            out.print(one_line(line))
        if not (attention := inside.prompt.metadata.attention).plain:
            out.print(f"Measured with {attention}.")
        out.print(
            "Attention on the prompt by layer: " + " ".join(f"{share:.0%}" for share in depth.attention.by_layer_L)
        )
    out.print()


def _show_kv(inside: KVInspection) -> None:
    columns = (inside.keys_L, inside.text_keys_L, inside.values_L, inside.text_values_L)
    shown = table("#layer", "#keys", "#keys of a text", "#values", "#values of a text", title=inside.label)
    for layer in range(inside.prompt.shape.layers):
        shown.add_row(str(layer + 1), *(f"{column_L[layer]:.2f}" for column_L in columns))
    out.print(shown)
    out.print(
        f"KV prompt: {shape(inside.prompt)}. Mean norms over positions and heads, without the first position, beside the model's "
        "own keys and values of a packaged text. It has no matrix, and so no nearest words."
    )
    out.print()


def _words(near: Sequence[tuple[str, float]]) -> str:
    return "  ".join(f"{_word(word)} {value:.2f}" for word, value in near)


def _word(word: str) -> str:
    """Without its leading space; an empty word, or one of white space, in quotation marks."""
    return printable(word.strip()) or json.dumps(word)


def _show_similarity(labels: Sequence[str], alike: Mapping[str, NDArray[Any]]) -> None:
    titles = {
        "pooled": "How alike: cosine of the mean vectors",
        "per token": "Mean cosine over pairs of virtual tokens",
    }
    for kind, values in alike.items():
        shown = table("", *(f"#{label}" for label in labels), title=titles[kind])
        for label, row in zip(labels, values, strict=True):
            shown.add_row(label, *(f"{value:.3f}" for value in row))
        out.print(shown)
