"""On an NVIDIA GPU: the same losses, gradients and words as on the CPU, and what only a GPU can do wrong.

`make test-gpu` runs these, where there is a GPU; float64 on tiny models leaves rounding out of the question.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from sordino.engine.config import Limits
from sordino.engine.generate import TextRequest, complete
from sordino.engine.runners.torch_runner import TorchRunner
from sordino.engine.sampling import Sampling
from sordino.errors import OutOfMemory
from sordino.forward.sources import PrefixSource
from sordino.models.base_model import BaseModel, load
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from sordino.texts.examples import Example
from sordino.training.events import Finished, Lost
from sordino.training.gradient import Batch, losses_and_gradients, mean_nlls
from sordino.training.loop import RunGroup, train_group
from tests.engine.test_torch_runner import NEW, agreed, by_transformers, engine_of, requests_of, run
from tests.server.process import started
from tests.tiny_models import FAMILIES, tiny_base
from tests.training.runs import loss_alone, off, several_runs, small_base
from tests.training.test_gradient import _batches, _examples

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

KEEPER = Path(__file__).parents[1] / "src/sordino/data/keeper"


@pytest.fixture(scope="module")
def smollm2_on_gpu() -> BaseModel:
    """As people get it there: bfloat16."""
    base = load("smollm2")
    assert (base.device.type, base.dtype) == ("cuda", torch.bfloat16)
    return base


@pytest.mark.parametrize("as_one_row", [True, False])
@pytest.mark.parametrize("pass_tokens", [10_000, 24])
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_are_the_cpus(
    family: str, pass_tokens: int, as_one_row: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each prompt once by itself, and in front of each of its rows, as small models have it there."""
    if not as_one_row:
        monkeypatch.setattr("sordino.forward.one_row._LAUNCHES_FLOP", -1)
    there, here = (tiny_base(family, device=device, bos=True) for device in ("cuda", "cpu"))
    on_gpu, on_cpu = _batches(there), _batches(here)
    losses = losses_and_gradients(there, on_gpu, pass_tokens=pass_tokens)
    # In any dtype GPT-J's attention rounds to float32, and rotary angles are float32: Gemma's loss is 1.2e-8 off (H200).
    tolerance = 1e-5 if family == "gptj" else 1e-7
    for loss, ours, own in zip(losses, on_gpu, on_cpu, strict=True):
        expected = loss_alone(here, own)
        assert loss == pytest.approx(expected, abs=tolerance)
        assert ours.source.matrix_PW.grad is not None
        assert ours.source.matrix_PW.grad.device.type == "cpu"
        assert own.source.matrix_PW.grad is not None
        assert off(ours.source.matrix_PW.grad, own.source.matrix_PW.grad) <= 10 * tolerance
    means = mean_nlls(there, on_gpu, pass_tokens=pass_tokens)
    assert means == pytest.approx(mean_nlls(here, on_cpu, pass_tokens=10_000), abs=tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_crowded_batch_equals_transformers_one_by_one(family: str, dtype: torch.dtype) -> None:
    base = tiny_base(family, dtype=dtype, device="cuda")
    requests = requests_of(base, Sampling(max_tokens=NEW, temperature=0))
    requests = [request for request in requests if request.ids or request.prompt or base.bos_ids]
    engine = engine_of(base, Limits(rows=4, queue=20, tokens=16, chunk=7))
    said = run(engine, requests)
    equal = [agreed(row.ids, *by_transformers(base, request)) for row, request in zip(said, requests, strict=True)]
    assert equal.count(False) <= 1
    assert engine.counts == (0, 0)


def test_runs_that_are_stopped_together_go_on_there(tmp_path: Path) -> None:
    """What a GPU adds up in another order differs in the last bits, so to rounding."""
    base = small_base(device="cuda")

    def trained(name: str, *, stop_after: int = 0, resume: bool = False) -> dict[str, torch.Tensor]:
        steps = 0

        def should_stop() -> bool:
            nonlocal steps
            steps += 1
            return steps == stop_after

        runs = several_runs(base, tmp_path / name)
        found = {}
        group = RunGroup(runs, tmp_path / name)
        for run_name, event in train_group(base, group, resume=resume, should_stop=should_stop):
            assert not isinstance(event, Lost)
            if isinstance(event, Finished):
                found[run_name] = event.matrix_PD
        return found

    whole = trained("whole")
    trained("cut", stop_after=5)
    rest = trained("cut", resume=True)
    assert whole.keys() == rest.keys()
    for name, matrix in whole.items():
        assert off(rest[name], matrix) <= 1e-4


def test_memory_that_runs_out_is_said_and_given_back(smollm2_on_gpu: BaseModel) -> None:
    base = smollm2_on_gpu
    matrix = torch.zeros(20, base.d_model).requires_grad_()
    examples = _examples(base, [512] * 32, 0)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(base.device).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + (1 << 30)) / total)
    try:
        with pytest.raises((OutOfMemory, torch.OutOfMemoryError)):
            loss_alone(base, Batch(PrefixSource(matrix, "start"), examples), 1 << 20)
        runner = TorchRunner(base, kv_bytes=1 << 40, prefix_bytes=1 << 20)
        prompt = SoftPrompt(matrix.detach().numpy() + 0.01, Metadata(placement=base.placement))
        with pytest.raises(OutOfMemory, match="lower --rows"):
            _ = [runner.open(number, prompt, [5] * 2000) for number in range(10_000)]
        del runner, _
        # What fits still goes.
        assert loss_alone(base, Batch(PrefixSource(matrix, "start"), examples[:1]), 512) > 0
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_bfloat16_is_near_float32_on_the_cpu(smollm2_on_gpu: BaseModel, smollm2: BaseModel) -> None:
    ids = smollm2.encode(min((KEEPER / "train").glob("*.txt")).read_text())
    start = smollm2.embed(torch.tensor(ids[:20])).detach().float()
    example = Example(tuple(ids[20:148]), (True,) * 128, "")
    losses, gradients = [], []
    for base in (smollm2_on_gpu, smollm2):
        matrix = start.clone().requires_grad_()
        losses.append(loss_alone(base, Batch(PrefixSource(matrix, base.placement), [example]), 1024))
        assert matrix.grad is not None
        gradients.append(matrix.grad)
    assert losses[0] == pytest.approx(losses[1], abs=0.02)
    assert off(*gradients) <= 0.1


