"""Files of every accepted kind to pieces, and every way a file can be wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sordino.errors import DataError
from sordino.texts import files
from sordino.texts import reading as reading_module
from sordino.texts.pieces import Piece, chat, data_hash
from sordino.texts.reading import Reading, read_pieces
from sordino.texts.splits import split_pieces
from sordino.training import checkpoint, group, job
from sordino.training.sweep import execute


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def jsonl(path: Path, *records: Any) -> Path:
    return write(path, "".join(json.dumps(record) + "\n" for record in records))


def texts(reading: Reading) -> list[tuple[str, str]]:
    return [(piece.name, piece.text) for piece in reading.pieces]


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read_pieces([path], **options)
    assert "\n" not in caught.value.message
    return caught.value.message


# Which files


def test_folders_are_walked_sorted_without_hidden_and_foreign_files(tmp_path: Path) -> None:
    for name in ("b.md", "a.txt", "sub/c.txt", ".hidden.txt", ".git/d.txt", "sub/.e/f.txt", "picture.png", "a/z.txt"):
        write(tmp_path / name, f"text of {name}")
    reading = read_pieces([tmp_path])
    assert [piece.name for piece in reading.pieces] == ["a/z.txt", "a.txt", "b.md", "sub/c.txt"]
    assert reading.notes == ("files of other kinds skipped (.png): 1",)


def test_the_folder_of_a_training_run_is_no_text(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "Once.")
    for folder in ("here.run", "renamed"):
        # The names that train gives: texts/ may not import them.
        for name in (job.SETTINGS, "metrics.jsonl", checkpoint.FILE):
            write(tmp_path / folder / name, "{}")
    for name in (group.GROUP, checkpoint.FILE):
        write(tmp_path / group.FOLDER / name, "{}")
    write(tmp_path / "tried" / execute.SETTINGS, "{}")
    write(tmp_path / "tried" / "1-smollm2" / "001" / "metrics.jsonl", "{}")
    write(tmp_path / "marathon.run" / "b.txt", "Twice.")
    assert texts(read_pieces([tmp_path])) == [("a.txt", "Once."), ("marathon.run/b.txt", "Twice.")]


@pytest.mark.skipif(os.name != "posix", reason="links as POSIX has them")
def test_a_link_that_leads_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    assert "loop.txt" in refusal(tmp_path)


def test_several_paths_keep_their_order_and_a_file_given_twice_is_read_once(tmp_path: Path) -> None:
    first, second = write(tmp_path / "z" / "x.txt", "one"), write(tmp_path / "y" / "x.txt", "two")
    reading = read_pieces([first, second, tmp_path / "z"])
    assert texts(reading) == [("x.txt", "one"), ("x.txt (2)", "two")]
    assert reading.notes == ("given more than once, read once: 1 of 3 files",)


def test_a_named_file_is_read_whatever_its_extension(tmp_path: Path) -> None:
    assert texts(read_pieces([write(tmp_path / "voice.story", "Once.")])) == [("voice.story", "Once.")]


def test_missing_empty_and_odd_paths_are_refused(tmp_path: Path) -> None:
    assert "no such file or folder" in refusal(tmp_path / "nowhere.txt")
    (tmp_path / "empty").mkdir()
    assert ".jsonl" in refusal(tmp_path / "empty")
    assert "there is no text in it" in refusal(write(tmp_path / "blank.txt", " \n\n"))
    assert "there is no text in it" in refusal(write(tmp_path / "blank.jsonl", "\n"))
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        assert "neither a file nor a folder" in refusal(tmp_path / "pipe")


def test_a_file_beyond_the_limit_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_BYTES", 10)
    assert "expected at most 10 bytes, got 11" in refusal(write(tmp_path / "a.txt", "x" * 11))


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A text is large from 200 bytes on."""
    monkeypatch.setattr(files, "PART", 100)
    monkeypatch.setattr(reading_module, "WHOLE", 200)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n", "\n", " ", ""])
