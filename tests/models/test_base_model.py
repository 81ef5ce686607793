"""What a base model tells about itself, how it reads text, and which soft prompts fit it."""

from __future__ import annotations

import dataclasses
from threading import Thread

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from sordino.errors import BadInput, ConfigError, DoesNotFit, ModelError, OutOfMemory
from sordino.models import base_model, chat_template
from sordino.models.base_model import choose_device, choose_dtype, training_dtype
from sordino.prompts.fit import Stated, fit
from sordino.prompts.soft_prompt import BaseRef, Metadata, SoftPrompt
from tests.tiny_models import FAMILIES, saved_tiny, tiny, tiny_base, tiny_tokenizer

CHAT = [
    {"role": "user", "content": "who keeps the lamp?"},
    {"role": "assistant", "content": "I do."},
    {"role": "user", "content": "and the sea?"},
    {"role": "assistant", "content": "nobody <|im_end|> keeps the sea"},
]


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch, request):
    if not {"smollm2", "gemma"} & set(request.fixturenames):
        monkeypatch.setenv("SORDINO_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def llama():
    return tiny_base("llama", bos=True)


# The network


@pytest.mark.parametrize("family", FAMILIES)
def test_embed_is_what_the_network_computes_itself(family):
    base = tiny_base(family)
    ids = torch.arange(5, 25)[None]
    embeds = base.embed(ids)
    assert embeds.shape == (1, 20, base.d_model)
    torch.testing.assert_close(base.network(inputs_embeds=embeds).logits, base.network(ids).logits, rtol=0, atol=1e-12)
    everything = base.embed(torch.arange(base.vocab_size))
    assert base.embedding_rms == pytest.approx(float(everything.square().mean().sqrt()), rel=1e-6)


def test_embedding_rms_counts_gemmas_scale():
    gemma = tiny_base("gemma3")
    weight = gemma.network.get_input_embeddings().weight
    assert gemma.embedding_rms == pytest.approx(float(weight.square().mean().sqrt()) * gemma.d_model**0.5, rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_are_those_of_the_network(family):
    base = tiny_base(family)
    assert (base.d_model, base.n_layers, base.vocab_size, base.context_length) == (32, 3, 320, 256)
    assert base.family == base.network.config.model_type
    assert (base.device, base.dtype) == (torch.device("cpu"), torch.float64)
    assert base.ref == BaseRef(base.id, base.family, 32, 3, 320, base.embedding_rms, base.fingerprint)


def test_the_network_is_frozen_and_its_dropout_is_off():
    config = GPT2Config(vocab_size=320, n_embd=16, n_layer=1, n_head=2, resid_pdrop=0.5, attn_pdrop=0.5, embd_pdrop=0.5)
    network = GPT2LMHeadModel(config).train()
    base = base_model.from_parts(network, tiny_tokenizer(), name="x")
    assert not base.network.training
    assert not any(parameter.requires_grad for parameter in base.network.parameters())
    ids = torch.arange(20)[None]
    assert torch.equal(base.network(ids).logits, base.network(ids).logits)


def test_loading_a_folder_gives_the_network_that_was_saved(tmp_path):
    network = tiny("gemma3", dtype=torch.float32)
    network.save_pretrained(tmp_path / "gem")
    tiny_tokenizer(bos=True).save_pretrained(tmp_path / "gem")
    base = base_model.load(str(tmp_path / "gem"), device="cpu")
    ids = torch.arange(5, 45)[None]
    assert torch.equal(base.network(ids).logits, network(ids).logits)
    assert (base.name, base.id, base.bos_ids) == (str(tmp_path / "gem"), "gem", (2,))
    assert not base.network.training
    assert not any(parameter.requires_grad for parameter in base.network.parameters())
    assert len(base.fingerprint) == 64
    half = base_model.load(str(tmp_path / "gem"), device="cpu", dtype="bfloat16")
    assert half.dtype == half.embed(torch.tensor([5])).dtype == torch.bfloat16
    assert half.fingerprint == base.fingerprint


def test_loading_says_nothing(tmp_path, capfd):
    saved_tiny(tmp_path)
    capfd.readouterr()
    base_model.load(str(tmp_path), device="cpu").encode("the keeper " * 1000)
    assert capfd.readouterr() == ("", "")


def test_missing_weights_are_not_made_up(tmp_path):
    from safetensors.torch import load_file, save_file

    saved_tiny(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"weights are missing; got no model\.layers\.1\.mlp\.up_proj\.weight"):
        base_model.load(str(tmp_path), device="cpu")


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")]
)
def test_a_model_that_memory_has_no_room_for_is_not_called_unreadable(tmp_path, monkeypatch, error):
    def full(*_, **__):
        raise error

    saved_tiny(tmp_path)
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", full)
    with pytest.raises(OutOfMemory, match=r"does not fit into memory.*--dtype bfloat16"):
        base_model.load(str(tmp_path), device="cpu")


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    tiny("llama", dtype=torch.float32).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="tokenizer cannot be read"):
        base_model.load(str(tmp_path), device="cpu")


