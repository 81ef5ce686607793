"""Where a soft prompt starts: another prompt of any length, and a task's own answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sordino.errors import ConfigError, DoesNotFit, SoftPromptFileError
from sordino.formats import write_mixture
from sordino.forward.sources import PrefixSource
from sordino.models.base_model import BaseModel
from sordino.prompts.kv_prompt import KVPrompt, SinglePrompt
from sordino.prompts.mixture import Mixture
from sordino.prompts.soft_prompt import PLACEMENTS, Metadata, SoftPrompt
from sordino.texts.examples import make_examples
from sordino.texts.pieces import Piece
from sordino.training import initialise as module
from sordino.training.config import TrainConfig
from sordino.training.form import form_of
from sordino.training.gradient import Batch
from sordino.training.initialise import SCORING_TOKENS, Start, initialise, score
from tests.prompt_files import matrix
from tests.prompts.kv_of import kv_of
from tests.training.runs import CONFIG, mean_alone, small_base, small_set


def begun(base: BaseModel, config: TrainConfig, prompt: SinglePrompt) -> Start:
    data = small_set(base)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "read_prompt", lambda name: prompt)
        return initialise(base, config, form_of(base, config), data.train, data.validation)


def start_from(prompt: SoftPrompt, tokens: int, *, seed: int = 0) -> Start:
    return begun(small_base(), replace(CONFIG, tokens=tokens, init="file:other.zip", seed=seed), prompt)


def other(tokens: int, width: int = 32) -> SoftPrompt:
    return SoftPrompt(matrix(3, tokens, width), Metadata(name="other"))


def test_a_prompt_of_the_same_length_is_taken_as_it_is() -> None:
    start = start_from(other(4), 4)
    assert np.array_equal(start.matrix_PD.numpy(), other(4).matrix)
    assert start.how == "the soft prompt 'other'"


def test_of_a_longer_one_the_rows_next_to_the_text_are_kept_and_that_is_said() -> None:
    start = start_from(other(9), 4)
    assert np.array_equal(start.matrix_PD.numpy(), other(9).matrix[-4:])
    assert start.how == "the last 4 of 9 vectors of the soft prompt 'other'"


def test_a_shorter_one_gets_an_excerpt_in_front_and_that_is_said() -> None:
    base, start = small_base(), start_from(other(3), 8)
    assert np.array_equal(start.matrix_PD[-3:].numpy(), other(3).matrix)
    assert "(3 vectors) after 5 tokens of an excerpt" in start.how
    # The rows in front are words, and consecutive ones of the training text.
    words = base.network.get_input_embeddings().weight
    ids = [int((words - row).norm(dim=1).argmin()) for row in start.matrix_PD[:5]]
    torch.testing.assert_close(base.embed(torch.tensor(ids)), start.matrix_PD[:5])
    text = [token for example in small_set(base).train for token in example.ids]
    assert any(text[at : at + 5] == ids for at in range(len(text)))
    assert not torch.equal(start_from(other(3), 8, seed=5).matrix_PD[:5], start.matrix_PD[:5])


def start_from_kv(prompt: KVPrompt, **changes: Any) -> Start:
    # After a BOS there is a place only where the tokenizer writes one.
    base = small_base(bos=True)
    config = replace(
        CONFIG, **{"kind": "kv", "tokens": 4, "placement": "start", "init": "file:other.kv.zip", **changes}
    )
    return begun(base, config, prompt)


def test_a_kv_prompt_goes_on_as_it_is() -> None:
    """Its first loss is that of the embedding prompt that it does the work of."""
    base, vectors = small_base(), other(4).with_metadata(placement="start")
    start = start_from_kv(kv_of(base, vectors))
    assert start.how == "the KV prompt 'other'"
    form = form_of(base, replace(CONFIG, kind="kv", tokens=4, placement="start"))
    torch.testing.assert_close(start.matrix_PD, form.matrix_of_embeds(base, torch.from_numpy(vectors.matrix.copy())))


@pytest.mark.parametrize("changes", [{"tokens": 5}, {"placement": "after_bos"}, {"kind": "embedding"}])
def test_a_kv_prompt_of_another_length_or_place_is_refused_with_what_it_takes(changes: dict[str, Any]) -> None:
    prompt = kv_of(small_base(), other(4).with_metadata(placement="start"))
    with pytest.raises(ConfigError, match="--kind kv --tokens 4 --placement start"):
        start_from_kv(prompt, **changes)


def test_a_mixture_is_no_start(tmp_path: Path) -> None:
    path = tmp_path / "both.mix.zip"
    write_mixture(Mixture((other(4), other(4)), np.array([0.5, 0.5]), "probabilities"), path)
    config = replace(CONFIG, init=f"file:{path}")
    with pytest.raises(SoftPromptFileError, match="mixture"):
        initialise(small_base(), config, form_of(small_base(), config), (), ())


def test_a_prompt_of_another_width_is_refused() -> None:
    with pytest.raises(DoesNotFit):
        start_from(other(4, width=16), 4)


def test_labels_are_the_answers_words_most_frequent_first() -> None:
    base = small_base()
    answers = (" good", " good", " bad")
    pieces = [Piece(f"{n}", "completion", answer, prompt="a film:") for n, answer in enumerate(answers)]
    examples = make_examples(pieces, base, max_tokens=32).examples
    config = replace(CONFIG, tokens=9, init="labels")
    start = initialise(base, config, form_of(base, config), examples, ())
    counts: dict[int, int] = {}
    for answer in answers:
        for token in base.encode(answer):
            counts[token] = counts.get(token, 0) + 1
    ids = sorted(counts, key=lambda token: (-counts[token], token))
    expected = base.embed(torch.tensor([ids[at % len(ids)] for at in range(9)]))
    torch.testing.assert_close(start.matrix_PD, expected)


def test_candidates_are_scored_by_their_loss_on_the_first_examples() -> None:
    base = small_base("gemma3", bos=True)
    examples = small_set(base).train * 9
    random = torch.Generator().manual_seed(1)
    matrices = [torch.randn(4, base.d_model, generator=random) * base.embedding_rms for _ in range(3)]
    for placement in PLACEMENTS:
        found = score(base, matrices, placement, examples, 64)
        used = next(n for n in range(99) if sum(len(e.ids) for e in examples[:n]) >= SCORING_TOKENS)
        expected = [mean_alone(base, Batch(PrefixSource(matrix, placement), examples[:used])) for matrix in matrices]
        assert found == pytest.approx(expected, abs=1e-5)
