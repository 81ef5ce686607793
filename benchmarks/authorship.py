"""Who wrote this? A classifier on character n-grams, as authorship attribution uses them; none of it is Sordino's.

It learns to tell texts of a voice from texts that the base model wrote by itself. Its style of a text is where its decision lies
between the two: 0 is the mean of the base model's texts, 1 that of the voice's own, both of texts that it was not trained on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

# About what 256 tokens of English are.
CHARACTERS = 1000
# Parts of a story at its beginning and at its end. A style below SOME_STYLE at the beginning is none that could be kept.
ENDS = 2
SOME_STYLE = 0.3


@dataclass(frozen=True)
class Judge:
    """auc: on as many `chunks` of the voice and of the base model, none of which it was trained on; 1 is perfect, 0.5 a coin."""

    pipeline: Any
    base_mean: float
    voice_mean: float
    auc: float
    chunks: tuple[int, int]

    def style(self, text: str) -> float:
        decision = float(self.pipeline.decision_function([text])[0])
        return (decision - self.base_mean) / (self.voice_mean - self.base_mean)


def chunks(texts: Iterable[str]) -> list[str]:
    """The texts in pieces of about CHARACTERS, cut between words. Shorter ends are left out."""
    found = []
    for text in texts:
        begin = 0
        while len(text) - begin >= CHARACTERS:
            end = text.rfind(" ", begin, begin + CHARACTERS)
            end = begin + CHARACTERS if end <= begin else end
            found.append(text[begin:end])
            begin = end + 1
    return found


def train_judge(
    voice: Sequence[str], base: Sequence[str], *, heldout_voice: Sequence[str], heldout_base: Sequence[str]
) -> Judge:
    """From whole texts of the voice and of the base model."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline

    sets = [chunks(texts) for texts in (voice, base, heldout_voice, heldout_base)]
    own, other, heldout_own, heldout_other = sets
    pipeline = make_pipeline(
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), min_df=2, sublinear_tf=True),
        LogisticRegression(C=10.0, class_weight="balanced", max_iter=1000),
    )
    pipeline.fit([*own, *other], [1] * len(own) + [0] * len(other))
    of_voice, of_base = (pipeline.decision_function(texts) for texts in (heldout_own, heldout_other))
    auc = roc_auc_score([1] * len(of_voice) + [0] * len(of_base), np.concatenate([of_voice, of_base]))
    chunk_counts = (len(heldout_own), len(heldout_other))
    return Judge(pipeline, float(of_base.mean()), float(of_voice.mean()), float(auc), chunk_counts)


def styles(judge: Judge, stories: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Means over stories, given in parts: the style of each part and of both ends. distinct-2: different pairs of words / all."""
    style = np.mean([[judge.style(part) for part in story] for story in stories], axis=0)
    first, last = float(style[:ENDS].mean()), float(style[-ENDS:].mean())
    return {
        "style, first": round(first, 3),
        "style, last": round(last, 3),
        "kept": f"{last / first:.0%}" if first >= SOME_STYLE else None,
        "distinct-2": round(float(np.mean([distinct_pairs("".join(story)) for story in stories])), 3),
        "style": [round(float(value), 3) for value in style],
    }


def distinct_pairs(text: str) -> float:
    pairs = list(pairwise(text.split()))
    return len(set(pairs)) / max(1, len(pairs))
