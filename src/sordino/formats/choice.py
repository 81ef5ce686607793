"""Which tensor of a file with several is the soft prompt."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from sordino.errors import SoftPromptFileError
from sordino.formats.sources import BytesSource
from sordino.formats.tensors import ITEM_SIZES, Opened, TensorView, load, row_major, shape_of

PEFT_KEY = "prompt_embeddings"
# PEFT's name, and the name in files made with the SoftEmbedding class that many scripts share.
_KNOWN_NAMES = (PEFT_KEY, "learned_embedding")
# Of PEFT's multitask prompt tuning (arXiv 2303.02861): [tasks, n_tokens, ranks] and [tasks, ranks, d_model].
_COLUMNS, _ROWS = "prefix_task_cols", "prefix_task_rows"
# What PEFT saves of a base model whose vocabulary was resized, by the names that architectures use.
_WORDS = re.compile(r".*\b(embed_tokens|wte|word_embeddings|embed_in|tok_embeddings|shared)\.weight")
_HEAD = re.compile(r".*\b(lm_head|embed_out|output|output_layer)\.(weight|bias)")
# In Petals: vectors that are added to the hidden states of every layer.
_DEEP = "intermediate_prompt_embeddings"

Named = tuple[str, TensorView]


def choose(tensors: Sequence[Named], index: int | None, where: str) -> Opened:
    """The soft prompt, or soft prompt number `index` of the file. Raises SoftPromptFileError, with a list to choose from.

    A tensor with a known name is the only candidate; otherwise all tensors of floats with two or three dimensions are. One with
    three, [k, n_tokens, d_model], holds k soft prompts.
    """
    names = [name for name, _ in tensors]
    if PEFT_KEY in names and any(name in (_COLUMNS, _ROWS) or name.startswith("base_model.") for name in names):
        return of_adapter(tensors, index, where)
    candidates = _candidates(tensors, where)
    numbers = [max(1, tensor.shape[0]) if len(tensor.shape) == 3 else 1 for _, tensor in candidates]
    if index is None and _are_deep(tensors, candidates):
        raise SoftPromptFileError(
            "deep prompts, which act on every layer; a soft prompt acts only on the input of the first",
            where=where,
            got=_listed(candidates, numbers),
            do="train it again without deep prompts (Petals: tuning_mode ptune); --index 0 takes the vectors of the first "
            "layer, which were not trained to work alone",
        )
    wanted = _picked(index, sum(numbers), where, _listed(candidates, numbers))
    for (_, tensor), number in zip(candidates, numbers, strict=True):
        if wanted < number:
            return Opened(tensor if number == 1 else tensor.part(wanted))
        wanted -= number
    raise AssertionError("the index was checked")


def of_adapter(tensors: Sequence[Named], index: int | None, where: str) -> Opened:
    """The soft prompt in PEFT's adapter_model, or in one for several tasks number `index`. Raises SoftPromptFileError.

    The embeddings of a base model whose vocabulary was resized are saved with it. Anything else was trained together with the soft
    prompt, which does not work without it.
    """
    beside = dict(tensors)
    prompt = beside.pop(PEFT_KEY, None)
    tasks = [beside.pop(name) for name in (_COLUMNS, _ROWS) if name in beside]
    if prompt is None or len(tasks) == 1 or (beside and not _are_words(beside, prompt.shape[-1:])):
        raise SoftPromptFileError(
            "the adapter holds more than a soft prompt" if prompt else "the adapter holds no soft prompt",
            where=where,
            expected=PEFT_KEY,
            got=", ".join([name[-60:] for name, _ in tensors if name != PEFT_KEY][:4]),
        )
    warning = (
        f"{where}: saved after the vocabulary of its base model was resized. The soft prompt is whole and is read; the base "
        "model's resized embeddings beside it are not, so words that were added have no meaning here"
    )
    if tasks:
        prompt = _of_task(prompt, tasks[0], tasks[1], index, where)
    else:
        only(index, where)
    return Opened(prompt, warning=warning if beside else "")


def only(index: int | None, where: str) -> None:
    """For formats that hold one soft prompt: accept no index other than 0. Raises SoftPromptFileError."""
    if index:
        raise SoftPromptFileError(
            "the file holds one soft prompt", where=where, got=f"--index {index}", do="leave --index out"
        )


def _picked(index: int | None, total: int, where: str, listed: str) -> int:
    if index is None and total > 1:
        raise SoftPromptFileError(
            "the file holds several soft prompts", where=where, got=listed, do="choose one with --index"
        )
    wanted = index or 0
    if not 0 <= wanted < total:
        raise SoftPromptFileError(
            "the file does not hold that many soft prompts",
            where=where,
            expected=f"an index from 0 to {total - 1}",
            got=f"--index {wanted}",
        )
    return wanted


def _of_task(shared: TensorView, columns: TensorView, rows: TensorView, index: int | None, where: str) -> TensorView:
    """PEFT's prompt for one task: shared [P, D] * (columns [P, R] @ rows [R, D])."""
    n_tokens, d_model = shape_of(shared)
    shapes = columns.shape, rows.shape
    tasks, ranks = (columns.shape[0], columns.shape[2]) if len(columns.shape) == 3 else (0, 0)
    if not tasks or shapes != ((tasks, n_tokens, ranks), (tasks, ranks, d_model)):
        raise SoftPromptFileError(
            "the tensors of the tasks do not agree with the shared one",
            where=where,
            expected=f"[tasks, {n_tokens}, ranks] and [tasks, ranks, {d_model}]",
            got=f"{list(shapes[0])} and {list(shapes[1])}",
        )
    task = _picked(index, tasks, where, f"0-{tasks - 1}: the tasks of {PEFT_KEY} {[n_tokens, d_model]}")
    # A product that overflows is refused as infinite when the tensor is loaded.
    with np.errstate(over="ignore", invalid="ignore"):
        matrix_PD = load(shared) * (load(columns.part(task)) @ load(rows.part(task)))
    source = BytesSource(matrix_PD.astype("<f4", copy=False).tobytes(), where)
    return TensorView(source, "float32", (n_tokens, d_model), row_major((n_tokens, d_model)))


