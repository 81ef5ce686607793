"""What a person had: a story of KoboldAI Lite with `{{[OUTPUT_END]}}` after each answer, which was learned in 40 of 40."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sordino.texts.reading import read_pieces


def turns(path: Path, story: dict[str, Any]) -> list[tuple[str, str]]:
    path.write_text(json.dumps({"gamestarted": True, **story}), encoding="utf-8")
    (piece,) = read_pieces([path]).pieces
    return [(turn["role"], turn["content"]) for turn in piece.messages] or [("text", piece.text)]


def test_marks_of_beginnings_and_ends_are_taken_out(tmp_path: Path) -> None:
    story = {
        "prompt": "\n{{[SYSTEM]}}\nBe the keeper.\n{{[SYSTEM_END]}}\n",
        "actions": [
            "\n{{[INPUT]}}\nIs it lit?\n{{[INPUT_END]}}\n\n{{[OUTPUT]}}\n",
            "It is.\n{{[OUTPUT_END]}}\n",
            "\n{{[INPUT]}}\nGood.\n{{[INPUT_END]}}\n\n{{[OUTPUT]}}\nYes.",
        ],
    }
    assert turns(tmp_path / "s.json", story) == [
        ("system", "Be the keeper."),
        ("user", "Is it lit?"),
        ("assistant", "It is."),
        ("user", "Good."),
        ("assistant", "Yes."),
    ]
    assert read_pieces([tmp_path / "s.json"]).notes == ("KoboldAI stories with marks of turns read as chats: 1",)


def test_a_story_in_which_nobody_answers_is_a_text_without_marks(tmp_path: Path) -> None:
    story = {"prompt": "{{[INPUT]}}Once.{{[INPUT_END]}}", "actions": [" Twice."]}
    assert turns(tmp_path / "s.json", story) == [("text", "Once. Twice.")]


INSTRUCT = {"opmode": "4", "instruct_starttag": "\\n### Instruction:\\n", "instruct_endtag": "\\n### Response:\\n"}


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (INSTRUCT, "\n### Instruction:\nHi\n### Response:\nLo"),
        (
            {
                "opmode": 4,
                "instruct_starttag": "[INST]",
                "instruct_starttag_end": "",
                "instruct_endtag": "[/INST]",
                "instruct_endtag_end": "</s>",
            },
            "[INST]Hi[/INST]Lo</s>",
        ),
    ],
)
def test_the_tags_that_a_storys_settings_name_mark_turns(tmp_path: Path, settings: dict[str, Any], text: str) -> None:
    story = {"prompt": "", "actions": [text], "savedsettings": settings}
    assert turns(tmp_path / "s.json", story) == [("user", "Hi"), ("assistant", "Lo")]


@pytest.mark.parametrize(
    "settings",
    [
        {**INSTRUCT, "opmode": 1},
        {**INSTRUCT, "instruct_endtag": ""},
        {"opmode": 4},
        {"opmode": 4, "instruct_endtag": 3},
        "x",
    ],
)
def test_other_settings_leave_a_text(tmp_path: Path, settings: Any) -> None:
    story = {"prompt": "### Instruction:\nHi", "actions": [], "savedsettings": settings}
    assert turns(tmp_path / "s.json", story) == [("text", "### Instruction:\nHi")]
