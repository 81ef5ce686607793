"""docs/benchmarks.md from results/*/*.json: python -m benchmarks.table"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.measuring import RESULTS, machine_name, results_of

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"

# Benchmark, row, field, title, what must be reached, and whether higher is better.
Target = tuple[str, str, str, str, float, bool]
TARGETS: list[Target] = [
    (
        "training_step",
        "8 x 128, 20 virtual",
        "peft/sordino",
        "training step, 8 x 128, 20 virtual: PEFT / Sordino",
        1.3,
        True,
    ),
    (
        "training_step",
        "8 x 128, 100 virtual",
        "peft/sordino",
        "training step, 8 x 128, 100 virtual: PEFT / Sordino",
        1.7,
        True,
    ),
    (
        "training_step",
        "16 x 32, 100 virtual",
        "peft/sordino",
        "training step, 16 x 32, 100 virtual: PEFT / Sordino",
        3.5,
        True,
    ),
    (
        "training_step",
        "bierce, 16 ragged, 20 virtual",
        "peft/sordino",
        "ragged rows, 16 examples: PEFT padded / Sordino",
        2.5,
        True,
    ),
    (
        "training_step",
        "8 x 128, 20 virtual",
        "step/forward",
        "training step / its forward pass (the limit is 2)",
        2.15,
        False,
    ),
    (
        "kinds",
        "8 x 128, 20 virtual",
        "kv/embedding",
        "training step, 8 x 128, 20 virtual: a KV prompt / an embedding prompt",
        1.0,
        False,
    ),
    (
        "kinds",
        "8 x 128, 20 virtual",
        "embedding, behind 256/behind nothing",
        "the same after 256 tokens of other text that its rows share / after nothing",
        1.3,
        False,
    ),
    ("memory", "8 x 128, 20 virtual", "sordino/peft", "peak memory beyond the model: Sordino / PEFT", 0.6, False),
    (
        "quality",
        "best instruction",
        "over_soft_prompt",
        "carroll, held-out NLL, best of three instructions - soft prompt of five minutes: low end of the 95 % interval",
        0.0,
        True,
    ),
    (
        "quality",
        "excerpt 512",
        "over_soft_prompt",
        "carroll, held-out NLL, an excerpt of 512 tokens - the soft prompt: low end of the 95 % interval",
        0.0,
        True,
    ),
    (
        "reviews",
        "mean of seeds 0-2",
        "points_over_best_instruction",
        "800 film reviews, accuracy of 20 virtual tokens (mean of three seeds) - of the best of five instructions, points",
        20.0,
        True,
    ),
    (
        "reviews",
        "mean of seeds 0-2",
        "over_best_examples",
        "the same - of the best text with 2 or 4 examples, points: low end of the 95 % interval",
        0.0,
        True,
    ),
    (
        "reviews",
        "ensemble of five, mean of probabilities",
        "points_over_mean_member",
        "the same: an ensemble of five soft prompts (mean of probabilities) - their mean, points",
        0.0,
        True,
    ),
    ("time_to_loss", "", "sordino/peft", "wall time to PEFT's best held-out loss: Sordino / PEFT", 0.5, False),
    *(
        ("together", f"8 runs, {size} each", "alone/together", title, 1.0, True)
        for size, title in (
            ("4 x 128", "8 runs on one model, 4 x 128 each, a step of all: one after another / together"),
            ("1 x 64", "the same, 1 x 64 each"),
        )
    ),
    ("together-cuda", "8 runs, 4 x 128 each", "alone/together", "the same on a GPU, 4 x 128 each", 3.0, True),
    (
        "together",
        "memory of 8 runs",
        "more, in models",
        "the same: peak memory beyond one run's, in base models",
        0.2,
        False,
    ),
    (
        "sweep",
        "halving / full grid",
        "heldout/best",
        "sweep of 12 runs, halved: held-out loss / the best of the full grid",
        1.01,
        False,
    ),
    ("sweep", "halving / full grid", "rows/full", "the same: rows trained on / the full grid's", 0.4, False),
    ("sweep", "halving / full grid", "seconds/full", "the same: seconds / the full grid's", 0.4, False),
    (
        "engine",
        "16 streams",
        "16/one",
        "engine, 16 streams: 16 soft prompts / one soft prompt, tokens a second",
        0.97,
        True,
    ),
    ("engine", "16 streams", "16/none", "the same: 16 soft prompts / none", 0.93, True),
    (
        "engine",
        "16 streams",
        "16/generate",
        "engine, 16 streams: 16 soft prompts / transformers' generate on its ideal batch",
        1.2,
        True,
    ),
    (
        "engine",
        "16 streams, PEFT one adapter after another",
        "16/peft",
        "engine, 16 streams: 16 soft prompts / PEFT, one adapter after another",
        5.0,
        True,
    ),
    ("engine", "1 stream", "1/generate", "engine, 1 stream: Sordino / transformers' generate", 1.5, True),
    (
        "engine",
        "first token, 100 virtual",
        "second/first",
        "seconds to the first token after 100 vectors: second request / first",
        0.5,
        False,
    ),
    *(
        ("gguf", f"{streams} stream{'s' * (streams > 1)}", "sordino/llama.cpp", title, 1.0, True)
        for streams, title in (
            (1, "llama.cpp, 1 stream with a soft prompt over HTTP / llama.cpp's own server without, tokens a second"),
            (4, "the same: 4 streams, 4 soft prompts"),
            (16, "the same: 16 streams, 16 soft prompts"),
        )
    ),
    (
        "gguf",
        "held-out gain, 2032 tokens",
        "llama.cpp/PyTorch",
        "what a soft prompt gains on held-out texts: the Q4 file in llama.cpp / PyTorch",
        0.9,
        True,
    ),
    (
        "serving",
        "1,000 soft prompts, 200 MB for prefixes",
        "many/one",
        "1,000 soft prompts in random order, 200 MB for prefixes / one soft prompt, tokens a second",
        0.9,
        True,
    ),
    (
        "serving",
        "16 streams over HTTP",
        "http/engine",
        "16 streams over HTTP / the engine called directly, tokens a second",
        0.97,
        True,
    ),
    ("page", "first view", "seconds", "the page's first view, seconds after the server is ready", 1.0, False),
    (
        "page",
        "a token's way to the screen",
        "95 of 100, ms",
        "a token's way from the engine to the screen, milliseconds, 95 of 100",
        50.0,
        False,
    ),
    ("page", "10 tabs open", "ten/none", "tokens a second with ten tabs open / with none", 0.95, True),
    ("hold", "1 streams, 24 tokens read", "held/not held", "1 stream: held / not held, tokens a second", 0.97, True),
    ("hold", "16 streams, 24 tokens read", "held/not held", "16 streams: held / not held, tokens a second", 0.97, True),
    ("vllm", "1 streams", "four/none", "vLLM, 1 stream: with a soft prompt / without, tokens a second", 0.95, True),
    ("vllm", "16 streams", "four/none", "vLLM, 16 streams: four soft prompts / none, tokens a second", 0.95, True),
    ("t5-steps", "8x128", "peft/sordino", "a T5's training step, 8 x 128, 20 virtual: PEFT / Sordino", 1.3, True),
    ("t5-steps", "ragged 32", "peft/sordino", "a T5's training step, 32 ragged rows: PEFT / Sordino", 2.0, True),
    ("t5-steps", "8x128", "sordino/peft memory", "a T5's peak memory beyond the model: Sordino / PEFT", 0.7, False),
    (
        "busy",
        "serve",
        "busy/quiet",
        "16 tokens over HTTP: beside eight busy processes / on a quiet machine",
        3.0,
        False,
    ),
    ("busy", "llama", "busy/quiet", "the same with llama.cpp", 3.0, False),
    (
        "soak",
        "",
        "memory after/before",
        "200 clients, slow and hostile ones among them: memory after / before",
        1.05,
        False,
    ),
    ("soak", "", "/health, worst ms", "the same: /health at worst, milliseconds", 200.0, False),
]
# What users ask first: does it work, is it fast, what does serving many prompts cost. Titles of these rows stand alone.
HEADLINES = (
    ("quality", "best instruction", "over_soft_prompt"),
    ("quality", "excerpt 512", "over_soft_prompt"),
    ("reviews", "mean of seeds 0-2", "points_over_best_instruction"),
    ("training_step", "8 x 128, 20 virtual", "peft/sordino"),
    ("engine", "16 streams", "16/generate"),
    ("gguf", "1 stream", "sordino/llama.cpp"),
)


def main() -> None:
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text("\n".join(page()).rstrip() + "\n", encoding="utf-8")
    print(f"written to {PAGE.relative_to(PAGE.parents[1])}")


def page() -> Iterator[str]:
    yield "# Benchmarks"
    yield ""
    yield "Made by `python -m benchmarks.table` from benchmarks/results/. Each benchmark alternates its sides in one run and takes"
    yield "medians. The top of benchmarks/NAME.py says exactly what it does; `python -m benchmarks.NAME` repeats it. Bold:"
    yield "the target is not reached. A ratio is a claim about one machine, so each machine has its column."
    yield ""
    yield from targets()
    yield ""
    for name in sorted({path.stem for path in RESULTS.glob("*/*.json")}):
        yield f"## {name}"
        yield ""
        for result in results_of(name).values():
            yield from _details(result)


def headlines() -> Iterator[str]:
    """The rows of `targets` that the README shows."""
    yield from targets([row for row in TARGETS if row[:3] in HEADLINES])


def targets(chosen: Sequence[Target] = TARGETS) -> Iterator[str]:
    """The table of targets: what was to be reached, and what was, on each machine."""
    results = {benchmark: results_of(benchmark) for benchmark, *_ in chosen}
    machines = sorted({machine for by_machine in results.values() for machine in by_machine})
    yield f"| what | target | {' | '.join(machines)} |"
    yield "|---|---|" + "---|" * len(machines)
    for benchmark, rows, field, title, target, higher in chosen:
        by_machine = results[benchmark]
        cells = [_cell(by_machine[one], rows, field, target, higher) if one in by_machine else "" for one in machines]
        yield f"| {title} | {'≥' if higher else '≤'} {target} | {' | '.join(cells)} |"


def _cell(result: dict[str, Any], rows: str, field: str, target: float, higher: bool) -> str:
    """Bold where the target is not reached."""
    for row in result["rows"]:
        if not rows or rows in (row.get("rows"), row.get("in_front")):
            value = row.get(field)
            # For a value with its interval, the low end.
            value = value[1] if isinstance(value, list) else value
            # What this row measures did not happen.
            if value is None or math.isnan(value):
                return "**not met**"
            return f"{value:g}" if (value >= target if higher else value <= target) else f"**{value:g}**"
    return ""


def _details(result: dict[str, Any]) -> Iterator[str]:
    machine = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    yield (
        f"{machine_name(machine)}, {machine['cores']} cores, {machine['threads']} threads, "
        f"{machine['memory_gib']} GiB; {versions}; {machine['date']}"
    )
    yield ""
    # Rows with the same keys share a table; curves are only in the JSON.
    for keys, rows in groupby(result["rows"], key=lambda row: [key for key in row if _shown(row[key]) is not None]):
        # A name without a number.
        if len(keys) < 2:
            continue
        yield "| " + " | ".join(keys) + " |"
        yield "|" + "---|" * len(keys)
        for row in rows:
            yield "| " + " | ".join(str(_shown(row[key])) for key in keys) + " |"
        yield ""


def _shown(value: Any) -> str | None:
    """A cell; a value with its interval as "+0.1 [+0.0, +0.2]". None for what is no cell."""
    if isinstance(value, list) and len(value) == 3 and all(isinstance(number, float) for number in value):
        return f"{value[0]:+.3f} [{value[1]:+.3f}, {value[2]:+.3f}]"
    return None if isinstance(value, list | dict) else "" if value is None else str(value)


if __name__ == "__main__":
    main()
