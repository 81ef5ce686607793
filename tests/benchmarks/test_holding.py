"""The parts of benchmarks/holding.py: instructions and their checks, LoRA and control vectors, losses after stories."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch

from benchmarks import holding
from benchmarks.authorship import CHARACTERS, chunks, distinct_pairs, styles
from benchmarks.instructions import Instruction, read_instructions
from benchmarks.stages import Cost, Stages
from benchmarks.steering import control_vector, steered_layers, train_lora, with_control, with_lora
from benchmarks.writers import Writer, nll_behind_stories, write_stories
from sordino.forward.llama_layers import layers_of
from sordino.models.base_model import BaseModel
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from sordino.texts.examples import Example
from sordino.training.config import TextPaths, TrainConfig
from sordino.training.run import prepare
from tests.parity.plain import plain_embeds, plain_nll
from tests.prompt_files import matrix
from tests.tiny_models import tiny_base

# (what writes, whether it has bytes and positions)
WRITERS = [
    ("nothing", (False, False)),
    ("system prompt", (True, True)),
    ("five examples", (True, True)),
    ("embedding, not held", (True, True)),
    ("embedding, held", (True, True)),
    ("KV, not held", (True, True)),
    ("KV, held", (True, True)),
    ("control vector", (True, False)),
    ("LoRA r8", (True, False)),
]
IDS = torch.tensor([[5, 40, 17, 90, 33, 8, 60, 21]])


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return tiny_base("llama", dtype=torch.float64)


def logits(base: BaseModel) -> torch.Tensor:
    with torch.inference_mode():
        network: Any = base.network
        return network(input_ids=IDS).logits[0]


def test_every_instruction_is_followed_by_its_good_answer_and_not_by_another() -> None:
    instructions = read_instructions()
    assert len({one.ask for one in instructions}) == 40
    assert [one.ask for one in instructions if not one.followed(one.good)] == []
    for nonsense in (
        "",
        "The wind was high, and nobody in the tower had anything at all to say about it that was new to them.",
    ):
        assert [one.ask for one in instructions if one.followed(nonsense)] == []


def test_an_unknown_check_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "some.jsonl"
    file.write_text('{"ask": "Sing.", "sings": true, "good": "La."}\n')
    with pytest.raises(KeyError, match="sings"):
        read_instructions(file)


def test_a_control_vector_is_added_to_the_outputs_of_its_layers(base: BaseModel) -> None:
    directions = {1: np.random.default_rng(0).normal(size=base.d_model).astype(np.float32)}
    steered = logits(with_control(base, directions, 0.5))

    def add(module: Any, given: Any, output: Any) -> Any:
        added = torch.from_numpy(directions[1] * np.float32(0.5)).double()
        return (output[0] + added, *output[1:]) if isinstance(output, tuple) else output + added

    before = logits(base)
    hook = layers_of(base.network)[1].register_forward_hook(add)
    try:
        hooked = logits(base)
    finally:
        hook.remove()
    assert (steered - hooked).norm() < 1e-12 * hooked.norm()
    assert (steered - before).norm() > 1e-3 * before.norm()
    assert torch.equal(logits(base), before)


def test_a_control_vector_points_from_the_negative_to_the_positive_texts(base: BaseModel) -> None:
    random = np.random.default_rng(1)
    texts = random.integers(6, base.vocab_size, size=(2, 20, 4))
    positive, negative = ([[*row, last] for row in part.tolist()] for part, last in zip(texts, (50, 90), strict=True))
    found = control_vector(base, positive, negative)
    assert list(found) == list(steered_layers(base))
    for direction in found.values():
        assert np.linalg.norm(direction) == pytest.approx(1)
    turned = control_vector(base, negative, positive)
    assert all(float(found[layer] @ turned[layer]) == pytest.approx(-1, abs=1e-4) for layer in found)


def test_lora_learns_the_rows_and_is_merged_into_a_copy(base: BaseModel, tmp_path: Path) -> None:
    before = logits(base)
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(4):
        (texts / f"{number}.txt").write_text(
            f"page {number}: the keeper wrote of the lamp and the sea and the ship. " * 8
        )
    config = TrainConfig(tokens=2, steps=12, batch=2, row_tokens=32, context_tokens=48, measure="none")
    prepared = prepare(base, config, TextPaths((texts,), (texts / "0.txt",)), started="nothing")
    train_lora(base, prepared, tmp_path / "lora")
    merged = with_lora(base, tmp_path / "lora")
    assert torch.equal(logits(base), before)
    learned = logits(merged)
    unmerged: Any = peft.PeftModel.from_pretrained(with_control(base, {}, 1.0).network, str(tmp_path / "lora"))
    with torch.inference_mode():
        assert (unmerged(input_ids=IDS).logits[0] - learned).norm() < 1e-10 * learned.norm()
    example = prepared.data.train[0]
    windows = [replace(example, labelled=(False, *example.labelled[1:]))]
    losses = [nll_behind_stories(Writer("", model), windows, ["the"], [[7, 8]], (0,))[0] for model in (base, merged)]
    assert losses[1] < losses[0] - 0.05


def test_losses_behind_stories_are_those_of_plain_text(base: BaseModel) -> None:
    prompt = SoftPrompt(matrix(0, 3, base.d_model), Metadata(name="voice"))
    story, window = list(range(10, 22)), Example((31, 32, 33, 34), (False, True, True, True), "")
    for writer in (Writer("", base, ahead=(61, 62)), Writer("", base, prompt=prompt)):
        found = nll_behind_stories(writer, [window], ["the sea"], [story], (0, 4, 8))
        for distance, loss in zip((0, 4, 8), found, strict=True):
            between = [*base.encode("the sea"), *story[:distance], *base.encode("\n\n")] if distance else []
            ids = [*between, *window.ids]
            targets = [at >= len(ids) - 3 for at in range(len(ids))]
            nll = plain_nll(base.network, plain_embeds(base, writer.condition()), ids, targets)
            assert loss == pytest.approx(float(nll.mean()), rel=1e-9)


def test_writers_in_one_batch_write_what_they_write_alone(base: BaseModel) -> None:
    prompt = SoftPrompt(matrix(0, 3, base.d_model), Metadata(name="voice"))
    writers = [
        Writer("nothing", base),
        Writer("soft prompt", base, prompt=prompt),
        Writer("system", base, system="Rain."),
    ]
    together = write_stories(writers, ["the sea", "the lamp"], 12)
    assert {len(ids) for stories in together.values() for ids in stories} == {12}
    for writer in writers:
        assert write_stories([writer], ["the sea", "the lamp"], 12)[writer.name] == together[writer.name]


def test_chunks_and_pairs() -> None:
    text = "word " * 500
    found = chunks([text, "too short"])
    assert len(found) == 2
    assert all(CHARACTERS - 5 <= len(chunk) <= CHARACTERS for chunk in found)
    assert distinct_pairs("a b a b") == pytest.approx(2 / 3)


def test_what_is_kept_is_the_style_of_the_end_over_that_of_the_beginning() -> None:
    class Fixed:
        def style(self, text: str) -> float:
            return float(text)

    judge: Any = Fixed()
    found = styles(judge, [["0.9", "0.7", "0.5", "0.5", "0.3"], ["0.7", "0.9", "0.5", "0.3", "0.5"]])
    assert (found["style, first"], found["style, last"], found["kept"]) == (0.8, 0.4, "50%")
    assert styles(judge, [["0.1", "0.1", "0.1"]])["kept"] is None


def test_a_stage_that_is_done_is_not_done_again(tmp_path: Path) -> None:
    stages, made = Stages(tmp_path), []
    assert [stages.of("one", lambda: made.append(1) or 7) for _ in range(2)] == [7, 7]
    assert made == [1]
    file = tmp_path / "file"
    costs = [stages.cost("two", file, lambda: file.write_bytes(b"12345") and None) for _ in range(2)]
    assert costs[0] == costs[1]
    assert isinstance(costs[0], Cost)
    assert costs[0].bytes == 5


class FixedJudge:
    auc, chunks = 1.0, (1, 1)

    def style(self, text: str) -> float:
        return 0.5


def test_all_of_it_on_a_tiny_model(base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"EXAMPLE_TOKENS": 6, "ROW_TOKENS": 32, "DISTANCES": (0, 16), "PAIR_TOKENS": 8}.items():
        monkeypatch.setattr(holding, name, value)
    monkeypatch.setattr(holding, "DESCRIPTIONS", {"noir": "Rain."})
    monkeypatch.setattr(holding, "read_instructions", lambda: [Instruction("Hi?", "hi", {"has": ["hi"]})] * 2)
    tried: list[tuple[int, ...]] = []
    monkeypatch.setattr(
        holding, "judge_of", lambda voice, others, stories: tried.append((len(others), len(stories))) or FixedJudge()
    )
    plan = holding.Plan(2, 1, 1, 64, 2, 4, 2, 64, 2)
    *_, rows = holding.rows_of(holding.Voice("noir", base, plan, Stages(tmp_path / "noir")), Stages(tmp_path))
    assert tried == [(2, 1)]
    assert [row.get("writer") for row in rows] == [None, *(name for name, _ in WRITERS)]
    assert {row["a batch mixes"] for row in rows[1:]} == {"any number", "one"}
    assert rows[1]["damage"] == 0
    for row, (_, kept) in zip(rows[1:], WRITERS, strict=True):
        assert row["kept"] == "100%"
        assert np.isfinite(row["losses"]).all()
        assert (row["bytes"] > 0, row["positions"] > 0) == kept
    # A run that goes on does nothing again.
    for name in ("write_stories", "answers", "trained", "train_lora", "nll_behind_stories"):
        monkeypatch.setattr(holding, name, lambda *given: pytest.fail("done again"))
    *_, again = holding.rows_of(holding.Voice("noir", base, plan, Stages(tmp_path / "noir")), Stages(tmp_path))
    assert again == rows
