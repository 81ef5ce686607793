"""docs/provenance.md says of every packaged file that is not code where it comes from, and packaged soft prompts say the same."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path

from sordino.formats import read
from sordino.texts.pieces import data_hash
from sordino.texts.reading import read_pieces

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCE = REPOSITORY / "src" / "sordino"
PAGE = (REPOSITORY / "docs" / "provenance.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| `([^`]+)` \| .* \| (.*) \|$", PAGE, re.MULTILINE))


def test_every_packaged_file_has_one_row_and_every_row_has_files() -> None:
    files = [
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*")
        if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts
    ]
    rows = {file: [row for row in ROWS if fnmatchcase(file, row)] for file in files}
    assert {file: found for file, found in rows.items() if len(found) != 1} == {}
    assert set(ROWS) - {found[0] for found in rows.values()} == set()


def test_packaged_soft_prompts_were_trained_on_the_packaged_texts_that_their_row_names() -> None:
    prompts = sorted((SOURCE / "data" / "prompts").iterdir())
    assert prompts
    for path in prompts:
        named = re.search(r"`(data/\w+/train)`", ROWS[path.relative_to(SOURCE).as_posix()])
        assert named, path.name
        metadata = read(path).metadata
        assert metadata.training["data_hash"] == data_hash(read_pieces([SOURCE / named[1]]).pieces), path.name
        assert metadata.licence == "Apache-2.0"
