"""What the tests of runs share."""

from __future__ import annotations

import pytest

from sordino.models.base_model import BaseModel
from tests.training.runs import small_base


@pytest.fixture(scope="session")
def base() -> BaseModel:
    return small_base()
