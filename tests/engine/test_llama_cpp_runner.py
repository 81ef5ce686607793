"""llama.cpp under the engine: against PyTorch on the same file, in a crowd against alone, and on bad days."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sordino import formats
from sordino.engine.config import Limits
from sordino.engine.engine import Engine
from sordino.engine.requests import Chunk, Request
from sordino.engine.runners.llama_context import LlamaContext
from sordino.engine.runners.llama_cpp_runner import GgufRunner
from sordino.engine.runners.llama_room import CellBudget
from sordino.engine.runners.runner import Runner, Span
from sordino.engine.runners.torch_runner import TorchRunner
from sordino.engine.sampling import Drawn, Sampling, sample
from sordino.engine.seen_tokens import SeenTokens
from sordino.errors import DoesNotFit, ModelError, OutOfMemory
from sordino.forward.combining import combine, responsible
from sordino.forward.gate_input import hidden_of_text
from sordino.forward.placement import leading_ids
from sordino.models import files
from sordino.models.base_model import BaseModel, load
from sordino.models.description import DescribedModel, describe
from sordino.prompts.attention import PromptAttention
from sordino.prompts.mixture import GATE_TOKENS, Gate, Mixture
from sordino.prompts.prompt import Prompt
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from tests.engine.test_torch_runner import run
from tests.prompts.kv_of import kv_of

pytestmark = pytest.mark.slow

OPENING = "The rain had not stopped since Monday, and the street outside the office was a river of paper cups. I"
PASSAGE = (
    "The house stood at the end of the branch, and nobody had lived in it since the war. Its windows were boarded, its gate "
    "hung from one hinge, and in the garden the apple trees had grown together into a wall. We used to dare each other to "
    "go in. One evening in October my brother went, and came back with a clock that was still running."
)
# llama.cpp rounds the numbers between layers to 8 bits, which amplifies every sum that is taken in another order: its own ways
# for few and for many positions, equally far from PyTorch (2e-3 nats a position), are up to 0.6 apart in single logits.
NOISE = 0.01


@pytest.fixture(scope="module")
def path() -> Path:
    file = files.gguf_file(files.resolve("smollm2"))
    assert file is not None
    return file


@pytest.fixture(scope="module")
def model(path: Path) -> DescribedModel:
    return describe(files.resolve("smollm2"), path)


@pytest.fixture(scope="module")
def prompts() -> list[SoftPrompt]:
    with resources.as_file(resources.files("sordino").joinpath("data", "prompts")) as folder:
        return [formats.read(file) for file in sorted(folder.glob("*.zip"))]


@pytest.fixture(params=[None, 1024], ids=["one pool", "split"])
def row_cells(request: pytest.FixtureRequest) -> int | None:
    """Rows share their cells, or have so many each."""
    size: int | None = request.param
    return size


@contextmanager
def runner_of(
    model: DescribedModel,
    path: Path,
    *,
    rows: int = 6,
    cells: int = 4096,
    row_cells: int | None = None,
    prefix_bytes: int = 1 << 26,
    batch: int = 256,
) -> Iterator[GgufRunner]:
    context = LlamaContext(path, CellBudget(1 << 31, cells, rows, row_cells), batch=batch, threads=1)
    assert context.split == (row_cells is not None)
    try:
        yield GgufRunner(model, context, prefix_bytes=prefix_bytes)
    finally:
        context.close()


def logits_of(runner: Runner, prompt: Prompt | None, ids: Sequence[int]) -> np.ndarray:
    """After every token of a text, [T, V], one step a token as rows are written."""
    assert runner.open(0, prompt, ids) == 0
    found = []
    for one in ids:
        assert runner.grow(0, 1)
        found.append(torch.as_tensor(runner.run([Span(0, (one,), True)]))[0])
    runner.close(0, ())
    return torch.stack(found).double().numpy()


def truth_of(runner: TorchRunner, prompt: Prompt | None, ids: Sequence[int]) -> np.ndarray:
    """PyTorch's logits after every token of a text, [T, V]: in one pass, which parity tests hold equal to steps."""
    assert runner.open(0, prompt, ids) == 0
    found = torch.as_tensor(runner.run([Span(0, ids, len(ids))]))
    runner.close(0, ())
    return found.double().numpy()


