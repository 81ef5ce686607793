"""Which program runs a model: `auto`, and what is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sordino.engine import choice
from sordino.engine.config import Sampling
from sordino.engine.generate import TextRequest
from sordino.engine.runners import build
from sordino.engine.runners.build import llama_cpp_file, only_torch_writes
from sordino.errors import ConfigError, ModelError, OutOfMemory
from sordino.models import files
from sordino.models.description import describe
from sordino.prompts.attention import PromptAttention
from sordino.prompts.mixture import Mixture, StoredPrompt, uniform
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from tests.prompts.kv_of import kv_of
from tests.tiny_models import tiny_base, tiny_gguf


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "choose_device", lambda name: torch.device("cpu"))


def taken(name: Path, runner: str, only_torch: str = "") -> tuple[Path | None, str]:
    """The file, and the one line that says it."""
    lines: list[str] = []
    path = llama_cpp_file(str(name), runner, only_torch=only_torch, notify=lines.append)
    (line,) = lines
    return path, line


@pytest.mark.parametrize("runner", ["auto", "gguf"])
def test_a_gguf_file_is_for_llama_cpp(gguf: Path, runner: str) -> None:
    path, line = taken(gguf, runner)
    assert path == gguf
    assert line.startswith("llama.cpp runs ")


def test_auto_takes_pytorch_for_what_llama_cpp_cannot_do_and_says_so(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [taken(gguf, "torch"), taken(gguf, "auto", "llama.cpp does not support strength")]
    (tmp_path / "config.json").write_text("{}")
    found.append(taken(tmp_path, "auto"))
    with monkeypatch.context() as patched:
        patched.setattr(choice, "why_not", lambda: "llama.cpp is not installed")
        found.append(taken(gguf, "auto"))
    with monkeypatch.context() as patched:
        patched.setattr(choice, "choose_device", lambda name: torch.device("cuda"))
        found.append(taken(gguf, "auto"))
    assert [path for path, _ in found] == [None] * 5
    reasons = [line[line.index("(") :] for _, line in found]
    assert reasons == [
        "(as --runner says)",
        "(llama.cpp does not support strength)",
        "(llama.cpp reads .gguf files only)",
        "(llama.cpp is not installed)",
        "(there is a GPU, cuda)",
    ]


def test_gguf_is_refused_where_llama_cpp_cannot_do_it(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"--runner gguf: llama.cpp reads .gguf files only"):
        taken(tmp_path, "gguf")
    with pytest.raises(ConfigError, match=r"--runner gguf: llama.cpp does not support strength"):
        taken(gguf, "gguf", "llama.cpp does not support strength")

    def unusable() -> None:
        raise ModelError("this is another llama.cpp than Sordino's")

    monkeypatch.setattr(build, "library", unusable)
    with pytest.raises(ModelError, match=r"another llama.cpp"):
        taken(gguf, "gguf")


def test_what_llama_cpp_cannot_write_is_known_before_a_model_is_loaded() -> None:
    base = tiny_base("llama")
    matrix = np.random.default_rng(0).standard_normal((2, base.d_model)).astype(np.float32)
    plain = SoftPrompt(matrix, Metadata(placement=base.placement))
    held = plain.with_metadata(attention=PromptAttention(hold=64))
    doubled = plain.with_metadata(attention=PromptAttention(strength=2))
    strong = plain.with_metadata(attention=PromptAttention(strength=1.5), name="strong")
    kv = kv_of(base, plain)
    mixture = Mixture((plain, strong), uniform(2))

    def said(text: str, prompt: StoredPrompt | None, at_once: int = 1) -> str:
        return only_torch_writes([(text, prompt)], at_once)

    assert [said("text", one) for one in (None, plain, held, doubled, kv)] == [""] * 5
    assert said("", plain) == ""
    assert said("", kv) == "llama.cpp needs a text after a KV prompt"
    assert {said("text", one) for one in (strong, mixture)} == {
        "llama.cpp does not support strength that is no whole number"
    }
    many = [("text", plain)] * 300
    assert only_torch_writes(many, 256) == ""
    assert only_torch_writes(many, 300) == "llama.cpp runs at most 256 texts at once"


def test_a_text_to_continue_has_advice_of_its_own(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a server's memory is set by are no options of generate and compare."""
    model = describe(files.resolve(str(gguf)), gguf)
    given = ([TextRequest("The sea", None, 0)], Sampling(max_tokens=4), 1)

    def run() -> None:
        with build.writing(model, gguf, *given):
            raise OutOfMemory("llama.cpp has no cells left", got="256 cells", do="give more --kv-memory")

    with pytest.raises(
        OutOfMemory, match=r"no cells left; got 256 cells; shorten the text, lower --max-tokens"
    ) as found:
        run()
    assert "--kv-memory" not in str(found.value)
    monkeypatch.setattr(build.psutil, "virtual_memory", lambda: SimpleNamespace(available=400))
    with pytest.raises(OutOfMemory, match=r"no room for a row.*lower --max-tokens") as found:
        run()
    assert "--kv-memory" not in str(found.value)
