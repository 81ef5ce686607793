"""The measured parts of README.md and docs/samples.md: python -m benchmarks.readme (or make readme)

samples: five fixed openings, seed 0, without and with the packaged keeper's log; all in docs/samples.md, the first in the README.
numbers: the rows of the table of targets that users ask for first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmarks.table import headlines
from sordino.engine.generate import TextRequest, complete
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
    written = list(samples())
    fill(ROOT / "docs" / "samples.md", "samples", (line for sample in written for line in sample))
    fill(ROOT / "README.md", "sample", written[0])
    fill(ROOT / "README.md", "numbers", headlines())


def fill(page: Path, name: str, lines: Iterable[str]) -> None:
    """Replace what stands between the marks of `name` on a page."""
    text = page.read_text(encoding="utf-8")
    marks = re.compile(rf"(<!-- make readme: {name} -->\n).*?(<!-- end: {name} -->)", re.DOTALL)
    if not marks.search(text):
        raise SystemExit(f"{page.name} has no marks for {name}")
    body = "\n".join(lines)
    page.write_text(marks.sub(lambda found: f"{found[1]}{body}\n{found[2]}", text), encoding="utf-8")
    print(f"{page.relative_to(ROOT)}: {name} written")


def samples() -> Iterator[list[str]]:
    """For each opening, its lines in Markdown."""
    base, prompt = load("smollm2"), read(PROMPT)
    sampling = Sampling(max_tokens=TOKENS)
    requests = [TextRequest(text, which, 0) for text in OPENINGS for which in (None, prompt)]
    texts = complete(base, requests, sampling)
    for index, opening in enumerate(OPENINGS):
        pair = zip(("without", "with"), texts[2 * index : 2 * index + 2], strict=True)
        written = (f"> *{name}:* {' '.join(text.split())} …" for name, text in pair)
        yield [f"> **{opening}**", *(line for text in written for line in (">", text)), ""]


if __name__ == "__main__":
    main()
