"""Generation: what transformers' own loop gives, whoever shares the batch, in whole characters, up to a stop string."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch

from sordino.engine.detokenizer import HALF, Detokenizer, held_back
from sordino.engine.generate import TextRequest, check_request, complete, generate
from sordino.engine.requests import Request
from sordino.engine.sampling import Drawn, Sampling, sample
from sordino.engine.seen_tokens import SeenTokens
from sordino.errors import ConfigError, DoesNotFit
from sordino.forward.placement import leading_ids
from sordino.models.base_model import BaseModel
from sordino.prompts.mixture import RULES, Gate, Mixture
from sordino.prompts.soft_prompt import Metadata, PlacementName, SoftPrompt
from tests.engine.plain_generate import plain_complete
from tests.engine.test_torch_runner import by_transformers
from tests.tiny_models import CONTEXT, FAMILIES, tiny_base

GREEDY = Sampling(max_tokens=12, temperature=0)
TEXTS = ["The keeper wrote of the sea", "ships", "A lamp was lit and the lamp, the lamp went out: fog", "x"]


def prompt(base: BaseModel, tokens: int, *, seed: int = 0, placement: PlacementName = "start") -> SoftPrompt:
    random = np.random.default_rng(seed)
    matrix = random.standard_normal((tokens, base.d_model)).astype(np.float32) * 0.5
    return SoftPrompt(matrix, Metadata(name=f"p{seed}", placement=placement))


def mixed_requests(base: BaseModel) -> list[TextRequest]:
    """No prompt, a short one, one longer than Gemma's window in tests (8), and the same before BOS."""
    return [
        TextRequest(TEXTS[0], None, 1),
        TextRequest(TEXTS[1], prompt(base, 3, placement=base.placement), 2),
        TextRequest(TEXTS[2], prompt(base, 11, seed=1, placement=base.placement), 3),
        TextRequest(TEXTS[3], prompt(base, 5, seed=2, placement="start"), 4),
    ]


