"""ensemble, and the options of commands that write with a mixture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

import click
import numpy as np
from numpy.typing import NDArray

from sordino.cli.console import one_line, out, warn
from sordino.cli.options import Decorated, library_option
from sordino.errors import ConfigError
from sordino.library.outputs import mixture_name
from sordino.prompts.fit import check_one_base, common_base
from sordino.prompts.mixture import Mixture, StoredPrompt, checked_weights, uniform
from sordino.prompts.soft_prompt import Metadata, SoftPrompt

if TYPE_CHECKING:
    from sordino.library.library import Library

_TOKEN_RULES = ("probabilities", "logits", "vote")


def mixture_options(command: Decorated) -> Decorated:
    """`weights: str | None` and `token_mixture: bool`."""
    options = [
        click.option(
            "--weights",
            metavar="W,W,...",
            help="Weights for a mixture's components, instead of its own or its gate's.",
        ),
        click.option(
            "--token-mixture",
            is_flag=True,
            help="Keep a mixture's weights as they are while it writes, where its own rule would update them by what is written.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def reweighted(
    prompts: Mapping[str, StoredPrompt], weights: str | None, *, token_mixture: bool
) -> dict[str, StoredPrompt]:
    """The mixtures among them as the options say; the soft prompts as they are.

    Raises ConfigError where an option has no mixture to work on, or a mixture has another number of components.
    """
    if weights is None and not token_mixture:
        return dict(prompts)
    flag = "--token-mixture" if weights is None else "--weights"
    if not any(isinstance(prompt, Mixture) for prompt in prompts.values()):
        raise ConfigError("none of the soft prompts is a mixture", where=flag, do=f"leave {flag} out")
    found: dict[str, StoredPrompt] = {}
    for label, prompt in prompts.items():
        if isinstance(prompt, Mixture):
            if weights is not None:
                prompt = prompt.with_weights(parsed_weights(weights, len(prompt.components)))
            if token_mixture and prompt.rule == "sequence":
                prompt = replace(prompt, rule="probabilities")
        found[label] = prompt
    return found


def with_components(prompts: Mapping[str, StoredPrompt]) -> dict[str, StoredPrompt]:
    """Each mixture, and behind it its components. Raises ConfigError where there is no mixture."""
    if not any(isinstance(prompt, Mixture) for prompt in prompts.values()):
        raise ConfigError("none of the soft prompts is a mixture", where="--components", do="leave --components out")
    found: dict[str, StoredPrompt] = {}
    for label, prompt in prompts.items():
        found[label] = prompt
        if isinstance(prompt, Mixture):
            for index, component in enumerate(prompt.components):
                found[f"{label}/{index} {component.metadata.name}".strip()] = component
    return found


def parsed_weights(text: str, count: int) -> NDArray[np.float64]:
    """ "0.7,0.3" as weights [count] that sum to one. Raises BadInput."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    return checked_weights(values, count, where="--weights", got=text)


@click.group()
def ensemble() -> None:
    """Soft prompts that write as one."""


@ensemble.command()
@click.argument("prompts", metavar="PROMPT...", nargs=-1, required=True)
@click.option(
    "--rule",
    type=click.Choice(_TOKEN_RULES),
    default="probabilities",
    show_default=True,
    help="How each token is chosen: by the mean of the probabilities, by that of the logits, or by the components' first choices.",
)
@click.option("--weights", metavar="W,W,...", help="A weight for each PROMPT.  [default: equal ones]")
@click.option(
    "--out",
    "target",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The file to write, NAME.mix.zip.",
)
@click.option("--name", metavar="NAME", help="The name it shows.  [default: the file's]")
@click.option("--overwrite", is_flag=True, help="Replace FILE if it exists.")
@click.option("--force", is_flag=True, help="Take soft prompts that name different base models.")
@library_option()
def build(
    prompts: tuple[str, ...],
    rule: str,
    weights: str | None,
    target: Path,
    name: str | None,
    overwrite: bool,
    force: bool,
    library: Library,
) -> None:
    """Put several soft prompts of one base model into one file.

    PROMPT is a name in the library, or a file. They are used as they are; what they say is combined when they write.
    """
    from sordino import formats

    named = mixture_name(target, overwrite=overwrite)
    loaded = _components(library, prompts)
    _check_alike(loaded, force=force)
    weights_K = parsed_weights(weights, len(loaded)) if weights is not None else uniform(len(loaded))
    metadata = Metadata(
        name=name or named,
        base=common_base([prompt.metadata.base for prompt in loaded.values()]),
        description=f"{rule} of {', '.join(loaded)}",
        training={"method": "ensemble", "components": list(loaded), "weights": "equal" if weights is None else "given"},
    )
    mixture = Mixture(tuple(loaded.values()), weights_K, rule, metadata=metadata)  # type: ignore[arg-type]
    formats.write_mixture(mixture, target, force=overwrite)
    for label, weight in zip(loaded, mixture.weights_K, strict=True):
        out.print(f"  {weight:.3f}  {one_line(label)}")
    out.print(
        f"Wrote {target}: {rule} of {len(loaded)} soft prompt{'s' * (len(loaded) > 1)}, {mixture.content_hash[:16]}"
    )
    out.print(f'Use it: sordino generate "Some text" --soft-prompt {quote(str(target))}')


def _components(library: Library, names: Sequence[str]) -> dict[str, SoftPrompt]:
    from sordino.cli.loading import loaded_voices

    found: dict[str, SoftPrompt] = {}
    for label, prompt in loaded_voices(library, names).items():
        if isinstance(prompt, Mixture):
            raise ConfigError(
                "a mixture cannot be a component of another",
                where=label,
                do="give its components: they are native .zip files in it",
            )
        found[label] = prompt
    return found


def _check_alike(prompts: Mapping[str, SoftPrompt], *, force: bool) -> None:
    """Refuse prompts of different base models; warn of what is uncertain, and of equal matrices."""
    for note in check_one_base(list(prompts.values()), "combined", force=force):
        warn(note)
    first_with: dict[str, str] = {}
    for label, prompt in prompts.items():
        twin = first_with.setdefault(prompt.content_hash, label)
        if twin != label:
            warn(f"{label} is the same matrix as {twin}: together they are that one with both weights")
