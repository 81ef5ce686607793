"""Encoder-decoders under the engine: a row in a crowded, changing batch writes what transformers' `generate` writes for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sordino.engine.config import Limits
from sordino.engine.engine import Engine
from sordino.engine.generate import TextRequest, complete, draw
from sordino.engine.requests import Chunk, End, request_for
from sordino.engine.runners import encoder_decoder_runner
from sordino.engine.runners.encoder_decoder_runner import EncoderDecoderRunner
from sordino.engine.sampling import Sampling
from sordino.errors import ConfigError, OutOfMemory
from sordino.forward.nll import head_of
from sordino.models.base_model import BaseModel
from sordino.prompts.mixture import Mixture
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from tests.parity.plain_pairs import plain_inputs, plain_pair_logits
from tests.tiny_models import ENCODER_DECODERS, tiny_base

TEXTS = (
    "the keeper",
    "",
    "a lamp of the sea and the ship",
    "the ship was seen; the fog took it, wrote the keeper of the lamp",
)
NEW = 8


@pytest.fixture(scope="module", params=ENCODER_DECODERS)
def base(request: pytest.FixtureRequest) -> BaseModel:
    return tiny_base(request.param)


def prompts(base: BaseModel, *lengths: int) -> list[SoftPrompt]:
    random = np.random.default_rng(0)
    made = []
    for length in lengths:
        matrix = random.normal(size=(length, base.d_model)) * base.embedding_rms
        made.append(SoftPrompt(matrix.astype(np.float32), Metadata(name=f"p{length}", placement="start")))
    return made


def by_transformers(base: BaseModel, prompt: SoftPrompt | None, text: str) -> list[int]:
    """The tokens that `generate` writes after the model's own start."""
    sides = base.encoder_decoder
    assert sides is not None
    matrix = torch.from_numpy(prompt.matrix.copy()) if prompt else torch.zeros(0, base.d_model)
    read = plain_inputs(base, matrix, base.encode(text))
    written = base.network.generate(
        inputs_embeds=read,
        attention_mask=torch.ones(read.shape[:2], dtype=torch.long),
        max_new_tokens=NEW + len(sides.start_ids) - 1,
        do_sample=False,
        num_beams=1,
        **({"forced_bos_token_id": sides.start_ids[1]} if len(sides.start_ids) > 1 else {}),
    )[0].tolist()
    assert tuple(written[: len(sides.start_ids)]) == sides.start_ids
    return written[len(sides.start_ids) :]


def test_greedy_tokens_are_those_of_generate(base: BaseModel) -> None:
    several = [None, *prompts(base, 5, 1)]
    requests = [TextRequest(text, prompt) for text in TEXTS for prompt in several if text or prompt]
    drawn = draw(base, requests, Sampling(max_tokens=NEW, temperature=0), rows=3)
    for request, found in zip(requests, drawn, strict=True):
        expected = by_transformers(base, request.prompt, request.text)
        tokens = [one.token for one in found.tokens]
        assert tokens == [token for token in expected if token not in base.stop_ids][: len(tokens)]
        assert found.ended == (len(expected) < NEW or expected[-1] in base.stop_ids)


def test_rows_that_come_and_go_write_what_they_write_alone(base: BaseModel) -> None:
    several = [None, *prompts(base, 3, 6)]
    sampling = Sampling(max_tokens=NEW, temperature=0.9, end="forbid", logprobs=0)
    requests = [
        request_for(base, base.encode(text), prompt, sampling, seed)
        for seed, (text, prompt) in enumerate(
            [
                ("the keeper wrote of the sea", several[0]),
                ("a lamp", several[1]),
                ("the ship", several[2]),
                ("of", several[1]),
            ]
        )
    ]
    alone = [run(base, [request]) for request in requests]
    crowded = run(base, requests, stagger=True)
    assert crowded == [tokens for (tokens,) in alone]


def run(
    base: BaseModel, requests, *, stagger: bool = False, runner: EncoderDecoderRunner | None = None
) -> list[list[int]]:
    # Few positions a step: inputs come in chunks, and rows wait for their turn.
    limits = Limits(rows=3, queue=9, tokens=4, chunk=3)
    engine = Engine(runner or EncoderDecoderRunner(base, advice=""), limits)
    waiting, numbers, found = list(requests), [], {}
    while waiting or engine.busy:
        if waiting:
            numbers.append(engine.submit(waiting.pop(0)))
            while waiting and not stagger:
                numbers.append(engine.submit(waiting.pop(0)))
        for number, event in engine.step():
            if isinstance(event, Chunk):
                found.setdefault(number, []).extend(one.token for one in event.drawn)
            elif isinstance(event, End):
                assert event.error is None
    return [found[number] for number in numbers]


