"""Soft prompts in the sequences of llama.cpp: encoded, or their keys and values written into the state; and what comes after them.

Shape key: V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sordino.engine.runners.llama_context import LlamaContext
from sordino.engine.runners.llama_keys_values import with_keys_values
from sordino.engine.runners.runner import overflowing
from sordino.errors import ConfigError
from sordino.forward.placement import prefix_length
from sordino.models.description import DescribedModel
from sordino.prompts.prompt import KeysValues, Prompt, Vectors

# Norms square what they are given, in float32.
_LARGEST = 1e15
# llama.cpp's cache holds float16.
_LARGEST_CACHED = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class LlamaPrompts:
    """For a model and the context that runs it."""

    model: DescribedModel
    context: LlamaContext

    def encode(self, prompt: Prompt | None, sequence: int) -> None:
        """Run a prompt, BOS ahead of it where it belongs, in an empty sequence. Raises DoesNotFit, ModelError, OutOfMemory."""
        content = None if prompt is None else prompt.prefix(self.model.ref)
        # All rows attend over one pool of cells, where no mask hides a value that is not finite: so it is refused before it runs.
        if prompt is not None and _largest(content) > (
            _LARGEST_CACHED if isinstance(content, KeysValues) else _LARGEST
        ):
            raise overflowing(prompt)
        leading = self._leading(prompt)
        if leading:
            places = range(len(leading))
            self.context.run_ids(leading, places, [sequence] * len(leading), [False] * len(leading))
        if prompt is None or content is None:
            return
        places = range(len(leading), len(leading) + prompt.n_tokens)
        if isinstance(content, KeysValues):
            self._place(content, places, sequence)
            return
        logits_1V = self.context.run_embeds(content, places, sequence, wanted=True)
        if not np.isfinite(logits_1V).all():
            raise overflowing(prompt)

    def _place(self, content: KeysValues, places: range, sequence: int) -> None:
        """Give a sequence keys and values at these positions: any tokens run there, and their numbers are replaced."""
        self.context.run_ids([0] * len(places), places, [sequence] * len(places), [False] * len(places))
        windowed = self.model.windowed if self.context.window else None
        saved, first = self.context.saved(sequence), places.start
        state = with_keys_values(saved, content, self.context.architecture, first=first, windowed=windowed)
        self.context.cut(sequence, 0)
        self.context.restore(sequence, state)

    def logits_behind(self, prompt: Prompt | None, sequence: int) -> NDArray[np.float32]:
        """The logits [V] of a sequence that holds a prompt and no text: its last position runs once more."""
        last = prefix_length(self.model, prompt) - 1
        self.context.cut(sequence, last)
        if prompt is None:
            logits_1V = self.context.run_ids([self._leading(None)[-1]], [last], [sequence], [True])
        else:
            vectors = prompt.prefix(self.model.ref)
            if isinstance(vectors, KeysValues):
                raise no_first_token()
            logits_1V = self.context.run_embeds(vectors[-1:], [last], sequence, wanted=True)
        return logits_1V.reshape(-1)

    def _leading(self, prompt: Prompt | None) -> tuple[int, ...]:
        """The ids ahead of the vectors."""
        return self.model.bos_ids[: prefix_length(self.model, prompt) - (prompt.n_tokens if prompt else 0)]


def no_first_token() -> ConfigError:
    return ConfigError(
        "llama.cpp gives no first token after a KV prompt alone",
        where="prompt",
        do="give a text to continue, or serve the model with --runner torch",
    )


def _largest(content: Vectors | KeysValues | None) -> float:
    """The largest magnitude of a prompt's numbers."""
    if content is None:
        return 0.0
    arrays = (*content.keys_LHPC, *content.values_LHPC) if isinstance(content, KeysValues) else (content,)
    return max(float(np.abs(array).max()) for array in arrays)