def test_the_parts_of_a_large_text_are_the_text(tmp_path: Path, end: str) -> None:
    text = "".join(f"Tag {n}: Nebel über dem Meer, ein Schiff – 灯台.{end}" for n in range(40))
    path = write(tmp_path / "a.txt", b"\xef\xbb\xbf" + text.encode())
    reading = read_pieces([path])
    assert "".join(piece.text for piece in reading.pieces) == text.replace("\r\n", "\n")
    assert [piece.name for piece in reading.pieces] == [f"a.txt, part {n + 1}" for n in range(len(reading.pieces))]
    if end.endswith("\n"):
        assert len(reading.pieces) > 5
        assert all(piece.text.endswith(".\n") or piece.text.endswith(".\n\n") for piece in reading.pieces)
    assert reading.notes == ("large texts read in parts of about a million characters, files: 1",)
    assert "validation" in split_pieces(reading.pieces, heldout=None, seed=0).how


@pytest.mark.usefixtures("small_parts")
def test_documents_in_a_large_text_are_split_as_in_a_small_one(tmp_path: Path) -> None:
    entries = [f"Entry {n}. " + "Fog. " * 8 for n in range(30)]
    path = write(tmp_path / "a.txt", "\n<|endoftext|>\n".join(entries))
    pieces = read_pieces([path]).pieces
    assert all("endoftext" not in piece.text for piece in pieces)
    assert " ".join(" ".join(piece.text for piece in pieces).split()) == " ".join(" ".join(entries).split())


@pytest.mark.usefixtures("small_parts")
def test_a_large_chat_and_a_large_web_page_are_read_whole(tmp_path: Path) -> None:
    turns = "".join(f"<|im_start|>user\n{n}?<|im_end|>\n<|im_start|>assistant\nFog {n}.<|im_end|>\n" for n in range(9))
    assert [piece.kind for piece in read_pieces([write(tmp_path / "a.txt", turns)]).pieces] == ["chat"]
    pytest.importorskip("inscriptis")
    page = "<!doctype html><html><body>" + "<p>Fog over the sea.</p>" * 20 + "</body></html>"
    (piece,) = read_pieces([write(tmp_path / "a.html", page)]).pieces
    assert "<p>" not in piece.text


@pytest.mark.usefixtures("small_parts")
def test_an_error_in_a_large_text_names_its_place(tmp_path: Path) -> None:
    text = ("Fog over the sea. " * 30).encode()
    assert f"byte {len(text) + 3:,} (0xe9)" in refusal(write(tmp_path / "a.txt", text + b"caf\xe9 and more"))


# Encodings and characters


