"""Every cell of the notebook runs: on a stand-in for Colab with Drive, where a session is lost and the next one goes on, and in
plain Jupyter.
"""

from __future__ import annotations

import json
import os
import re
import signal
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError

import sordino
from tests.notebooks.forms import filled
from tests.waiting import free_port

pytestmark = pytest.mark.slow

STAND_IN = Path(__file__).parent / "stand_in"
STEPS = 10
# As little as still is a run with evaluations, samples and numbers.
SMALL = {
    "base_model": "smollm2",
    "name": "voice",
    "virtual_tokens": 4,
    "steps": STEPS,
    "more": {"batch": 2, "row_tokens": 32, "context": 0.0, "evaluate_every": 4, "sample_tokens": 8, "validation_tokens": 128},
    "limit": 128,
    "new_tokens": 8,
}  # fmt: skip
# A session that is lost in the middle of the run: killed as no process can prevent, after the checkpoint of step 4.
LOST = f"""
import os, signal
seen = sordino.RunView.__call__
def lost(view, event):
    seen(view, event)
    if isinstance(event, sordino.Step) and event.step == 6:
        os.kill(os.getpid(), {int(signal.SIGKILL)})
sordino.RunView.__call__ = lost
"""
_SECONDS = 600


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Few enough to be measured in seconds, on what stands for Drive."""
    keeper = Path(sordino.__file__).parent / "data" / "keeper"
    folder = tmp_path_factory.mktemp("texts")
    for name in ("train", "heldout"):
        text = "".join(path.read_text(encoding="utf-8") for path in sorted((keeper / name).glob("*.txt")))
        (folder / f"{name}.txt").write_text(text[:12_000], encoding="utf-8")
    return {"texts": str(folder / "train.txt"), "heldout": str(folder / "heldout.txt")}


@contextmanager
def session(
    notebook: nbformat.NotebookNode, folder: Path, monkeypatch: pytest.MonkeyPatch, *, colab: bool
) -> Iterator[None]:
    """All cells, one after another, in a new kernel in `folder`. The kernel lives as long as the block."""
    (folder / "downloads").mkdir(parents=True)
    path = [*([str(STAND_IN)] if colab else []), *filter(None, [os.environ.get("PYTHONPATH")])]
    client = NotebookClient(notebook, timeout=_SECONDS, resources={"metadata": {"path": str(folder)}})
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(path))
        patch.setenv("DOWNLOADS", str(folder / "downloads"))
        patch.setenv("OMP_NUM_THREADS", "1")
        with client.setup_kernel():
            for index, cell in enumerate(notebook.cells):
                client.execute_cell(cell, index)
            yield


def said(notebook: nbformat.NotebookNode, cell_id: str) -> str:
    """What a cell printed, and the texts and pages that it shows."""
    (cell,) = (cell for cell in notebook.cells if cell.id == cell_id)
    parts = [
        output.text if output.output_type == "stream" else "".join(map(str, output.data.values()))
        for output in cell.outputs
        if output.output_type in ("stream", "display_data", "execute_result")
    ]
    return "\n".join(parts)


def with_cell_before(notebook: nbformat.NotebookNode, cell_id: str, source: str) -> nbformat.NotebookNode:
    at = next(index for index, cell in enumerate(notebook.cells) if cell.id == cell_id)
    notebook.cells.insert(at, nbformat.v4.new_code_cell(source))
    return notebook


def steps_of(run: Path) -> list[int]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line["step"] for line in lines if line["kind"] == "step"]


def answer(port: int, path: str, host: str) -> Any:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"Host": host})
    with urllib.request.urlopen(request, timeout=60) as given:
        return given.read().decode()


def test_a_session_on_colab_is_lost_and_the_next_goes_on_to_what_jupyter_makes_at_once(
    texts: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drive = tmp_path / "drive"
    kobold = drive / "MyDrive" / "KoboldAI" / "softprompts"
    kobold.mkdir(parents=True)
    packaged = Path(sordino.__file__).parent / "data" / "prompts" / "keeper.zip"
    (kobold / "old-friend.zip").write_bytes(packaged.read_bytes())
    on_drive = {"use_google_drive": True, "drive_folder": str(drive), **texts, **SMALL}
    library = drive / "MyDrive" / "Sordino" / "softprompts"

    lost = with_cell_before(filled(**on_drive), "train", LOST)
    with pytest.raises(DeadKernelError), session(lost, tmp_path / "one", monkeypatch, colab=True):
        pass
    assert steps_of(library / "voice.run")[-1] == 6
    assert not (library / "voice.zip").exists()

    port = free_port()
    resumed = filled(**on_drive, other="old-friend", open_page=True, port=port)
    with session(resumed, tmp_path / "two", monkeypatch, colab=True):
        host = f"{port}-cpu-s-stand-in.us-west4-0.prod.colab.dev"
        assert f"Open https://{host}/" in said(resumed, "page")
        assert "<title>Sordino" in answer(port, "/", host)
        assert "voice" in answer(port, "/v1/models", host)
    assert "old-friend" in said(resumed, "place")
    assert "smollm2: about " in said(resumed, "machine")
    assert "goes on" in said(resumed, "train")
    assert "data:image/png;base64" in said(resumed, "train")
    assert f"Written: {library / 'voice.zip'}" in said(resumed, "train")
    assert steps_of(library / "voice.run") == list(range(1, STEPS + 1))
    assert "4 vectors" in said(resumed, "evaluate")
    assert re.findall(r"^With (.*):$", said(resumed, "compare"), re.MULTILINE) == ["nothing", "voice", "old-friend"]
    assert (tmp_path / "two" / "downloads" / "voice.zip").read_bytes() == (library / "voice.zip").read_bytes()

    unmeasured = {**SMALL, "more": {**SMALL["more"], "measure": "none"}, "with_excerpts": False}
    whole = filled(**texts, **unmeasured)
    with session(whole, tmp_path / "three", monkeypatch, colab=False):
        pass
    made = tmp_path / "three" / "Sordino" / "softprompts" / "voice.zip"
    assert sordino.load(made).content_hash == sordino.load(library / "voice.zip").content_hash
    assert "voice.zip" in said(whole, "download")
    assert said(whole, "page") == said(whole, "push") == ""
