"""lm_eval over HTTP: its own program, three kinds of tasks, against its own run of the exported PEFT folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from sordino import formats
from sordino.models import files
from tests.programs.environment import environment, ran
from tests.server.process import started

pytestmark = pytest.mark.slow

# As MMLU asks.
CHOICES = [
    ("What is a lighthouse for?", ["Baking", "Warning ships", "Keeping bees", "Printing"], 1),
    ("Which of these is a metal?", ["Wood", "Paper", "Iron", "Wool"], 2),
    ("How many days has a week?", ["Seven", "Nine", "Two", "Thirty"], 0),
    ("Where do fish live?", ["In trees", "On roofs", "In books", "In water"], 3),
]
# As LAMBADA asks: the last word.
STORIES = [
    "The keeper climbed the stairs of the lighthouse every evening, and every evening he lit the lamp",
    "She had lost the key of the door, so she looked in every pocket of her coat until she found the key",
    "It rained for three days, and on the fourth the sun came out and dried the rain",
]
PAGES = [
    "The keeper wrote in the log. The wind was from the west, and the sea was rough until noon.",
    "No ship came. He polished the brass, trimmed the wick, and slept; there was nothing else to do.",
]
TASKS = {
    "choices": """
dataset_kwargs: {data_files: {test: DATA}}
output_type: multiple_choice
doc_to_text: "{{question}}{% for one in choices %}\\n{{'ABCD'[loop.index0]}}. {{one}}{% endfor %}\\nAnswer:"
doc_to_choice: ["A", "B", "C", "D"]
doc_to_target: answer
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    "last_word": """
dataset_kwargs: {data_files: {test: DATA}}
output_type: loglikelihood
doc_to_text: "{{text.split(' ')[:-1] | join(' ')}}"
doc_to_target: "{{' ' + text.split(' ')[-1]}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    "pages": """
dataset_kwargs: {data_files: {test: DATA}}
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}]
""",
}
ROWS: dict[str, list[dict[str, Any]]] = {
    "choices": [{"question": question, "choices": given, "answer": right} for question, given, right in CHOICES],
    "last_word": [{"text": story} for story in STORIES],
    "pages": [{"text": page} for page in PAGES],
}


@pytest.fixture(scope="module")
def python() -> Path:
    return environment("lm_eval")


@pytest.fixture(scope="module")
def base() -> Path:
    """The folder of SmolLM2, as transformers reads it."""
    return files.prepare(files.resolve("smollm2")).folder


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("served")
    with resources.as_file(resources.files("sordino").joinpath("data", "prompts")) as prompts:
        flags = (
            "--model",
            "smollm2",
            "--runner",
            "torch",
            "--dtype",
            "float32",
            "--port",
            "0",
            "--library",
            str(prompts),
        )
        with started(*flags, "--no-ui", env={"XDG_CONFIG_HOME": str(folder)}) as process:
            yield process.url()


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    for name, text in TASKS.items():
        data = folder / f"{name}.json"
        data.write_text("".join(json.dumps(row) + "\n" for row in ROWS[name]))
        head = f"task: {name}\ndataset_path: json\ntest_split: test\n"
        (folder / f"{name}.yaml").write_text(head + text.lstrip().replace("DATA", str(data)))
    return folder


def samples(python: Path, tasks: Path, out: Path, *model: str) -> dict[tuple[str, str, str], tuple[float, bool]]:
    """(log probability, whether it is the likeliest) of each (task, context, continuation)."""
    home = {"HF_HOME": str(out / "home")}
    ran(
        *(python, "-m", "lm_eval", *model, "--tasks", ",".join(TASKS), "--include_path", tasks),
        *("--log_samples", "--output_path", out, "--device", "cpu"),
        env=home,
    )
    found = {}
    for name in TASKS:
        (file,) = out.rglob(f"samples_{name}_*.jsonl")
        for line in file.read_text().splitlines():
            sample = json.loads(line)
            for given, (answer,) in zip(sample["arguments"].values(), sample["resps"], strict=True):
                context, continuation = (given["arg_0"], given.get("arg_1", "")) if isinstance(given, dict) else given
                # Of rolling perplexity only the sum.
                value, greedy = answer if isinstance(answer, list) else (answer, False)
                found[name, context, continuation] = float(value), greedy in (True, "True")
    return found


def test_its_tasks_over_http_give_what_the_exported_folder_gives(
    python: Path, served: str, tasks: Path, base: Path, tmp_path: Path
) -> None:
    with resources.as_file(resources.files("sordino").joinpath("data", "prompts", "keeper.zip")) as file:
        formats.write(formats.read(file), tmp_path / "peft", to="peft", force=True)
    address = f"base_url={served}/v1/completions,tokenizer={base},tokenizer_backend=huggingface"
    over_http = samples(
        python,
        tasks,
        tmp_path / "http",
        "--model",
        "local-completions",
        "--model_args",
        f"model=smollm2:keeper,{address}",
    )
    loaded = f"pretrained={base},peft={tmp_path / 'peft'},dtype=float32"
    in_torch = samples(python, tasks, tmp_path / "hf", "--model", "hf", "--model_args", loaded, "--batch_size", "1")
    assert over_http.keys() == in_torch.keys()
    assert len(over_http) == 4 * 4 + 3 + 2
    tokenizer = AutoTokenizer.from_pretrained(base)
    for key, (value, greedy) in over_http.items():
        _, context, continuation = key
        tokens = len(tokenizer.encode(continuation or context, add_special_tokens=False))
        expected, also = in_torch[key]
        assert abs(value - expected) < 1e-3 * tokens, (key, value, expected)
        assert greedy == also or "pages" in key
