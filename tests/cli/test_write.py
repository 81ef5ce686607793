"""generate and compare, as a user types them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from sordino import formats
from sordino.cli import write
from sordino.engine.generate import TextRequest, complete
from sordino.engine.sampling import Sampling
from tests.cli.commands import done, refused, run
from tests.cli.tiny_setting import tiny_llama
from tests.tiny_models import tiny_gguf

SHORT = ("--max-tokens", 6)


def expected(text: str, prompt: Path | None = None, seed: int = 0, **settings: object) -> str:
    sampling = Sampling(**{"max_tokens": 6, **settings})
    request = TextRequest(text, formats.read(prompt) if prompt else None, seed)
    return complete(tiny_llama(), [request], sampling)[0]


# generate


def test_the_continuation_is_printed_and_nothing_else(library: Path) -> None:
    assert run("generate", "The sea", *SHORT).stdout == expected("The sea") + "\n"
    with_prompt = run("generate", "The sea", "--soft-prompt", "fog", "--seed", 3, *SHORT).stdout
    assert with_prompt == expected("The sea", library / "fog.zip", 3) + "\n"
    assert (
        run("generate", "--soft-prompt", library / "fog.zip", *SHORT).stdout == expected("", library / "fog.zip") + "\n"
    )


def test_every_sampling_flag_arrives(library: Path) -> None:
    settings = {
        "temperature": 1.4,
        "top_k": 40,
        "top_p": 0.8,
        "min_p": 0.001,
        "repetition_penalty": 1.2,
        "stop": ("e", "a"),
    }
    flags = ["--temperature", 1.4, "--top-k", 40, "--top-p", 0.8, "--min-p", 0.001, "--repetition-penalty", 1.2]
    flags += ["--stop", "e", "--stop", "a", "--max-tokens", 40]
    said = json.loads(run("generate", "The sea", "--json", *flags).stdout)
    assert said["continuation"] == expected("The sea", max_tokens=40, **settings)
    assert said["finish"] in ("stop", "length")


def test_text_from_standard_input_loses_its_last_line_end_only(library: Path) -> None:
    piped = run("generate", "-", "--json", *SHORT, input="The sea \n\n")
    said = json.loads(piped.stdout)
    assert said == {
        "text": "The sea \n",
        "soft_prompt": None,
        "continuation": expected("The sea \n"),
        "seed": 0,
        "finish": "length",
        "model": "tiny-llama",
    }
    broken = run("generate", "-", input=b"\xff\xfe")
    assert broken.exit_code == 2
    assert "not UTF-8" in broken.stderr


def test_bad_input_is_refused(library: Path) -> None:
    assert "nothing to continue" in refused("generate")
    assert "--top-p" in refused("generate", "x", "--top-p", 2)
    assert "context" in refused("generate", "x" * 300)
    assert "64 wide" in refused("generate", "x", "--soft-prompt", "wide")
    assert "64 wide" in refused("generate", "x", "--soft-prompt", "wide", "--force")
    assert "did you mean fog" in refused("generate", "x", "--soft-prompt", "fgo")
    assert "both TEXT and --batch" in refused("generate", "x", "--batch", "none.txt")


def test_text_that_is_no_unicode_is_refused(library: Path) -> None:
    assert "not Unicode" in refused("generate", "bad\udcff")


def test_a_prompt_of_unknown_origin_is_used_with_a_warning(library: Path) -> None:
    assert "warning: fog" in run("generate", "x", "--soft-prompt", "fog", *SHORT).stderr


# --batch


def lines_of(*args: object, **more: object) -> list[dict[str, object]]:
    result = done(*args, *SHORT, **more)
    # Not splitlines(): a text may hold U+2028.
    return [json.loads(line) for line in result.stdout.removesuffix("\n").split("\n")]


def test_a_batch_of_json_lines(library: Path, tmp_path: Path) -> None:
    batch = tmp_path / "batch.jsonl"
    records = [
        {"text": "The sea"},
        {"text": "fog\u2028and oil", "soft_prompt": "oil", "seed": 9},
        {"text": "lamp", "soft_prompt": None},
        {"text": "lamp", "soft_prompt": ""},
    ]
    batch.write_text("\n\n".join(json.dumps(record, ensure_ascii=False) for record in records), encoding="utf-8")
    found = lines_of("generate", "--batch", batch, "--soft-prompt", "fog", "--seed", 4, "--batch-size", 3)
    fog, oil = library / "fog.zip", library / "oil.zip"
    assert [line["continuation"] for line in found] == [
        expected("The sea", fog, 4),
        expected("fog\u2028and oil", oil, 9),
        expected("lamp", None, 4),
        expected("lamp", None, 4),
    ]
    assert [(line["soft_prompt"], line["seed"]) for line in found] == [("fog", 4), ("oil", 9), (None, 4), (None, 4)]


def test_a_batch_of_plain_lines(library: Path, tmp_path: Path) -> None:
    batch = tmp_path / "batch.txt"
    batch.write_bytes(b"\xef\xbb\xbfThe sea\r\n\r\n  lamp \n")
    found = lines_of("generate", "--batch", batch)
    assert [line["text"] for line in found] == ["The sea", "  lamp "]
    assert [line["continuation"] for line in found] == [expected("The sea"), expected("  lamp ")]
    assert lines_of("generate", "--batch", "-", input="The sea\n") == found[:1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "x", "sed": 1}', ":3: unknown key; expected text, soft_prompt, seed, got sed"),
        ('{"txt": "x"}', ":3: unknown key"),
        ("{}", ":3: `text` is of another type"),
        ('{"text": 5}', ":3: `text` is of another type"),
        ('{"text": "x", "seed": true}', ":3: `seed` is out of range"),
        ('{"text": "x", "seed": -1}', ":3: `seed` is out of range"),
        ('{"text": "x", "seed": null}', ":3: `seed` is out of range"),
        ('{"text": "x", "soft_prompt": 1}', ":3: `soft_prompt` is of another type"),
        ('{"text": "x"', ":3: this line is not JSON"),
        ("[1]", ":3: this line is not a JSON object"),
        ('{"text": ""}', ":3: there is nothing to continue"),
        ('{"text": "' + "x" * 300 + '"}', ":3: the text does not fit"),
        ('{"text": "x", "soft_prompt": "nobody"}', "nobody"),
    ],
)
def test_one_bad_line_stops_a_batch_before_it_begins(library: Path, tmp_path: Path, line: str, message: str) -> None:
    batch = tmp_path / "batch.jsonl"
    batch.write_text('{"text": "good"}\n\n' + line + "\n", encoding="utf-8")
    result = run("generate", "--batch", batch, *SHORT)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""


def test_batches_that_cannot_be_read(library: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n \n", encoding="utf-8")
    (tmp_path / "latin").write_bytes("é".encode("latin-1"))
    assert "no text in it" in refused("generate", "--batch", tmp_path / "empty")
    assert "not UTF-8" in refused("generate", "--batch", tmp_path / "latin")
    assert "cannot be read" in refused("generate", "--batch", tmp_path / "missing")


# --runner


def test_llama_cpp_and_pytorch_continue_a_gguf_file_alike(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("SORDINO_CACHE", str(library / "cache"))
    model = tiny_gguf(library / "tiny.gguf")
    fog, batch = library / "fog.zip", library / "lines.txt"
    batch.write_text("the sea\nof the keeper\nthe lamp\n")
    for command in (
        ("generate", "the sea", "-p", fog),
        ("generate", "-p", fog),
        ("generate", "the sea", "-p", fog, "--hold", 2),
        ("generate", "--batch", batch, "--batch-size", 2, "-p", fog),
        ("compare", "the sea", "-p", fog, "--json"),
    ):
        asked = (*command, "--model", model, "-t", 0, *SHORT)
        taken, other = run(*asked), run(*asked, "--runner", "torch")
        assert taken.exit_code == 0, taken.output
        assert "llama.cpp runs" in taken.stderr
        assert "PyTorch runs" in other.stderr
        assert taken.stdout == other.stdout


def test_what_llama_cpp_cannot_do_is_for_pytorch_or_refused(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("SORDINO_CACHE", str(library / "cache"))
    asked = ("generate", "the sea", "-m", tiny_gguf(library / "tiny.gguf"), "-p", library / "fog.zip", *SHORT)
    for flags, reason in (
        (("--strength", 1.5), "does not support strength that is no whole number"),
        (("--dtype", "float32"), "are for PyTorch"),
    ):
        line = next(line for line in run(*asked, *flags).stderr.splitlines() if "PyTorch runs" in line)
        assert reason in line
        assert reason in refused(*asked, *flags, "--runner", "gguf")


# compare


def test_compare_gives_the_same_text_and_seed_without_and_with_each(library: Path) -> None:
    command = ("compare", "The sea", "-p", "fog", "-p", library / "oil.zip", "--seed", 2, *SHORT)
    said = json.loads(run(*command, "--json").stdout)
    continuations = [expected("The sea", prompt, 2) for prompt in (None, library / "fog.zip", library / "oil.zip")]
    assert [(r["soft_prompt"], r["continuation"]) for r in said["results"]] == list(
        zip([None, "fog", "oil"], continuations, strict=True)
    )
    shown = run(*command).stdout
    assert shown.index("no soft prompt") < shown.index("fog") < shown.index("oil")


def test_compare_refuses_before_it_writes(library: Path) -> None:
    assert "given twice" in refused("compare", "x", "-p", "fog", "-p", "fog")
    assert "nothing to continue" in refused("compare", "", "-p", "fog")
    assert "64 wide" in refused("compare", "x", "-p", "fog", "-p", "wide")


@pytest.mark.parametrize(("width", "side_by_side"), [(160, True), (80, True), (70, False)])
def test_columns_where_there_is_room(monkeypatch: pytest.MonkeyPatch, width: int, side_by_side: bool) -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=True, color_system=None, markup=False, emoji=False)
    monkeypatch.setattr(write, "out", console)
    write.show_side_by_side("Once", ["no soft prompt", "fog"], [" upon a [bold]time", " the\x1b fog"])
    lines = stream.getvalue().splitlines()
    assert any("no soft prompt" in line and "fog" in line for line in lines) is side_by_side
    assert "upon a [bold]time" in stream.getvalue()
    assert "\x1b fog" not in stream.getvalue()


def test_the_help_names_the_real_defaults() -> None:
    text = " ".join(run("generate", "--help").output.split())
    for name in ("max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty"):
        flag = "--" + name.replace("_", "-")
        default = text[text.index(flag) :].partition("[default: ")[2].partition("]")[0].partition(";")[0]
        assert float(default) == getattr(Sampling(), name), flag


def test_a_batch_size_without_a_batch_is_refused(library: Path) -> None:
    assert "--batch-size" in refused("generate", "The sea", "--batch-size", 3, *SHORT)
