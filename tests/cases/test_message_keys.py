"""What people had: chat records whose messages say more than role and content. Keys of records were reported, those of
messages never, so a turn of `"weight": 0` was learned.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sordino.errors import DataError
from sordino.texts.examples import make_examples
from sordino.texts.pieces import chat, digest
from sordino.texts.reading import Reading, read_pieces
from tests.tiny_models import tiny_base


def reading(folder: Path, *messages: Any, **record: Any) -> Reading:
    (folder / "a.jsonl").write_text(json.dumps({"messages": messages, **record}), encoding="utf-8")
    return read_pieces([folder / "a.jsonl"])


def said(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def turns(result: Reading) -> list[tuple[str, str]]:
    return [(turn["role"], turn["content"]) for turn in result.pieces[0].messages]


MASKS = [
    {"weight": 0},
    {"weight": 0.0},
    {"train": False},
    {"training": False},
    {"loss": 0},
    {"masked": True},
    {"mask": 1},
]


@pytest.mark.parametrize("mask", MASKS)
def test_a_masked_turn_is_context(tmp_path: Path, mask: dict[str, Any]) -> None:
    dialogue = (said("user", "Hi"), said("assistant", "secret", **mask), said("user", "So?"), said("assistant", "Lo"))
    result = reading(tmp_path, *dialogue)
    assert result.pieces[0].text == "Lo"
    assert ("assistant", "secret") in turns(result)
    assert result.notes == ("assistant turns marked as not to be learned, which serve as context: 1",)
    base = tiny_base("llama")
    (example,) = make_examples(result.pieces, base, max_tokens=400).examples
    assert base.decode([i for i, known in zip(example.ids, example.labelled, strict=True) if known]) == "Lo"
    assert "secret" in base.decode(example.ids)


@pytest.mark.parametrize(
    "mask", [{"weight": 1}, {"train": True}, {"masked": False}, {"weight": None}, {"loss": 1, "mask": 0}]
)
def test_a_turn_that_is_not_masked_is_learned(tmp_path: Path, mask: dict[str, Any]) -> None:
    result = reading(tmp_path, said("user", "Hi", weight=1), said("assistant", "Lo", **mask))
    assert result.pieces == (chat("a.jsonl:1", [said("user", "Hi"), said("assistant", "Lo")]),)
    assert result.notes == ()


@pytest.mark.parametrize(
    ("mask", "told"),
    [
        ({"weight": 0.5}, "`weight` of a message is neither 0 nor 1"),
        ({"weight": "0"}, "`weight`"),
        ({"train": []}, "got list"),
        ({"loss": float("nan")}, "`loss`"),
        ({"weight": 1, "train": False}, "disagree on whether it is learned"),
        ({"train_detail": [{"begin_offset": 0, "end_offset": 1, "train": False}]}, "`train_detail`"),
    ],
)
def test_a_mask_that_cannot_be_kept_is_refused(tmp_path: Path, mask: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError, match=r"a\.jsonl:1") as caught:
        reading(tmp_path, said("assistant", "Lo", **mask))
    assert told in caught.value.message


def test_a_user_who_is_to_be_learned_is_reported(tmp_path: Path) -> None:
    result = reading(tmp_path, said("user", "Hi", train=True), said("assistant", "Lo"))
    assert result.notes == ("turns of other roles marked to be learned, which are not learned: 1",)


def test_masks_are_part_of_what_data_is() -> None:
    dialogue = [said("user", "Hi"), said("assistant", "Lo"), said("assistant", "So")]
    masked = [*dialogue[:2], {**dialogue[2], "weight": "0"}]
    assert digest(chat("a", dialogue)) != digest(chat("a", masked))


def test_names_are_written_where_a_role_has_several(tmp_path: Path) -> None:
    dialogue = (said("user", "Hi", name="Ann"), said("user", "Ho", name="Bob"), said("assistant", "Lo", name="Keeper"))
    result = reading(tmp_path, *dialogue)
    assert turns(result) == [("user", "Ann: Hi"), ("user", "Bob: Ho"), ("assistant", "Lo")]
    assert len(result.notes) == 1
    assert turns(reading(tmp_path, *dialogue[::2])) == [("user", "Hi"), ("assistant", "Lo")]


CALL = '<tool_call>\n{"name": "look", "arguments": {"at": "sea"}}\n</tool_call>'


@pytest.mark.parametrize(
    "calling",
    [
        said(
            "assistant",
            None,
            tool_calls=[{"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"at": "sea"}'}}],
        ),
        said("assistant", "", tool_calls=[{"function": {"name": "look", "arguments": {"at": "sea"}}}]),
        said("assistant", None, function_call={"name": "look", "arguments": '{"at": "sea"}'}),
        {"from": "function_call", "value": '{"name": "look", "arguments": {"at": "sea"}}'},
    ],
)
@pytest.mark.parametrize("role", ["tool", "function", "observation"])
def test_tool_calls_are_learned_and_results_are_read(tmp_path: Path, calling: dict[str, Any], role: str) -> None:
    result = reading(
        tmp_path,
        said("user", "Is it calm?"),
        calling,
        said(role, "calm", tool_call_id="1"),
        said(role, "cold"),
        said("assistant", "It is."),
    )
    assert turns(result) == [
        ("user", "Is it calm?"),
        ("assistant", CALL),
        ("user", "<tool_response>\ncalm\n</tool_response>\n<tool_response>\ncold\n</tool_response>"),
        ("assistant", "It is."),
    ]
    assert result.pieces[0].text == f"{CALL}\n\nIt is."
    assert result.notes == ("tool calls and results written as text in <tool_call> and <tool_response>, messages: 3",)


@pytest.mark.parametrize("calls", [{"a": 1}, ["x"], [{"function": {"arguments": "{}"}}]])
def test_calls_of_another_shape_are_refused(tmp_path: Path, calls: Any) -> None:
    with pytest.raises(DataError, match=r"a\.jsonl:1"):
        reading(tmp_path, said("assistant", "Lo", tool_calls=calls))


def test_a_developer_is_the_system(tmp_path: Path) -> None:
    result = reading(tmp_path, said("developer", "Brief."), said("user", "Hi"), said("assistant", "Lo"))
    assert turns(result)[0] == ("system", "Brief.")
    assert result.notes == ("developer messages read as the system's: 1",)


def test_any_other_key_is_reported_once_and_empty_ones_never(tmp_path: Path) -> None:
    part = {"type": "text", "text": "Hi", "cache_control": {}}
    dialogue = (
        said("user", [part], id=7),
        said("assistant", "Lo", reasoning_content="hm", id=8, refusal=None, audio={}),
    )
    result = reading(tmp_path, *dialogue, tools=[])
    assert result.notes == (
        "keys of the records that are not used: tools",
        "keys of the messages that are not used: content.cache_control, id, reasoning_content",
    )
