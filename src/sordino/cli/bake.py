"""bake: a copy of a base model with soft prompts as tokens, for programs that know none."""

from __future__ import annotations

from pathlib import Path

import click

from sordino.cli.console import err, note, one_line, out, print_json, warn
from sordino.cli.loading import ModelChoice, PromptChoice
from sordino.cli.options import PATH, force_option, json_option, library_option, option_group, setting_options
from sordino.errors import BadInput
from sordino.models.bundled import DEFAULT_MODEL
from sordino.models.sizes import check_sizes


@click.command()
@option_group(
    "prompts",
    PromptChoice,
    click.argument("names", metavar="PROMPT...", nargs=-1, required=True),
    force_option(),
    library_option(),
)
@click.option("--out", "target", required=True, type=PATH, metavar="FOLDER|FILE.gguf", help="What to write.")
@setting_options(ModelChoice, "model", given_as="model", model=DEFAULT_MODEL)
@click.option("--always", is_flag=True, help="In a folder: every text begins with the first soft prompt, chat or not.")
@click.option("--overwrite", is_flag=True, help="Replace what is there.")
@json_option()
def bake(prompts: PromptChoice, target: Path, model: ModelChoice, always: bool, overwrite: bool, as_json: bool) -> None:
    """Write a copy of a base model with soft prompts as tokens, for any program.

    For instance: sordino bake keeper --out keeper.gguf

    Programs that know no soft prompts run it: llama.cpp, KoboldCpp, Ollama, LM Studio, vLLM, transformers. In a chat the
    template writes the first soft prompt by itself; its variable soft_prompt chooses another by name, "" none. Elsewhere the text
    that is printed goes in front. Ollama needs a Modelfile (docs/bake.md). Hold and strength are not kept.
    """
    loaded = prompts.load_single()

    check_sizes(model.model, loaded.values())
    with err.status("Loading ..."):
        from sordino.baking.bake import bake as write
        from sordino.baking.tokens import token_name

    named = {token_name(label): prompt for label, prompt in loaded.items()}
    if len(named) < len(loaded):
        raise BadInput("two soft prompts would have the same tokens", where=", ".join(loaded), do="rename a file")
    made = write(
        model.model,
        named,
        target,
        always=always,
        force=prompts.force,
        overwrite=overwrite,
        notify=note,
    )
    warn(*made.notes)
    if as_json:
        print_json({"path": str(made.path), "texts": dict(made.texts)})
        return
    for name, text in made.texts.items():
        out.print(f"In front of a text, for {name}:", style="bold")
        out.print(one_line(text))
    err.print(f"Written: {one_line(str(made.path))}")
