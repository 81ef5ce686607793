"""From texts and soft prompts to a mixture, and the numbers that are told of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sordino.errors import ConfigError
from sordino.evaluation.conditions import soft_prompt
from sordino.evaluation.pictures import rendered
from sordino.forward.token_losses import TokenLosses, losses
from sordino.models.base_model import BaseModel
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from sordino.texts.examples import Example
from sordino.training.config import TextPaths
from sordino.training.mixture.config import FitConfig
from sordino.training.mixture.fit import FittedMixture, MixtureTexts, fit, prepare, with_context, x_of
from sordino.training.mixture.report import Candidates, measure, report_figure, summary, to_json, verdicts
from tests.prompts.kv_of import kv_of
from tests.tiny_models import tiny_base
from tests.training.mixture.plain import mean_nll

CONFIG = FitConfig(row_tokens=32, context_tokens=8, resamples=300)


def voice(base: BaseModel, seed: int, tokens: int = 4) -> SoftPrompt:
    matrix = np.random.default_rng(seed).standard_normal((tokens, base.d_model)).astype(np.float32) * 0.5
    return SoftPrompt(matrix, Metadata(placement=base.placement))


def records(folder: Path, count: int = 60) -> Path:
    lines = [{"prompt": f"Say {n % 7}:", "completion": f" the sea {n} and the lamp {n * 7 % 11}"} for n in range(count)]
    path = folder / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def prepared(base: BaseModel, folder: Path, config: FitConfig = CONFIG) -> MixtureTexts:
    return prepare(base, TextPaths((records(folder),)), config)


def fitted(base: BaseModel, folder: Path, config: FitConfig = CONFIG, voices: int = 3) -> FittedMixture:
    return fit(
        base, [(f"v{seed}", voice(base, seed)) for seed in range(voices)], prepared(base, folder, config), config
    )


# Examples ---------------------------------------------------------------------------------------------------------------


def test_a_text_gets_a_context_and_a_completion_keeps_its_prompt() -> None:
    text = Example(tuple(range(20)), (True,) * 20, "t")
    assert with_context(text, 8).labelled == (False,) * 8 + (True,) * 12
    assert with_context(replace(text, ids=(1, 2, 3), labelled=(True,) * 3), 8).labelled == (False, True, True)
    assert with_context(text, 0) == text
    completion = Example((1, 2, 3, 4), (False, False, True, True), "c")
    assert with_context(completion, 8) == completion
    assert x_of(completion) == (1, 2)
    assert x_of(text) == ()


def test_bad_settings_name_their_flag() -> None:
    with pytest.raises(ConfigError, match="--context-tokens"):
        FitConfig(row_tokens=32, context_tokens=32)
    with pytest.raises(ConfigError, match="--limit"):
        FitConfig(limit=-1)


# Fitting ----------------------------------------------------------------------------------------------------------------


def test_the_mixture_has_the_weights_and_numbers_of_its_fit(tmp_path: Path) -> None:
    base = tiny_base("llama")
    data = prepared(base, tmp_path)
    found = fit(base, [(f"v{seed}", voice(base, seed)) for seed in range(3)], data, replace(CONFIG, gate="never"))
    assert found.mixture.gate is None
    assert found.mixture.rule == "sequence"
    np.testing.assert_array_equal(found.mixture.weights_K, found.weights.weights_K)
    fronts = [soft_prompt(base, "", prompt) for prompt in found.mixture.components]
    held = losses(base, fronts, data.heldout, pass_tokens=999)
    nll_NK, tokens = held.of_examples().numpy(), len(held.nll_TK)
    assert found.report.tokens == tokens
    by_hand = {
        "mean": nll_NK.mean(axis=1).sum(),
        "uniform": mean_nll(nll_NK, np.full(3, 1 / 3)) * len(nll_NK),
        "mixture": mean_nll(nll_NK, found.weights.weights_K) * len(nll_NK),
        "ensemble": -np.log(np.exp(-held.nll_TK.numpy()).mean(axis=1)).sum(),
    }
    for kind, total in by_hand.items():
        assert found.report.line(kind).nll.value == pytest.approx(total / tokens, rel=1e-9), kind
    parts = [line.nll.value for line in found.report.lines if line.kind == "component"]
    assert parts == pytest.approx((nll_NK.sum(axis=0) / tokens).tolist())
    assert found.report.line("mixture").less_mixture.value == 0
    assert found.mixture.metadata.heldout == summary(found.report)
    assert found.mixture.metadata.base == base.ref


def test_components_of_both_kinds_are_weighed_by_what_they_predict(tmp_path: Path) -> None:
    """A KV prompt that does what an embedding prompt does gets the losses, and so the weights, of that one."""
    base = tiny_base("llama")
    data = prepared(base, tmp_path)
    vectors = [voice(base, seed) for seed in range(2)]
    mixed = [("v0", kv_of(base, vectors[0])), ("v1", vectors[1])]
    config = replace(CONFIG, gate="always")
    plain, found = (fit(base, prompts, data, config) for prompts in ([("v0", vectors[0]), ("v1", vectors[1])], mixed))
    np.testing.assert_allclose(found.weights.weights_K, plain.weights.weights_K, atol=1e-4)
    for one, other in zip(found.report.lines, plain.report.lines, strict=True):
        assert one.nll.value == pytest.approx(other.nll.value, abs=1e-4), one.kind
    assert [prompt.kind for prompt in found.mixture.components] == ["KV prompt", "embedding prompt"]


def test_the_best_component_is_chosen_before_anything_is_held_out(tmp_path: Path) -> None:
    base = tiny_base("llama")
    found = fitted(base, tmp_path)
    data = prepared(base, tmp_path)
    fronts = [soft_prompt(base, "", prompt) for prompt in found.mixture.components]
    nll_NK = losses(base, fronts, data.train, pass_tokens=999).of_examples()
    assert found.report.line("best").label == f"v{int(nll_NK.sum(dim=0).argmin())}"


@pytest.mark.parametrize("gate", ["auto", "always", "never"])
def test_the_gate_is_in_the_file_where_it_won_or_was_asked_for(tmp_path: Path, gate: str) -> None:
    base = tiny_base("llama")
    found = fitted(base, tmp_path, replace(CONFIG, gate=gate))
    assert (found.gate is None) == (gate == "never")
    kept = {"auto": found.report.gate_won is True, "always": True, "never": False}[gate]
    assert (found.mixture.gate is not None) == kept
    assert found.report.gate_won is None or isinstance(found.mixture.metadata.heldout["gate_won"], bool)
    assert found.mixture.weights_K.sum() == pytest.approx(1)


def test_one_component_is_a_mixture_too(tmp_path: Path) -> None:
    found = fitted(tiny_base("llama"), tmp_path, voices=1)
    assert found.mixture.weights_K.tolist() == [1.0]
    assert found.gate is None
    assert len(verdicts(found.report)) == 1


def test_the_same_seed_gives_the_same_mixture(tmp_path: Path) -> None:
    base = tiny_base("llama")
    first, second = (fitted(base, tmp_path, replace(CONFIG, gate="always")) for _ in range(2))
    assert first.mixture.content_hash == second.mixture.content_hash
    assert to_json(first.report) == to_json(second.report)


def test_a_limit_thins_evenly_and_progress_ends_full(tmp_path: Path) -> None:
    base = tiny_base("llama")
    told: list[tuple[int, int]] = []
    config = replace(CONFIG, limit=200)
    found = fit(
        base,
        [("a", voice(base, 0)), ("b", voice(base, 1))],
        prepared(base, tmp_path, config),
        config,
        progress=lambda done, total: told.append((done, total)),
    )
    assert found.report.tokens < 200
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1]


# What is told -----------------------------------------------------------------------------------------------------------


def scored(differences: np.ndarray) -> TokenLosses:
    """Examples of five tokens each: the first component loses a nat a token, the others that and `differences` [N, K-1]."""
    nll_NK = np.concatenate([np.ones((len(differences), 1)), 1 + differences], axis=1)
    return TokenLosses(torch.from_numpy(nll_NK).repeat_interleave(5, 0), torch.full((len(differences),), 5))


def test_who_won_is_said_with_its_interval() -> None:
    """Two kinds of texts, a component for each, and a gate that knows which is which."""
    random = np.random.default_rng(0)
    side_N = random.integers(2, size=80)
    losses_of = scored((np.where(side_N == 1, -2.0, 2.0) + random.normal(0, 0.1, 80))[:, None])
    knowing_NK = np.where(side_N[:, None] == np.arange(2), 0.99, 0.01)
    names = [f"t:{n}" for n in range(80)]
    even_K = np.array([0.5, 0.5])
    report = measure(losses_of, names, Candidates(["a", "b"], 0, even_K, knowing_NK))
    assert report.gate_won
    assert report.unit == "piece"
    assert any(line.startswith("The gate won") and "95 % interval" in line for line in verdicts(report))
    assert "The mixture is better than the best component alone (a)" in " ".join(verdicts(report))
    blind = measure(losses_of, names, Candidates(["a", "b"], 0, even_K, np.roll(knowing_NK, 1, axis=1)))
    assert blind.gate_won is False
    assert any(line.startswith("Fixed weights won") for line in verdicts(blind))
    assert report.effective == pytest.approx(2)


def test_too_few_pieces_have_no_intervals_and_json_has_it_all() -> None:
    report = measure(scored(np.array([[0.5], [-0.5]])), ["x", "x"], Candidates(["a", "b"], 0, np.array([0.5, 0.5])))
    assert report.line("mixture").nll.interval is None
    # Where no interval can be had, nothing is said to be better, and no gate wins.
    less = measure(
        scored(np.array([[-2.0], [2.0]])),
        ["x", "x"],
        Candidates(["a", "b"], 0, np.array([0.5, 0.5]), np.array([[0.1, 0.9], [0.9, 0.1]])),
    )
    assert less.line("gate").less_mixture.value < 0
    assert less.gate_won is False
    assert "so little text" in " ".join(verdicts(less))
    assert "better" not in " ".join(verdicts(less)[1:3])
    told = json.loads(json.dumps(to_json(report), allow_nan=False))
    assert told["gate_won"] is None
    assert [line["kind"] for line in told["lines"]][:2] == ["component", "component"]
    assert json.dumps(summary(report), allow_nan=False)


def test_the_picture_is_the_same_for_the_same_report() -> None:
    report = measure(
        scored(np.array([[0.5], [-0.5]] * 4)), list("abcdefgh"), Candidates(["a$x", "b"], 0, np.array([0.5, 0.5]))
    )
    first, again = (rendered(report_figure(report), ".png") for _ in range(2))
    assert first == again
    assert first.startswith(b"\x89PNG")
