"""ensemble, and the options of commands that write with a mixture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from shlex import quote
from typing import Any

import click

from sordino import formats
from sordino.cli.console import one_line, out, warn
from sordino.cli.loading import PromptChoice, prompt_options
from sordino.cli.options import output_options, setting_options
from sordino.errors import ConfigError
from sordino.library.outputs import Outputs, mixture_name
from sordino.prompts.ensemble import ensemble_of
from sordino.prompts.mixture import Mixture, StoredPrompt, checked_weights
from sordino.settings import check_settings, seed_setting, setting

_TOKEN_RULES = ("probabilities", "logits", "vote")


@dataclass(frozen=True)
class WritingOptions:
    """How soft prompts write, the mixtures among them above all. weights: as typed."""

    weights: str | None = setting(
        None, "Weights for a mixture's components, instead of its own or its gate's.", unit="W,W,..."
    )
    token_mixture: bool = setting(
        False,
        "Keep a mixture's weights as they are while it writes, where its own rule would update them by what is written.",
    )
    seed: int = seed_setting(unit="N")

    def __post_init__(self) -> None:
        check_settings(self)

    def applied(self, prompts: Mapping[str, StoredPrompt]) -> dict[str, StoredPrompt]:
        """The mixtures among them as the options say; the soft prompts as they are.

        Raises ConfigError where an option has no mixture to work on, or a mixture has another number of components.
        """
        if self.weights is None and not self.token_mixture:
            return dict(prompts)
        flag = "--token-mixture" if self.weights is None else "--weights"
        if not any(isinstance(prompt, Mixture) for prompt in prompts.values()):
            raise ConfigError("none of the soft prompts is a mixture", where=flag, do=f"leave {flag} out")
        return {
            label: self._applied(prompt) if isinstance(prompt, Mixture) else prompt for label, prompt in prompts.items()
        }

    def _applied(self, mixture: Mixture) -> Mixture:
        if self.weights is not None:
            mixture = mixture.with_weights(parsed_weights(self.weights, len(mixture.components)))
        if self.token_mixture and mixture.rule == "sequence":
            mixture = replace(mixture, rule="probabilities")
        return mixture


writing_options = setting_options(WritingOptions, given_as="how")


def parsed_weights(text: str, count: int) -> list[float]:
    """ "0.7,0.3" as weights that sum to one. Raises BadInput."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    return [float(weight) for weight in checked_weights(values, count, where="--weights", got=text)]


@click.group()
def ensemble() -> None:
    """Soft prompts that write as one."""


@ensemble.command()
@click.option(
    "--rule",
    type=click.Choice(_TOKEN_RULES),
    default="probabilities",
    show_default=True,
    help="How each token is chosen: by the mean of the probabilities, by that of the logits, or by the components' first choices.",
)
@click.option("--weights", metavar="W,W,...", help="A weight for each PROMPT.  [default: equal ones]")
@output_options(out="The file to write, NAME.mix.zip.", name="The name it shows.  [default: the file's]", required=True)
@prompt_options()
def build(prompts: PromptChoice, rule: Any, weights: str | None, outputs: Outputs) -> None:
    """Put several soft prompts of one base model into one file.

    PROMPT is a name in the library, or a file. They are used as they are; what they say is combined when they write.
    """
    target = outputs.target
    assert target is not None
    name = mixture_name(target, overwrite=outputs.overwrite)
    loaded = prompts.load_any()
    given = parsed_weights(weights, len(loaded)) if weights is not None else None
    mixture, warnings = ensemble_of(loaded, given, rule, outputs.name or name, force=prompts.force)
    warn(*warnings)
    formats.write_mixture(mixture, target, force=outputs.overwrite)
    for label, weight in zip(loaded, mixture.weights_K, strict=True):
        out.print(f"  {weight:.3f}  {one_line(label)}")
    out.print(
        f"Wrote {target}: {rule} of {len(loaded)} soft prompt{'s' * (len(loaded) > 1)}, {mixture.content_hash[:16]}"
    )
    out.print(f'Use it: sordino generate "Some text" --soft-prompt {quote(str(target))}')