def ids_by_transformers(base: BaseModel, request: TextRequest, tokens: int) -> list[int]:
    placement = request.prompt.metadata.placement if request.prompt else None
    ids = (*leading_ids(base, placement), *base.encode(request.text))
    return by_transformers(base, Request(ids, request.prompt, Sampling(max_tokens=tokens)))[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_rows_of_a_batch_equal_transformers_one_by_one(family: str) -> None:
    base = tiny_base(family)
    requests = mixed_requests(base)
    for request, text in zip(requests, complete(base, requests, GREEDY), strict=True):
        expected = ids_by_transformers(base, request, GREEDY.max_tokens)
        assert text.rstrip(HALF) == base.decode(expected).rstrip(HALF)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_does_not_depend_on_its_batch_mates(family: str) -> None:
    base = tiny_base(family)
    requests = mixed_requests(base)
    sampling = Sampling(max_tokens=12, temperature=1.0, top_p=0.9)
    together = complete(base, requests, sampling)
    assert together == [complete(base, [request], sampling)[0] for request in requests]
    assert together[::-1] == complete(base, requests[::-1], sampling)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_engine_writes_what_the_plain_loop_writes(family: str) -> None:
    base = tiny_base(family)
    random = np.random.default_rng(4)
    components = (prompt(base, 3, seed=5), prompt(base, 11, seed=6, placement="start"))
    gate = Gate(random.standard_normal((2, base.d_model)).astype(np.float32), np.zeros(2, np.float32))
    requests = mixed_requests(base)
    requests += [TextRequest(TEXTS[0], Mixture(components, np.array([0.6, 0.4]), rule), 5) for rule in RULES]
    requests.append(TextRequest(TEXTS[1], Mixture(components, np.ones(2), "probabilities", gate), 6))
    for sampling in (
        GREEDY,
        Sampling(max_tokens=12, temperature=1.0, top_p=0.9, repetition_penalty=1.3, frequency_penalty=0.2),
        Sampling(max_tokens=30, temperature=1.2, stop=("e", " t"), repetition_penalty=1.2, repetition_range=7),
    ):
        assert complete(base, requests, sampling) == plain_complete(base, requests, sampling)


def test_the_seed_is_the_rows_own() -> None:
    base = tiny_base("llama")
    sampling = Sampling(max_tokens=20, temperature=1.0)
    first, second, third = complete(base, [TextRequest("the sea", None, seed) for seed in (1, 2, 1)], sampling)
    assert first == third
    assert first != second


@pytest.mark.parametrize("family", FAMILIES)
def test_an_empty_text_is_continued_from_the_prompt(family: str) -> None:
    base = tiny_base(family)
    alone = TextRequest("", prompt(base, 4, placement=base.placement))
    expected = base.decode(ids_by_transformers(base, alone, GREEDY.max_tokens)).rstrip(HALF)
    assert complete(base, [alone], GREEDY) == [expected]
    assert complete(base, [TextRequest("the", None), alone], GREEDY)[1] == expected


def test_an_architecture_that_is_not_packed_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base("gemma3")
    requests = mixed_requests(base)
    expected = complete(base, requests, GREEDY)
    monkeypatch.setattr("sordino.forward.prefix.PACKABLE_FAMILIES", frozenset())
    assert complete(base, requests, GREEDY) == expected


def test_nothing_to_continue_is_refused_unless_there_is_a_bos() -> None:
    with pytest.raises(ConfigError, match="nothing to continue"):
        complete(tiny_base("llama"), [TextRequest("")], GREEDY)
    base = tiny_base("llama", bos=True)
    assert complete(base, [TextRequest("")], GREEDY) == complete(base, [TextRequest("", None, 5)], GREEDY)
    assert complete(base, [], GREEDY) == []


def test_the_context_must_hold_prompt_text_and_new_tokens() -> None:
    base = tiny_base("llama")
    ten = prompt(base, 10)
    text = "x" * (CONTEXT - 10 - 12)
    assert len(check_request(base, TextRequest(text, ten), GREEDY)) == len(text)
    with pytest.raises(ConfigError, match=r"10 in front \+ 235 text \+ 12 new; shorten the text or lower --max-tokens"):
        complete(base, [TextRequest("x"), TextRequest(text + "x", ten)], GREEDY)


def test_a_prompt_of_another_width_is_refused() -> None:
    base = tiny_base("llama")
    with pytest.raises(DoesNotFit):
        complete(base, [TextRequest("x", SoftPrompt(np.zeros((2, base.d_model + 1), np.float32)))], GREEDY)


def test_inference_mode_does_not_leak_to_the_consumer() -> None:
    base = tiny_base("llama")
    for _ in generate(base, [TextRequest("the")], GREEDY):
        assert not torch.is_inference_mode_enabled()


# Text from tokens: a scripted model says what the test wants -----------------------------------------------------------


def scripted(base: BaseModel, monkeypatch: pytest.MonkeyPatch, *scripts: Sequence[int]) -> None:
    """Make the sampler say the scripts, one a row, told apart by their texts' first ids 0, 1, 2 ..."""
    said: dict[int, Iterator[int]] = {seed: iter(script) for seed, script in enumerate(scripts)}

    def say(_logits: object, _seen: object, _sampling: object, random: torch.Generator, *_rest: object) -> Drawn:
        return Drawn(next(said[random.initial_seed()]))

    monkeypatch.setattr("sordino.engine.engine.sample", say)


def pieces_of(base: BaseModel, sampling: Sampling, texts: Sequence[str]) -> list[list[tuple[str, str | None]]]:
    found: list[list[tuple[str, str | None]]] = [[] for _ in texts]
    for piece in generate(base, [TextRequest(text, None, seed) for seed, text in enumerate(texts)], sampling):
        found[piece.request].append((piece.text, piece.finish))
    return found


def test_rows_finish_at_different_times(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base("gpt2")
    eos = base.tokenizer.eos_token_id
    scripts = [base.encode("one two three"), [*base.encode("end"), eos], [eos], base.encode("a stop b c d e f g")]
    scripted(base, monkeypatch, *scripts)
    limit = len(scripts[0])
    found = pieces_of(base, Sampling(max_tokens=limit, stop=("stop",)), ["x", "yy", "zzz", "the"])
    assert ["".join(text for text, _ in row) for row in found] == ["one two three", "end", "", "a "]
    assert [row[-1][1] for row in found] == ["length", "stop", "stop", "stop"]
    assert all(finish is None for row in found for _, finish in row[:-1])


def test_half_a_character_waits_for_the_other_half(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base("llama")
    ids = base.encode("né 🎈!")
    scripted(base, monkeypatch, ids)
    (row,) = pieces_of(base, Sampling(max_tokens=len(ids)), ["x"])
    assert [text for text, _ in row] == ["n", "é", " ", "🎈", "!"]


@pytest.mark.parametrize("ending", ["stop", "length"])
def test_half_a_character_at_the_end_is_left_out(monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    base = tiny_base("llama")
    ids = base.encode("ab🎈")[:-1]
    script = [*ids, base.tokenizer.eos_token_id] if ending == "stop" else ids
    scripted(base, monkeypatch, script)
    (row,) = pieces_of(base, Sampling(max_tokens=len(ids) + (ending == "stop")), ["x"])
    assert "".join(text for text, _ in row) == "ab"
    assert row[-1][1] == ending


@pytest.mark.parametrize(
    ("said", "stop", "expected"),
    [
        ("one END two", ("END",), "one "),
        ("one EN two ENDE", ("END",), "one EN two "),
        ("a\n\nb", ("\n\n",), "a"),
        ("the né🎈 end", ("né🎈",), "the "),
        ("abcabd", ("abd",), "abc"),
        ("abcabx", ("bcx", "cab"), "ab"),
        ("aaab", ("aab",), "a"),
        ("nothing of it", ("it!",), "nothing of it"),
    ],
)
def test_stop_strings_across_token_borders(
    monkeypatch: pytest.MonkeyPatch, said: str, stop: tuple[str, ...], expected: str
) -> None:
    base = tiny_base("llama")
    ids = base.encode(said)
    scripted(base, monkeypatch, [*ids, base.tokenizer.eos_token_id])
    (row,) = pieces_of(base, Sampling(max_tokens=len(ids) + 1, stop=stop), ["x"])
    streamed = [text for text, _ in row]
    assert "".join(streamed) == expected
    # What was streamed was never taken back, so every prefix of the stream is one of the result.
    assert all(expected.startswith("".join(streamed[:n])) for n in range(len(streamed)))


@pytest.mark.parametrize(
    ("text", "stop", "held"),
    [
        ("abc", (), 0),
        ("ab" + HALF, (), 1),
        ("ab E", ("END",), 1),
        ("ab EN" + HALF, ("ENé",), 3),
        ("xa", ("ab", "xab"), 2),
        ("END", ("END",), 0),
        ("", ("END",), 0),
    ],
)
def test_held_back(text: str, stop: tuple[str, ...], held: int) -> None:
    assert held_back(text, stop) == held


class Strips:
    """A tokenizer like Llama 2's: a space before each word, dropped at the front of whatever is decoded; bytes where a
    character is not in the vocabulary, and a run of bytes that is not UTF-8 decodes to one U+FFFD each."""

    def encode(self, text: str) -> list[int]:
        return [1000 + byte for byte in text.encode()]

    def decode(self, ids: Sequence[int]) -> str:
        text, run = "", b""
        for token in [*ids, None]:
            if token is not None and token >= 1000:
                run += bytes([token - 1000])
                continue
            try:
                text += run.decode()
            except UnicodeDecodeError:
                text += HALF * len(run)
            run = b""
            text += "" if token is None else f" w{token}"
        return text.removeprefix(" ")


@pytest.mark.parametrize(
    ("context", "new", "expected"),
    [([1, 2], [3], " w3"), ([], [3], "w3"), ("中文字", [3], " w3"), ("中文字", "字", "字"), ("a", "é", "é")],
)
def test_text_behind_a_context_keeps_its_first_space(context: object, new: object, expected: str) -> None:
    base = Strips()
    text = Detokenizer(base.decode, base.encode(context) if isinstance(context, str) else list(context))
    said = [text.push(token) for token in (base.encode(new) if isinstance(new, str) else new)]
    assert "".join([*said, text.finish()]) == expected


# Sampling ---------------------------------------------------------------------------------------------------------------


def frequencies(logits: Sequence[float], sampling: Sampling, seen: Sequence[int] = (), draws: int = 4000) -> np.ndarray:
    random = torch.Generator().manual_seed(0)
    drawn = [sample(torch.tensor(logits), SeenTokens(seen), sampling, random).token for _ in range(draws)]
    return np.bincount(drawn, minlength=len(logits)) / draws


LOGITS = np.log([0.5, 0.25, 0.15, 0.1]).tolist()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.5, 0.25, 0.15, 0.1]),
        ({"temperature": 0.5}, np.array([0.25, 0.0625, 0.0225, 0.01]) / 0.345),
        ({"top_k": 2}, [2 / 3, 1 / 3, 0, 0]),
        ({"top_p": 0.6}, [2 / 3, 1 / 3, 0, 0]),
        ({"top_p": 0.01}, [1, 0, 0, 0]),
        ({"min_p": 0.25}, np.array([0.5, 0.25, 0.15, 0]) / 0.9),
    ],
)
def test_tokens_are_drawn_as_the_settings_say(settings: dict[str, float], expected: Sequence[float]) -> None:
    sampling = Sampling(**{"temperature": 1.0, "top_p": 1.0, **settings})
    np.testing.assert_allclose(frequencies(LOGITS, sampling), expected, atol=0.03)


