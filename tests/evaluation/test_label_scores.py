"""Labels scored together have the log-probabilities of each label scored alone by plain concatenation."""

from __future__ import annotations

import numpy as np
import pytest

from sordino.errors import DataError
from sordino.evaluation.conditions import Condition, instruction, no_prompt, soft_prompt
from sordino.evaluation.label_scores import TextBehind, edge_logps, label_tree
from sordino.forward import token_losses
from sordino.forward.prefix import PACKABLE_FAMILIES
from sordino.models.base_model import BaseModel
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from tests.parity.plain import plain_embeds, plain_nll
from tests.tiny_models import FAMILIES, tiny_base

ONE_TOKEN = [[7], [11], [300]]
# Beginnings in common, of different depths, and one token among them.
SEVERAL = [[7, 8, 9], [7, 8, 10, 4], [7, 12], [13, 8, 9], [14]]
TEXTS = [(20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31), (40,), (50, 51, 52, 53, 54)]


def conditions_of(base: BaseModel) -> list[Condition]:
    def voice(tokens: int, seed: int, placement: str) -> SoftPrompt:
        matrix = np.random.default_rng(seed).standard_normal((tokens, base.d_model)).astype(np.float32) * 0.5
        return SoftPrompt(matrix, Metadata(placement=placement))

    return [
        soft_prompt(base, "a", voice(3, 0, "after_bos")),
        soft_prompt(base, "b", voice(11, 1, "start")),
        no_prompt(base),
        instruction(base, "The keeper wrote:"),
        soft_prompt(base, "c", voice(5, 2, "after_bos")),
    ]


def plain_logp(base: BaseModel, condition: Condition, text: tuple[int, ...], label: list[int]) -> float:
    ids = [*condition.leading, *text, *label]
    labelled = [False] * (len(ids) - len(label)) + [True] * len(label)
    return -float(plain_nll(base.network, plain_embeds(base, condition), ids, labelled).sum())


def label_logps(
    base: BaseModel, conditions: list[Condition], texts: list[TextBehind], labels: list[list[int]], **more: object
) -> np.ndarray:
    tree = label_tree(labels)
    return tree.sums(edge_logps(base, conditions, texts, tree, **more))


def agrees_with_plain(base: BaseModel, labels: list[list[int]]) -> None:
    conditions = conditions_of(base)
    texts = [TextBehind(c, text) for text in TEXTS for c in range(len(conditions))]
    told: list[tuple[int, int]] = []
    got = label_logps(base, conditions, texts, labels, pass_tokens=70, progress=lambda *at: told.append(at))
    for j, text in enumerate(texts):
        for at, label in enumerate(labels):
            expected = plain_logp(base, conditions[text.condition], text.ids, label)
            assert got[j, at] == pytest.approx(expected, abs=1e-7), (text, label)
    assert told[-1] == (len(texts), len(texts))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("labels", [ONE_TOKEN, SEVERAL], ids=["one token", "several tokens"])
def test_labels_together_equal_each_alone(
    family: str, bos: bool, labels: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_losses, "PREFIX_POSITIONS", 25)
    agrees_with_plain(tiny_base(family, bos=bos), labels)


@pytest.mark.parametrize("labels", [ONE_TOKEN, SEVERAL], ids=["one token", "several tokens"])
def test_a_family_without_packed_rows_gives_the_same(labels: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "gemma3_text" in PACKABLE_FAMILIES
    monkeypatch.setattr("sordino.forward.prefix.PACKABLE_FAMILIES", frozenset())
    agrees_with_plain(tiny_base("gemma3"), labels)


def test_a_text_of_no_tokens_is_scored_behind_its_prompt() -> None:
    base = tiny_base("llama")
    condition = conditions_of(base)[0]
    for labels in (ONE_TOKEN, SEVERAL):
        got = label_logps(base, [condition], [TextBehind(0, ()), TextBehind(0, TEXTS[0])], labels, pass_tokens=100)
        np.testing.assert_allclose(got[0], [plain_logp(base, condition, (), label) for label in labels], atol=1e-7)


def test_a_text_runs_once_whatever_the_number_of_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base("llama")
    from sordino.forward import llama

    positions: list[int] = []
    decode = llama.decode

    def counted(network, text, front=None):
        positions.append(text.embeds_BTD.shape[0] * text.embeds_BTD.shape[1])
        return decode(network, text, front)

    monkeypatch.setattr(llama, "decode", counted)
    text = tuple(range(20, 60))
    label_logps(base, [conditions_of(base)[0]], [TextBehind(0, text)], [[n] for n in range(100)], pass_tokens=999)
    # The prompt, then the text: no label costs a position.
    assert positions == [3, 40]
    positions.clear()
    label_logps(base, [conditions_of(base)[0]], [TextBehind(0, text)], SEVERAL, pass_tokens=999)
    # The labels' inner beginnings: (7 8 10), (7 8) within it, (13 8).
    assert positions == [3, 40, 5]


def test_the_tree_shares_beginnings_and_refuses_labels_that_open_others() -> None:
    tree = label_tree(SEVERAL)
    assert tree.beginnings == ((), (7,), (7, 8), (7, 8, 10), (13,), (13, 8))
    assert tree.paths == ((7, 8, 10), (13, 8))
    assert label_tree(ONE_TOKEN).paths == ()
    for labels in ([[1], [1, 2]], [[1, 2], [1, 2]], [[1], []]):
        with pytest.raises(DataError):
            label_tree(labels)


@pytest.mark.slow
def test_words_behind_the_bundled_model_equal_each_alone(smollm2: BaseModel) -> None:
    text = "Review: Same song, second verse, coulda been better.\nVerdict:"
    words = [" good", " bad", " an utter disaster", " an utter delight", " mediocre"]
    labels = [smollm2.encode(word) for word in words]
    conditions = [no_prompt(smollm2), instruction(smollm2, "Film reviews and their verdicts:")]
    texts = [TextBehind(c, tuple(smollm2.encode(text[at:]))) for at in (0, 8) for c in (0, 1)]
    got = label_logps(smollm2, conditions, texts, labels, pass_tokens=256)
    for j, text in enumerate(texts):
        expected = [plain_logp(smollm2, conditions[text.condition], text.ids, label) for label in labels]
        np.testing.assert_allclose(got[j], expected, atol=2e-3)
