"""The parts of README.md that are measured: python -m benchmarks.readme (or make readme)

samples: five fixed openings, seed 0, all shown, without and with the packaged keeper's log. numbers: the table of targets.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmarks.table import targets
from sordino.engine.generate import Request, complete
from sordino.engine.sampling import Sampling
from sordino.formats import read
from sordino.models.base_model import load

ROOT = Path(__file__).parents[1]
PROMPT = ROOT / "src" / "sordino" / "data" / "prompts" / "keeper.zip"
OPENINGS = (
    "The stranger knocked at the door, and",
    "On Tuesday my sister wrote to say that",
    "There was nothing for dinner but",
    "The doctor looked at me for a while and said",
    "In the morning",
)
TOKENS = 50


def main() -> None:
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    text = filled(text, "samples", samples())
    text = filled(text, "numbers", targets())
    readme.write_text(text, encoding="utf-8")
    print("README.md written")


def filled(text: str, name: str, lines: Iterable[str]) -> str:
    """`text` with what stands between the marks of `name` replaced."""
    marks = re.compile(rf"(<!-- make readme: {name} -->\n).*?(<!-- end: {name} -->)", re.DOTALL)
    if not marks.search(text):
        raise SystemExit(f"README.md has no marks for {name}")
    body = "\n".join(lines)
    return marks.sub(lambda found: f"{found[1]}{body}\n{found[2]}", text)


def samples() -> Iterator[str]:
    base, prompt = load("smollm2"), read(PROMPT)
    sampling = Sampling(max_tokens=TOKENS)
    requests = [Request(text, which, 0) for text in OPENINGS for which in (None, prompt)]
    texts = complete(base, requests, sampling)
    for index, opening in enumerate(OPENINGS):
        yield f"> **{opening}**"
        yield ">"
        for name, told in zip(("without", "with"), texts[2 * index : 2 * index + 2], strict=True):
            yield f"> *{name}:* {' '.join(told.split())} …"
            yield ">"
        yield ""


if __name__ == "__main__":
    main()