def test_repetition_penalty_makes_seen_tokens_rarer() -> None:
    sampling = Sampling(temperature=0, repetition_penalty=2.0)
    logits = torch.tensor([2.0, 1.5, -1.0])
    assert sample(logits, SeenTokens([]), sampling, torch.Generator()).token == 0
    assert sample(logits, SeenTokens([0]), sampling, torch.Generator()).token == 1
    # A negative logit is multiplied, or the penalty would reward it.
    assert sample(torch.tensor([-1.0, -1.5]), SeenTokens([0]), sampling, torch.Generator()).token == 1
    assert logits.tolist() == [2.0, 1.5, -1.0]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", 1.1),
        ("repetition_penalty", 0.0),
        ("stop", ("",)),
    ],
)
def test_settings_out_of_range_name_their_flag(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match="--" + field.replace("_", "-")):
        Sampling(**{field: value})


# The real model ---------------------------------------------------------------------------------------------------------


def test_the_real_model_writes_the_same_alone_and_in_a_batch(smollm2: BaseModel) -> None:
    excerpt = smollm2.embed(torch.tensor(smollm2.encode("The lamp was trimmed at dusk and the fog came up."))).numpy()
    voice = SoftPrompt(excerpt, Metadata(placement=smollm2.placement))
    requests = [TextRequest("The capital of France is", None), TextRequest("At dusk", voice), TextRequest("", voice)]
    sampling = Sampling(max_tokens=8, temperature=0)
    together = complete(smollm2, requests, sampling)
    assert "Paris" in together[0]
    assert together[0].startswith(" ")
    expected = ids_by_transformers(smollm2, requests[1], sampling.max_tokens)
    assert together[1] == smollm2.decode(expected)
    assert together[1:] == [complete(smollm2, [request], sampling)[0] for request in requests[1:]]
