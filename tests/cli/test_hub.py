"""push, search and install from the Hub, as a user types them, with a stand-in for the Hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sordino.formats.model_card import card
from sordino.library.library import Library
from sordino.prompts.soft_prompt import BaseRef, Metadata, SoftPrompt
from tests.cli.commands import done, ok, refused, run
from tests.hub_repositories import adapter_of, keeper, npy
from tests.hub_server import TOKEN, StandIn, stand_in, use
from tests.prompt_files import matrix

# The Hub's client itself sends large files in a way that its HTTP library calls old.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
PUSH = ("push", "keeper", "ines/keeper")


@pytest.fixture
def server(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    with stand_in() as made:
        use(made, tmp_path / "home", monkeypatch)
        yield made


def test_push_shows_what_it_will_disclose_and_then_sends(server: StandIn, folder: Path) -> None:
    report = folder / "keeper.run" / "report.html"
    report.parent.mkdir()
    report.write_text("<h1>Results</h1>")
    result = done(*PUSH, "--yes", "--language", "en")
    assert f"Pushed: {server.address}/ines/keeper at commit " in result.stdout
    assert "sordino install hf:ines/keeper" in result.stdout
    shown = result.stderr
    for part in ("(public: everybody can read it), as ines", "keeper.zip", "report.html", "author: Ines", "samples: 1"):
        assert part in shown
    assert "report.html: more than the file" in shown
    assert "report.html" in server.repositories["ines/keeper"].commits[server.repositories["ines/keeper"].refs["main"]]
    assert TOKEN not in result.output
    assert "Already there" in ok(*PUSH, "--yes", "--language", "en")


def test_push_without_the_report(server: StandIn, folder: Path) -> None:
    (folder / "keeper.run").mkdir()
    (folder / "keeper.run" / "report.html").write_text("<h1>Results</h1>")
    assert "contradict" in refused(*PUSH, "--yes", "--no-report", "--report", folder / "keeper.run" / "report.html")
    assert "report.html" not in ok(*PUSH, "--yes", "--no-report")


def test_push_asks_first(server: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no terminal to confirm this at; add --yes" in refused(*PUSH)
    assert server.log == []
    monkeypatch.setattr("sordino.cli.console.is_interactive", lambda: True)
    result = run(*PUSH, "--private", input="n\n")
    assert result.exit_code == 1
    assert "(private), as ines" in result.output
    assert server.repositories == {}
    assert run(*PUSH, "--private", input="y\n").exit_code == 0
    assert server.repositories["ines/keeper"].private


def test_what_was_pushed_is_found_and_installed_elsewhere(server: StandIn, tmp_path: Path) -> None:
    ok(*PUSH, "--yes", "--licence", "MIT")
    commit = server.repositories["ines/keeper"].refs["main"]
    (row,) = json.loads(run("search", "keeper", "--json").stdout)
    assert (row["reference"], row["base_model"], row["licence"]) == ("hf:ines/keeper", "org/small", "mit")
    assert "hf:ines/keeper" in ok("search", "Fog")
    (tmp_path / "elsewhere").mkdir()
    result = done("install", "hf:ines/keeper", "--library", tmp_path / "elsewhere")
    assert "Installed keeper: 4 tokens x 8" in result.stdout
    assert f"ines/keeper at commit {commit}: keeper.zip" in result.stderr
    assert "sha256 " in result.stderr
    shown = ok("show", "keeper", "--library", tmp_path / "elsewhere")
    assert f"hf:ines/keeper at {commit[:12]}, keeper.zip, installed " in shown
    assert "MIT" in shown
    assert "Already in the library" in ok("install", f"hf:ines/keeper@{commit}", "--library", tmp_path / "elsewhere")


def test_search_with_a_model_says_how_well_each_fits(server: StandIn, tmp_path: Path) -> None:
    small = BaseRef("HuggingFaceTB/SmolLM2-135M-Instruct", "llama", 576, 30, 49152)
    fits = SoftPrompt(matrix(1, 3, 576), Metadata(name="Fits", base=small))
    server.add("max/fits", {"README.md": card(fits)}, downloads=5)
    server.add("max/not", {"README.md": card(keeper())})
    server.add("max/says-nothing", {"README.md": b"---\ntags: [soft-prompt]\n---\n"})
    rows = {row["reference"]: row["fit"] for row in json.loads(run("search", "--model", "smollm2", "--json").stdout)}
    assert rows == {"hf:max/fits": "same family", "hf:max/says-nothing": "unknown"}
    text = ok("search", "fits", "--model", "smollm2")
    assert "same family" in text
    assert "No soft prompt on the Hugging Face Hub has these words and fits smollm2." in ok(
        "search", "no such", "--model", "smollm2"
    )


def test_a_model_that_is_not_there_is_refused_before_the_hub_is_asked(server: StandIn) -> None:
    assert "no such base model" in refused("search", "--model", "./nowhere")
    assert server.log == []


def test_a_base_model_that_only_the_card_names_is_offered(server: StandIn) -> None:
    server.add("max/bare", {"prompt.npy": npy(keeper()), "README.md": b"---\nbase_model: org/small\n---\n"})
    text = ok("install", "hf:max/bare", "--name", "bare")
    assert "The repository's card names the base model org/small, which --model org/small fetches." in text
    assert "a model 8 wide (the file does not name it)" in text


def test_a_card_that_lies_is_told_beside_the_file(server: StandIn, tmp_path: Path) -> None:
    files = adapter_of(keeper(), tmp_path / "1") | {"README.md": card(keeper(rating="general", licence="\x1b[31mMIT"))}
    server.add("max/x", files)
    result = done("install", "hf:max/x")
    assert "warning: the card in the repository is wrong about its licence" in result.stderr
    assert "\x1b" not in result.output


@pytest.mark.parametrize(
    ("status", "headers"), [(401, {"X-Error-Message": TOKEN}), (403, {"X-Error-Message": TOKEN}), (404, {}), (500, {})]
)
def test_every_refusal_is_one_line_without_the_token(server: StandIn, status: int, headers: dict[str, str]) -> None:
    server.fail = (status, headers)
    for command in (("install", "hf:ines/keeper"), ("search", "x"), (*PUSH, "--yes")):
        line = refused(*command)
        assert len(line.strip().splitlines()) == 1
        assert TOKEN not in line


def test_nothing_half_gets_into_the_library(server: StandIn, folder: Path) -> None:
    np.save("big.npy", matrix())
    server.add("max/x", {"big.npy": Path("big.npy").read_bytes()}, lies={"big.npy": {"size": 9 << 30}})
    assert "too large for a soft prompt" in refused("install", "hf:max/x")
    assert [entry.name for entry in Library([folder]).scan()] == ["keeper"]
