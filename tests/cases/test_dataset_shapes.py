"""What people had: chat and instruction data as other programs write it, which was refused; and files that are broken or
hostile, which stay refused with one line.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sordino.cli import main
from sordino.errors import DataError
from sordino.texts.reading import Reading, read_pieces

HI_LO = [("user", "Hi"), ("assistant", "Lo")]


def reading(path: Path, content: Any, **options: Any) -> Reading:
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text, encoding="utf-8", newline="")
    return read_pieces([path], **options)


def turns(result: Reading) -> list[tuple[str, str]]:
    (piece,) = result.pieces
    return [(turn["role"], turn["content"]) for turn in piece.messages]


def told(result: Reading) -> str:
    (note,) = result.notes
    return note


def pairs(result: Reading) -> list[tuple[str, str]]:
    return [(piece.prompt, piece.text) for piece in result.pieces]


@pytest.mark.parametrize(
    ("record", "understood"),
    [
        ({"instruction": "Hi", "input": "", "output": "Lo"}, "`instruction`, `input` and `output` read as chats"),
        ({"instruction": "Hi", "output": "Lo", "history": []}, "`instruction` and `output` read as chats"),
        ({"instruction": "Hi", "context": "", "response": "Lo"}, "`instruction`, `context` and `response`"),
        (
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Lo"}]},
            "`conversations` (ShareGPT)",
        ),
        (
            {"conversation": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Lo"}]},
            "`conversation`",
        ),
        (
            {"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Lo"}]},
            "messages as `prompt` and `completion` (TRL)",
        ),
        ({"prompt": [{"role": "user", "content": "Hi"}], "completion": "Lo"}, "(TRL)"),
        ({"prompt": "Hi", "response": "Lo"}, "`prompt` and `response` read as chats"),
        ({"question": "Hi", "answer": "Lo"}, "`question` and `answer`"),
        ({"query": "Hi", "response": "Lo"}, "`query` and `response`"),
        ({"input": "Hi", "output": "Lo"}, "`input` and `output`"),
    ],
)
@pytest.mark.parametrize("form", ["a.json", "a.jsonl", "one.json"])
def test_records_of_other_programs_are_chats(tmp_path: Path, record: Any, understood: str, form: str) -> None:
    result = reading(tmp_path / form, [record] if form == "a.json" else record)
    assert turns(result) == HI_LO
    assert understood in told(result)
    assert told(result).endswith(": 1")


def test_what_an_instruction_is_about_its_system_and_its_history(tmp_path: Path) -> None:
    record = {"instruction": "Sum up.", "input": "A book.", "output": "Lo", "system": "Brief.", "history": [["Q", "A"]]}
    assert turns(reading(tmp_path / "a.jsonl", record)) == [
        ("system", "Brief."),
        ("user", "Q"),
        ("assistant", "A"),
        ("user", "Sum up.\n\nA book."),
        ("assistant", "Lo"),
    ]
    sharegpt = {"system": "Brief.", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Lo"}]}
    assert turns(reading(tmp_path / "a.jsonl", sharegpt)) == [("system", "Brief."), *HI_LO]


HI, LO, NO = ({"role": "user", "content": "Hi"}, *({"role": "assistant", "content": text} for text in ("Lo", "No")))


@pytest.mark.parametrize(
    ("record", "understood"),
    [
        ({"prompt": "Hi", "chosen": "Lo", "rejected": "No"}, "`prompt` and `chosen` read as chats"),
        ({"question": "Hi", "chosen": "Lo", "rejected": "No"}, "`question` and `chosen` read as chats"),
        ({"prompt": "Hi", "chosen": [LO], "rejected": [NO]}, "messages as `prompt` and `chosen` (TRL) read as chats"),
        ({"prompt": [HI], "chosen": [LO], "rejected": [NO]}, "messages as `prompt` and `chosen` (TRL) read as chats"),
        (
            {"prompt": "Hi", "chosen": [HI, LO], "rejected": [HI, NO]},
            "messages as `prompt` and `chosen` (TRL) read as chats",
        ),
        ({"chosen": [HI, LO], "rejected": [HI, NO]}, "messages as `chosen` (TRL) read as chats"),
    ],
)
def test_of_preferences_the_chosen_answer_is_learned(tmp_path: Path, record: Any, understood: str) -> None:
    result = reading(tmp_path / "a.jsonl", record)
    assert turns(result) == HI_LO
    assert understood in result.notes[0]
    assert result.notes[1] == "keys of the records that are not used: rejected"


@pytest.mark.parametrize("key", ["data", "train", "conversations of a month"])
def test_records_in_an_object(tmp_path: Path, key: str) -> None:
    records = [{"prompt": "Q", "completion": "one, two"}, {"prompt": "R", "completion": "three"}]
    result = reading(tmp_path / "a.json", {"version": "1.0", key: records, "license": {}})
    assert pairs(result) == TABLE
    assert result.notes == (
        f"JSON objects whose `{key}` is read as the records: 1",
        "keys of the records that are not used: license, version",
    )
    with pytest.raises(DataError, match="unknown shape"):
        reading(tmp_path / "a.json", {"train": records, "test": records})


def test_of_a_conversational_prompt_nothing_is_learned(tmp_path: Path) -> None:
    greeting = [{"role": "assistant", "content": "Welcome."}, {"role": "user", "content": "Hi"}]
    result = reading(tmp_path / "a.jsonl", {"prompt": greeting, "completion": [{"role": "assistant", "content": "Lo"}]})
    assert result.pieces[0].text == "Lo"


def test_a_text_beside_a_question_stays_a_text(tmp_path: Path) -> None:
    assert reading(tmp_path / "a.jsonl", {"text": "Once.", "question": "Q", "answer": "A"}).pieces[0].text == "Once."


def test_a_history_of_text_generation_webui(tmp_path: Path) -> None:
    history = {
        "internal": [["<|BEGIN-VISIBLE-CHAT|>", "Welcome."], ["Hi", "Lo"], ["So?", ""]],
        "visible": [["", "Welcome."], ["Hi", "Lo"], ["So?", ""]],
    }
    result = reading(tmp_path / "log.json", history)
    assert turns(result) == [("assistant", "Welcome."), *HI_LO, ("user", "So?")]
    assert told(result) == "histories of text-generation-webui read as chats: 1"
    with pytest.raises(DataError, match="`internal` is not a list of pairs"):
        reading(tmp_path / "log.json", {"internal": [["Hi"]]})


DISCORD = (
    'AuthorID,Author,Date,Content,Attachments,Reactions\n1,ann,2024,"Hi, all",,\n2,bob,2024,Lo,,\n2,bob,2024,,x.png,\n'
)


def test_a_discord_channel_is_a_text_or_with_a_speaker_a_chat(tmp_path: Path) -> None:
    result = reading(tmp_path / "a.csv", DISCORD)
    assert [piece.text for piece in result.pieces] == ["ann: Hi, all\nbob: Lo\n"]
    assert told(result) == "Discord channels read as texts, a message a line (--speaker NAME makes chats of them): 1"
    result = reading(tmp_path / "a.csv", DISCORD, speaker="Bob")
    assert turns(result) == [("user", "Hi, all"), ("assistant", "Lo")]
    assert told(result) == "Discord channels read as chats in which Bob answers: 1"
    with pytest.raises(DataError, match="expected one of ann, bob"):
        reading(tmp_path / "a.csv", DISCORD, speaker="eve")
    messages = [{"id": "1", "content": "Hi", "author": {"name": "ann"}}, {"content": "Lo", "author": {"name": "bob"}}]
    result = reading(tmp_path / "a.json", {"guild": {}, "channel": {}, "messages": messages}, speaker="bob")
    assert turns(result) == HI_LO


def test_jsonl_by_another_name(tmp_path: Path) -> None:
    lines = '{"text": "one"}\n\n{"text": "two"}\n'
    result = reading(tmp_path / "a.json", lines)
    assert [(piece.name, piece.text) for piece in result.pieces] == [("a.json:1", "one"), ("a.json:3", "two")]
    assert told(result) == "JSONL that is named .json, read a record a line, files: 1"
    array = reading(tmp_path / "b.jsonl", '[{"text": "one"},\n{"text": "two"}]')
    assert [piece.text for piece in array.pieces] == ["one", "two"]
    with pytest.raises(DataError, match=r"c\.json:2: this is not JSON"):
        reading(tmp_path / "c.json", '{"text": "one"}\n{"text": \n')
    chat_log = '{"chat_metadata": {}}\n{"name": "Aqua", "is_user": false, "mes": "Lo"}\n'
    assert turns(reading(tmp_path / "d.json", chat_log)) == [("assistant", "Lo")]


TABLE = [("Q", "one, two"), ("R", "three")]


@pytest.mark.parametrize(
    ("text", "note"),
    [
        (
            "\ufeffsep=;\r\nprompt;completion\r\nQ;one, two\r\nR;three\r\n",
            "tables whose first line names the separator (sep=): 1",
        ),
        ('"sep=;"\nprompt;completion\nQ;one, two\nR;three\n', "tables whose first line names the separator (sep=): 1"),
        (
            "sep=\t\nprompt\tcompletion\nQ\tone, two\nR\tthree\n",
            "tables whose first line names the separator (sep=): 1",
        ),
        ('prompt,completion\rQ,"one, two"\rR,three\r', "tables and JSON with the line ends of old Macs (CR): 1"),
        (
            'prompt,completion\nQ,"one, two",\nR,three,,\n',
            "table rows with empty fields after the last column, which were dropped: 2",
        ),
        ("prompt\tcompletion\nQ\tone, two\nR\tthree\n", ""),
        (
            '\n\nprompt,completion,\nQ,"one, two",\nR,three,\n',
            "table rows with empty fields after the last column, which were dropped: 2",
        ),
    ],
)
def test_tables_as_spreadsheets_write_them(tmp_path: Path, text: str, note: str) -> None:
    result = reading(tmp_path / "a.csv", text)
    assert pairs(result) == TABLE
    assert result.notes == ((note,) if note else ())


def test_rows_are_counted_from_the_top_of_the_file(tmp_path: Path) -> None:
    for text, line in (("sep=;\ntext;n\na;1\nb\n", 4), ("\n\ntext,n\na,1\nb,1,2\n", 5), ("text,n\ra,1\rb\r", 3)):
        with pytest.raises(DataError, match=rf"a\.csv:{line}: a row does not fit"):
            reading(tmp_path / "a.csv", text)


def test_jsonl_with_the_line_ends_of_old_macs(tmp_path: Path) -> None:
    assert len(reading(tmp_path / "a.jsonl", '{"text": "one"}\r{"text": "two"}\r').pieces) == 2
    assert len(reading(tmp_path / "a.json", '{"text": "one"}\r{"text": "two"}\r').pieces) == 2


DEEP = [600, 5_000, 100_000]
CALL = '{"messages": [{"role": "assistant", "content": "x", "tool_calls": [{"function": {"name": "f", "arguments": %s}}]}]}'


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("two-names.csv", "text,text\na,b\n"),
        ("short.csv", "prompt,completion\nQ\n"),
        ("cut.json", '[{"text": "x"}, {"te'),
        ("list.json", '{"prompt": 1, "response": "x"}'),
        ("nothing.json", "{}"),
        ("history.jsonl", '{"instruction": "x", "output": "y", "history": [["a"]]}'),
        ("answers.jsonl", '{"question": "x", "answer": {"text": ["y"]}}'),
        ("surrogate.jsonl", '{"\\ud800": 1}'),
        ("escape.jsonl", '{"\\u001b[31m\\n": 1}'),
        ("role.jsonl", '{"messages": [{"role": "\\ud800\\u001b", "content": "x"}]}'),
        *((f"keys-{n}.jsonl", '{"a":' * n + "1" + "}" * n) for n in DEEP),
        *((f"role-{n}.jsonl", '{"messages": [{"role": ' + "[" * n + "]" * n + ', "content": "x"}]}') for n in DEEP),
        *((f"story-{n}.json", '{"prompt": "x", "actions": ' + "[" * n + "]" * n + "}") for n in DEEP),
        *((f"call-{n}.jsonl", CALL % ("[" * n + "]" * n)) for n in DEEP[1:]),
        *((f"written-{n}.jsonl", CALL % ('"' + "[" * n + "]" * n + '"')) for n in DEEP[1:]),
        *((f"page-{n}.html", "<html>" + "<div>" * n + "x") for n in DEEP[1:]),
    ],
)
def test_broken_and_hostile_files_are_refused_in_one_line(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(DataError) as caught:
        reading(tmp_path / name, text)
    assert name in caught.value.message
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("arguments", ["[" * 100_000, '"' + "[" * 100_000 + '"'])
def test_the_command_line_refuses_them_in_one_line_too(tmp_path: Path, arguments: str) -> None:
    (tmp_path / "deep.jsonl").write_text(CALL % arguments, encoding="utf-8")
    given = ["train", str(tmp_path / "deep.jsonl"), "--model", "smollm2", "--dry-run", "--out", str(tmp_path / "o.zip")]
    result = CliRunner().invoke(main, given)
    assert result.exit_code == 2, result.output
    assert [line for line in result.output.splitlines() if "deep.jsonl:1: this" in line]
    assert "Traceback" not in result.output
