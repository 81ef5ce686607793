"""Soft prompt files as the world makes them, built without our writers."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np

from sordino.library.library import Library


def npy(matrix: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, matrix)
    return stream.getvalue()


def matrix(seed: int = 0, tokens: int = 4, width: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((tokens, width)).astype(np.float32)


def drop(path: Path, seed: int = 0, **meta: object) -> Path:
    """A KoboldAI zip as the world makes them, not by our writer."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("meta.json", json.dumps({"name": path.stem, "supported": [], "description": ""} | meta))
        archive.writestr("tensor.npy", npy(matrix(seed)))
    return path


def names(lib: Library) -> list[str]:
    return [entry.name for entry in lib.scan()]