def divergence(some: np.ndarray, others: np.ndarray) -> float:
    """Mean over positions of KL(some || others), in nats."""
    p, q = (torch.from_numpy(logits).log_softmax(-1) for logits in (some, others))
    return float((p.exp() * (p - q)).sum(-1).mean())


def test_as_near_to_torch_with_a_soft_prompt_as_without(
    model: DescribedModel, path: Path, smollm2: BaseModel, prompts: list[SoftPrompt]
) -> None:
    ids = model.encode(PASSAGE)
    plain = TorchRunner(smollm2, kv_bytes=1 << 30, prefix_bytes=1 << 26)
    with runner_of(model, path) as runner:
        far = [divergence(truth_of(plain, p, ids), logits_of(runner, p, ids)) for p in (None, *prompts)]
        bare, behind = far[0], far[1:]
        assert sum(behind) / len(behind) <= 1.25 * bare, far
        # A soft prompt that was lost on the way would show.
        assert divergence(truth_of(plain, prompts[0], ids), logits_of(runner, None, ids)) > 20 * bare


def test_logits_of_all_positions_are_those_of_one_step_each(
    model: DescribedModel, path: Path, prompts: list[SoftPrompt], row_cells: int | None
) -> None:
    """In parts of any size, and where a held prompt needs more cells on the way."""
    ids = model.encode(PASSAGE)
    held = prompts[0].with_metadata(attention=PromptAttention(hold=24))
    with runner_of(model, path, row_cells=row_cells) as runner:
        for soft in (None, prompts[0], held):
            alone = logits_of(runner, soft, ids)
            assert runner.open(0, soft, ids) == 0
            assert runner.open(1, None, ids) == 0
            first, second = Span(0, ids[:40], 40), Span(1, ids[:7], 2)
            found = [runner.run([first, second])[:40], runner.run([Span(1, ids[7:8], 0), Span(0, ids[40:], 99)])]
            assert divergence(alone, np.concatenate(found).astype(np.float64)) < NOISE
            runner.close(0, ())
            runner.close(1, ())


def test_a_kv_prompt_is_as_near_to_torch_as_an_embedding_prompt(
    model: DescribedModel, path: Path, smollm2: BaseModel, prompts: list[SoftPrompt], row_cells: int | None
) -> None:
    ids = model.encode(PASSAGE)
    plain = TorchRunner(smollm2, kv_bytes=1 << 30, prefix_bytes=1 << 26)
    taken = kv_of(smollm2, prompts[0])
    with runner_of(model, path, row_cells=row_cells) as runner:
        far = [divergence(truth_of(plain, p, ids), logits_of(runner, p, ids)) for p in (prompts[0], taken)]
        assert far[1] <= 1.25 * far[0], far
        # From the cache, and shared with a row that runs, it is the same.
        again = logits_of(runner, taken, ids)
        assert runner.open(7, taken, ids) is not None
        np.testing.assert_array_equal(logits_of(runner, taken, ids), again)


@pytest.mark.parametrize("placement", ["start", "after_bos"])
def test_a_kv_prompt_of_a_model_with_sliding_windows(placement: Any) -> None:
    """Layers with a window are a second cache in llama.cpp's state."""
    source = files.resolve("gemma3-270m")
    file = files.gguf_file(source)
    assert file is not None
    model, base = describe(source, file), load("gemma3-270m")
    assert any(model.windowed)
    words = torch.tensor(base.encode("The keeper wrote of the sea, and the lamp was lit at four")[:12])
    prompt = SoftPrompt(base.embed(words).float().numpy(), Metadata(placement=placement))
    plain, ids = TorchRunner(base, kv_bytes=1 << 30, prefix_bytes=1 << 26), model.encode(PASSAGE)[:24]
    with runner_of(model, file, rows=2, cells=512) as runner:
        pairs = [(one, [*leading_ids(model, placement), *ids]) for one in (prompt, kv_of(base, prompt))]
        far = [divergence(truth_of(plain, *pair), logits_of(runner, *pair)) for pair in pairs]
        assert far[1] <= 1.25 * far[0], far


