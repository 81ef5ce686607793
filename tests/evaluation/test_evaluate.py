"""Evaluation: the same tokens under every condition, each loss that of plain concatenation, and what is made of the numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from sordino.errors import ConfigError, DataError, OutOfMemory
from sordino.evaluation import conditions
from sordino.evaluation.conditions import Baselines, default_instructions, excerpts, instruction, no_prompt, soft_prompt
from sordino.evaluation.config import DistanceConfig, EvaluateConfig
from sordino.evaluation.measuring import WindowLosses, evaluate, summarise, worth
from sordino.evaluation.off_domain import packaged_text
from sordino.evaluation.report import Report, summary, to_json
from sordino.evaluation.scoring import nll_of_windows, target_bytes, windows_of
from sordino.evaluation.verdict import damage, verdict
from sordino.forward import token_losses
from sordino.models.base_model import BaseModel
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from sordino.texts.pieces import Piece, data_hash
from tests.parity.plain import plain_embeds, plain_nll
from tests.tiny_models import FAMILIES, tiny_base

HELDOUT = [
    Piece("one.txt", "text", "The keeper wrote of the sea and the lamp. " * 2),
    Piece("two.txt", "text", "A ship was seen; the fog took it to the sea. Nothing followed. "),
    Piece("three.jsonl:4", "completion", " the lamp", prompt="What did the keeper see?"),
]
TRAINING = [
    Piece(f"{n}.txt", "text", f"The keeper of the lamp wrote page {n} of the book of the sea. " * 3) for n in range(4)
]
SMALL = EvaluateConfig(row_tokens=16, excerpt_tokens=(4, 8, 16), excerpt_draws=2, resamples=200, pass_tokens=200)


def voice(base: BaseModel, tokens: int, seed: int = 0, **metadata: object) -> SoftPrompt:
    matrix = np.random.default_rng(seed).standard_normal((tokens, base.d_model)).astype(np.float32) * 0.5
    return SoftPrompt(matrix, Metadata(**{"placement": base.placement, **metadata}))


# Scoring ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bos", [False, True])
def test_every_condition_has_the_loss_of_plain_concatenation(
    family: str, bos: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_base(family, bos=bos)
    tried = [
        soft_prompt(base, "a", voice(base, 3)),
        soft_prompt(base, "b", voice(base, 11, 1, placement="start")),
        no_prompt(base),
        instruction(base, "The keeper wrote:"),
        *excerpts(base, TRAINING, [4, 8], draws=1, seed=0)[0],
    ]
    # Small enough that conditions are run in several groups, and each group in several passes.
    monkeypatch.setattr(token_losses, "PREFIX_POSITIONS", 25)
    windows = windows_of(base, HELDOUT, row_tokens=16, limit=0, first=all(c.length > 0 for c in tried))
    told: list[tuple[int, int]] = []
    got = nll_of_windows(base, tried, windows, pass_tokens=60, progress=lambda done, total: told.append((done, total)))
    for c, condition in enumerate(tried):
        for w, window in enumerate(windows):
            ids = [*condition.leading, *window.ids]
            labelled = [False] * len(condition.leading) + list(window.labelled)
            expected = plain_nll(base.network, plain_embeds(base, condition), ids, labelled).sum()
            assert got[w, c] == pytest.approx(float(expected), abs=1e-7)
    assert told[-1] == (len(windows) * len(tried),) * 2
    assert len(told) > 4


def test_an_unpacked_architecture_scores_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base("gemma3")
    tried = [soft_prompt(base, "a", voice(base, 3)), no_prompt(base)]
    windows = windows_of(base, HELDOUT, row_tokens=16, limit=0, first=True)
    packed = nll_of_windows(base, tried, windows, pass_tokens=100)
    monkeypatch.setattr("sordino.forward.prefix.PACKABLE_FAMILIES", frozenset())
    np.testing.assert_allclose(nll_of_windows(base, tried, windows, pass_tokens=100), packed, atol=1e-7)


def test_a_first_token_counts_only_where_everybody_can_predict_it() -> None:
    base = tiny_base("llama")
    all_of_them = windows_of(base, HELDOUT[:2], row_tokens=16, limit=0, first=True)
    without = windows_of(base, HELDOUT[:2], row_tokens=16, limit=0, first=False)
    assert all(all(window.labelled) for window in all_of_them)
    assert [w.labelled for w in without] == [(False, *w.labelled[1:]) for w in all_of_them]
    # After a BOS, nothing is lost: no prompt is a prefix of one position.
    assert no_prompt(tiny_base("llama", bos=True)).length == 1
    assert no_prompt(base).length == 0


def test_windows_are_thinned_evenly() -> None:
    base = tiny_base("llama")
    pieces = [Piece(f"{n}.txt", "text", chr(97 + n) * 160) for n in range(10)]
    every = windows_of(base, pieces, row_tokens=16, limit=0, first=True)
    some = windows_of(base, pieces, row_tokens=16, limit=320, first=True)
    assert len(every) == 100
    assert len(some) == 20
    assert {window.piece for window in some} == {piece.name for piece in pieces}


def test_texts_without_a_target_are_refused() -> None:
    with pytest.raises(DataError, match="too short to measure"):
        windows_of(tiny_base("llama"), [Piece("x", "text", "x")], row_tokens=16, limit=0, first=False)


def test_bytes_are_those_of_the_targets_text() -> None:
    base = tiny_base("llama")
    text = "Über the sea: 🎈🎈 né"
    windows = windows_of(base, [Piece("x", "text", text)], row_tokens=5, limit=0, first=True)
    assert target_bytes(base, windows) == len(text.encode())
    first_off = windows_of(base, [Piece("x", "text", "abcdefghij")], row_tokens=5, limit=0, first=False)
    assert target_bytes(base, first_off) == 8
    # A completion: its prompt is no target, and the end of text that it is labelled with has no bytes.
    assert target_bytes(base, windows_of(base, HELDOUT[2:], row_tokens=99, limit=0, first=True)) == len(" the lamp")


# Conditions -------------------------------------------------------------------------------------------------------------


def test_text_in_front_is_the_text_itself() -> None:
    for bos in (False, True):
        base = tiny_base("gemma3", bos=bos)
        heading = instruction(base, "The keeper wrote:")
        ids = base.encode("The keeper wrote:\n\n")
        assert (heading.prompt, heading.ids) == (None, tuple(ids))
        assert (heading.tokens, heading.length) == (len(ids), len(ids) + bos)
        assert (no_prompt(base).ids, no_prompt(base).length) == ((), bos)
    assert instruction(base, "wrote: ").tokens == len(base.encode("wrote: "))


def test_excerpts_are_consecutive_training_text() -> None:
    base = tiny_base("llama")
    found, notes = excerpts(base, TRAINING, [4, 8, 300, 100_000], draws=3, seed=1)
    assert notes == ["no excerpts of 100000 tokens: the training text is shorter"]
    assert [condition.tokens for condition in found] == [4, 4, 4, 8, 8, 8, 300, 300, 300]

    def text(condition: conditions.Condition) -> str:
        return base.decode(list(condition.ids))

    everything = "".join(piece.text for piece in TRAINING) * 2
    for short, longer in zip(found[:3], found[3:6], strict=True):
        assert text(short) in everything
        assert text(longer).endswith(text(short))
    assert len({text(condition) for condition in found[6:]}) > 1
    again, _ = excerpts(base, TRAINING, [4], draws=3, seed=1)
    other, _ = excerpts(base, TRAINING, [4], draws=3, seed=2)
    assert [text(c) for c in again] != [text(c) for c in other]


def test_instructions_from_what_a_file_says() -> None:
    full = Metadata(name="The Keeper", author="Ines", description="Fog and oil.")
    assert default_instructions(full) == (
        "Write in this style: Fog and oil.",
        "The following was written by The Keeper:",
        "The following was written by Ines:",
    )
    assert len(default_instructions(Metadata(name="A", author="A", description="B"))) == 2


def test_a_name_alone_makes_no_instruction() -> None:
    """ "The following was written by House letters:" was compared with, and lost to everything."""
    assert default_instructions(Metadata(name="House letters", author="Ines")) == ()


# From losses to lines ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Head:
    kind: str
    label: str
    tokens: int


def test_draws_are_averaged_and_differences_paired() -> None:
    heads = [
        Head("soft prompt", "a", 20),
        Head("no prompt", "no prompt", 0),
        Head("excerpt", "20", 20),
        Head("excerpt", "20", 20),
    ]
    hard = np.linspace(1, 3, 6)
    nll = np.stack([hard, hard + 0.5, hard + 0.1, hard + 0.3], axis=1) * 10
    losses = WindowLosses(nll, np.full(6, 10.0), tuple("abcdef"), 240)
    measured, means = summarise(heads, losses, SMALL, text="t")
    assert means.drawn_RL is not None
    assert means.drawn_RL.shape == (200, 3)
    soft, none, excerpt = measured.lines
    assert soft.nll.value == pytest.approx(2.0)
    assert soft.bits_per_byte == pytest.approx(2.0 * 60 / math.log(2) / 240)
    assert none.differences["a"].value == pytest.approx(0.5)
    assert none.differences["a"].interval == pytest.approx((0.5, 0.5))
    assert none.differences["a"].excludes_zero
    assert excerpt.differences["a"].value == pytest.approx(0.2)
    assert soft.differences == {}
    assert (measured.pieces, measured.tokens, measured.unit, measured.units) == (6, 60, "piece", 6)


def test_a_single_block_has_no_interval() -> None:
    losses = WindowLosses(np.ones((3, 1)), np.ones(3), ("a",) * 3, 3)
    measured, means = summarise([Head("no prompt", "no prompt", 0)], losses, SMALL, text="t")
    assert means.drawn_RL is None
    assert measured.lines[0].nll.interval is None


# The whole --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report() -> Report:
    base = tiny_base("llama")
    prompts = {"a": voice(base, 5, description="Dry.", name="a"), "b": voice(base, 7, 1, name="b")}
    return evaluate(
        base, prompts, HELDOUT, SMALL, baselines=Baselines(texts=TRAINING), off_domain=("the other text", TRAINING[:1])
    )


def test_a_report_has_every_condition_once(report: Report) -> None:
    assert [(line.kind, line.label) for line in report.heldout.lines] == [
        ("soft prompt", "a"),
        ("soft prompt", "b"),
        ("no prompt", "no prompt"),
        ("instruction", "Write in this style: Dry."),
        ("instruction", "The following was written by a:"),
        ("excerpt", "4 tokens of the training text"),
        ("excerpt", "8 tokens of the training text"),
        ("excerpt", "16 tokens of the training text"),
    ]
    line = report.heldout.lines[1]
    assert set(line.differences) == {"a"}
    assert line.differences["a"].value == pytest.approx(line.nll.value - report.heldout.lines[0].nll.value)
    assert report.off_domain is not None
    assert [line.kind for line in report.off_domain.lines] == ["soft prompt", "soft prompt", "no prompt"]
    assert set(report.worth) == {"a", "b"}


def test_json_is_json(report: Report) -> None:
    read = json.loads(json.dumps(to_json(report), allow_nan=False))
    assert [entry["label"] for entry in read["soft_prompts"]] == ["a", "b"]
    assert read["heldout"]["conditions"][2]["less_soft_prompt"]["a"]["nll"] == pytest.approx(
        report.heldout.lines[2].differences["a"].value
    )
    assert read["soft_prompts"][0]["worth"]["text"]
    assert read["heldout"]["bootstrap"]["units"] == report.heldout.units
    kept = json.loads(json.dumps(summary(report, "b"), allow_nan=False))
    assert set(kept["nll"]) == {"soft_prompt", "no_prompt", "best_instruction", "best_excerpt"}
    low, high = kept["gain_interval"]
    assert low <= kept["nll"]["no_prompt"] - kept["nll"]["soft_prompt"] <= high


def test_without_training_text_excerpts_are_left_out_and_it_is_said() -> None:
    base = tiny_base("gpt2")
    made = evaluate(base, {"a": voice(base, 5)}, HELDOUT, SMALL, baselines=Baselines(["Write:"]))
    assert [line.kind for line in made.heldout.lines] == ["soft prompt", "no prompt", "instruction"]
    assert made.worth == {}
    assert any("no training texts were given" in note for note in made.notes)
    assert made.off_domain is None
    assert damage(made, "a") == ""
    assert to_json(made)["soft_prompts"][0]["worth"] is None


def test_without_a_description_no_instruction_is_compared_with_and_it_is_said() -> None:
    base = tiny_base("llama")
    behind = replace(SMALL, distance=DistanceConfig((0, 16), ("foreign",), limit=64))
    made = evaluate(base, {"a": voice(base, 5, name="House letters")}, HELDOUT, behind, baselines=Baselines())
    assert [line.kind for line in made.heldout.lines] == ["soft prompt", "no prompt"]
    assert any("no description" in note for note in made.notes)
    assert made.distance is not None
    assert not [line for line in made.distance.lines if line.kind == "instruction"]
    assert "best_instruction" not in summary(made, "a")["nll"]


def test_excerpts_longer_than_the_context_are_left_out_and_it_is_said() -> None:
    base = tiny_base("llama")
    long = replace(SMALL, excerpt_tokens=(4, 300))
    made = evaluate(base, {"a": voice(base, 5)}, HELDOUT, long, baselines=Baselines(texts=TRAINING))
    assert [line.tokens for line in made.heldout.lines if line.kind == "excerpt"] == [4]
    assert "no excerpts of 300 tokens: the model's context is too short" in made.notes


def test_a_prompt_that_leaves_no_room_for_a_window_is_refused() -> None:
    base = tiny_base("llama")
    with pytest.raises(ConfigError, match="lower --row-tokens"):
        evaluate(base, {"a": voice(base, 250)}, HELDOUT, SMALL)


@pytest.mark.parametrize(
    ("field", "value"),
    [("row_tokens", 1), ("excerpt_draws", 0), ("limit", -1), ("pass_tokens", 0), ("excerpt_tokens", (20, 10))],
)
def test_settings_out_of_range(field: str, value: object) -> None:
    with pytest.raises(ConfigError):
        EvaluateConfig(**{field: value})


# Verdicts ---------------------------------------------------------------------------------------------------------------


def verdict_for(
    soft: float, none: float, curve: list[float], *, noise: float = 0.0, tokens: int = 20, told: Sequence[float] = ()
) -> str:
    """The verdict on losses per token; `noise` makes the gain differ from piece to piece. told: after instructions."""
    heads = [Head("soft prompt", "a", tokens), Head("no prompt", "no prompt", 0)]
    heads += [Head("excerpt", str(n), n) for n in (20, 64, 128)[: len(curve)]]
    heads += [Head("instruction", str(loss), 5) for loss in told]
    per_token = np.array([soft, none, *curve, *told])
    wobble = np.random.default_rng(0).normal(size=(8, 1)) * noise
    nll = np.repeat(per_token[None], 8, axis=0)
    nll[:, :1] += wobble - wobble.mean()
    measured, means = summarise(
        heads, WindowLosses(nll * 100, np.full(8, 100.0), tuple("abcdefgh"), 3000), SMALL, text="t"
    )
    return verdict(Report({"a": tokens}, measured, worth(measured, means) if curve else {}, None, ()), "a")


def test_verdicts() -> None:
    curve = [4.4, 4.3, 4.2]
    assert verdict_for(4.35, 4.5, curve).startswith(
        "These 20 vectors are worth 36 tokens of real text (95 % interval 36 "
    )
    assert verdict_for(4.35, 4.5, curve, tokens=1).startswith("This vector is worth 36 tokens")
    assert "are worth more than 128 tokens of real text" in verdict_for(4.1, 4.5, curve)
    assert "less than 20 tokens of real text in front would" in verdict_for(4.45, 4.5, curve)
    assert "did not help" in verdict_for(4.5, 4.5, curve)
    assert "did not help" in verdict_for(4.6, 4.5, curve)
    assert "than so little text can show" in verdict_for(4.45, 4.5, curve, noise=1.0)
    assert "from 4.500 to 4.100 nats per token" in verdict_for(4.1, 4.5, [])


def test_the_verdict_compares_with_the_best_instruction() -> None:
    better = "They are 0.28 nats per token better than the best instruction that was tried."
    assert verdict_for(4.1, 4.5, [], told=(4.45, 4.38)).endswith(better)
    assert verdict_for(4.1, 4.5, [], tokens=1, told=(4.0,)).endswith(
        "It is 0.10 nats per token worse than the best instruction that was tried."
    )
    assert verdict_for(4.1, 4.5, [], told=(4.1,)).endswith("about as good as the best instruction that was tried.")
    assert "instruction" not in verdict_for(4.1, 4.5, [])
    assert "instruction" not in verdict_for(4.6, 4.5, [], told=(4.7,)), "it did not help: nothing to compare"


# The text in another voice ------------------------------------------------------------------------------------------------


def test_the_text_in_another_voice_is_never_the_soft_prompt_s_own() -> None:
    from sordino.evaluation.off_domain import _folder
    from sordino.texts.reading import read_pieces

    stranger = SoftPrompt(np.ones((2, 2), np.float32))
    told, pieces = packaged_text([stranger], HELDOUT)
    assert "gazette" in told
    assert [piece.text for piece in pieces] == [p.text for p in read_pieces([_folder("gazette") / "heldout"]).pieces]
    assert "keeper" in packaged_text([stranger], pieces)[0]
    trained = data_hash(read_pieces([_folder("gazette") / "train"]).pieces)
    assert "keeper" in packaged_text([stranger.with_metadata(training={"data_hash": trained})], HELDOUT)[0]
    gazette, keeper, dolor = (
        stranger.with_metadata(name=name) for name in ("Village Gazette", "My keeper", "Port Dolor")
    )
    assert "keeper" in packaged_text([gazette], HELDOUT)[0]
    assert "Port Dolor" in packaged_text([gazette, keeper], HELDOUT)[0]
    assert packaged_text([gazette, keeper, dolor], HELDOUT) is None


def test_memory_that_runs_out_names_the_flag_to_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*args: object, **kwargs: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("sordino.forward.token_losses.nll_of_rows", no_memory)
    with pytest.raises(OutOfMemory, match=r"measuring.*--pass-tokens"):
        evaluate(tiny_base("llama"), {"voice": voice(tiny_base("llama"), 3)}, HELDOUT, SMALL)
