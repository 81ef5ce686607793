"""What a person had: a dataset for KoboldAI's tuners, 60 log entries in one text with `<|endoftext|>` between them.

The marker was learned as the letters `<`, `|`, `end`.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sordino.errors import DataError
from sordino.texts.examples import make_examples
from sordino.texts.reading import Reading, read_pieces
from sordino.texts.splits import split_pieces
from tests.tiny_models import tiny_base

MARKERS = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|begin_of_text|>",
    "<|startoftext|>",
    "<|eod|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|end|>",
    "<end_of_turn>",
    "<｜end▁of▁sentence｜>",
    "</s>",
    "<s>",
    "</s><s>",
    "<eos>",
    "[EOS]",
)
SPLIT = "texts split at their end-of-text markers (such as <|endoftext|>), which are not learned: 1"


def reading(path: Path, text: str, *ends: str) -> Reading:
    path.write_text(text, encoding="utf-8", newline="")
    return read_pieces([path], ends=ends)


def learned(result: Reading) -> list[tuple[str, str]]:
    return [(piece.name, piece.text) for piece in result.pieces]


@pytest.mark.parametrize("marker", MARKERS)
@pytest.mark.parametrize("between", ["\n{}\n", "{}\n", "\r\n{}\r\n"])
def test_documents_end_at_a_marker_which_is_not_learned(tmp_path: Path, marker: str, between: str) -> None:
    if marker == "<s>":
        between = "\n{}"
    result = reading(tmp_path / "log.txt", f"One day.{between.format(marker)}Another.\n\nDay.{between.format(marker)}")
    assert learned(result) == [("log.txt, document 1", "One day."), ("log.txt, document 2", "Another.\n\nDay.")]
    assert result.notes == (SPLIT,)


def test_the_base_models_own_marker_ends_documents_too(tmp_path: Path) -> None:
    text = "One.<|my_end|>Two.<pad>Three."
    assert len(learned(reading(tmp_path / "log.txt", text))) == 1
    assert [said for _, said in learned(reading(tmp_path / "log.txt", text, "<|my_end|>", "."))] == [
        "One.",
        "Two.<pad>Three.",
    ]
    assert "<eos>" in tiny_base("llama").end_markers


def test_documents_are_dealt_out_whole(tmp_path: Path) -> None:
    entries = [f"Day {i}. " + f"word{i} " * 60 for i in range(20)]
    splits = split_pieces(reading(tmp_path / "log.txt", "\n<|endoftext|>\n".join(entries)).pieces, heldout=None, seed=0)
    assert "of 20 documents" in splits.how
    assert sum(map(len, (splits.train, splits.validation, splits.heldout))) == 20


@pytest.mark.parametrize(
    "text",
    [
        "Plain.\n",
        "~~<s>old</s>~~ new, and <s>struck</s> out.\n",
        "vector<s> and `a < |b|`, end of text\n",
        "<html-like> <end> [END]\n",
    ],
)
def test_a_text_without_markers_stays_as_it_is(tmp_path: Path, text: str) -> None:
    assert learned(reading(tmp_path / "a.md", text)) == [("a.md", text)]


def test_completions_and_turns_end_at_their_marker(tmp_path: Path) -> None:
    records = [
        {"prompt": "<s>Q:", "completion": " A</s>"},
        {"prompt": "Q:", "completion": " A<|endoftext|>Q: next"},
        {"messages": [{"role": "user", "content": "Hi<|im_end|>"}, {"role": "assistant", "content": "Lo<|im_end|>\n"}]},
    ]
    result = reading(tmp_path / "a.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    assert [(piece.prompt, piece.text) for piece in result.pieces] == [("Q:", " A"), ("Q:", " A"), ("", "Lo")]
    assert result.pieces[2].words == "Hi\nLo"
    assert result.notes == ("completions and turns cut at an end marker (the model's own is learned instead): 3",)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "ChatML",
            "<|im_start|>system\nBrief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nLo<|im_end|>\n",
        ),
        (
            "Llama 3",
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBrief.<|eot_id|><|start_header_id|>user"
            "<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nLo<|eot_id|>",
        ),
        (
            "Gemma",
            "<bos><start_of_turn>system\nBrief.<end_of_turn>\n<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nLo<end_of_turn>",
        ),
        ("Zephyr or Phi", "<|system|>\nBrief.</s>\n<|user|>\nHi</s>\n<|assistant|>\nLo</s>"),
        ("Zephyr or Phi", "<|system|>Brief.<|end|><|user|>Hi<|end|><|assistant|>Lo<|end|>"),
        (
            "Llama 4",
            "<|begin_of_text|><|header_start|>system<|header_end|>\n\nBrief.<|eot|><|header_start|>user<|header_end|>\n\n"
            "Hi<|eot|><|header_start|>assistant<|header_end|>\n\nLo<|eot|>",
        ),
        ("Gemma 4", "<bos><|turn>system\nBrief.<turn|>\n<|turn>user\nHi<turn|>\n<|turn>model\nLo<turn|>\n"),
        (
            "Command R",
            "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>Brief.<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|USER_TOKEN|>"
            "Hi<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>Lo<|END_OF_TURN_TOKEN|>",
        ),
        ("EXAONE", "[|system|]Brief.[|endofturn|]\n[|user|]Hi[|endofturn|]\n[|assistant|]Lo[|endofturn|]"),
        (
            "KoboldAI Lite",
            "{{[SYSTEM]}}Brief.{{[SYSTEM_END]}}{{[INPUT]}}Hi{{[INPUT_END]}}{{[OUTPUT]}}Lo{{[OUTPUT_END]}}",
        ),
        ("Llama 2 or Mistral", "<s>[INST] <<SYS>>\nBrief.\n<</SYS>>\n\nHi [/INST] Lo </s>"),
    ],
)
def test_a_text_in_a_chat_template_is_a_chat(tmp_path: Path, name: str, text: str) -> None:
    for path, content in ((tmp_path / "a.txt", text), (tmp_path / "a.jsonl", json.dumps({"text": text}))):
        result = reading(path, content)
        assert [[tuple(turn.values()) for turn in piece.messages] for piece in result.pieces] == [
            [("system", "Brief."), ("user", "Hi"), ("assistant", "Lo")]
        ]
        assert result.notes == (f"texts in the chat template of {name} read as chats: 1",)


def test_a_system_message_opens_another_chat(tmp_path: Path) -> None:
    one = "<|im_start|>system\nBrief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nLo<|im_end|>\n"
    result = reading(tmp_path / "a.txt", one + one + "<|endoftext|>" + one)
    assert [len(piece.messages) for piece in result.pieces] == [3, 3, 3]


def test_a_text_about_chat_templates_is_a_text(tmp_path: Path) -> None:
    text = "A turn opens with [INST] and [/INST] closes it.\n"
    assert learned(reading(tmp_path / "a.txt", text)) == [("a.txt", text)]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("<|start_of_role|>user<|end_of_role|>Hi\n", "<|end_of_role|>, <|start_of_role|>"),
        ("<｜User｜>Hi<｜Assistant｜>Lo\n", "<｜Assistant｜>, <｜User｜>"),
        ("A title\n<|im_start|>user\nHi\n", "<|im_start|>"),
        ("Story {{[OUTPUT]}} told.\n", "{{[OUTPUT]}}"),
        ("[gMASK] and <|observation|>\n", "<|observation|>"),
    ],
)
def test_markers_that_are_learned_as_letters_are_reported(tmp_path: Path, text: str, left: str) -> None:
    chat = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": text}]}
    completion = {"prompt": "Q:", "completion": text}
    for name, content in (("a.txt", text), ("b.jsonl", json.dumps(completion)), ("c.jsonl", json.dumps(chat))):
        result = reading(tmp_path / name, content)
        assert [note for note in result.notes if "letters" in note] == [
            f"markers of other programs and models, which are learned as letters: {left}"
        ]
    assert reading(tmp_path / "a.txt", "if (a <| b |> c) || <|> x").notes == ()


def test_no_letter_of_a_marker_is_labelled(tmp_path: Path) -> None:
    base = tiny_base("llama")
    result = reading(tmp_path / "log.txt", "The sea.\n<|endoftext|>\nThe lamp.")
    said = [base.decode(example.ids) for example in make_examples(result.pieces, base, max_tokens=64).examples]
    assert said == ["The sea.", "The lamp."]


def test_many_markers_take_no_time(tmp_path: Path) -> None:
    many = "<|endoftext|> " * 50_000
    record = {
        "messages": [{"role": "user", "content": f"Hi{many}"}, {"role": "assistant", "content": f"{many}Lo{many}"}]
    }
    assert reading(tmp_path / "a.jsonl", json.dumps(record)).pieces[0].words == "Hi\n Lo"


def test_a_file_of_markers_alone_is_empty(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no text in it"):
        reading(tmp_path / "a.txt", "<|endoftext|>\n" * 3)
