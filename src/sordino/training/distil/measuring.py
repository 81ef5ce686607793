"""How much of a long text's effect its soft prompt keeps, on the teacher's continuations of held-out openings.

Shape key: W continuations, L lines (soft prompt, nothing, the text), R resamples, N tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sordino.evaluation.conditions import AnyCondition, Condition, no_prompt, soft_prompt
from sordino.evaluation.confidence import Estimate, LineEstimates, interval
from sordino.evaluation.measuring import WindowLosses, measure, summarise
from sordino.evaluation.off_domain import packaged_text
from sordino.evaluation.report import Distilled, Report
from sordino.evaluation.scoring import Progress, nll_of_windows, target_bytes
from sordino.forward.encoder_decoder import AnyPrefixes
from sordino.forward.nll import head_of, states_before
from sordino.forward.packing import LabelledRows, labelled_rows, with_leading_ids
from sordino.forward.placement import encode_prompts, leading_ids
from sordino.models.base_model import BaseModel
from sordino.prompts.kv_prompt import SinglePrompt
from sordino.texts.examples import Example
from sordino.training.distil.prepare import Lesson
from sordino.training.distil.teacher import Continuation
from sordino.training.judging import Judging

_TITLE = 40


@dataclass(frozen=True)
class LessonKept:
    """Measures a student's soft prompt on the held-out continuations of its lesson."""

    base: BaseModel
    lesson: Lesson

    @property
    def positions(self) -> int:
        """Each continuation twice for the losses and twice for the agreement, with the soft prompt and without."""
        return 4 * sum(len(one.opening.alone) + len(one.drawn) for one in self.lesson.of("heldout"))

    def __call__(self, prompt: SinglePrompt, label: str, judging: Judging, progress: Progress) -> Report:
        """Raises DataError, OutOfMemory."""
        base, held, config = self.base, self.lesson.of("heldout"), judging.config
        # Ends are left out: the teacher's log probability of them is not known.
        windows = [one.alone(None) for one in held]
        own, none = soft_prompt(base, label, prompt), no_prompt(base)
        nll_W2 = nll_of_windows(base, [own, none], windows, pass_tokens=config.pass_tokens, progress=progress)
        teacher_W = np.array([one.nll for one in held])
        losses = WindowLosses(
            np.concatenate([nll_W2, teacher_W[:, None]], axis=1),
            np.array([len(one.drawn) for one in held], dtype=float),
            tuple(window.piece for window in windows),
            target_bytes(base, windows),
        )
        conditions: list[AnyCondition] = [own, none, self._text_itself()]
        measured, means = summarise(conditions, losses, config, text="held-out openings, continued after the text")
        agreement = (_agreement(base, prompt, held, windows), _agreement(base, None, held, windows))
        distilled = Distilled(_kept(means), len(self.lesson.ids), *agreement)
        damage = None
        if "off_domain" in judging.parts and (other := packaged_text([prompt], ())) is not None:
            damage, _ = measure(base, [own, none], other[1], config, text=other[0], progress=progress)
        return Report({label: prompt.n_tokens}, measured, {}, damage, (), distilled)

    def _text_itself(self) -> Condition:
        lesson = self.lesson
        title = " ".join(lesson.source.text.split())
        title = lesson.source.name or (title if len(title) <= _TITLE else f"{title[:_TITLE]}...")
        return replace(no_prompt(self.base), kind="instruction", label=title, tokens=len(lesson.ids))


def _kept(means: LineEstimates) -> Estimate | None:
    """(nothing - soft prompt) / (nothing - text); None where the text gains nothing, without interval where that is in doubt."""
    soft, none, text = means.value_L
    if none <= text:
        return None
    value = float((none - soft) / (none - text))
    if means.drawn_RL is None or (means.drawn_RL[:, 1] <= means.drawn_RL[:, 2]).any():
        return Estimate(value, None)
    soft_R, none_R, text_R = means.drawn_RL.T
    return Estimate(value, interval((none_R - soft_R) / (none_R - text_R), means.units))


def _agreement(
    base: BaseModel, prompt: SinglePrompt | None, held: Sequence[Continuation], windows: Sequence[Example]
) -> float:
    """The share of the continuations' tokens where the likeliest word is the teacher's."""
    prefixes = encode_prompts(base, [prompt])
    leading = leading_ids(base, prompt.metadata.placement if prompt else None)
    right = total = 0
    for one, window in zip(held, windows, strict=True):
        row = labelled_rows([with_leading_ids(window, leading)], [[0]], [0])
        words = likeliest(base, prefixes, row).tolist()
        right += sum(word == drawn.top[0][0] for word, drawn in zip(words, one.drawn, strict=True))
        total += len(words)
    return right / total


# Rows whose logits are held at once.
_AT_ONCE = 64


@torch.inference_mode()
def likeliest(base: BaseModel, prefixes: AnyPrefixes, part: LabelledRows) -> Tensor:
    """The word that the model finds likeliest in place of each labelled token: ids [N], in row order."""
    hidden_ND = states_before(base.network, prefixes, part.rows.to(base.device), part.labelled_BT)
    head = head_of(base.network)
    return torch.cat([head.logits(hidden_nD).argmax(1) for hidden_nD in hidden_ND.split(_AT_ONCE)]).cpu()
