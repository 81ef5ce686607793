"""Which files a command may write."""

from __future__ import annotations

from pathlib import Path

import pytest

from sordino.errors import BadInput
from sordino.library.outputs import check_picture


def test_pictures_are_png_or_svg(tmp_path: Path) -> None:
    check_picture(None, overwrite=False)
    check_picture(tmp_path / "a.SVG", overwrite=False)
    for name in ("a.gif", "a"):
        with pytest.raises(BadInput, match=r"\.png or \.svg"):
            check_picture(tmp_path / name, overwrite=True)
    (tmp_path / "a.png").touch()
    with pytest.raises(BadInput, match="--overwrite"):
        check_picture(tmp_path / "a.png", overwrite=False)