def test_the_encoder_and_cross_attention_run_once_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base("t5")
    # The head is measured once a network, by runs of its own.
    head_of(base.network)
    counts = {"encoder": 0, "cross": 0}
    encoder = base.network.get_encoder()
    cross = base.network.get_decoder().block[0].layer[1].EncDecAttention.k

    def count(name: str):
        def add(*_: object) -> None:
            counts[name] += 1

        return add

    hooks = [encoder.register_forward_hook(count("encoder")), cross.register_forward_hook(count("cross"))]
    complete(base, [TextRequest(text, prompts(base, 4)[0]) for text in TEXTS], Sampling(max_tokens=6, end="forbid"))
    for hook in hooks:
        hook.remove()
    # One batch; the decoder takes six steps.
    assert counts == {"encoder": 1, "cross": 1}


def test_the_output_is_a_text_of_its_own() -> None:
    """Its first word has no space in front, and a penalty counts its own words only."""
    base = tiny_base("t5")
    request = TextRequest("the keeper wrote of the sea", prompts(base, 3)[0])
    plain = draw(base, [request], Sampling(max_tokens=1, temperature=0), rows=1)
    penalised = draw(base, [request], Sampling(max_tokens=1, temperature=0, repetition_penalty=50), rows=1)
    assert plain == penalised


def test_a_mixture_combines_its_components() -> None:
    base = tiny_base("t5")
    parts = prompts(base, 2, 5)
    mixed = Mixture(tuple(parts), np.array([0.5, 0.5]), rule="probabilities", metadata=Metadata(name="m"))
    (found,) = draw(
        base, [TextRequest("the keeper", mixed)], Sampling(max_tokens=1, temperature=0, end="forbid"), rows=2
    )
    logits = [
        plain_pair_logits(base, torch.from_numpy(part.matrix.copy()), base.encode("the keeper"), [0])[0]
        for part in parts
    ]
    together = torch.stack([torch.log_softmax(one, -1) for one in logits]).exp().mean(0)
    together[list(base.stop_ids)] = 0
    assert found.tokens[0].token == int(together.argmax())


def test_input_and_output_have_a_context_each() -> None:
    base = tiny_base("bart")
    long = "the " * 100
    assert len(base.encode(long)) + 100 > base.context_length
    complete(base, [TextRequest(long)], Sampling(max_tokens=100, temperature=0))
    with pytest.raises(ConfigError, match="does not fit the model's context"):
        complete(base, [TextRequest("the " * 150)], Sampling(max_tokens=1))
    with pytest.raises(ConfigError, match="does not fit the model's context"):
        complete(base, [TextRequest("the")], Sampling(max_tokens=257))


def test_rows_wait_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_decoder_runner, "_RESERVED", 8)
    base = tiny_base("t5")
    sampling = Sampling(max_tokens=NEW, temperature=0, end="forbid")
    requests = [request_for(base, base.encode(text), prompts(base, 3)[0], sampling, 0) for text in TEXTS]
    free = EncoderDecoderRunner(base, kv_bytes=1 << 30, advice="")
    # Room for one of the rows, and for parts of a second.
    tight = EncoderDecoderRunner(base, kv_bytes=(1 << 30) // free.most_positions * 60, advice="")
    found, most = [], []
    for runner in (free, tight):
        engine = Engine(runner, Limits(rows=4))
        numbers, texts, running = [engine.submit(request) for request in requests], {}, 0
        while engine.busy:
            for number, event in engine.step():
                if isinstance(event, Chunk):
                    texts[number] = texts.get(number, "") + event.text
            running = max(running, engine.counts[0])
        found.append([texts[number] for number in numbers])
        most.append(running)
    assert found[0] == found[1]
    assert most[0] == 4
    assert most[1] < 4
    # Less room at a time than a row needs: rows that lose theirs begin again in the middle of their outputs.
    monkeypatch.setattr(encoder_decoder_runner, "_RESERVED", 2)
    sampling = Sampling(max_tokens=40, temperature=1, end="forbid", logprobs=0)
    requests = [request_for(base, base.encode(text), prompts(base, 3)[0], sampling, 1) for text in TEXTS]
    cramped = EncoderDecoderRunner(base, kv_bytes=(1 << 30) // free.most_positions * 110, advice="")
    opened: list[int] = []
    original = cramped.open

    def open_counted(number: int, *given: Any) -> int | None:
        done = original(number, *given)
        if done is not None:
            opened.append(number)
        return done

    monkeypatch.setattr(cramped, "open", open_counted)
    assert run(base, requests, runner=cramped) == [tokens for one in requests for tokens in run(base, [one])]
    assert len(opened) > len(set(opened)), "no row lost its room"
    assert not cramped._rows
    tiny_room = Engine(EncoderDecoderRunner(base, kv_bytes=1000, advice=""), Limits())
    with pytest.raises(OutOfMemory):
        tiny_room.submit(requests[0])