def test_eight_runs_share_one_pass_there(smollm2_on_gpu: BaseModel) -> None:
    base = smollm2_on_gpu
    batches = [
        Batch(
            PrefixSource(torch.randn(20, base.d_model).mul_(0.1).requires_grad_(), base.placement),
            _examples(base, [128] * 4, k),
        )
        for k in range(8)
    ]
    losses = losses_and_gradients(base, batches, pass_tokens=8192)
    for loss, batch in zip(losses, batches, strict=True):
        matrix = batch.source.matrix_PW.detach().clone().requires_grad_()
        assert loss == pytest.approx(loss_alone(base, batch.of(matrix, batch.examples), 1024), abs=0.02)
        assert matrix.grad is not None
        assert batch.source.matrix_PW.grad is not None
        assert off(batch.source.matrix_PW.grad, matrix.grad) <= 0.1


def sordino(*arguments: Any) -> str:
    """What a command says. Its folders are where the fixture has put them."""
    command = [sys.executable, "-m", "sordino", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def test_the_commands_take_the_gpu_by_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train, measure, look inside, mix, write: without a flag that names a device."""
    monkeypatch.chdir(tmp_path)
    texts = sorted((KEEPER / "train").glob("*.txt"))
    sordino("train", KEEPER / "train", "--steps=40", "--out=keeper.zip")
    sordino("train", texts[0], "--steps=5", "--out=other.zip")
    (metrics,) = (path for path in tmp_path.rglob("metrics.jsonl") if path.read_text().count("step") > 40)
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "validation"]
    assert losses[-1] < losses[0]
    sordino("train", f"--voice=a={texts[0]}", f"--voice=b={texts[1]}", "--steps=5", "--out-dir=voices")
    sordino("evaluate", "keeper.zip", "--heldout", KEEPER / "heldout")
    sordino("inspect", "keeper.zip", "other.zip", "--text", texts[1])
    fitted = ["--components", "keeper.zip", "--components", "other.zip", "--data", KEEPER / "train"]
    sordino("mixture", "fit", *fitted, "--gate=always", "--out=both.mix.zip")
    for prompt in ("keeper.zip", "both.mix.zip"):
        said = sordino("generate", "The lamp", "-p", prompt, "-n", 12, "--temperature=0", "--json")
        assert json.loads(said[said.index("{") :])
    assert torch.cuda.get_device_name() in sordino("doctor")


def test_a_server_there_says_what_generate_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, smollm2_on_gpu: BaseModel
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with started("--model=smollm2", "--port=0", "--dtype=float32", env={"XDG_CONFIG_HOME": str(tmp_path)}) as server:
        body = {"model": "smollm2", "prompt": "The lamp was lit and", "max_tokens": 16, "temperature": 0}
        answers = [httpx.post(f"{server.url()}/v1/completions", json=body, timeout=60) for _ in range(2)]
    base = load("smollm2", dtype="float32")
    (said,) = complete(base, [TextRequest("The lamp was lit and")], Sampling(max_tokens=16, temperature=0))
    assert [answer.json()["choices"][0]["text"] for answer in answers] == [said, said]
