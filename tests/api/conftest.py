"""The model that the tests of the public names use."""

from __future__ import annotations

import pytest
import torch

import sordino
from tests.tiny_models import tiny_base


@pytest.fixture(scope="module")
def model() -> sordino.Model:
    return sordino.Model(tiny_base("llama", dtype=torch.float32))