def test_as_near_to_torch_in_a_changing_crowd_as_alone(
    model: DescribedModel, path: Path, smollm2: BaseModel, prompts: list[SoftPrompt], row_cells: int | None
) -> None:
    """llama.cpp's sums depend on what else is in the batch, so tokens may differ at ties; how far it is from the truth may not."""
    # So few that the first has left before the last joins.
    ids = model.encode(PASSAGE)[:48]
    behind = [None, *prompts, None, *prompts]
    texts = [ids[5 * at :] + ids[: 5 * at] for at in range(len(behind))]
    plain = TorchRunner(smollm2, kv_bytes=1 << 30, prefix_bytes=1 << 26)
    truth = [truth_of(plain, prompt, text) for prompt, text in zip(behind, texts, strict=True)]
    with runner_of(model, path) as runner:
        alone = [logits_of(runner, prompt, text) for prompt, text in zip(behind, texts, strict=True)]
    with runner_of(model, path, rows=8, row_cells=row_cells) as runner:
        crowd: list[list[torch.Tensor]] = [[] for _ in behind]
        step = 0
        while min(map(len, crowd)) < len(ids):
            # One more joins every few steps, and each leaves when its text is over.
            if step % 9 == 0 and step // 9 < len(behind):
                assert runner.open(step // 9, behind[step // 9], texts[step // 9]) == 0
            writing = [at for at in range(min(step // 9 + 1, len(behind))) if len(crowd[at]) < len(ids)]
            assert all(runner.grow(at, 1) for at in writing)
            drawn = runner.run([Span(at, (texts[at][len(crowd[at])],), True) for at in writing])
            for at, logits in zip(writing, drawn, strict=True):
                crowd[at].append(torch.as_tensor(logits))
                if len(crowd[at]) == len(ids):
                    runner.close(at, ())
            step += 1
        assert runner.cache_use().misses == 4
    far_alone = [divergence(t, a) for t, a in zip(truth, alone, strict=True)]
    far_in_crowd = [divergence(t, torch.stack(c).double().numpy()) for t, c in zip(truth, crowd, strict=True)]
    assert sum(far_in_crowd) <= 1.25 * sum(far_alone), (far_alone, far_in_crowd)
    assert max(far_in_crowd) < NOISE


def test_reading_in_stretches_changes_nothing(model: DescribedModel, path: Path, prompts: list[SoftPrompt]) -> None:
    request = Request(tuple(model.encode(OPENING)), prompts[0], Sampling(max_tokens=16, temperature=0, logprobs=2))
    said = []
    for limits in (Limits(rows=1), Limits(rows=1, chunk=7), Limits(rows=1, chunk=1)):
        with runner_of(model, path, rows=1) as runner:
            engine = Engine(runner, limits)
            engine.submit(request)
            drawn = []
            while engine.busy:
                drawn += [one for _, event in engine.step() if isinstance(event, Chunk) for one in event.drawn]
            said.append([(one.token, one.top) for one in drawn])
    assert said[0] == said[1] == said[2]
    assert len(said[0]) == 16


def test_a_kept_text_and_a_shared_prefix_change_nothing(
    model: DescribedModel, path: Path, prompts: list[SoftPrompt], row_cells: int | None
) -> None:
    ids = model.encode(PASSAGE)
    with runner_of(model, path, row_cells=row_cells) as runner:
        fresh = logits_of(runner, prompts[0], ids)
        # A row that runs after the same soft prompt: its cells are shared.
        assert runner.open(1, prompts[0], ids[:5]) == 0
        runner.run([Span(1, ids[:5], False)])
        shared = logits_of(runner, prompts[0], ids)
        runner.close(1, ids[:5])
        assert np.allclose(shared, fresh, atol=1e-3)
        # A text that is kept: its beginning need not be run.
        assert runner.open(2, prompts[0], ids) == 0
        runner.run([Span(2, ids, False)])
        runner.close(2, ids)
        assert runner.open(3, prompts[0], ids[:50]) == 49
        last = runner.run([Span(3, ids[49:50], True)]).astype(np.float64)
        assert divergence(fresh[49:50], last) < NOISE < divergence(fresh[49:50], fresh[48:49])
        runner.close(3, ())
        # Kept after few positions at a time, it is the very same.
        expected = logits_of(runner, prompts[1], ids[:50])[49]
        for start in range(0, 60, 20):
            if start == 0:
                assert runner.open(5, prompts[1], ids[:60]) == 0
            runner.run([Span(5, ids[start : start + 20], False)])
        runner.close(5, ids[:60])
        assert runner.open(6, prompts[1], ids[:50]) == 49
        last = runner.run([Span(6, ids[49:50], True)])[0].astype(np.float64)
        runner.close(6, ())
        assert np.array_equal(last, expected)
        assert runner.open(4, prompts[2], ids[:50]) == 0
        runner.close(4, ())


def test_a_held_prompt_is_as_near_to_torch_as_one_that_is_not(
    model: DescribedModel, path: Path, smollm2: BaseModel, prompts: list[SoftPrompt], row_cells: int | None
) -> None:
    """After each token of a text of four times T: one at a time, in a chunk, after a cached text, and beside others."""
    ids = model.encode(PASSAGE)
    plain = prompts[0]
    held = plain.with_metadata(attention=PromptAttention(hold=len(ids) // 4))
    truth, unheld = (truth_of(TorchRunner(smollm2), prompt, ids) for prompt in (held, plain))
    with runner_of(model, path, row_cells=row_cells) as runner:
        assert runner.holds([(held, 400)])
        assert not runner.holds([(held, runner.most_positions)])
        for number, prompt in ((7, plain), (8, held)):
            assert runner.open(number, prompt, ids) == 0
            runner.run([Span(number, ids[:9], False)])
        alone = logits_of(runner, held, ids)
        noise = divergence(unheld, logits_of(runner, plain, ids))
        assert divergence(truth, alone) < NOISE
        # What it would be without.
        assert divergence(unheld, alone) > 3 * divergence(truth, alone)
        assert noise < NOISE

        def last(number: int, count: int) -> float:
            rows = [Span(number, ids[count - 1 : count], True), Span(7, ids[9:10], False), Span(8, ids[9:10], False)]
            found = np.asarray(runner.run(rows)).astype(np.float64)
            return divergence(truth[count - 1 : count], found)

        assert runner.open(1, held, ids) == 0
        runner.run([Span(1, ids[:-1], False)])
        assert last(1, len(ids)) < 3 * NOISE
        runner.close(1, ids)
        # Fewer copies than the cached text has at its end.
        begun = len(ids) // 2
        assert runner.open(2, held, ids[:begun]) == begun - 1
        assert last(2, begun) < 3 * NOISE


def test_a_stronger_prompt_is_as_near_to_torch_as_one_that_is_not(
    model: DescribedModel, path: Path, smollm2: BaseModel, prompts: list[SoftPrompt]
) -> None:
    """Held or not; and after a cached text."""
    ids = model.encode(PASSAGE)
    for attention in (PromptAttention(strength=3), PromptAttention(hold=len(ids) // 2, strength=2)):
        strong = prompts[0].with_metadata(attention=attention)
        truth, plain = (truth_of(TorchRunner(smollm2), prompt, ids) for prompt in (strong, prompts[0]))
        with runner_of(model, path) as runner:
            found = logits_of(runner, strong, ids)
            assert divergence(truth, found) < NOISE
            assert divergence(plain, found) > 3 * divergence(truth, found)
            assert runner.open(1, strong, ids) == 0
            runner.run([Span(1, ids[:-1], False)])
            runner.close(1, ids[:-1])
            assert runner.open(2, strong, ids) == len(ids) - 1
            last = runner.run([Span(2, ids[-1:], True)]).astype(np.float64)
            assert divergence(truth[-1:], last) < 3 * NOISE


def test_a_row_without_text_begins_behind_its_prefix(
    model: DescribedModel, path: Path, prompts: list[SoftPrompt], row_cells: int | None
) -> None:
    # Silent where it begins, the text's own first word decides: the same numbers as the last position of the prefix.
    with runner_of(model, path, row_cells=row_cells) as runner:
        assert runner.open(0, prompts[0], ()) == 0
        assert runner.open(1, prompts[0], model.encode("Wind")) == 0
        first = runner.run([Span(0, (), True), Span(1, model.encode("Wind"), True)])
        assert first.shape == (2, model.vocab_size)
        again = runner.run([Span(0, (), True)])
        assert np.allclose(first[0], again[0], atol=1e-3)
        assert not np.allclose(first[0], first[1], atol=1.0)
        runner.close(0, ())
        runner.close(1, ())


def test_where_cells_run_out_rows_take_turns(model: DescribedModel, path: Path, prompts: list[SoftPrompt]) -> None:
    requests = [
        Request(tuple(model.encode(PASSAGE)[:40]), prompts[i % 3], Sampling(max_tokens=60, temperature=0))
        for i in range(6)
    ]
    # Without an end of text every row wants all its positions.
    with runner_of(replace(model, stop_ids=frozenset()), path, cells=256) as runner:
        engine = Engine(runner, Limits(rows=6, tokens=256))
        ended = [said.end for said in run(engine, requests)]
        assert [end.n_new for end in ended if end] == [60] * 6
        with pytest.raises(OutOfMemory, match="--kv-memory"):
            engine.submit(Request(tuple(model.encode(PASSAGE) * 4), None, Sampling(max_tokens=60)))


def test_bad_arguments_are_refused_before_llama_cpp_sees_them(model: DescribedModel, path: Path) -> None:
    with runner_of(model, path) as runner:
        context = runner.context
        good = {"id_N": [5], "position_N": [0], "sequence_N": [0], "wanted_N": [True]}
        for bad in (
            {"id_N": [model.vocab_size]},
            {"id_N": [-1]},
            {"position_N": [context.cells]},
            {"position_N": [-1]},
            {"sequence_N": [6]},
            {"sequence_N": [-1]},
            {"wanted_N": [True, False]},
        ):
            with pytest.raises(ValueError, match=r"."):
                context.run_ids(**{**good, **bad})
        with pytest.raises(ValueError, match="width"):
            context.run_embeds(np.ones((2, 3), np.float32), [0, 1], 0)
        with pytest.raises(ValueError, match="sequences"):
            context.copy(0, 6, 1)
        # A hole in a sequence is llama.cpp's own to refuse.
        with pytest.raises(ModelError, match="could not run"):
            context.run_ids([5, 6], [0, 7], [0, 0], [False, True])
        assert context.run_ids(**good).shape == (1, model.vocab_size)


def test_logits_of_several_batches_come_in_their_order(
    model: DescribedModel, path: Path, row_cells: int | None
) -> None:
    """Rows in turn, more positions than llama.cpp takes at once, and some of them asked for."""
    ids = model.encode(PASSAGE)[:12]
    rows = range(3)
    wanted = [at % 4 == 3 for at in range(len(ids))]
    with runner_of(model, path, batch=16, row_cells=row_cells) as runner:
        context = runner.context
        found = context.run_ids(
            ids * 3, [*range(len(ids))] * 3, [row for row in rows for _ in ids], [*wanted, *wanted[:-1], False, *wanted]
        )
        alone = [context.run_ids([word], [at], [5], [True])[0] for at, word in enumerate(ids)]
    asked = [at for row in rows for at, flag in enumerate(wanted) if flag and (row, at) != (1, len(ids) - 1)]
    assert found.shape == (len(asked), model.vocab_size)
    for logits, at in zip(found, asked, strict=True):
        assert divergence(alone[at][None].astype(np.float64), logits[None].astype(np.float64)) < 10 * NOISE
        assert all(
            divergence(alone[other][None], logits[None]) > 1 for other in range(len(ids)) if abs(other - at) == 4
        )


def test_a_file_that_llama_cpp_cannot_read_is_an_error(path: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(path.read_bytes()[:1_000_000])
    with pytest.raises(ModelError, match=r"llama\.cpp cannot read this file; got .*(failed|error)"):
        LlamaContext(broken, CellBudget(1 << 28, 1024, 2), batch=64)
    with pytest.raises(OutOfMemory, match="no room for a row"):
        LlamaContext(path, CellBudget(1000, 1024, 2), batch=64)


def test_rows_with_cells_of_their_own_leave_no_hole(
    model: DescribedModel, path: Path, prompts: list[SoftPrompt]
) -> None:
    ids = model.encode(PASSAGE)
    with runner_of(model, path, row_cells=1024) as runner:
        alone = [logits_of(runner, prompt, ids) for prompt in (None, *prompts)]
        for number, prompt in enumerate((None, *prompts)):
            assert runner.open(number, prompt, ids) == 0
        half = len(ids) // 2
        runner.run([Span(number, ids[:half], False) for number in range(4)])
        # Nobody moves when a row leaves; before the next step the last ones close the holes.
        before = {number: row.sequence for number, row in runner._rows.items()}
        for leaving in (1, 0):
            runner.close(leaving, ())
        assert {number: row.sequence for number, row in runner._rows.items()} == {2: before[2], 3: before[3]}
        assert sorted(runner._free)[:2] == [0, 1]
        # Asked in another order than their places'.
        for order in ((3, 2), (2, 3)):
            for at in range(half if order == (3, 2) else half + 3, half + 3 if order == (3, 2) else len(ids)):
                drawn = runner.run([Span(number, (ids[at],), True) for number in order])
                for number, logits in zip(order, drawn.astype(np.float64), strict=True):
                    assert divergence(alone[number][at][None], logits[None]) < 10 * NOISE
        assert sorted(row.sequence for row in runner._rows.values()) == [0, 1]
        with pytest.raises(ValueError, match="share none"):
            runner.context.copy(0, 1, 1)


def test_rows_get_cells_of_their_own_where_memory_has_them(path: Path) -> None:
    for kv_bytes, split, cells in ((1 << 30, True, 1024), (1 << 26, False, 2048)):
        context = LlamaContext(path, CellBudget(kv_bytes, 2048, 8, row_cells=1000), batch=64)
        assert (context.split, context.cells) == (split, cells)
        context.close()


def test_a_model_with_a_window_goes_on_where_it_was_cut(row_cells: int | None) -> None:
    """Gemma 3: BOS in front, vectors not scaled again, and texts longer than the window are cut only where that is right."""
    gemma3 = load("gemma3-270m", device="cpu", dtype="float32")
    source = files.resolve("gemma3-270m")
    file = files.gguf_file(source)
    assert file is not None
    described = describe(source, file)
    rms = gemma3.embedding_rms
    matrix = torch.randn(12, gemma3.d_model, generator=torch.Generator().manual_seed(0)) * rms
    prompt = SoftPrompt(matrix.numpy(), Metadata(placement="after_bos", base=gemma3.ref))
    ids = described.encode(PASSAGE)
    plain = TorchRunner(gemma3, kv_bytes=1 << 30, prefix_bytes=1 << 26)
    with runner_of(described, file, cells=3072, row_cells=row_cells) as runner:
        bare = divergence(truth_of(plain, None, ids), logits_of(runner, None, ids))
        behind = divergence(truth_of(plain, prompt, ids), logits_of(runner, prompt, ids))
        assert behind <= 1.25 * bare, (bare, behind)
        long = (ids * 8)[: runner.context.window + 60]
        runner.open(1, prompt, long)
        runner.run([Span(1, long, False)])
        runner.close(1, long)
        # The beginning of a longer text than the window: its cells were not all saved.
        assert runner.open(2, prompt, long[:100]) == 0
        runner.close(2, ())
        # Going on at its end is right.
        assert runner.open(3, prompt, [*long, 5]) == len(long)
        runner.close(3, ())

        # A row beyond the window has given cells of its prefix away: the next after the same prompt must not take them from it.
        short = ids[:15]
        alone = read(runner, 4, prompt, short)
        runner.close(4, ())
        read(runner, 5, None, [7] * 400)
        read(runner, 6, prompt, (ids * 12)[: runner.context.window + 180])
        runner.close(5, ())
        read(runner, 7, None, [9] * 600)
        crowd = read(runner, 8, prompt, short)
        assert divergence(alone, crowd) < NOISE


def read(runner: Runner, number: int, prompt: SoftPrompt | None, ids: Sequence[int]) -> np.ndarray:
    """The logits [1, V] after a text of a row that stays open."""
    shared = runner.open(number, prompt, ids)
    assert shared is not None
    return torch.as_tensor(runner.run([Span(number, ids[shared:], True)])).double().numpy()


def test_numbers_that_the_model_cannot_take_are_refused_before_they_spoil_the_pool(
    model: DescribedModel, path: Path
) -> None:
    huge = SoftPrompt(np.full((3, model.d_model), 3e38, np.float32), Metadata(placement="start"))
    with runner_of(model, path) as runner:
        quiet = read(runner, 0, None, [5, 6, 7])
        with pytest.raises(DoesNotFit, match="soft prompt is not finite"):
            runner.open(1, huge, [5])
        assert divergence(quiet, read(runner, 2, None, [5, 6, 7])) < NOISE


def test_a_mixture_is_its_components_combined(
    model: DescribedModel, path: Path, prompts: list[SoftPrompt], row_cells: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside others, all its branches in a step: what is drawn from is the combination of what each says alone."""
    mixture = Mixture(tuple(prompts[:2]), np.array([0.3, 0.7]))
    heard: dict[int, list[torch.Tensor]] = {}

    def listening(logits_V: Any, seen: SeenTokens, sampling: Sampling, *rest: Any) -> Drawn:
        heard.setdefault(sampling.max_tokens, []).append(torch.as_tensor(logits_V).clone())
        return sample(logits_V, seen, sampling, *rest)

    monkeypatch.setattr("sordino.engine.engine.sample", listening)
    ids = tuple(model.encode(OPENING))
    with runner_of(model, path, rows=6, row_cells=row_cells, prefix_bytes=0) as runner:
        engine = Engine(runner, Limits(rows=6, queue=20, tokens=64, chunk=16))
        requests = [Request(ids, soft, Sampling(max_tokens=5, temperature=0)) for soft in (None, prompts[0])]
        (said, *_) = run(engine, [Request(ids, mixture, Sampling(max_tokens=9, temperature=0)), *requests])
        assert len(heard[9]) == len(said.ids) == 9
        whole = [*ids, *said.ids[:-1]]
        each_KTV = torch.stack(
            [torch.from_numpy(logits_of(runner, soft, whole)).log_softmax(-1) for soft in mixture.components]
        )
        weights = torch.from_numpy(mixture.weights_K.copy()).log()
        apart = []
        for at, (logits_V, token) in enumerate(zip(heard[9], said.ids, strict=True)):
            here_KV = each_KTV[:, len(ids) - 1 + at]
            expected_V = combine(here_KV, weights, mixture.rule)
            apart.append(divergence(expected_V.numpy()[None], logits_V.double().numpy()[None]))
            weights = responsible(weights, here_KV[:, token])
        assert np.mean(apart) < NOISE


def test_a_gate_reads_of_llama_cpp_what_it_reads_of_torch(
    model: DescribedModel, path: Path, smollm2: BaseModel, prompts: list[SoftPrompt], row_cells: int | None
) -> None:
    ids = model.encode(OPENING)
    texts = [ids[:1], ids[:4], ids, model.encode(PASSAGE), model.encode(" ".join([PASSAGE] * 5))]
    # One pass of llama.cpp, several, and a text of which the gate reads the end.
    assert len(texts[2]) < 32 < len(texts[3]) < GATE_TOKENS < len(texts[4])
    with runner_of(model, path, rows=2, row_cells=row_cells, prefix_bytes=0) as runner:
        # A row in the middle of its text is not touched.
        runner.open(5, prompts[0], ids)
        runner.run([Span(5, ids[:-1], False)])
        for text in texts:
            expected_D = hidden_of_text(smollm2, text).double().numpy()
            for asked in (text, [*model.bos_ids, *text]):
                found_D = runner.hidden_of(asked)
                # 8 bits between layers make 0.03 of it; another of these texts is 0.3 away.
                assert np.linalg.norm(found_D - expected_D) < 0.05 * np.linalg.norm(expected_D)
        assert not runner.hidden_of([]).any()
        after_V = np.asarray(runner.run([Span(5, ids[-1:], True)]))[0]
        runner.close(5, ())
        assert divergence(logits_of(runner, prompts[0], ids)[-1:], after_V[None]) < NOISE

        # Weights that say by the text which voice writes: its words are those of this voice alone.
        slope_KD = np.stack([expected_D, -expected_D]).astype(np.float32)
        gated = Mixture((prompts[0], prompts[1]), np.ones(2) / 2, "sequence", Gate(slope_KD, np.zeros(2, np.float32)))
        engine = Engine(runner, Limits(rows=2, queue=20, tokens=64, chunk=16))
        calm = Sampling(max_tokens=8, temperature=0)
        mixed, alone = run(engine, [Request(tuple(ids), soft, calm) for soft in (gated, prompts[0])])
        assert mixed.ids == alone.ids
