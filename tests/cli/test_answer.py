"""answers, as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sordino import formats
from sordino.evaluation.conditions import instruction, no_prompt, with_examples
from sordino.prompts.mixture import Mixture
from sordino.texts.pieces import Piece
from tests.cli.commands import ok, refused, run
from tests.cli.tiny_setting import tiny_llama, tiny_setting
from tests.parity.plain import plain_embeds, plain_nll


def write_rows(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in rows), encoding="utf-8")
    return path


def reviews(first: int, count: int) -> list[tuple[str, str]]:
    return [
        (f"Review: the sea {n} was{' grey' * (n % 3)}\nVerdict:", (" good", " bad")[n % 2])
        for n in range(first, first + count)
    ]


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny_setting(tmp_path, monkeypatch)
    write_rows(tmp_path / "held.jsonl", reviews(0, 12))
    write_rows(tmp_path / "other.jsonl", reviews(50, 9))
    write_rows(tmp_path / "train.jsonl", reviews(100, 20))
    return tmp_path


def test_the_table_has_every_line_and_says_what_it_means(task: Path) -> None:
    text = ok(
        "answers", "fog", "oil", "--heldout", task / "held.jsonl", "--examples", task / "train.jsonl",
        "--instruction", "Good or bad?", "--shots", 2,
    )  # fmt: skip
    for part in (
        "soft prompt fog",
        "soft prompt oil",
        "mean of 2 soft prompts",
        "best member",
        "ensemble vote",
        "ensemble mean of probabilities",
        "ensemble mean of logits",
        "no prompt",
        '"Good or bad?"',
        '"Good or bad? + 2 examples"',
        "majority label",
        "held.jsonl (12 rows)",
        "the likeliest of bad, good",
        "95 % intervals, drawn by row",
        "which flatters it",
        "right label",
    ):
        assert part in text, part


def test_one_prompt_on_several_sets_is_one_table(task: Path) -> None:
    text = ok("answers", "fog", "--heldout", task / "held.jsonl", "--heldout", task / "other.jsonl")
    assert "held.jsonl (12 rows), other.jsonl (9 rows)" in text
    assert [line.split()[0] for line in text.splitlines() if "soft prompt fog" in line] == ["held.jsonl", "other.jsonl"]
    assert "Each of these is" in text
    assert "better give --examples" in text


def test_json_has_the_numbers_of_plain_concatenation(task: Path) -> None:
    command = ("answers", "fog", "--heldout", task / "held.jsonl", "--instruction", "Good or bad?", "--json")
    said = json.loads(run(*command).stdout)
    assert said["labels"] == ["bad", "good"]
    (held,) = said["sets"]
    lines = {line["kind"]: line for line in held["lines"]}
    assert list(lines) == ["soft prompt", "no prompt", "instruction", "majority"]
    base = tiny_llama()
    for kind, condition in (("no prompt", no_prompt(base)), ("instruction", instruction(base, "Good or bad?"))):
        logp = np.array(
            [
                [
                    -plain(plain_embeds(base, condition), base.encode(prompt), base.encode(label))
                    for label in (" bad", " good")
                ]
                for prompt, _ in reviews(0, 12)
            ]
        )
        right = np.array([(" bad", " good").index(answer) for _, answer in reviews(0, 12)])
        assert lines[kind]["accuracy"]["value"] == pytest.approx(float((logp.argmax(axis=1) == right).mean()))
        own = logp[np.arange(12), right]
        assert lines[kind]["nll_per_label"] == pytest.approx(-own.mean(), abs=1e-6)
        tokens = sum(len(base.encode(answer)) for _, answer in reviews(0, 12))
        assert lines[kind]["nll_per_token"] == pytest.approx(-own.sum() / tokens, abs=1e-6)
        assert lines[kind]["nll"]["value"] == pytest.approx(
            float((np.log(np.exp(logp).sum(axis=1)) - own).mean()), abs=1e-6
        )
    less = lines["no prompt"]["differences"]["fog"]
    assert less["value"] == pytest.approx(
        lines["soft prompt"]["accuracy"]["value"] - lines["no prompt"]["accuracy"]["value"]
    )
    assert json.loads(run(*command).stdout) == said


def plain(embeds: torch.Tensor, text: list[int], label: list[int]) -> float:
    base = tiny_llama()
    labelled = [False] * len(text) + [True] * len(label)
    return float(plain_nll(base.network, embeds, [*text, *label], labelled).sum())


def test_examples_stand_behind_the_instruction_with_a_blank_line_after_each() -> None:
    base = tiny_llama()
    shots = [Piece("a", "completion", " good", prompt="Review: x\nVerdict:")]
    condition = with_examples(base, "Good or bad?", shots)
    parts = ("Good or bad?\n\n", "Review: x\nVerdict:", " good", "\n\n")
    ids = [token for part in parts for token in base.encode(part)]
    assert condition.ids == tuple(ids)


def test_long_prompts_lose_their_beginning_and_that_is_said(task: Path) -> None:
    text = ok("answers", "fog", "--heldout", task / "held.jsonl", "--row-tokens", 8)
    assert "prompts of more than 8 tokens that lost their beginning: 12" in text


def test_a_label_that_no_row_has_is_ranked_and_told(task: Path) -> None:
    text = ok("answers", "fog", "--heldout", task / "held.jsonl", "--labels", "good,bad,mixed")
    assert "the likeliest of good, bad, mixed" in text
    assert "held.jsonl: no row has the label mixed" in text


def test_a_mixtures_file_is_answered_with_and_not_written_with(task: Path) -> None:
    parts = [formats.read(task / "library" / f"{name}.zip") for name in ("fog", "oil")]
    formats.write_mixture(Mixture(tuple(parts), np.array([0.7, 0.3])), task / "library" / "both.mix.zip")
    command = ("answers", "both", "fog", "--heldout", task / "held.jsonl")
    text = ok(*command)
    assert "mixture both" in text
    assert "soft prompt fog" in text
    assert "With both, on held.jsonl:" in text
    assert "mixtures are not measured" in refused(*command, "--free")


def test_free_answers_are_written_and_compared(task: Path) -> None:
    rows = [(f"Q: what is {n}?\nA:", f" the {n}") for n in range(6)]
    path = write_rows(task / "free.jsonl", rows)
    command = ("answers", "fog", "--heldout", path, "--free", "--max-tokens", 4, "--examples", path, "--shots", 1)
    text = ok(*command)
    assert "exact match" in text
    assert "articles do not count" in text
    said = json.loads(run(*command, "--json").stdout)
    (held,) = said["sets"]
    assert [line["kind"] for line in held["lines"]] == ["soft prompt", "no prompt", "instruction", "examples"]
    assert [len(answers) for answers in held["written"]] == [6] * 4


def test_bad_input_is_refused(task: Path) -> None:
    held = ("--heldout", task / "held.jsonl")
    one = write_rows(task / "one.jsonl", [("Review: x\nVerdict:", " good")] * 3)
    assert "only one label" in refused("answers", "fog", "--heldout", one)
    assert "held.jsonl:1" in refused("answers", "fog", *held, "--labels", "bad,awful")
    assert "given twice" in refused("answers", "fog", *held, "--labels", "bad,bad")
    opens = write_rows(task / "opens.jsonl", [("x:", " good"), ("y:", " goods")])
    assert "begins another" in refused("answers", "fog", "--heldout", opens)
    (task / "text.jsonl").write_text('{"text": "no question here"}\n')
    assert "text.jsonl:1" in refused("answers", "fog", "--heldout", task / "text.jsonl")
    many = write_rows(task / "many.jsonl", [("x:", f" {n}x") for n in range(101)])
    assert "--free" in refused("answers", "fog", "--heldout", many)
    assert "--examples" in refused("answers", "fog", *held, "--shots", 2)
    assert "too few rows" in refused("answers", "fog", *held, "--examples", one, "--shots", 4)
    assert "--shots" in refused("answers", "fog", *held, "--examples", task / "train.jsonl", "--shots", 0)
    long = write_rows(task / "long.jsonl", [("x" * 255, " good"), ("y", " bad")])
    assert "lower --row-tokens" in refused("answers", "fog", "--heldout", long)
    assert "--labels" in refused("answers", "fog", *held, "--free", "--labels", "a,b")
    assert "--free" in refused("answers", "fog", *held, "--max-tokens", 3)
    assert "given twice" in refused("answers", "fog", *held, *held)
    assert "nowhere" in refused("answers", "fog", "--heldout", "nowhere")
