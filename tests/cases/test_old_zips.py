"""A folder of KoboldAI zips from 2022: each says what it was made for, in a list and where it is installed, and what fits it."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import httpx
import numpy as np
import pytest

from sordino.models.catalogue import catalogue
from tests.cli.commands import ok
from tests.server.running import running

# `supported` and `author` as that program's tuner and its users wrote them.
SPELLINGS: list[object] = [
    ["EleutherAI/gpt-j-6B"],
    "EleutherAI/gpt-j-6B",
    "gpt-j-6B, Generic 6B",
    ["Generic 6B", "GPT-J-6B"],
    ["KoboldAI/GPT-J-6B-Skein"],
]


def old_zip(path: Path, supported: object, dtype: str = "float32", **meta: object) -> Path:
    stream = io.BytesIO()
    np.save(stream, np.random.default_rng(1).standard_normal((20, 4096)).astype(dtype))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tensor.npy", stream.getvalue(), compress_type=zipfile.ZIP_LZMA)
        known = {"name": path.stem, "author": "Someone", "supported": supported, "description": "Adventures", **meta}
        archive.writestr("meta.json", json.dumps(known))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "old"
    place.mkdir()
    for number, supported in enumerate(SPELLINGS):
        old_zip(place / f"old-{number}.zip", supported, "float16" if number % 2 else "float32")
    return place


def test_the_list_says_what_each_was_made_for(folder: Path) -> None:
    rows = [line for line in ok("list", "--library", folder).splitlines() if "old-" in line]
    assert len(rows) == len(SPELLINGS)
    assert all("6B" in line for line in rows)


def test_the_page_says_what_each_was_made_for_and_which_model_fits(folder: Path, tmp_path: Path) -> None:
    with running(tmp_path, with_page=True) as server:
        for path in folder.iterdir():
            with path.open("rb") as file:
                answer = httpx.post(f"{server.url}/v1/soft_prompts", files={"file": (path.name, file)})
            assert answer.json()["fit"] == "no", answer.text
        rows = {row["id"]: row for row in httpx.get(f"{server.url}/ui/prompts").json()["prompts"]}
        name = server.serving.model
        assert rows["old-0"]["unfit"] == f"Made for EleutherAI/gpt-j-6B (4096 wide); {name} is 32 wide."
        known = catalogue()["EleutherAI/gpt-j-6b"]
        for number in range(len(SPELLINGS)):
            row = rows[f"old-{number}"]
            assert row["made_for"].endswith("(4096 wide)")
            assert row["model"] == {"name": known.name, "title": known.title, "download": known.download}
        details = httpx.get(f"{server.url}/ui/prompts/old-0").json()
        assert (details["unfit"], details["model"]) == (rows["old-0"]["unfit"], rows["old-0"]["model"])
        # One that fits says nothing of the kind.
        assert "unfit" not in rows["keeper"]


def test_where_one_is_installed_the_model_is_named_and_no_command_that_cannot_work(
    folder: Path, tmp_path: Path
) -> None:
    said = ok("install", folder / "old-1.zip", "--library", tmp_path / "library")
    assert "Made for EleutherAI/gpt-j-6B (4096 wide)." in said
    assert "--model EleutherAI/gpt-j-6b fetches (24 GB)" in " ".join(said.split())
    assert "sordino generate" not in said
