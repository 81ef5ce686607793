"""Rows in a crowded, changing batch say what transformers' generate says for each alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from sordino.engine.config import Limits
from sordino.engine.engine import Engine
from sordino.engine.requests import Chunk, End, Request
from sordino.engine.runners import torch_runner
from sordino.engine.runners.kv_pool import KeyValues, Shape
from sordino.engine.runners.runner import Span
from sordino.engine.runners.torch_runner import TorchRunner
from sordino.engine.runners.transformers_layers import SlotCache
from sordino.engine.sampling import Sampling
from sordino.errors import DoesNotFit, OutOfMemory
from sordino.forward import small_matmul
from sordino.forward.placement import leading_ids, prompt_embeds
from sordino.models.base_model import BaseModel
from sordino.models.quantised import QuantisedLinear, quantise
from sordino.models.weight_formats import FORMATS, Format
from sordino.prompts.attention import PLAIN, PromptAttention
from sordino.prompts.soft_prompt import Metadata, PlacementName, SoftPrompt
from tests.tiny_models import FAMILIES, tiny_base

# Where the two likeliest words are nearer than this, kernels that add in another order may choose the other.
NEAR_TIE = 1e-3
NEW = 14
TEXTS = (
    "The keeper wrote in the log",
    "a",
    "It rained all day, and the ship that went by in the fog was not seen from the lamp of the keeper",
    "the sea",
    "The keeper wrote in the lamp",
    "",
    "x y z",
)


def prompt(base: BaseModel, tokens: int, seed: int, placement: PlacementName) -> SoftPrompt:
    random = torch.Generator().manual_seed(seed)
    matrix = torch.randn(tokens, base.d_model, generator=random) * base.embedding_rms
    return SoftPrompt(matrix.numpy(), Metadata(placement=placement))


def requests_of(base: BaseModel, sampling: Sampling) -> list[Request]:
    """Without a prompt, after a short one, after one longer than Gemma's window in tests, and after one before BOS."""
    prompts = [
        None,
        prompt(base, 3, 0, base.placement),
        prompt(base, 11, 1, base.placement),
        prompt(base, 5, 2, "start"),
    ]
    made = []
    for index, text in enumerate(TEXTS):
        soft = prompts[(index + 1) % 4]
        ids = (*leading_ids(base, soft.metadata.placement if soft else None), *base.encode(text))
        made.append(Request(ids, soft, sampling, seed=index))
    return made


def engine_of(base: BaseModel, limits: Limits, *, kv_bytes: int = 1 << 26, prefix_bytes: int = 1 << 24) -> Engine:
    runner = TorchRunner(base, kv_bytes=kv_bytes, prefix_bytes=prefix_bytes)
    return Engine(runner, limits)


@dataclass
class Said:
    ids: list[int]
    text: str = ""
    end: End | None = None


def run(engine: Engine, requests: list[Request], *, steps_between: int = 2, may_fail: bool = False) -> list[Said]:
    """Submit one after another while the others run: rows come and go."""
    numbers: dict[int, Said] = {}

    def step() -> None:
        for number, event in engine.step():
            said = numbers[number]
            assert said.end is None
            if isinstance(event, Chunk):
                said.ids += [drawn.token for drawn in event.drawn]
                said.text += event.text
            else:
                said.end = event

    for request in requests:
        numbers[engine.submit(request)] = Said([])
        for _ in range(steps_between):
            step()
    while engine.busy:
        step()
    fine = ("stop", "length", "failed") if may_fail else ("stop", "length")
    assert all(said.end is not None and said.end.reason in fine for said in numbers.values())
    return list(numbers.values())


