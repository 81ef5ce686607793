"""Gains after other text: what is measured after what, what does not fit, and what is made of the numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sordino.errors import BadInput, ConfigError
from sordino.evaluation import between, report
from sordino.evaluation.adapters import adapted, check_adapter
from sordino.evaluation.between import parts_of
from sordino.evaluation.conditions import Baselines, no_prompt
from sordino.evaluation.confidence import Estimate
from sordino.evaluation.config import DistanceConfig, EvaluateConfig
from sordino.evaluation.distance_report import (
    DistanceLine,
    DistanceReport,
    kept_summary,
    reach,
    table,
    to_json,
)
from sordino.evaluation.measuring import evaluate
from sordino.evaluation.mixed import nll_of_conditions
from sordino.evaluation.scoring import windows_of
from sordino.evaluation.verdict import verdict
from sordino.models.base_model import BaseModel
from sordino.prompts.attention import PromptAttention
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from sordino.texts.neutral import evaluation_texts, training_texts
from sordino.texts.pieces import Piece, chat
from tests.tiny_models import tiny, tiny_base

HELDOUT = [
    Piece(f"{n}.txt", "text", f"The keeper {n} wrote of the sea and the lamp, and the ship. " * 4) for n in range(6)
]
SETTINGS = DistanceConfig(distances=(0, 8, 40), row_tokens=16, limit=90)
QUICK = EvaluateConfig(limit=100, row_tokens=32, resamples=100)


def voice(base: BaseModel, tokens: int = 4, seed: int = 0, hold: int | None = None) -> SoftPrompt:
    values = np.random.default_rng(seed).standard_normal((tokens, base.d_model)).astype(np.float32) * 0.5
    return SoftPrompt(values, Metadata(placement=base.placement, attention=PromptAttention(hold=hold)))


def measured(
    base: BaseModel, prompts: dict[str, SoftPrompt], settings: DistanceConfig, **texts: object
) -> report.Report:
    return evaluate(base, prompts, HELDOUT, replace(QUICK, distance=settings), baselines=Baselines(**texts))


# What is measured after what -------------------------------------------------------------------------------------------


def test_every_kind_of_text_and_every_condition() -> None:
    base = tiny_base("llama")
    prompts = {"a": voice(base), "b": voice(base, 6, 1, hold=5)}
    found = measured(base, prompts, SETTINGS, instructions=("Write so:",), texts=HELDOUT[:3]).distance
    assert found is not None
    assert [(line.between, line.writer, line.label, line.hold) for line in found.lines] == [
        ("foreign", "", "a", None),
        ("foreign", "", "b", 5),
        ("foreign", "", "b", None),
        ("foreign", "", "Write so:", None),
        ("foreign", "", found.lines[4].label, None),
        ("own", "", "a", None),
        ("own", "", "b", 5),
        ("written", "a", "a", None),
        ("written", "b", "b", 5),
    ]
    assert "tokens of the training text" in found.lines[4].label
    assert {tuple(line.gains) for line in found.lines} == {(0, 8, 40)}
    assert [line.positions for line in found.lines[:4]] == [4, 6, 6, len(base.encode("Write so:\n\n"))]
    assert len({line.gains[0].value for line in found.lines if line.label == "a"}) == 1


def test_the_base_model_s_own_text_depends_on_the_seed_alone() -> None:
    base = tiny_base("llama")
    settings = replace(SETTINGS, between=("written",))
    first, again = (measured(base, {"a": voice(base)}, settings).distance for _ in range(2))
    assert first == again


def test_what_has_no_room_is_left_out_by_name() -> None:
    base = tiny_base("llama")
    settings = replace(SETTINGS, distances=(0, 8, 190, 230, 999), between=("foreign",))
    found = measured(base, {"long": voice(base, 40), "short": voice(base)}, settings)
    assert found.distance is not None
    assert found.distance.distances == (0, 8, 190, 230)
    assert [tuple(line.gains) for line in found.distance.lines[:2]] == [(0, 8, 190), (0, 8, 190, 230)]
    assert "nothing is measured after 999 tokens: no room in the model's context of 256 positions" in found.notes
    assert "long is not measured after 230 tokens: no room in the model's context of 256 positions" in found.notes


def test_distances_that_none_fits_are_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base("llama")
    monkeypatch.setattr(base.network, "forward", None)
    with pytest.raises(ConfigError, match="does not fit the model's context") as caught:
        measured(base, {"a": voice(base)}, replace(SETTINGS, distances=(0, 999)))
    assert caught.value.do == "give shorter distances"


def test_a_hold_that_a_family_cannot_have_is_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base("llama")
    monkeypatch.setattr("sordino.forward.prefix.PACKABLE_FAMILIES", frozenset())
    with pytest.raises(ConfigError, match="hold and strength"):
        measured(base, {"a": voice(base)}, replace(SETTINGS, hold=8))
    assert measured(base, {"a": voice(base)}, replace(SETTINGS, between=("foreign",))).distance is not None


def test_texts_that_are_too_short_are_noted() -> None:
    base = tiny_base("llama")
    short = (Piece("a", "text", "the sea and the ship"),)
    found = measured(base, {"a": voice(base)}, replace(SETTINGS, between=("foreign", "own"), foreign=short))
    assert found.distance is not None
    assert [line.between for line in found.distance.lines] == ["own"]
    assert [note for note in found.notes if note.startswith("other texts: there are 6 tokens, too few for 8, 40")]


@pytest.mark.parametrize("distances", [(0,), (8, 64), (0, 64, 8), (0, 8, 8)])
def test_distances_ascend_from_0(distances: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="not a list of distances"):
        DistanceConfig(distances=distances)


# Texts between ----------------------------------------------------------------------------------------------------------


def test_the_neutral_texts_are_the_package_s_without_its_readme() -> None:
    texts = (*training_texts(), *evaluation_texts())
    assert len({text.name for text in texts}) == len(texts) == 18
    assert all(text.text.strip() and "written for this project" not in text.text for text in texts)


def test_parts_are_of_like_length_and_lose_no_words() -> None:
    for pieces in (HELDOUT, [Piece("a", "text", "The sea.\nThe ship went.\n" * 40)], HELDOUT[:1]):
        parts = parts_of(pieces, 2)
        sizes = [sum(piece.size for piece in part) for part in parts]
        assert len(parts) == 2
        assert abs(sizes[0] - sizes[1]) < 40
        words = " ".join(piece.text for part in parts for piece in part).split()
        assert words == " ".join(piece.text for piece in pieces).split()


def test_a_chat_is_not_cut() -> None:
    turns = [{"role": "user", "content": "Who?\n"}, {"role": "assistant", "content": "The keeper.\n" * 20}]
    assert parts_of([chat("a", turns)], 2) == [(chat("a", turns),)]


def test_own_text_is_never_what_is_judged() -> None:
    base = tiny_base("llama")
    parts = parts_of([Piece("a", "text", "lamp lamp lamp.\n" * 30 + "ship ship ship.\n" * 30)], 2)
    first, second = between.own_texts(base, parts, (), 40, seed=0).texts
    assert "ship" in base.decode(list(first))
    assert "lamp" not in base.decode(list(first))
    assert "lamp" in base.decode(list(second))
    # One part has no other: the training texts stand in.
    (only,) = between.own_texts(base, parts[:1], [Piece("b", "text", "sea " * 90)], 40, seed=0).texts
    assert len(only) == 40


def test_the_model_writes_as_much_as_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base("llama")
    monkeypatch.setattr(between, "_WRITTEN", 16)
    found = between.written_texts(base, "a", voice(base), 40, 2, seed=0)
    assert found.writer == "a"
    assert found.texts[0] != found.texts[1]
    assert [len(ids) for ids in found.texts] == [40, 40]


# Adapters ---------------------------------------------------------------------------------------------------------------


def saved_adapter(folder: Path) -> Path:
    from peft import LoraConfig, TaskType, get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(tiny("llama"), LoraConfig(task_type=TaskType.CAUSAL_LM, r=4, target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(str(folder))
    return folder


def test_an_adapter_is_measured_beside_and_taken_out_again(tmp_path: Path) -> None:
    from peft import PeftModel

    base = tiny_base("llama")
    folder = saved_adapter(tmp_path / "lora")
    windows = windows_of(base, HELDOUT, row_tokens=16, limit=90, first=False)
    before = nll_of_conditions(base, [no_prompt(base)], windows, pass_tokens=200)
    with adapted(base, folder):
        with_adapter = nll_of_conditions(base, [no_prompt(base)], windows, pass_tokens=200)[:, 0]
    model = PeftModel.from_pretrained(tiny("llama"), str(folder))
    for window, nll in zip(windows, with_adapter, strict=True):
        ids = torch.tensor([window.ids])
        logp = torch.log_softmax(model(input_ids=ids).logits[0, :-1].double(), -1)
        wanted = -logp.gather(1, ids[0, 1:, None])[torch.tensor(window.labelled[1:])].sum()
        assert nll == pytest.approx(float(wanted.detach()), abs=1e-5)
    np.testing.assert_array_equal(nll_of_conditions(base, [no_prompt(base)], windows, pass_tokens=200), before)
    assert not any(parameter.requires_grad for parameter in base.network.parameters())
    assert not any("lora" in name for name, _ in base.network.named_modules())
    found = measured(base, {"a": voice(base)}, replace(SETTINGS, between=("foreign",), adapters=(folder,))).distance
    assert found is not None
    assert found.lines[-1].label == "LoRA lora"
    assert found.lines[-1].gains[8].value != 0


def test_a_folder_that_is_no_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="LoRA adapter"):
        check_adapter(tmp_path)
    folder = saved_adapter(tmp_path / "lora")
    check_adapter(folder)
    with pytest.raises(BadInput, match="does not fit the base model"), adapted(tiny_base("gpt2"), folder):
        pass


# Numbers ----------------------------------------------------------------------------------------------------------------


def line(hold: int | None, shares: dict[int, float], *, changed: bool = False) -> DistanceLine:
    gains = {0: Estimate(0.4, (0.3, 0.5)), **{d: Estimate(0.4 * share, None) for d, share in shares.items()}}
    kept = {d: Estimate(share, (share - 0.1, share + 0.1)) for d, share in shares.items()}
    return DistanceLine("foreign", "", "soft prompt", "keeper", hold, changed, 20, gains, kept)


REPORT = DistanceReport(
    (0, 256, 768),
    768,
    2,
    "piece",
    9,
    (line(None, {256: 0.5, 768: 0.25}), line(128, {256: 0.7, 768: 0.6}, changed=True)),
    (),
)


def test_the_sentence_says_how_much_is_kept() -> None:
    assert reach(REPORT, "keeper") == (
        "After other texts it keeps this share of its gain: 50% at 256 tokens and 25% at 768 [15%, 35%]. "
        "Held from 128 tokens: 70% at 256 tokens and 60% at 768 [50%, 70%]."
    )
    assert reach(REPORT, "another") == ""
    assert reach(replace(REPORT, lines=(replace(line(None, {}), kept={}),)), "keeper") == ""
    assert kept_summary(REPORT, "keeper") == {"256": 0.5, "768": 0.25}
    assert kept_summary(REPORT, "another") == {}


def test_the_table_and_its_json() -> None:
    assert table(REPORT).plain() == [
        "text between  in front of it                     positions       0     256     768  kept at 768",
        "other texts   soft prompt keeper, not held              20  +0.400  +0.200  +0.100          25%  [15%, 35%]",
        "other texts   soft prompt keeper, held from 128         20  +0.400  +0.280  +0.240          60%  [50%, 70%]",
    ]
    found = to_json(REPORT)
    assert found["distances"] == [0, 256, 768]
    assert [one["as_in_file"] for one in found["lines"]] == [True, False]
    assert found["lines"][1]["behind"][2] == {
        "distance": 768,
        "gain": pytest.approx(0.24),
        "interval": None,
        "kept": 0.6,
        "kept_interval": (0.5, 0.7),
    }


def test_no_share_is_kept_of_a_gain_that_is_not_certain() -> None:
    """A random prompt gains nothing: its share would be a number over chance."""
    base = tiny_base("llama")
    found = measured(base, {"a": voice(base)}, replace(SETTINGS, between=("foreign",)))
    assert found.distance is not None
    assert found.distance.lines[0].gains[0].value < 0
    assert found.distance.lines[0].kept == {}
    assert "keeps" not in verdict(found, "a")


def test_the_verdict_and_the_file_s_summary_have_the_share_kept() -> None:
    base = tiny_base("llama")
    found = replace(measured(base, {"keeper": voice(base)}, replace(SETTINGS, between=("foreign",))), distance=REPORT)
    assert verdict(found, "keeper").endswith(reach(REPORT, "keeper"))
    assert report.summary(found, "keeper")["gain_kept"] == {"256": 0.5, "768": 0.25}
    assert report.to_json(found)["distance"] == to_json(REPORT)
    assert table(REPORT).plain()[1] in str(found)
    plain = evaluate(base, {"keeper": voice(base)}, HELDOUT, QUICK)
    assert report.to_json(plain)["distance"] is None
    assert "gain_kept" not in report.summary(plain, "keeper")


@pytest.mark.parametrize("ending", [".png", ".svg"])
def test_the_picture_is_drawn(ending: str) -> None:
    from sordino.evaluation.pictures import distance_figure, rendered

    strange = replace(
        REPORT.lines[0], label="$x^2$ \\ 語", between="written", writer="$x^2$", gains={0: Estimate(0.1, None)}
    )
    drawn = rendered(distance_figure(replace(REPORT, lines=(*REPORT.lines, strange))), ending)
    assert len(drawn) > 5000
