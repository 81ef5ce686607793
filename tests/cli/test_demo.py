"""`sordino demo` from end to end on a tiny model, and how it fits itself to a machine."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from sordino import formats
from sordino.cli import main
from sordino.prompts.soft_prompt import SoftPrompt
from sordino.texts.pieces import data_hash
from sordino.texts.reading import read_pieces
from sordino.training import demo as demo_module
from sordino.training.demo import NAME, OPENINGS
from tests.prompt_files import matrix
from tests.tiny_models import tiny_base

TEXTS = Path(demo_module.__file__).parents[1] / "data" / "keeper"


def demo(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["demo", *arguments])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """One demo on a tiny model, over what an earlier one left; every test looks at what this one leaves."""
    here = tmp_path_factory.mktemp("here")
    (here / "sordino-demo" / f"{NAME}.run").mkdir(parents=True)
    (here / "sordino-demo" / f"{NAME}.zip").write_text("of an earlier demo")
    (here / "sordino-demo" / f"{NAME}.run" / "metrics.jsonl").write_text("of an earlier demo")
    patch = pytest.MonkeyPatch()
    patch.chdir(here)
    patch.setattr(demo_module, "MOST_STEPS", 12)
    patch.setattr(demo_module, "MEASURING_SECONDS", 1.0)
    base = tiny_base("llama", dtype=torch.float32, max_position_embeddings=1024)
    patch.setattr("sordino.cli.loading.loaded_model", lambda *asked: base)
    result = demo("--minutes", "0.01", "--overwrite")
    patch.undo()
    return here, result


def test_it_tells_the_whole_story_in_order(finished: tuple[Path, Result]) -> None:
    _, result = finished
    assert result.exit_code == 0, result.output
    story = [
        "In three parts: about 0.01 minutes of training",
        "downloaded (93 MB)",
        "lighthouse keeper",
        "stays as it is",
        "18 pieces to train on",
        "5 held out",
        "By itself the model goes on like this",
        f"  {OPENINGS[0]}|",
        "steps of about",
        "to measure and to continue three texts: done in about",
        "in front of the text",
        f"soft prompt {NAME}",
        "no prompt",
        "lighthouse keeper, who writes",
        "64 tokens of the training text",
        "256 tokens of the training text",
        "vector",
        "The file will disclose",
        "Three texts continued",
        *OPENINGS,
        "Your soft prompt and its report",
        "KiB",
        "What next",
        "sordino demo --ui",
        "sordino generate",
        "sordino compare",
        "sordino install",
        "KoboldAI",
        "sordino train FOLDER_OF_TEXTS",
    ]
    at = 0
    for part in story:
        found = result.stdout.find(part, at)
        assert found >= 0, f"{part!r} is missing after {result.stdout[at - 60 : at]!r} in\n{result.stdout}"
        at = found


def test_training_is_shown_while_it_goes_on(finished: tuple[Path, Result]) -> None:
    _, result = finished
    samples = re.findall(r"step (\d+), a sample: " + re.escape(OPENINGS[0]), result.stderr)
    assert 3 <= len(samples) <= 5
    # How many steps fit into the time is the machine's to say.
    steps = int(re.findall(r"step 0/(\d+): validation loss", result.stderr)[0])
    interval = math.ceil(steps / 6)
    measured = re.findall(r"step (\d+)/\d+: validation loss", result.stderr)
    assert list(map(int, measured)) == sorted({*range(0, steps, interval), steps})


def test_it_leaves_a_good_file_and_a_report(finished: tuple[Path, Result]) -> None:
    here, result = finished
    file = here / "sordino-demo" / f"{NAME}.zip"
    prompt = formats.read(file)
    assert prompt.n_tokens == 20
    assert prompt.metadata.training["data_hash"] == data_hash(read_pieces([TEXTS / "train"]).pieces)
    assert {"soft_prompt", "no_prompt", "best_instruction", "best_excerpt"} <= set(prompt.metadata.heldout["nll"])
    assert prompt.metadata.samples[0]["prompt"] == OPENINGS[0]
    assert str(here).encode() not in file.read_bytes()
    report = here / "sordino-demo" / f"{NAME}.run" / "report.html"
    assert "On texts it was not trained on" in report.read_text(encoding="utf-8")
    assert str(file) in result.stdout
    assert str(report) in result.stdout


def test_a_second_run_is_refused_before_anything_happens(finished: tuple[Path, Result], monkeypatch) -> None:
    here, _ = finished
    monkeypatch.chdir(here)
    monkeypatch.setattr("sordino.cli.loading.loaded_model", lambda *asked: pytest.fail("a model was loaded"))
    before = (here / "sordino-demo" / f"{NAME}.zip").read_bytes()
    result = demo()
    assert result.exit_code == 2
    assert "--overwrite" in result.stderr
    assert (here / "sordino-demo" / f"{NAME}.zip").read_bytes() == before


def test_the_page_opens_on_the_finished_prompt(finished: tuple[Path, Result], monkeypatch) -> None:
    here, _ = finished
    monkeypatch.chdir(here)
    monkeypatch.setattr("sordino.cli.loading.loaded_model", lambda *asked: pytest.fail("a model was loaded"))
    opened = []
    monkeypatch.setattr("sordino.cli.demo.open_page", lambda context, access, **served: opened.append(served))
    assert demo("--ui").exit_code == 0
    (served,) = opened
    assert (served["model"], served["soft_prompt"]) == ("smollm2", NAME)
    assert served["library"].folders[-1] == here / "sordino-demo"
    assert len(served["library"].folders) == 2


def test_the_page_is_opened_after_the_run_too(tmp_path: Path, monkeypatch) -> None:
    opened = []

    def run(job, base, minutes):
        job.out.parent.mkdir()
        formats.write(SoftPrompt(matrix()), job.out)
        return SoftPrompt(matrix())

    monkeypatch.setattr("sordino.cli.demo.run", run)
    monkeypatch.setattr("sordino.cli.loading.loaded_model", lambda *asked: None)
    monkeypatch.setattr("sordino.cli.demo.open_page", lambda context, access, **served: opened.append(served))
    assert demo("--ui", "--out", str(tmp_path / "made")).exit_code == 0
    assert [served["soft_prompt"] for served in opened] == [NAME]
    # Without a terminal nobody is asked.
    assert demo("--out", str(tmp_path / "other")).exit_code == 0
    assert len(opened) == 1


def test_without_the_page_s_packages_it_is_refused_at_once(monkeypatch) -> None:
    monkeypatch.setattr("sordino.cli.serve.find_spec", lambda name: None)
    monkeypatch.setattr("sordino.cli.loading.loaded_model", lambda *asked: pytest.fail("a model was loaded"))
    result = demo("--ui")
    assert (result.exit_code, "sordino[ui]" in result.stderr) == (1, True)


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    result = demo("--out", str(tmp_path / "taken"))
    assert (result.exit_code, "not a folder" in result.stderr) == (2, True)
    assert (tmp_path / "taken").read_text() == "mine"


def test_another_folder_may_hold_other_things(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    demo_module.demo_job(tmp_path, None, overwrite=False)


def test_no_text_is_made_of_keeper_words() -> None:
    """The openings must not give the voice away: what is heard in the samples comes from the soft prompt."""
    corpus = " ".join(piece.words for piece in read_pieces([TEXTS]).pieces)
    assert not [opening for opening in OPENINGS if opening in corpus]
    assert "lamp" not in " ".join(OPENINGS)