def by_transformers(base: BaseModel, request: Request) -> tuple[list[int], list[float]]:
    """Greedy tokens of transformers' generate for the row alone, and at each the gap between the two likeliest words."""
    text_TD = base.embed(torch.tensor(request.ids, dtype=torch.long, device=base.device))
    both = torch.cat([prompt_embeds(base, request.prompt).to(text_TD), text_TD])[None]
    new = base.network.generate(
        inputs_embeds=both,
        attention_mask=torch.ones(both.shape[:2], dtype=torch.long, device=base.device),
        max_new_tokens=request.sampling.max_tokens,
        do_sample=False,
        eos_token_id=sorted(base.stop_ids),
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    gaps = [float(top[0] - top[1]) for top in (logits[0].double().topk(2).values for logits in new.logits)]
    ids = new.sequences[0].tolist()[-len(gaps) :]
    return [token for token in ids if token not in base.stop_ids], gaps


def agreed(said: list[int], expected: list[int], gaps: list[float]) -> bool:
    """Whether all tokens agree; False where they part at a near tie. Fails where they part elsewhere."""
    if said == expected:
        return True
    place = next(at for at in range(len(gaps)) if said[at : at + 1] != expected[at : at + 1])
    assert gaps[place] < NEAR_TIE, f"token {place} differs where the gap is {gaps[place]}"
    return False


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_crowded_batch_equals_transformers_one_by_one(family: str, dtype: torch.dtype) -> None:
    base = tiny_base(family, dtype=dtype)
    greedy = Sampling(max_tokens=NEW, temperature=0)
    requests = [request for request in requests_of(base, greedy) if request.ids or request.prompt or base.bos_ids]
    engine = engine_of(base, Limits(rows=4, queue=20, tokens=16, chunk=7))
    said = run(engine, requests)
    ties = sum(
        not agreed(row.ids, *by_transformers(base, request)) for row, request in zip(said, requests, strict=True)
    )
    assert ties <= 1
    assert engine.counts == (0, 0)
    assert engine.runner.cache_use().misses == 4  # type: ignore[attr-defined]


def quantised(family: str, kind: Format, dtype: torch.dtype) -> BaseModel:
    base = tiny_base(family, dtype=torch.float32)
    network = quantise(base.network, kind, dtype, torch.device("cpu"))
    return replace(base, network=network, dtype=dtype, quantise=kind)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("family", ["llama", "gptj"])
def test_a_crowded_batch_on_packed_weights_equals_transformers_one_by_one(family: str, kind: Format) -> None:
    """In float32, where every product is with the dequantised weights."""
    base = quantised(family, kind, torch.float32)
    requests = [one for one in requests_of(base, Sampling(max_tokens=NEW, temperature=0)) if one.ids or one.prompt]
    engine = engine_of(base, Limits(rows=4, queue=20, tokens=16, chunk=7))
    assert isinstance(engine.runner, TorchRunner)
    # int4 takes no layers as narrow as this model's keys.
    assert (engine.runner._llama is not None) == (family == "llama" and kind != "int4")
    said = run(engine, requests)
    assert sum(not agreed(row.ids, *by_transformers(base, of)) for row, of in zip(said, requests, strict=True)) <= 1


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_kernels_of_few_rows_change_logits_no_more_than_bfloat16_does(
    kind: Format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against transformers' modules over the dequantised weights in float32."""
    base = quantised("llama", kind, torch.bfloat16)
    exact = quantised("llama", kind, torch.float32)
    for ours, theirs in zip(base.network.modules(), exact.network.modules(), strict=True):
        if isinstance(theirs, QuantisedLinear):
            theirs.packed = ours.packed  # type: ignore[union-attr]
    soft, ids = prompt(base, 5, 1, base.placement), tuple(base.encode("the sea"))
    logits = []
    for model, fused, kernels in ((exact, False, False), (base, False, False), (base, True, True)):
        monkeypatch.setattr(torch_runner, "_has_fused_steps", lambda _, fused=fused: fused)
        if not kernels:
            monkeypatch.setattr(base.network.model.layers[0].mlp.up_proj.packed.__class__, "times_few", lambda *_: None)
        runner = TorchRunner(model, kv_bytes=1 << 26, prefix_bytes=1 << 24)
        for number in range(5):
            runner.open(number, soft if number % 2 else None, ids)
        runner.run([Span(number, ids, True) for number in range(5)])
        assert all(runner.grow(number, 1) for number in range(5))
        logits.append(runner.run([Span(number, (number + 7,), True) for number in range(5)]))
        monkeypatch.undo()
    plain, ours = ((one - logits[0]).norm() / logits[0].norm() for one in logits[1:])
    assert ours < 1.3 * plain < 0.05


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_row_does_not_depend_on_its_batch_mates(family: str) -> None:
    """Drawn at random, too: a row's stream is its seed's."""
    base = tiny_base(family)
    requests = requests_of(base, Sampling(max_tokens=NEW, temperature=1.0, top_p=0.9))
    requests = [request for request in requests if request.ids or request.prompt or base.bos_ids]
    crowded = run(engine_of(base, Limits(rows=5, queue=20, tokens=16, chunk=5)), requests, steps_between=1)
    alone = [run(engine_of(base, Limits(rows=1, queue=20, tokens=64, chunk=64)), [request])[0] for request in requests]
    assert [row.ids for row in crowded] == [row.ids for row in alone]


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_little_memory_changes_nothing(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows outgrow their slots, go back to the queue, and are read again."""
    monkeypatch.setattr("sordino.engine.runners.kv_pool.SMALLEST", 8)
    base = tiny_base(family)
    text = base.encode(TEXTS[2])
    greedy = Sampling(max_tokens=25, temperature=0)
    soft = prompt(base, 5, 3, base.placement)
    requests = [Request(tuple(text[number : number + 9]), soft, greedy, seed=number) for number in range(4)]
    limits = Limits(rows=4, queue=9, tokens=64, chunk=4)
    wide = run(engine_of(base, limits), requests, steps_between=0)
    position = TorchRunner(base, kv_bytes=1, prefix_bytes=0)._key_values.shape.position_bytes
    narrow = engine_of(base, limits, kv_bytes=120 * position, prefix_bytes=0)
    opened: list[int] = []
    open_row = narrow.runner.open
    monkeypatch.setattr(narrow.runner, "open", lambda number, *rest: opened.append(number) or open_row(number, *rest))
    assert [row.ids for row in run(narrow, requests, steps_between=0)] == [row.ids for row in wide]
    assert len(opened) > len(requests)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gptj"])
def test_a_text_that_was_there_is_not_read_again(family: str) -> None:
    base = tiny_base(family)
    greedy = Sampling(max_tokens=NEW, temperature=0)
    soft, other = prompt(base, 3, 0, base.placement), prompt(base, 3, 1, base.placement)
    history = tuple(base.encode(TEXTS[2]))
    engine = engine_of(base, Limits(rows=2, queue=9, tokens=64, chunk=64))
    first = run(engine, [Request(history, soft, greedy)])[0]
    longer = Request((*history, *first.ids, *base.encode(" and then")), soft, greedy)
    again = run(engine, [longer])[0]
    assert engine.runner.cache_use().text_hits == 1
    fresh = engine_of(base, Limits(rows=2, queue=9, tokens=64, chunk=64))
    assert again.ids == run(fresh, [longer])[0].ids
    # The same text after another soft prompt is another text.
    run(engine, [Request(history, other, greedy)])
    assert engine.runner.cache_use().text_hits == 1
    # The very same text: its last token is run again, for its logits.
    assert run(engine, [Request(history, soft, greedy)])[0].ids == first.ids
    assert engine.runner.cache_use().text_hits == 2


def test_prefixes_are_evicted_when_there_are_too_many_and_run_again() -> None:
    base = tiny_base("llama")
    greedy = Sampling(max_tokens=3, temperature=0)
    ids = tuple(base.encode("the sea"))
    softs = [prompt(base, 8, seed, base.placement) for seed in range(6)]
    state = 8 * TorchRunner(base, kv_bytes=1, prefix_bytes=0)._key_values.shape.position_bytes
    engine = engine_of(base, Limits(rows=2, queue=99, tokens=64, chunk=64), prefix_bytes=3 * state)
    requests = [Request(ids, soft, greedy) for soft in (*softs, *softs)]
    said = run(engine, requests)
    use = engine.runner.cache_use()
    assert use.evictions > 0
    assert use.misses > len(softs)
    assert use.bytes <= 3 * state
    assert [row.ids for row in said[:6]] == [row.ids for row in said[6:]]


def test_a_prompt_that_running_rows_stand_on_stays() -> None:
    base = tiny_base("llama")
    runner = TorchRunner(base, kv_bytes=1 << 26, prefix_bytes=1)
    softs = [prompt(base, 8, seed, base.placement) for seed in range(2)]
    assert runner.open(0, softs[0], [5]) == 0
    assert runner.open(1, softs[1], [5]) == 0
    assert runner.open(2, softs[0], [5]) == 0
    assert (runner.cache_use().misses, runner.cache_use().hits) == (2, 1)
    for number in range(3):
        runner.close(number, ())
    assert runner.open(3, softs[0], [5]) == 0
    assert runner.cache_use().misses == 3


def test_a_prompt_is_encoded_once_whatever_attention_text_gives_it() -> None:
    base = tiny_base("llama")
    plain = prompt(base, 8, 0, base.placement)
    # Long enough to be cached.
    ids = [5, 6, 7, 8] * 10
    runner = TorchRunner(base, kv_bytes=1 << 26, prefix_bytes=1 << 26)

    def logits(soft: SoftPrompt, on: TorchRunner = runner) -> torch.Tensor:
        assert on.open(0, soft, ids) == 0, "a text that gave it other attention is no beginning of this one"
        found = on.run([Span(0, ids, True)])
        on.close(0, ids)
        return found

    for attention in (PLAIN, PromptAttention(hold=2), PromptAttention(hold=2, strength=3.0)):
        soft = plain.with_metadata(attention=attention)
        torch.testing.assert_close(logits(soft), logits(soft, TorchRunner(base)))
    assert (runner.cache_use().misses, runner.cache_use().hits) == (1, 2)


def test_a_prompt_of_another_width_is_refused() -> None:
    runner = TorchRunner(tiny_base("llama"), kv_bytes=1 << 26, prefix_bytes=1 << 20)
    with pytest.raises(DoesNotFit):
        runner.open(0, SoftPrompt(torch.ones(2, 7).numpy(), Metadata()), [1])


def test_an_architecture_that_is_in_no_parity_test_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base("qwen3")
    greedy = Sampling(max_tokens=NEW, temperature=0)
    requests = [request for request in requests_of(base, greedy) if request.ids or request.prompt]
    expected = [row.ids for row in run(engine_of(base, Limits(rows=3, queue=20, tokens=16, chunk=7)), requests)]
    monkeypatch.setattr("sordino.forward.prefix.PACKABLE_FAMILIES", frozenset())
    assert [row.ids for row in run(engine_of(base, Limits(rows=3, queue=20, tokens=16, chunk=7)), requests)] == expected


def test_a_model_that_does_not_use_its_cache_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base("gpt2")
    engine = engine_of(base, Limits(rows=2, queue=9, tokens=64, chunk=64))
    engine.submit(Request(tuple(base.encode("the sea")), None, Sampling(max_tokens=3)))
    monkeypatch.setattr(SlotCache, "written", property(lambda self: 0, lambda self, value: None), raising=False)
    with pytest.raises(RuntimeError, match="did not use the cache"):
        engine.step()


@pytest.mark.parametrize("rows", [1, 2, 3, 9, 16])
def test_products_say_the_same_either_way_round(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base("llama")
    soft, ids = prompt(base, 5, 1, base.placement), tuple(base.encode("the sea"))
    logits = []
    for intel in (True, False):
        monkeypatch.setattr(small_matmul, "on_intel", lambda intel=intel: intel)
        runner = TorchRunner(base, kv_bytes=1 << 26, prefix_bytes=1 << 24)
        for number in range(rows):
            runner.open(number, soft if number % 2 else None, ids)
        logits.append(runner.run([Span(number, ids, True) for number in range(rows)]))
        assert all(runner.grow(number, 1) for number in range(rows))
        logits.append(runner.run([Span(number, (number + 7,), True) for number in range(rows)]))
    # In float64 but for the last rounding.
    for one, other in ((0, 2), (1, 3)):
        torch.testing.assert_close(logits[one], logits[other], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_prompts_that_are_run_side_by_side_are_what_each_is_alone(family: str) -> None:
    base = tiny_base(family)
    softs = [None, *(prompt(base, tokens, tokens, base.placement) for tokens in (3, 11, 1, 7))]
    together, alone = (TorchRunner(base, kv_bytes=1 << 26, prefix_bytes=1 << 24) for _ in range(2))
    wide = SoftPrompt(torch.ones(2, base.d_model + 1).numpy(), Metadata())
    together.prepare([*softs, wide, softs[1]])
    assert together.cache_use().misses == len(softs)
    for number, soft in enumerate(softs):
        for runner in (together, alone):
            runner.open(number, soft, [5, 6])
        ours, theirs = (runner._key_values.take(number) for runner in (together, alone))
        assert [held.shape for held in ours] == [held.shape for held in theirs]
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert (together.cache_use().misses, together.cache_use().hits) == (len(softs), 0)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gptj"])
def test_a_soft_prompt_of_huge_numbers_is_refused_and_spoils_nobody(family: str) -> None:
    base = tiny_base(family, dtype=torch.float32)
    huge = SoftPrompt(np.full((3, base.d_model), 3e38, np.float32) * np.where(np.arange(base.d_model) % 2, 1, -1))
    ids, greedy = tuple(base.encode("the sea")), Sampling(max_tokens=5, temperature=0, logprobs=1)
    engine = engine_of(base, Limits(rows=4, queue=9))
    quiet = run(engine, [Request(ids, None, greedy)])[0]
    requests = [Request(ids, huge, greedy), Request(ids, None, greedy), Request(ids, huge, greedy)]
    said = run(engine, requests, may_fail=True)
    errors = [row.end.error if row.end else None for row in said]
    assert [type(error) for error in errors] == [DoesNotFit, type(None), DoesNotFit]
    assert said[1].ids == quiet.ids
    assert run(engine, [Request(ids, None, greedy)])[0].ids == quiet.ids


def test_what_is_run_ahead_is_run_once_however_small_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Soft prompts wait for rows, and rows for room: neither makes anything run again."""
    base = tiny_base("llama")
    softs = [prompt(base, 8, seed, base.placement) for seed in range(8)]
    ids, greedy = tuple(base.encode("the sea")), Sampling(max_tokens=5, temperature=0)
    shape = TorchRunner(base, kv_bytes=1, prefix_bytes=0)._key_values.shape
    ran = []
    plain = TorchRunner._encoded
    monkeypatch.setattr(TorchRunner, "_encoded", lambda self, some: ran.extend(some) or plain(self, some))  # type: ignore[func-returns-value]
    for prefixes in (0, 2, 7, 8):
        for rows in (2, 8):
            ran.clear()
            engine = engine_of(
                base,
                Limits(rows=8, queue=9),
                prefix_bytes=prefixes * 8 * shape.position_bytes,
                kv_bytes=rows * 256 * shape.position_bytes,
            )
            run(engine, [Request(ids, soft, greedy) for soft in softs])
            assert len(ran) == len(softs), (prefixes, rows)
            assert engine.runner.cache_use().hits == 0


def test_memory_that_runs_out_ends_or_delays_rows_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base("llama")
    ids, greedy = tuple(base.encode(TEXTS[2])), Sampling(max_tokens=5, temperature=0)
    engine = engine_of(base, Limits(rows=2, queue=9))
    quiet = run(engine, [Request(ids, None, greedy)])[0]
    plain = Shape.empty
    monkeypatch.setattr(Shape, "empty", _no_memory)
    said = run(engine, [Request(ids, None, greedy)], may_fail=True)[0]
    assert said.end is not None
    assert isinstance(said.end.error, OutOfMemory)
    monkeypatch.setattr(Shape, "empty", plain)
    monkeypatch.setattr(KeyValues, "take", _no_memory)
    assert run(engine, [Request(ids, None, greedy)])[0].ids == quiet.ids


def _no_memory(*_: object) -> Tensor:
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
