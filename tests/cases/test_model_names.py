"""A folder or file called like a bundled model, or like a Hub id, in the working directory.

A person had a folder `smollm2` of notes beside the texts: training began with the bundled model, and `--resume` looked for a
model in the notes.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sordino.models.files import absolute_name, resolve
from sordino.prompts.soft_prompt import Metadata
from sordino.server.page.loading import Recent
from sordino.training.config import TextPaths, TrainConfig
from sordino.training.job import Job, job_from, store
from sordino.training.sweep.execute import Sweep, store_sweep, stored_sweep
from sordino.training.sweep.grid import Spec


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder `smollm2`, a file `gemma3-270m`, a model folder `someone/tiny`; the texts of another model's id are not here."""
    monkeypatch.chdir(tmp_path)
    Path("smollm2").mkdir()
    Path("gemma3-270m").write_text("notes")
    Path("someone/tiny").mkdir(parents=True)
    Path("someone/tiny/config.json").write_text("{}")


def stored_names(name: str) -> set[str]:
    """The name as a training run, a sweep and the page's list of recent models store it."""
    Path("v.run").mkdir()
    job = Job(TextPaths(()), Path("v.zip"), name, Metadata(name="v"), TrainConfig())
    store(job, "vocab")
    Path("out").mkdir()
    spec = Spec((name,), ("embedding",), (2,), (0.25,), ("vocab",), ("plain",), (0,), TrainConfig())
    store_sweep(Sweep(spec, TextPaths(()), Path("out")))
    Recent(Path("recent.json")).add(name)
    return {
        job_from(Path("v.run"), overwrite=False).model,
        stored_sweep(Path("out")).spec.model[0],
        json.loads(Path("recent.json").read_text())[0],
    }


@pytest.mark.parametrize("name", ["smollm2", "gemma3-270m", "EleutherAI/gpt-j-6b"])
def test_a_name_that_is_no_path_is_stored_as_it_is(name: str) -> None:
    assert stored_names(name) == {name}


@pytest.mark.parametrize("name", ["someone/tiny", "./smollm2", "someone/../smollm2"])
def test_a_path_is_stored_whole(name: str, tmp_path: Path) -> None:
    (stored,) = stored_names(name)
    assert Path(stored).is_absolute()
    assert Path(stored).resolve() == (tmp_path / name).resolve()


@pytest.mark.parametrize("name", ["smollm2", "gemma3-270m", "someone/tiny", "EleutherAI/gpt-j-6b"])
def test_what_is_stored_means_the_same_model_from_elsewhere(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, stored = resolve(name), absolute_name(name)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    there = resolve(stored)
    assert (there.kind, there.id, there.path) == (here.kind, here.id, here.path)