# Text


@pytest.mark.parametrize(
    "text", ["", "the keeper wrote", " two  spaces\n\n\nand é🙂\t", "<|im_end|><bos> is text", "1. one\r\n"]
)
def test_text_survives_and_markers_in_it_are_text(llama, text):
    ids = llama.encode(text)
    assert llama.decode(ids) == text
    assert not set(ids) & {0, 1, 2, 3, 4}


def test_markup_is_read_as_markers(llama):
    assert llama.encode_markup("<|im_start|>a<|im_end|>") == [3, *llama.encode("a"), 4]
    assert llama.decode([2, *llama.encode("a"), 4]) == "a"
    # The switch between the two lies in the tokenizer: reading one must not change how the other is read.
    assert llama.encode("<|im_end|>") != [4]
    assert llama.encode_markup("<|im_end|>") == [4]
    with pytest.raises(BadInput, match="not Unicode"):
        llama.encode_markup("half a pair: \ud800")


def test_bos_is_what_the_tokenizer_writes():
    assert tiny_base("llama").bos_ids == ()
    assert tiny_base("llama").placement == "start"
    assert tiny_base("llama", bos=True).bos_ids == (2,)
    assert tiny_base("gemma3").placement == "after_bos"


def test_stop_ids_are_the_ends_of_texts_and_turns(llama):
    assert llama.stop_ids == {1, 4}
    network = tiny("llama")
    network.generation_config.eos_token_id = [5, 9999]
    assert base_model.from_parts(network, tiny_tokenizer(), name="x").stop_ids == {1, 4, 5}


# Chats


def test_a_chat_is_cut_at_the_assistants_turns(llama):
    pieces = llama.chat_segments(CHAT)
    assert "".join(text for text, _ in pieces) == llama.tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert [text for text, flag in pieces if flag] == ["I do.<|im_end|>", "nobody <|im_end|> keeps the sea<|im_end|>"]
    assert llama.encode_markup(pieces[1][0])[-1] in llama.stop_ids


def test_a_chat_may_begin_with_the_assistant_or_lack_one(llama):
    greeting = [{"role": "assistant", "content": "welcome"}, *CHAT[:1]]
    assert [text for text, flag in llama.chat_segments(greeting) if flag] == ["welcome<|im_end|>"]
    assert [flag for _, flag in llama.chat_segments(CHAT[:1])] == [False]


def test_a_repeated_answer_is_found_at_its_own_place():
    def render(messages, add_generation_prompt):
        # A template that renders a beginning otherwise than the whole.
        return f"{len(messages)}:" + "".join(f"[{m['content']}]" for m in messages)

    chat = [{"role": role, "content": "yes"} for role in ("user", "assistant", "user", "assistant")]
    pieces = chat_template.segments(render, chat, ["]"])
    assert pieces == [("4:[yes][", False), ("yes]", True), ("[yes][", False), ("yes]", True)]
    answers = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "yes"}] * 2
    pieces = chat_template.segments(render, answers, ["]"])
    assert pieces == [("4:[q][", False), ("yes]", True), ("[q][", False), ("yes]", True)]


def test_templates_that_are_missing_or_refuse_are_reported():
    base = tiny_base("llama")
    base.tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ModelError, match="refuses the conversation; got roles must alternate"):
        base.chat_segments(CHAT)
    base.tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}{% endfor %}"
    with pytest.raises(ModelError, match="does not show the assistant's text"):
        base.chat_segments(CHAT)
    base.tokenizer.chat_template = None
    with pytest.raises(ModelError, match="no chat template"):
        base.chat_segments(CHAT)


# Fit

MODEL = BaseRef("EleutherAI/gpt-j-6b", "gptj", 4096, 28, 50400, 0.1, "f" * 64)


