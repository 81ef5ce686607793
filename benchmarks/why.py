"""The table of docs/why.md and its picture, from the newest holding.json: python -m benchmarks.why (or make readme)"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.authorship import SOME_STYLE
from benchmarks.measuring import results_of
from benchmarks.readme import ROOT, fill
from sordino.evaluation.pictures import ACCENT, COLOURS, FAINT, PLAIN, new_figure, plain_axes, write_picture

PAGE = ROOT / "docs" / "why.md"
PICTURE = ROOT / "docs" / "pictures" / "holding.png"
# Colour and line of each; the others' colours in turn.
_LINES: Mapping[str, tuple[str, str]] = {
    "KV, held": (ACCENT, "-"),
    "KV, not held": (ACCENT, ":"),
    "embedding, held": (PLAIN, "-"),
    "embedding, not held": (PLAIN, ":"),
    "LoRA r8": (COLOURS[2], "--"),
    "control vector": (COLOURS[3], "--"),
    "five examples": (COLOURS[4], "--"),
    "system prompt": ("#3d4650", "--"),
    "nothing": (FAINT, "-"),
}
_COLUMNS = (
    *("writes with", "style, first 512", "style, last 512", "kept", "loss at 0", "loss at 1,536", "followed", "damage"),
    *("positions", "seconds", "bytes", "a batch mixes"),
)
_NAMES = {"KV": "KV prompt", "embedding": "embedding prompt"}


def main() -> None:
    fill(PAGE, "holding", table())
    if _rows():
        draw()


def table() -> Iterator[str]:
    """Means over the voices that are complete; where none is, what there is of them."""
    rows = _rows()
    if not rows:
        yield "Not measured yet: the run takes about forty minutes on two idle cores."
        return
    voices = list(dict.fromkeys(row["voice"] for row in rows))
    missing = [writer for writer in _LINES if writer not in _by_writer(rows)]
    judges = ", ".join(f"{row['voice']} {row['AUC of the judge']}" for row in rows if "AUC of the judge" in row)
    of = f"{voices[0]} alone" if len(voices) == 1 else f"means over {len(voices)} voices"
    yield f"*Measured* ({of}). The classifier's AUC on texts that it was not trained on: {judges}."
    if missing:
        yield f"Not run yet: {', '.join(map(_named, missing))}."
    yield ""
    yield "| " + " | ".join(_COLUMNS) + " |"
    yield "|" + "---|" * len(_COLUMNS)
    for writer, own in _by_writer(rows).items():
        first, last, near, far, followed, damage, positions, seconds, size = (
            float(np.mean([row[key] for row in own]))
            for key in (
                *("style, first", "style, last", "NLL", "NLL at the end", "followed", "damage"),
                *("positions", "cpu_seconds", "bytes"),
            )
        )
        kept = f"{last / first:.0%}" if first >= SOME_STYLE else "–"
        yield (
            f"| {_named(writer)} | {first:.2f} | {last:.2f} | {kept} | {near:.3f} | {far:.3f} | "
            f"{followed:.3g} of {own[0]['asked']} | {damage:+.3f} | {positions:.0f} | {seconds:.0f} | {size:,.0f} | "
            f"{own[0]['a batch mixes']} |"
        )


def draw() -> None:
    """The style every so many tokens, a line for each writer."""
    figure = new_figure(8.6, 4.2)
    axes = figure.subplots()
    by_writer = _by_writer(_rows())
    for writer, (colour, line) in _LINES.items():
        if writer in by_writer:
            style = np.mean([row["style"] for row in by_writer[writer]], axis=0)
            ends = [256 * (at + 1) for at in range(len(style))]
            width = 2.4 if writer.endswith(", held") else 1.5
            axes.plot(ends, style, line, color=colour, linewidth=width, label=_named(writer))
    axes.axhline(0, color=FAINT, linewidth=0.8)
    axes.set_xticks(ends)
    axes.set_xlabel("tokens written")
    axes.set_ylabel("style: 0 the base model, 1 the author")
    axes.set_title("How much of the voice is left as the story grows", loc="left")
    plain_axes(axes)
    axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.01, 0.5))
    write_picture(figure, PICTURE)
    print(f"{PICTURE.relative_to(ROOT)} written")


def _rows() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = next((result["rows"] for result in results_of("holding").values()), [])
    writers = Counter(row["voice"] for row in rows if "writer" in row)
    complete = [row for row in rows if writers[row["voice"]] == len(_LINES)]
    return complete or rows


def _by_writer(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    writers = dict.fromkeys(row["writer"] for row in rows if "writer" in row)
    return {writer: [row for row in rows if row.get("writer") == writer] for writer in writers}


def _named(writer: str) -> str:
    kind, comma, rest = writer.partition(", ")
    return f"{_NAMES.get(kind, kind)}{comma}{rest}"


if __name__ == "__main__":
    main()
