"""Three sets that partition the pieces, by group or by blocks, and what is told about duplicates."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sordino.errors import DataError
from sordino.texts import overlap
from sordino.texts.blocks import joined, pages
from sordino.texts.overlap import repeated, word_runs
from sordino.texts.pieces import Piece, chat, digest, exchanges
from sordino.texts.reading import read_pieces
from sordino.texts.splits import Splits, split_pieces

VOCABULARY = [f"{a}{b}{c}" for a in "bdgklmnprst" for b in "aeiou" for c in ("n", "r", "sh", "")]


def prose(seed: int, words: int) -> str:
    """Text without a run of eight words in common with that of another seed, in paragraphs."""
    chance = random.Random(seed)
    said = [chance.choice(VOCABULARY) for _ in range(words)]
    return "\n\n".join(" ".join(said[i : i + 60]) + "." for i in range(0, words, 60))


def files(count: int, words: int = 300) -> list[Piece]:
    return [Piece(f"{i}.txt", "text", prose(i, words)) for i in range(count)]


def sets(splits: Splits) -> tuple[tuple[Piece, ...], tuple[Piece, ...], tuple[Piece, ...]]:
    return splits.train, splits.validation, splits.heldout


def names(pieces: tuple[Piece, ...]) -> set[str]:
    return {piece.name for piece in pieces}


def disjoint(parts: list[set[str]]) -> bool:
    return sum(map(len, parts)) == len(set().union(*parts))


def conversation(name: str, seed: int, exchanges_: int) -> Piece:
    said = [{"role": "system", "content": "Be brief."}]
    for i in range(exchanges_):
        said.append({"role": "user", "content": prose(1000 * seed + 2 * i, 30)})
        said.append({"role": "assistant", "content": prose(1000 * seed + 2 * i + 1, 30)})
    return chat(name, said)


QUESTIONS = ("Question {}:", "question  {}: ".rstrip())


# By group


@given(count=st.integers(5, 40), seed=st.integers(0, 2**32), longest=st.integers(40, 400))
def test_splits_partition_the_pieces(count: int, seed: int, longest: int) -> None:
    pieces = [Piece(f"{i}.txt", "text", prose(i, 40 + longest * (i % 7) // 7)) for i in range(count)]
    splits = split_pieces(pieces, heldout=None, seed=seed)
    assert Counter(p.name for part in sets(splits) for p in part) == Counter(p.name for p in pieces)
    assert all(sets(splits))
    assert splits == split_pieces(pieces, heldout=None, seed=seed)
    assert sum(p.size for p in splits.train) > 0.4 * sum(p.size for p in pieces)
    assert splits.duplicates == ()


def test_shares_are_as_told_and_the_sentence_says_how() -> None:
    splits = split_pieces(files(100), heldout=None, seed=0)
    train, validation, heldout = (len(part) for part in sets(splits))
    assert 11 <= heldout <= 13
    assert 8 <= validation <= 10
    assert train == 100 - heldout - validation
    assert splits.how.startswith(f"split by file: held-out is {heldout} of 100 files (12% of the text), validation is")


def test_order_and_names_do_not_matter_and_the_seed_does() -> None:
    pieces = files(30)
    renamed = [Piece(f"new{piece.name}", "text", piece.text) for piece in reversed(pieces)]
    first = split_pieces(pieces, heldout=None, seed=3)
    again = split_pieces(renamed, heldout=None, seed=3)
    assert [{digest(p) for p in part} for part in sets(first)] == [{digest(p) for p in part} for part in sets(again)]
    assert names(first.heldout) != names(split_pieces(pieces, heldout=None, seed=4).heldout)
    assert [p.name for p in first.train] == [p.name for p in pieces if p in first.train]


def test_no_large_piece_is_drawn_into_a_small_set() -> None:
    pieces = [*files(20, 100), Piece("large.txt", "text", prose(99, 1900))]
    for seed in range(20):
        splits = split_pieces(pieces, heldout=None, seed=seed)
        assert "large.txt" in names(splits.train)


def test_a_small_set_never_takes_more_than_a_third_of_the_pieces() -> None:
    pieces = [*files(4, 100), Piece("large.txt", "text", prose(9, 500))]
    for seed in range(5):
        splits = split_pieces(pieces, heldout=None, seed=seed)
        assert [len(part) for part in sets(splits)] == [3, 1, 1]


def test_records_of_one_prompt_stay_together() -> None:
    pieces = [
        Piece(f"a.jsonl:{i}", "completion", " " + prose(i, 30), QUESTIONS[i % 2].format(i % 20)) for i in range(80)
    ]
    for seed in range(5):
        splits = split_pieces(pieces, heldout=None, seed=seed)
        asked = [{p.prompt.lower() for p in part} for part in sets(splits)]
        assert disjoint(asked)
        assert splits.how.startswith("split by record")


def test_chats_that_open_alike_stay_together() -> None:
    def opened(i: int) -> Piece:
        return chat(
            f"a.jsonl:{i}",
            [{"role": "user", "content": f"Ask {i % 10}"}, {"role": "assistant", "content": prose(i, 30)}],
        )

    splits = split_pieces([opened(i) for i in range(40)], heldout=None, seed=0)
    asked = [{p.messages[0]["content"] for p in part} for part in sets(splits)]
    assert sum(map(len, asked)) == len(set().union(*asked)) == 10


def test_one_instruction_for_all_records_does_not_prevent_a_split() -> None:
    pieces = [Piece(f"a.jsonl:{i}", "completion", " " + prose(i // 2, 30), "Write a poem:") for i in range(60)]
    splits = split_pieces(pieces, heldout=None, seed=0)
    assert "60 records share one prompt" in splits.how
    said = [{p.text for p in part} for part in sets(splits)]
    assert disjoint(said)
    assert all(said)


def test_exact_copies_never_lie_on_both_sides_and_are_counted() -> None:
    pieces = files(20)
    copies = [Piece(f"copy of {piece.name}", "text", piece.text.upper() + "\n") for piece in pieces]
    splits = split_pieces([*pieces, *copies, Piece("third.txt", "text", pieces[0].text)], heldout=None, seed=1)
    said = [{p.text.casefold().strip() for p in part} for part in sets(splits)]
    assert disjoint(said)
    assert repeated([pieces[0], Piece("x", "text", pieces[0].text), pieces[1]]) == 1


def test_given_heldout_is_taken_whole_and_validation_comes_from_train() -> None:
    pieces, heldout = files(30), [Piece("other.txt", "text", prose(77, 500))]
    splits = split_pieces(pieces, heldout=heldout, seed=0)
    assert splits.heldout == tuple(heldout)
    assert len(splits.train) + len(splits.validation) == 30
    assert "held-out is as given (1 piece); split by file: validation is" in splits.how


# By blocks


def test_one_text_gives_contiguous_blocks_that_cover_it_once() -> None:
    text = Piece("novel.txt", "text", prose(5, 32_000))
    for seed in range(10):
        splits = split_pieces([text], heldout=None, seed=seed)
        parts = [piece for part in sets(splits) for piece in part]
        assert len(splits.heldout) == len(splits.validation) == 1
        assert 1 <= len(splits.train) <= 3
        assert sum(len(p.text) for p in parts) == len(text.text)
        inside = sorted((text.text.index(p.text), p.text) for p in parts)
        assert "".join(t for _, t in inside) == text.text
        assert 0.08 < splits.heldout[0].size / text.size < 0.16
    assert splits.how.startswith("split by blocks of pages of about 4,000 characters")
    assert splits.how.count("held-out is ") == splits.how.count("; validation is ") == 1
    assert "novel.txt, pages " in splits.how
    assert "--heldout" in splits.how


def test_few_texts_each_give_their_blocks_and_short_ones_get_shorter_pages() -> None:
    splits = split_pieces(files(3, 200), heldout=None, seed=0)
    for part in sets(splits):
        assert {piece.name.split(",")[0] for piece in part} == {"0.txt", "1.txt", "2.txt"}


def test_a_work_that_outweighs_the_others_is_cut() -> None:
    splits = split_pieces([*files(9, 100), Piece("novel.txt", "text", prose(50, 9000))], heldout=None, seed=0)
    assert any(name.startswith("novel.txt, page") for name in names(splits.heldout))


def test_a_single_chat_is_cut_in_front_of_user_turns() -> None:
    splits = split_pieces([conversation("log.jsonl", 1, 60)], heldout=None, seed=0)
    said: list[str] = []
    for part in sets(splits):
        for piece in part:
            assert [m["role"] for m in piece.messages[:2]] == ["system", "user"]
            said += [m["content"] for m in piece.messages[1:]]
    assert Counter(said) == Counter(m["content"] for m in conversation("log.jsonl", 1, 60).messages[1:])


def test_with_given_heldout_only_validation_is_cut_out() -> None:
    splits = split_pieces(files(1, 5000), heldout=files(2, 100)[1:], seed=0)
    assert names(splits.heldout) == {"1.txt"}
    assert len(splits.validation) == 1
    assert sum(p.size for p in (*splits.train, *splits.validation)) == files(1, 5000)[0].size


@given(text=st.text(alphabet="ab. \n", max_size=600), size=st.integers(1, 100))
def test_pages_cover_a_text_once_and_none_is_far_too_long(text: str, size: int) -> None:
    piece = Piece("a.txt", "text", text)
    parts = pages(piece, size)
    assert joined(piece, parts, 0, len(parts)).text == text
    assert all(len(part.text) <= 1.5 * size + 3 for part in parts)
    assert all(part.text for part in parts) or not text


def test_pages_end_with_paragraphs() -> None:
    parts = pages(Piece("a.txt", "text", prose(1, 3000)), 2000)
    assert len(parts) > 4
    assert all(part.text.endswith(".\n\n") for part in parts[:-1])


def test_exchanges_open_with_user_turns() -> None:
    roles = ["system", "assistant", "user", "user", "assistant", "assistant", "user"]
    opening, found = exchanges([{"role": role, "content": str(i)} for i, role in enumerate(roles)])
    assert [m["content"] for m in opening] == ["0"]
    assert [[m["content"] for m in exchange] for exchange in found] == [["1"], ["2", "3", "4", "5"], ["6"]]


# Refusals


def test_too_little_is_refused_with_what_would_do() -> None:
    with pytest.raises(DataError, match=r"at least 1,000 characters, .* got 60 in 1 piece"):
        split_pieces([Piece("a.txt", "text", "x" * 60)], heldout=None, seed=0)
    few = [Piece(f"a.jsonl:{i}", "completion", prose(i, 200), f"{i}") for i in range(3)]
    with pytest.raises(DataError, match="too few different pieces"):
        split_pieces(few, heldout=None, seed=0)
    same = [Piece(f"a.jsonl:{i}", "completion", prose(1, 200), "x") for i in range(50)]
    with pytest.raises(DataError, match="too few different pieces"):
        split_pieces(same, heldout=None, seed=0)
    with pytest.raises(DataError, match="held-out texts are empty"):
        split_pieces(files(10), heldout=[], seed=0)


# Duplicates


def test_heldout_that_is_in_train_is_told_loudly_with_both_names() -> None:
    pieces = files(10)
    stolen = Piece("stolen.txt", "text", "Quite new.\n" + pieces[4].text.upper().replace(".", "!"))
    splits = split_pieces(pieces, heldout=[stolen, *files(12)[11:]], seed=0)
    if pieces[4] in splits.train:
        assert splits.duplicates[0].startswith("WARNING: held-out: 1 of 2 pieces share runs of 8 words")
        assert splits.duplicates[1].endswith("of stolen.txt is also in 4.txt")
    else:
        assert "the validation texts" in splits.duplicates[0]


def test_a_short_record_is_reported_by_its_share() -> None:
    pieces = [Piece(f"a.jsonl:{i}", "text", prose(i, 30)) for i in range(40)]
    words = pieces[0].text.split()
    half = Piece("b.jsonl:1", "text", " ".join(words[:18]) + " quite another end of the very same record, so there")
    splits = split_pieces(pieces, heldout=[half], seed=0)
    assert pieces[0] in splits.train
    assert splits.duplicates[1].endswith("of b.jsonl:1 is also in a.jsonl:0")


def test_a_chapter_inside_a_longer_text_is_found() -> None:
    novel = Piece("novel.txt", "text", prose(1, 6000))
    given_ = Piece("given.txt", "text", prose(2, 3000) + novel.text[:1500])
    splits = split_pieces([novel, *files(9, 300)], heldout=[given_], seed=0)
    assert any("given.txt is also in novel.txt" in line for line in splits.duplicates)


def test_quotations_below_the_threshold_and_shared_system_prompts_are_not_reported() -> None:
    rules = prose(3, 60)
    chats = [
        chat(f"a.jsonl:{i}", [{"role": "system", "content": rules}, *conversation("", i, 1).messages[1:]])
        for i in range(40)
    ]
    assert split_pieces(chats, heldout=None, seed=0).duplicates == ()
    quoting = Piece("q.txt", "text", prose(80, 500) + " " + " ".join(files(10)[0].text.split()[:20]))
    assert split_pieces(files(10), heldout=[quoting], seed=0).duplicates == ()


def test_held_out_texts_are_not_trained_on_even_if_data_has_them() -> None:
    pieces = files(20, 200)
    splits = split_pieces(pieces, heldout=[replace(pieces[3], name="elsewhere.txt")], seed=0)
    assert pieces[3] not in (*splits.train, *splits.validation)
    assert len(splits.train) + len(splits.validation) == 19
    assert "1 piece of DATA held out as well: left out of the training" in splits.duplicates
    with pytest.raises(
        DataError, match=r"too little text.*got 0 in 0 pieces, after 20 pieces that --heldout has as well"
    ):
        split_pieces(pieces, heldout=pieces, seed=0)


def test_many_duplicates_are_summed_up() -> None:
    # A word more, or they would be the same texts, which are left out of the training.
    near = [replace(piece, text=piece.text + " Amen.") for piece in files(60, 100)[:40]]
    splits = split_pieces(files(60, 100), heldout=near, seed=0)
    assert any(line.startswith("held-out: and ") for line in splits.duplicates)
    assert len(splits.duplicates) < 20


def test_word_runs_are_hashes_of_eight_words_whatever_case_and_punctuation() -> None:
    assert len(word_runs("one two three four five six seven eight nine")) == 2
    assert word_runs("One, two; THREE four").tolist() == word_runs("one two three four").tolist()
    assert word_runs("one two three four").tolist() != word_runs("four three two one").tolist()
    assert len(word_runs("...")) == 0
    # Fixed values: the sample of a large corpus must not depend on the process.
    assert word_runs("one two").tolist() == [7562858463372132943]


def test_the_corpora_beside_the_project(shared_dir: Path) -> None:
    data = shared_dir / "data"
    for name, parts in (("carroll", ("train", "heldout")), ("bierce", ("train.jsonl", "heldout.jsonl"))):
        train, heldout = (read_pieces([data / name / part]).pieces for part in parts)
        given_ = split_pieces(train, heldout=heldout, seed=0)
        own = split_pieces(train, heldout=None, seed=0)
        assert given_.duplicates == own.duplicates == ()
        for splits, share in ((given_, 0.09), (own, 0.08)):
            assert share < sum(p.size for p in splits.validation) / sum(p.size for p in train) < 0.12


def test_copies_are_found_in_texts_of_which_a_sample_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "MOST_RUNS", 500)
    made = files(12)
    copy = Piece("copy.txt", "text", "Another beginning. " + made[3].text)
    lines = overlap.overlap_lines(made[:8], made[8:10], [*made[10:], copy])
    assert lines[0].startswith("held-out: 1 of 3 pieces")
    assert "copy.txt is also in 3.txt" in lines[1]
    assert len(lines) == 2
