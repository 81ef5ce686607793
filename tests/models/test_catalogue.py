"""The list of models to choose from, and which of them a soft prompt was made for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from transformers import AutoConfig

from sordino.models.architectures import check_config
from sordino.models.bundled import BUNDLED
from sordino.models.catalogue import Suggestion, catalogue, suggestion
from sordino.models.names import resolve
from sordino.models.sizes import ModelSizes
from sordino.prompts.fit import Stated
from sordino.prompts.soft_prompt import BaseRef, Metadata

HUB = [name for name in catalogue() if name not in BUNDLED]


def test_the_bundled_models_come_first_and_the_others_by_size() -> None:
    names = list(catalogue())
    assert names[: len(BUNDLED)] == list(BUNDLED)
    sizes = [catalogue()[name].parameters for name in HUB]
    assert sizes == sorted(sizes)
    assert sizes[0] < 0.2e9
    assert sizes[-1] > 7e9


@pytest.mark.parametrize("name", HUB)
def test_each_is_of_a_kind_that_runs_and_its_facts_agree(name: str) -> None:
    known = catalogue()[name]
    assert resolve(name).kind == "hub"
    check_config(AutoConfig.for_model(known.sizes.family), where=name)
    # Half precision or single, and the embeddings twice where the file holds both ends.
    twice = known.sizes.vocab_size * known.sizes.d_model
    least, most = 1.99 * known.parameters, max(4.5 * known.parameters, 4 * (known.parameters + twice))
    assert least < known.download < most
    size = re.search(r"([\d.]+)([MB])$", known.title)
    if size:
        assert known.parameters == pytest.approx(float(size[1]) * {"M": 1e6, "B": 1e9}[size[2]], rel=0.25)
    assert known.title
    assert known.licence


def stated(width: int, *supported: str, **base: object) -> Stated:
    return Stated(Metadata(supported=supported, base=BaseRef(**base)), width)  # type: ignore[arg-type]


SMOLLM2 = {"smollm2": ModelSizes("smollm2", BUNDLED["smollm2"].sizes)}
GPT_J = Suggestion("EleutherAI/gpt-j-6b", "GPT-J 6B", 24_203_000_000)


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (stated(4096, "EleutherAI/gpt-j-6B"), GPT_J),
        # No name: the only one of this width that we know; of 4096 there are several.
        (stated(768), Suggestion("openai-community/gpt2", "GPT-2", 548_000_000)),
        (stated(4096, "gpt-j-6B"), GPT_J),
        (stated(4096, "GPT-J-6B", "Generic 6B"), GPT_J),
        (stated(4096, "Generic 6B"), GPT_J),
        (stated(4096, "KoboldAI/GPT-J-6B-Skein"), GPT_J),
        (stated(4096, id="EleutherAI/gpt-j-6B"), GPT_J),
        # Another width than that model's: the name is wrong, or of another model.
        (stated(2048, "gpt-j-6B"), None),
        (stated(4096), None),
        (stated(4096, "some old thing"), None),
        (stated(4096, "someone/a-llama"), Suggestion("someone/a-llama", "someone/a-llama", None)),
        (stated(576, id="HuggingFaceTB/SmolLM2-135M-Instruct"), Suggestion("smollm2", "SmolLM2 135M", 93_000_000)),
    ],
)
def test_what_a_file_names_is_found(
    part: Stated, expected: Suggestion | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SORDINO_CACHE", str(tmp_path))
    assert suggestion([part], SMOLLM2) == expected


def test_what_is_on_this_machine_needs_no_download() -> None:
    known = catalogue()[GPT_J.name]
    here = {known.name: ModelSizes(known.name, known.sizes)}
    assert suggestion([stated(4096, "gpt-j-6B")], here) == Suggestion(known.name, known.title, 0)
    # By its sizes, where the file names it otherwise.
    sizes = {"family": "gptj", "n_layers": 28, "vocab_size": 50400}
    assert suggestion([stated(4096, **sizes)], here) == Suggestion(known.name, known.title, 0)
