"""What a soft prompt file tells the people it is given to."""

from __future__ import annotations

from sordino.prompts.mixture import Mixture, Prompt


def file_disclosure(prompt: Prompt) -> list[str]:
    """What the native file will disclose, a line each, for the user to read before it is written."""
    known, base = prompt.metadata, prompt.metadata.base
    said = {
        "name": known.name,
        "author": known.author,
        "description": known.description,
        "supported models": ", ".join(known.supported),
        "base model": ", ".join(filter(None, (base.id, base.family, base.fingerprint[:16]))),
        "licence": known.licence,
        "tags": ", ".join(known.tags),
        "rating": known.rating,
        "created": known.created,
        "training recipe": ", ".join(known.training),
        "held-out results": ", ".join(known.heldout),
        "keys of other programs": ", ".join(known.foreign),
    }
    lines = [f"{label}: {value}" for label, value in said.items() if value]
    if known.samples:
        lines.append(f"samples: {len(known.samples)}, texts that the model wrote and the openings they were given")
    if isinstance(prompt, Mixture):
        for index, component in enumerate(prompt.components):
            lines += [f"component {index}, {line}" for line in file_disclosure(component)]
        return lines
    lines.append(
        f"the matrix: {prompt.n_tokens} x {prompt.d_model} numbers; the words nearest to them can show what was trained on"
    )
    init = str(known.training.get("init", ""))
    if "excerpt" in init or init == "data":
        lines.append(
            "the matrix began as an excerpt of the training text: its nearest words can still spell parts of it"
        )
    return lines
