"""What an architecture is refused for, and what only the loader is."""

from __future__ import annotations

import pytest
from transformers import LlamaConfig

from sordino.errors import ModelError
from sordino.models.architectures import check_config
from sordino.models.loading import check_readable


def test_quantised_weights_are_refused_by_the_loader_and_not_by_the_architecture() -> None:
    config = LlamaConfig(quantization_config={"quant_method": "bitsandbytes"})
    check_config(config, where="here")
    with pytest.raises(ModelError, match=r"quantised \(bitsandbytes\)"):
        check_readable(config, where="here")
    check_readable(LlamaConfig(), where="here")