@pytest.mark.parametrize(
    ("d_model", "said", "kind", "forcible", "reason"),
    [
        (4096, {"base": MODEL}, "exact", True, "these very weights"),
        (
            4096,
            {"base": dataclasses.replace(MODEL, id="x", fingerprint="0" * 64)},
            "same family",
            True,
            "other weights",
        ),
        (4096, {"base": dataclasses.replace(MODEL, fingerprint="")}, "same family", True, "same kind and size"),
        (4096, {}, "unknown", True, "does not say"),
        (4096, {"supported": ("GPT-J-6B",)}, "unknown", True, "as this model is called"),
        (4096, {"supported": ("Generic 6B", "gpt-neo-2.7B")}, "unknown", True, "not EleutherAI/gpt-j-6b"),
        (4096, {"base": BaseRef(id="EleutherAI/gpt-j-6B")}, "unknown", True, "as this model is called"),
        (4096, {"base": BaseRef(family="gptj")}, "unknown", True, "does not say"),
        (4096, {"base": BaseRef(family="llama")}, "no", True, "family llama instead of gptj"),
        (
            4096,
            {"base": dataclasses.replace(MODEL, n_layers=32, fingerprint="1")},
            "no",
            True,
            "layers 32 instead of 28",
        ),
        (4096, {"base": dataclasses.replace(MODEL, vocab_size=32000, fingerprint="1")}, "no", True, "vocabulary 32000"),
        (2048, {}, "no", False, "2048 wide"),
        (2048, {"base": MODEL}, "no", False, "2048 wide"),
    ],
)
def test_fit_has_four_answers(d_model, said, kind, forcible, reason):
    answer = fit(MODEL, Stated(Metadata(**said), d_model), names=("gptj",))
    assert (answer.kind, answer.forcible) == (kind, forcible)
    assert reason in answer.reason


def test_a_text_only_build_is_of_its_multimodal_family():
    model = BaseRef("g", "gemma3_text", 64, 4, 320)
    said = Metadata(base=BaseRef("h", "gemma3", 64, 4, 320))
    assert fit(model, Stated(said, 64)).kind == "same family"


def test_a_short_name_is_not_found_in_every_other():
    assert "not gpt" in fit(BaseRef("gpt", "gptj", 8), Stated(Metadata(supported=("gpt-j-6b",)), 8)).reason


def test_check_fit_refuses_and_can_be_forced(llama):
    fits = SoftPrompt(np.zeros((2, 32), np.float32), Metadata(base=llama.ref))
    assert llama.check_fit(fits, force=False).kind == "exact"
    other = fits.with_metadata(base=dataclasses.replace(llama.ref, family="gptj", fingerprint=""), name="voice")
    with pytest.raises(DoesNotFit, match=r"voice: the soft prompt does not fit the base model: .*family gptj.*--force"):
        llama.check_fit(other, force=False)
    assert llama.check_fit(other, force=True).kind == "no"
    with pytest.raises(DoesNotFit, match="16 wide"):
        llama.check_fit(SoftPrompt(np.zeros((2, 16), np.float32)), force=True)


# Flags


def test_devices_and_number_types(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device(None) == choose_device("cpu") == torch.device("cpu")
    assert choose_dtype(None, torch.device("cpu")) == choose_dtype(None, torch.device("mps")) == torch.float32
    assert choose_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16
    for said in ("gpu", "cuda:x", "cpu:0", "mps:1", "", "cuda:"):
        with pytest.raises(ConfigError, match="--device: unknown;"):
            choose_device(said)
    for said in ("cuda", "cuda:0", "mps"):
        with pytest.raises(ConfigError, match="no such device; expected cpu, got"):
            choose_device(said)
    with pytest.raises(ConfigError, match=r"--dtype.*float32, bfloat16, float16, got int8"):
        choose_dtype("int8", torch.device("cpu"))


def test_a_gpu_is_used_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device(None) == torch.device("cuda")
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ConfigError, match="no such device"):
        choose_device("cuda:2")
    for supported, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation, s=supported: s)
        assert choose_dtype(None, torch.device("cuda")) == expected


@pytest.mark.parametrize(
    "has", [{}, {"avx512_bf16": False, "amx_bf16": False}, {"avx512_bf16": True}, {"amx_bf16": True}]
)
def test_training_is_in_bfloat16_where_the_processor_multiplies_it(monkeypatch, has):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)
    assert training_dtype(None, "cpu") == ("bfloat16" if any(has.values()) else "float32")
    assert training_dtype("float32", "cpu") == "float32"
    # Only to train: what a command writes with is as before.
    assert choose_dtype(None, torch.device("cpu")) == torch.float32
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert training_dtype(None, "cpu") == "float32"
    with pytest.raises(ConfigError, match="unknown number type"):
        training_dtype("int8", "cpu")


def test_a_torch_that_does_not_know_the_processor_trains_in_float32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert training_dtype(None, "cpu") == "float32"


def test_bad_flags_are_refused_before_a_model_is_looked_for():
    with pytest.raises(ConfigError):
        base_model.load("./not/there", dtype="int4")


# The bundled models


def test_smollm2_is_what_its_makers_published(smollm2):
    assert smollm2.ref == BaseRef(
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "llama",
        576,
        30,
        49152,
        smollm2.embedding_rms,
        "b48ab33e400c9f95b62e60e9158438c41884cf1fb96de12571bd2f7ca0eb94fe",
    )
    assert smollm2.embedding_rms == pytest.approx(0.136, abs=0.001)
    assert (smollm2.bos_ids, smollm2.stop_ids, smollm2.context_length) == ((), {0, 2}, 8192)
    assert smollm2.network.config.rope_parameters["rope_theta"] == 100_000
    assert smollm2.network.config.tie_word_embeddings
    assert smollm2.network.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    "text", ["Ann's  log, 12 May 1907:\n\n1. Lamp lit.\t\n\n\n", "naïve café — “so” 🙂 日本", "<|im_start|>user"]
)
def test_smollm2_text_survives(smollm2, text):
    assert smollm2.decode(smollm2.encode(text)) == text
    assert not set(smollm2.encode(text)) & set(range(17)), "special tokens"


