"""What soft prompts in a library are called, and what a name or a path stands for."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sordino.errors import BadInput, NotInLibrary, SoftPromptFileError
from sordino.library.library import Library
from sordino.library.names import checked_name, readable_name, safe_name, unique_names
from sordino.prompts.soft_prompt import SoftPrompt
from tests.prompt_files import drop, matrix, names


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("v", "v"),
        ("v (1)", "v-1"),
        ("v(1)", "v-1"),
        ("v (1) (2)", "v-1-2"),
        ("v - Copy", "v-copy"),
        ("v - Copy (2)", "v-copy-2"),
        ("v.mix (1)", "v-1"),
        ("v.mix(2)", "v-2"),
        ("v.mix - Copy (2)", "v-copy-2"),
        ("v.mix of (1)", "v.mix of-1"),
        ("Dark Tales (2021 edition)", "Dark Tales (2021 edition)"),
        ("evil\x1b[2Jname\n", "evil_[2Jname_"),
        ("not utf-8 \udcff", "not utf-8 _"),
        ("Cafe\u0301", "Café"),
        (" ", "_"),
    ],
)
def test_readable_names(label: str, name: str) -> None:
    assert readable_name(label) == name


def test_names_are_unique_and_a_file_keeps_its_own() -> None:
    one, two = Path("/one"), Path("/two/softprompts")
    files = [(one, "v"), (one, "v (1)"), (one, "v(1)"), (one, "v-1"), (two, "v"), (two, "w"), (two, "v (1)")]
    assert unique_names(files) == ["v", "v-1-2", "v-1-3", "v-1", "v@softprompts", "w", "v-1@softprompts"]


def test_the_first_folder_wins_and_the_other_is_qualified(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "softprompts"
    other.mkdir()
    drop(folder / "v.zip", seed=1)
    drop(other / "v.zip", seed=2)
    drop(other / "w.zip", seed=3)
    lib = Library([folder, other])
    assert names(lib) == ["v", "v@softprompts", "w"]
    assert lib.resolve("v") == folder / "v.zip"
    assert lib.resolve("v@softprompts") == other / "v.zip"


def test_near_misses_are_suggested_and_file_names_are_as_good(folder: Path) -> None:
    drop(folder / "lighthouse.zip")
    drop(folder / "gothic (1).zip")
    lib = Library([folder])
    with pytest.raises(NotInLibrary, match="did you mean lighthouse"):
        lib.entry("Lighthose")
    with pytest.raises(NotInLibrary, match="sordino list"):
        lib.entry("zzzz")
    for spelling in ("gothic-1", "gothic (1).zip", "gothic (1)"):
        assert lib.entry(spelling).path == folder / "gothic (1).zip"


def test_a_path_is_a_path_and_a_name_is_a_name(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drop(folder / "keeper.zip", seed=1)
    here = tmp_path / "here"
    (here / "keeper").mkdir(parents=True)
    (here / "keeper" / "log.txt").write_text("training texts, in a folder called as the prompt is")
    drop(here / "other.zip")
    monkeypatch.chdir(here)
    lib = Library([folder])
    assert lib.resolve("keeper") == folder / "keeper.zip"
    assert lib.resolve("keeper.zip") == folder / "keeper.zip"
    assert lib.resolve("other.zip") == Path("other.zip")
    assert lib.resolve("./other.zip") == Path("./other.zip")
    with pytest.raises(SoftPromptFileError, match="no such file"):
        lib.resolve("./nothing.zip")
    for nonsense in ("", "a\0b", "x" * 5000, "~nobody-of-that-name"):
        with pytest.raises(NotInLibrary):
            lib.resolve(nonsense)


def test_what_is_there_and_no_soft_prompt_is_not_called_missing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("texts").mkdir()
    lib = Library([folder])
    # Whoever reads it says that it is none.
    assert (lib.resolve("texts"), lib.resolve("..")) == (Path("texts"), Path(".."))
    Path("loop").symlink_to("loop")
    with pytest.raises(SoftPromptFileError, match="loop: neither a file nor a folder"):
        lib.resolve("loop")


def test_an_empty_name_is_not_the_working_directory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    Path("adapter_config.json").write_text("{}")
    with pytest.raises(NotInLibrary, match="''"):
        Library([folder]).resolve("")


@pytest.mark.parametrize("name", ["v", "Dark Tales 2", "Ночь", "v.2", "console", "v.zip"])
def test_good_names(name: str) -> None:
    assert checked_name(name) == name.removesuffix(".zip")


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        ".zip",
        "a/b",
        "a\\b",
        "..",
        ".hidden",
        "-x",
        "a\0b",
        "a\nb",
        "a:b",
        "what?",
        "CON",
        "nul.x",
        "com7",
        "LPT¹",
        "v.",
        "v ",
        "v.mix",
        "v.MIX.zip",
        "x" * 201,
        "\udcff",
    ],
)
def test_bad_names_write_nothing(folder: Path, name: str) -> None:
    with pytest.raises(BadInput, match="cannot have this name"):
        Library([folder]).add(SoftPrompt(matrix()), name=name)
    assert list(folder.parent.rglob("*")) == [folder]


@given(st.text(max_size=40))
def test_any_label_gives_a_safe_name(label: str) -> None:
    assert checked_name(safe_name(label))


def test_a_label_with_signs_keeps_its_words() -> None:
    assert safe_name("A <i>keeper</i>: 1/2") == "A -i-keeper-i- 1-2"