def test_byte_order_mark_and_line_ends_are_normalised(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    assert texts(read_pieces([path])) == [("a.txt", "one\ntwo\nthree\n")]


def test_other_encodings_are_refused_with_place_guess_and_conversion(tmp_path: Path) -> None:
    message = refusal(write(tmp_path / "a.txt", "The café was “shut” on the day that we went there.".encode("cp1252")))
    assert "byte 7 (0xe9)" in message
    assert "WINDOWS-1252" in message
    assert "iconv -f WINDOWS-1252 -t UTF-8" in message


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.json"])
def test_wide_encodings_are_recognised_with_and_without_a_mark(tmp_path: Path, encoding: str, name: str) -> None:
    message = refusal(write(tmp_path / name, "text\nThe sea is grey today, he said.\n".encode(encoding)))
    assert f"probably {encoding[:6].upper()}" in message
    assert "iconv" in message


def test_the_byte_named_is_the_place_in_the_file(tmp_path: Path) -> None:
    damaged = b"\xef\xbb\xbf" + b'{"text": "fine"}\n' + b'{"text": "\xff"}\n'
    message = refusal(write(tmp_path / "a.jsonl", damaged))
    assert f"byte {damaged.index(0xFF)} (0xff)" in message


def test_mostly_valid_utf8_is_called_damaged_and_not_another_encoding(tmp_path: Path) -> None:
    assert "damaged" in refusal(write(tmp_path / "a.txt", "é’—é".encode() + b"\xe2\x28"))


def test_nul_bytes_and_nul_escapes_are_refused(tmp_path: Path) -> None:
    assert "byte 3" in refusal(write(tmp_path / "a.txt", b"abc\0def"))
    assert "a.jsonl:2" in refusal(write(tmp_path / "a.jsonl", '{"text": "a"}\n{"text": "a\\u0000b"}\n'))


@pytest.mark.parametrize(("head", "kind"), [(b"%PDF-1.7", "PDF"), (b"PK\x03\x04", "zip"), (b"{\\rtf1", "RTF")])
def test_documents_of_other_programs_are_named(tmp_path: Path, head: bytes, kind: str) -> None:
    assert kind in refusal(write(tmp_path / "a.txt", head + b" rest"))


def test_mojibake_is_repaired_and_counted_and_nothing_else_is_touched(tmp_path: Path) -> None:
    write(tmp_path / "bad.txt", "Itâ€™s the cafÃ© “right” beside it.\nA fine line: naïve ﬁn &amp; ｆｕｌｌ ‘quotes’.")
    write(tmp_path / "good.txt", "It’s the café; São Paulo, Ångström, ﬁn &amp; ‘so on’… 猫 🐈")
    reading = read_pieces([tmp_path])
    assert reading.pieces[0].text.startswith("It’s the café")
    assert reading.pieces[0].text.endswith("naïve ﬁn &amp; ｆｕｌｌ ‘quotes’.")
    assert reading.pieces[1].text == "It’s the café; São Paulo, Ångström, ﬁn &amp; ‘so on’… 猫 🐈"
    assert reading.notes == ("damaged characters (such as Ã© for é) were repaired, pieces: 1",)


def test_half_surrogates_from_json_become_characters_a_tokeniser_accepts(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "cat \\ud83d\\udc08 half \\ud83d end"}\n')
    assert texts(read_pieces([path])) == [("a.jsonl:1", "cat 🐈 half \ufffd end")]


def test_project_gutenberg_header_credit_and_licence_are_removed(tmp_path: Path) -> None:
    book = (
        "The Project Gutenberg eBook of Alice\n\nLicence.\n\n*** START OF THE PROJECT GUTENBERG EBOOK ALICE ***\n\n"
        "Produced by A Volunteer\nand another\n\nCHAPTER I\n\nAlice was beginning.\n\n"
        "End of Project Gutenberg's Alice\n*** END OF THE PROJECT GUTENBERG EBOOK ALICE ***\n\nFULL LICENCE"
    )
    reading = read_pieces([write(tmp_path / "alice.txt", book)])
    assert texts(reading) == [("alice.txt", "CHAPTER I\n\nAlice was beginning.\n")]
    assert reading.notes == ("Project Gutenberg's header and licence were removed, texts: 1",)


# Records


def test_the_three_record_shapes(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": [{"type": "text", "text": "Lo"}]}]
    path = jsonl(
        tmp_path / "a.jsonl", {"text": "one", "id": 7}, {"prompt": "Q:", "completion": " A"}, {"messages": turns}
    )
    reading = read_pieces([path])
    assert reading.pieces == (
        Piece("a.jsonl:1", "text", "one"),
        Piece("a.jsonl:2", "completion", " A", "Q:"),
        chat("a.jsonl:3", [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Lo"}]),
    )
    assert reading.pieces[2].text == "Lo"
    assert reading.notes == ("keys of the records that are not used: id",)


def test_json_arrays_are_records_too(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", json.dumps([{"text": "one"}, {"text": "two"}]))
    assert texts(read_pieces([path])) == [("a.json:1", "one"), ("a.json:2", "two")]


def test_empty_and_unlabelled_records_are_dropped_and_counted(tmp_path: Path) -> None:
    asked = {"messages": [{"role": "user", "content": "Hi"}]}
    records = ({"text": "one"}, {"text": " \n"}, {"prompt": "Q:", "completion": ""}, asked, {"text": ""})
    reading = read_pieces([jsonl(tmp_path / "a.jsonl", *records)])
    assert texts(reading) == [("a.jsonl:1", "one")]
    assert reading.notes == (
        "empty pieces left out: 2",
        "pieces left out, as they hold nothing to learn: 2",
    )


def test_a_space_behind_a_prompt_belongs_to_the_completion(tmp_path: Path) -> None:
    records = (
        {"prompt": "Q: ", "completion": "A"},
        {"prompt": "Q: ", "completion": " A"},
        {"prompt": "Q\n", "completion": "A"},
    )
    reading = read_pieces([jsonl(tmp_path / "a.jsonl", *records)])
    assert [(piece.prompt, piece.text) for piece in reading.pieces] == [("Q:", " A"), ("Q:", " A"), ("Q\n", "A")]
    assert len(reading.notes) == 1
    assert reading.notes[0].endswith(": 2")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"body": "x", "title": "y"}', "the keys body, title"),
        ('{"body": "x"}', "`text`, or `prompt` and `completion`, or `messages`"),
        ('{"prompt": "x"}', "the keys prompt"),
        ('{"text": 3}', "`text` is not text"),
        ('{"prompt": ["x"], "completion": "y"}', "`prompt` is not text"),
        ('{"messages": "x"}', "`messages` is not a list"),
        ('{"messages": [{"role": "narrator", "content": "x"}]}', "role 'narrator'"),
        ('{"messages": [{"role": "user", "content": [{"type": "image"}]}]}', "content"),
        ('{"messages": ["x"]}', "a message of unknown shape"),
        ('["x"]', "not an object"),
        ('{"text": "x"', "not JSON"),
        ("[" * 100_000, "cannot be read"),
        ('{"text": ' + "1" * 5000 + "}", "cannot be read"),
        ("{}", "the keys none"),
    ],
)
def test_bad_records_are_refused_with_file_and_line(tmp_path: Path, line: str, told: str) -> None:
    message = refusal(write(tmp_path / "a.jsonl", '{"text": "fine"}\n\n' + line + "\n"))
    assert told in message
    assert "a.jsonl:3" in message


def test_csv_with_quotes_newlines_semicolons_and_long_fields(tmp_path: Path) -> None:
    long = "word " * 40_000
    write(tmp_path / "a.csv", f'\ufeffPrompt, Completion,id\r\n"Q, ""x""","line one\r\nline two",1\r\nR,"{long}",2\r\n')
    write(tmp_path / "b.csv", "text;n\nZwei, drei;1\n")
    write(tmp_path / "c.tsv", "text\tn\nfour, five\t1\n")
    reading = read_pieces([tmp_path])
    assert [(piece.prompt, piece.text) for piece in reading.pieces] == [
        ('Q, "x"', "line one\nline two"),
        ("R", long),
        ("", "Zwei, drei"),
        ("", "four, five"),
    ]
    assert [piece.name for piece in reading.pieces] == ["a.csv:3", "a.csv:4", "b.csv:2", "c.tsv:2"]


def test_bad_tables_are_refused_with_their_line(tmp_path: Path) -> None:
    assert "a.csv:3" in refusal(write(tmp_path / "a.csv", "text,id\nfine,1\nfine,2,3\n"))
    assert "the keys body" in refusal(write(tmp_path / "b.csv", "body\nfine\n"))
    assert "not CSV" in refusal(write(tmp_path / "c.csv", 'text\n"never closed\n'))
    assert "use JSONL" in refusal(write(tmp_path / "d.csv", "messages\n[]\n"))


# SillyTavern


HEADER = {"user_name": "You", "character_name": "Aqua", "chat_metadata": {}}


def says(name: str, text: str, *, is_user: bool = False, **more: Any) -> dict[str, Any]:
    return {"name": name, "is_user": is_user, "mes": text, **more}


def turns(piece: Piece) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in piece.messages]


def test_a_chat_log_learns_the_character_and_merges_neighbouring_turns(tmp_path: Path) -> None:
    log = (HEADER, says("Aqua", "Hello."), says("You", "Hi", is_user=True), says("Aqua", "So?"), says("Aqua", "Well?"))
    hidden = says("Aqua", "secret", is_system=True)
    reading = read_pieces([jsonl(tmp_path / "aqua.jsonl", *log, hidden, says("You", " ", is_user=True))])
    (piece,) = reading.pieces
    assert piece.name == "aqua.jsonl"
    assert turns(piece) == [("assistant", "Hello."), ("user", "Hi"), ("assistant", "So?\n\nWell?")]
    assert reading.notes == ("hidden chat messages (is_system) left out: 1",)


def test_old_headers_no_header_and_several_chats_in_one_file(tmp_path: Path) -> None:
    old = {"user_name": "You", "character_name": "Aqua", "create_date": 1}
    jsonl(tmp_path / "a.jsonl", old, says("Aqua", "One."), HEADER, says("Aqua", "Two."), {"chat_metadata": {}})
    jsonl(tmp_path / "b.jsonl", says("Aqua", "Three."))
    reading = read_pieces([tmp_path])
    assert texts(reading) == [("a.jsonl", "One."), ("a.jsonl:3", "Two."), ("b.jsonl", "Three.")]


@pytest.mark.parametrize("content", [{"text": "Once."}, {"messages": [{"role": "assistant", "content": "Once."}]}])
def test_columns_that_are_called_as_in_a_chats_header_are_no_header(tmp_path: Path, content: dict[str, Any]) -> None:
    jsonl(tmp_path / "a.jsonl", *[{"character_name": "Bob", "user_name": "You", **content}] * 2)
    assert [piece.text.strip() for piece in read_pieces([tmp_path]).pieces] == ["Once.", "Once."]


def test_speaker_chooses_whose_turns_are_learned(tmp_path: Path) -> None:
    log = (HEADER, says("Aqua", "Hello."), says("Megumin", "Boom."), says("You", "Hi", is_user=True))
    path = jsonl(tmp_path / "a.jsonl", *log)
    assert turns(read_pieces([path]).pieces[0]) == [("assistant", "Aqua: Hello.\n\nMegumin: Boom."), ("user", "Hi")]
    chosen = read_pieces([path], speaker="megumin").pieces[0]
    assert turns(chosen) == [("user", "Aqua: Hello."), ("assistant", "Boom."), ("user", "You: Hi")]
    assert turns(read_pieces([path], speaker="You").pieces[0])[-1] == ("assistant", "Hi")
    assert "expected one of Aqua, Megumin, You, got Darkness" in refusal(path, speaker="Darkness")
    assert "no SillyTavern chat" in refusal(write(tmp_path / "b.txt", "text"), speaker="Aqua")


def test_a_line_that_is_no_message_is_refused(tmp_path: Path) -> None:
    assert "a.jsonl:3" in refusal(jsonl(tmp_path / "a.jsonl", HEADER, says("Aqua", "x"), {"text": "not a message"}))
    assert "a.jsonl:2" in refusal(jsonl(tmp_path / "a.jsonl", HEADER, {"name": "Aqua", "is_user": "no", "mes": "x"}))


# KoboldAI


@pytest.mark.parametrize(
    "actions",
    [
        [" he said.", " She left."],
        {"2": " She left.", "1": " he said."},
        {"0": " he said.", "10": " left.", "9": " She"},
        {
            "action_count": 1,
            "actions": {"0": {"Selected Text": " he said.", "Options": []}, "1": {"Selected Text": " She left."}},
        },
    ],
)
def test_stories_are_their_opening_and_what_followed(tmp_path: Path, actions: object) -> None:
    story = {"gamestarted": True, "prompt": "Yes,", "memory": "He is old.", "authorsnote": "", "actions": actions}
    reading = read_pieces([write(tmp_path / "s.json", json.dumps(story))])
    assert reading.pieces == (Piece("s.json", "text", "Yes, he said. She left."),)
    assert reading.notes == ("KoboldAI stories whose memory and author's note are not learned: 1",)


def test_a_story_with_turn_marks_is_a_chat(tmp_path: Path) -> None:
    story = {
        "gamestarted": True,
        "prompt": "Hi",
        "actions": ["\n{{[OUTPUT]}}\n", "Hello.", "{{[INPUT]}}Bye{{[OUTPUT]}}Farewell."],
    }
    (piece,) = read_pieces([write(tmp_path / "s.json", json.dumps(story))]).pieces
    assert turns(piece) == [("user", "Hi"), ("assistant", "Hello."), ("user", "Bye"), ("assistant", "Farewell.")]


def test_other_json_and_odd_stories_are_refused(tmp_path: Path) -> None:
    assert "the keys a, b" in refusal(write(tmp_path / "a.json", '{"a": 1, "b": 2}'))
    assert "`actions`" in refusal(write(tmp_path / "b.json", '{"gamestarted": true, "prompt": "x", "actions": 3}'))
    assert "`actions`" in refusal(write(tmp_path / "c.json", '{"prompt": "x", "actions": [{"a": 1}]}'))
    assert "not JSON" in refusal(write(tmp_path / "d.json", "{"))


# The hash


def test_the_data_hash_ignores_names_and_order_and_nothing_else() -> None:
    a, b = Piece("a.txt", "text", "one"), Piece("b.txt", "completion", "two", "ask")
    same = data_hash([Piece("z.md", "completion", "two", "ask"), Piece("y.md", "text", "one")])
    assert data_hash([a, b]) == same
    assert len(same) == 64
    others = [[a], [a, a, b], [a, Piece("b", "completion", "ask", "two")], [a, Piece("b", "text", "two")]]
    others.append([a, Piece("b", "completion", "two", "other")])
    chats = [[chat("c", [{"role": role, "content": "x"}])] for role in ("user", "assistant")]
    assert len({same, *map(data_hash, others), *map(data_hash, chats)}) == 8


def test_reading_streams_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line is parsed before the file has been read: JSONL of a gigabyte does not take two."""
    path = jsonl(tmp_path / "a.jsonl", *({"text": f"record {i}"} for i in range(1000)))
    lines = files.read_lines(path)
    assert next(lines)[0] == 1
    path.write_bytes(path.read_bytes()[: 1 << 14])
    assert sum(1 for _ in lines) < 999


def test_the_corpora_beside_the_project(shared_dir: Path) -> None:
    counts = {}
    for name in ("carroll", "austen", "bierce", "reviews"):
        reading = read_pieces([shared_dir / "data" / name])
        counts[name] = len(reading.pieces)
        assert reading.notes == ()
    assert counts == {"carroll": 2, "austen": 2, "bierce": 744 + 132, "reviews": 4800}


KEYS = (
    "text", "prompt", "completion", "messages", "mes", "actions", "role", "content", "conversations", "from", "value",
    "instruction", "input", "output", "history", "system", "response", "question", "answer", "weight", "train", "name",
    "tool_calls", "function", "arguments", "internal", "channel", "author", "savedsettings",
)  # fmt: skip
MARKS = (
    b"a<|endoftext|>b",
    b"<s>[INST]a[/INST]b</s>",
    b"<html><p>a&amp;</b>",
    b"sep=;\ntext;n\n",
    b"<|im_start|>user\n<|im_end|>",
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.one_of(
        st.binary(max_size=200),
        st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")),
        st.sampled_from(
            [b'{"text": "a"}\n', b"text,id\na,1\n", b'{"mes": "x", "name": "y"}\n', b'"\n', b"\\ud800", b"[]", *MARKS]
        ),
        st.recursive(
            st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5)),
            lambda inner: st.one_of(
                st.lists(inner, max_size=3),
                st.dictionaries(
                    st.sampled_from(KEYS),
                    inner,
                    max_size=4,
                ),
            ),
            max_leaves=8,
        ).map(lambda value: json.dumps(value).encode()),
    ),
    name=st.sampled_from(["a.txt", "a.jsonl", "a.csv", "a.tsv", "a.json", "a.html"]),
)
def test_any_bytes_give_clean_pieces_or_our_error(tmp_path: Path, data: bytes, name: str) -> None:
    pieces: tuple[Piece, ...] = ()
    refused = ""
    try:
        pieces = read_pieces([write(tmp_path / name, data)]).pieces
    except DataError as error:
        refused = error.message
    assert bool(pieces) != bool(refused)
    assert "\n" not in refused
    for piece in pieces:
        assert piece.text.strip()
        assert "\0" not in piece.words
        piece.words.encode()