def test_smollm2_splits_digits_off_first_as_the_original_does(smollm2):
    tokens = smollm2.tokenizer.convert_ids_to_tokens
    assert tokens(smollm2.encode("a\n\n12")) == ["a", "ĊĊ", "1", "2"]
    assert tokens(smollm2.encode("a  1")) == ["a", "ĠĠ", "1"]


def test_smollm2_chats_in_its_template(smollm2):
    text = "".join(piece for piece, _ in smollm2.chat_segments(CHAT[:2]))
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nwho keeps the lamp?<|im_end|>\n<|im_start|>assistant\nI do.<|im_end|>\n"
    )
    assert [t for t, flag in smollm2.chat_segments(CHAT[:2]) if flag] == ["I do.<|im_end|>"]
    assert smollm2.encode_markup(text)[0] == 1
    assert [t for t, flag in smollm2.chat_segments(CHAT[1:3]) if flag] == ["I do.<|im_end|>"]


def greedy(base, text: str, tokens: int) -> str:
    ids = torch.tensor([[*base.bos_ids, *base.encode(text)]])
    with torch.no_grad():
        written = base.network.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False
        )
    return base.decode(written[0].tolist())


def test_smollm2_writes_sense(smollm2):
    assert greedy(smollm2, "The capital of France is", 2) == "The capital of France is Paris."


@pytest.fixture(scope="module")
def gemma():
    return base_model.load("gemma3-270m", device="cpu", dtype="float32")


@pytest.mark.slow
def test_gemma_survives_the_conversion(gemma):
    config = gemma.network.config
    assert (gemma.family, gemma.d_model, gemma.n_layers, gemma.vocab_size) == ("gemma3_text", 640, 18, 262_144)
    assert config.sliding_window == 512
    assert config.layer_types == (["sliding_attention"] * 5 + ["full_attention"]) * 3
    assert config.rope_parameters["sliding_attention"]["rope_theta"] == 10_000
    assert config.rope_parameters["full_attention"]["rope_theta"] == 1_000_000
    assert config.tie_word_embeddings
    assert (gemma.bos_ids, gemma.placement, gemma.context_length) == ((2,), "after_bos", 32_768)
    assert gemma.embedding_rms == pytest.approx(1.03, abs=0.01)
    assert gemma.fingerprint == "46c034f7e726de31555819cae3657c0945e768fbe49745d777fcae73962bfcde"
    assert gemma.stop_ids == {1, 106}


@pytest.mark.slow
def test_gemma_knows_english_behind_bos_and_falls_apart_without(gemma):
    text = gemma.encode("The keeper climbed the stairs of the lighthouse, lit the lamp, and wrote the hour in his log.")
    behind_bos, without = (nll(gemma, ids) for ids in ([*gemma.bos_ids, *text], text))
    assert behind_bos < 4.5
    assert without > behind_bos + 1.5


def nll(base, ids: list[int]) -> float:
    """Mean negative log likelihood of the text's tokens but the first."""
    with torch.no_grad():
        logits = base.network(torch.tensor([ids])).logits[0]
    first = len(base.bos_ids) if tuple(ids[: len(base.bos_ids)]) == base.bos_ids else 0
    return float(torch.nn.functional.cross_entropy(logits[first:-1], torch.tensor(ids[first + 1 :])))


@pytest.mark.slow
def test_gemma_reads_and_writes_text(gemma):
    for text in ("a\n\n\nb<b>x</b>\t\tq    z, 1907 é🙂 日本", "<start_of_turn>user"):
        assert gemma.decode(gemma.encode(text)) == text
    assert gemma.encode_markup("<start_of_turn>") == [105]
    with pytest.raises(ModelError, match="no chat template"):
        gemma.chat_segments(CHAT)


def test_two_threads_read_texts_and_markup_each_as_it_is() -> None:
    """The tokenizer has one switch for whether markers are text."""
    base = tiny_base("llama")
    marked = "the sea <|im_end|> the lamp"
    text, markup = base.encode(marked), base.encode_markup(marked)
    assert text != markup
    wrong = []

    def read(encode, right) -> None:
        wrong.extend(found for _ in range(1500) if (found := encode(marked)) != right)

    threads = [
        Thread(target=read, args=some) for some in ((base.encode, text), (base.encode_markup, markup)) for _ in "ab"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