def _are_words(tensors: Mapping[str, TensorView], width: tuple[int, ...]) -> bool:
    """Whether these are a model's input embeddings [vocabulary, d_model], and perhaps its head."""
    words = [tensor.shape for name, tensor in tensors.items() if _WORDS.fullmatch(name)]
    heads = [tensor.shape for name, tensor in tensors.items() if _HEAD.fullmatch(name)]
    if len(words) != 1 or len(words) + len(heads) != len(tensors):
        return False
    (shape,) = words
    return len(shape) == 2 and shape[1:] == width and all(head in (shape, shape[:1]) for head in heads)


def _are_deep(tensors: Sequence[Named], candidates: Sequence[Named]) -> bool:
    if any(_DEEP in name for name, _ in tensors):
        return True
    shapes = [tensor.shape for _, tensor in candidates]
    # Petals pickles its two embeddings without names: [P, D], and [P, L * D] for all later layers.
    return (
        len(shapes) == 2
        and all(len(shape) == 2 for shape in shapes)
        and shapes[0][0] == shapes[1][0]
        and 0 < shapes[0][1] < shapes[1][1]
        and shapes[1][1] % shapes[0][1] == 0
    )


def _candidates(tensors: Sequence[Named], where: str) -> list[Named]:
    if not tensors:
        raise SoftPromptFileError("there is no tensor in it", where=where)
    for known in _KNOWN_NAMES:
        named = [item for item in tensors if item[0].removesuffix(".weight").split(".")[-1] == known]
        if named:
            return named
    if len(tensors) == 1:
        # If it is unsuitable, the checks of every matrix say so.
        return list(tensors)
    floating = [item for item in tensors if item[1].dtype in ITEM_SIZES and len(item[1].shape) in (2, 3)]
    if not floating:
        shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors[:4])
        raise SoftPromptFileError(
            "no tensor in it is a soft prompt", where=where, expected="floats [n_tokens, d_model]", got=shapes
        )
    return floating


def _listed(candidates: Sequence[Named], numbers: Sequence[int]) -> str:
    parts, first = [], 0
    for (name, tensor), number in list(zip(candidates, numbers, strict=True))[:8]:
        which = str(first) if number == 1 else f"{first}-{first + number - 1}"
        parts.append(f"{which}: {name[-60:] or 'tensor'} {list(tensor.shape)}")
        first += number
    return ", ".join(parts) + (f" and {len(candidates) - 8} more" if len(candidates) > 8 else "")
