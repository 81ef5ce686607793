"""The log-probability of every label of a closed set after every text, all labels together.

A text runs once after its prefix, whatever the number of labels. A label's first token is predicted from the text's last state.
Labels of several tokens continue from the text's keys and values, and beginnings that labels share run once where the family
allows packed rows. For a text of T tokens, N parameters without the embeddings, and S tokens in the labels' distinct beginnings
(0 where every label is one token), that is 2N (T + S) FLOPs and 2VD (1 + S) for the head. One by one, L labels of M tokens in all
would take 2N (L T + M) and 2VD M.

Shape key: J texts after conditions, L labels, C conditions, S states (beginnings of labels, the empty one first), E edges of the
label tree (a token after a beginning), D model width, V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sordino.errors import DataError
from sordino.evaluation.conditions import Condition
from sordino.evaluation.confidence import Floats
from sordino.evaluation.scoring import Progress
from sordino.forward.encoder_decoder import InputPrefixes, decode, encode
from sordino.forward.longer import extend_prefixes
from sordino.forward.nll import Head, head_of
from sordino.forward.packing import pack
from sordino.forward.prefix import Prefixes, forward_rows, packable
from sordino.forward.rows import rows_from_examples
from sordino.forward.token_losses import context_groups, encode_contexts
from sordino.models.base_model import BaseModel
from sordino.models.memory import memory_errors

# Logits held at once: 128 x 49,152 in float32 are 25 MB.
_LOGITS_AT_ONCE = 2**23


@dataclass(frozen=True)
class TextBehind:
    """A text to score the labels behind: the index of its condition, and its token ids without BOS."""

    condition: int
    ids: tuple[int, ...]


@dataclass(frozen=True)
class LabelTree:
    """Labels as token ids, and the tree of their beginnings.

    beginnings: the distinct beginnings that another token follows, the empty one first. token_E follows beginning_E. A label l
    sums the edges edge_P with label_P = l. paths: the beginnings that are not part of a longer one.
    """

    ids: tuple[tuple[int, ...], ...]
    beginnings: tuple[tuple[int, ...], ...]
    beginning_E: tuple[int, ...]
    token_E: tuple[int, ...]
    edge_P: tuple[int, ...]
    label_P: tuple[int, ...]
    paths: tuple[tuple[int, ...], ...]

    @property
    def depth(self) -> int:
        """Tokens of the longest label."""
        return max(map(len, self.ids))

    def sums(self, values_JE: Floats) -> Floats:
        """Values of tokens [J, E] summed to labels [J, L]."""
        totals_LJ = np.zeros((len(self.ids), len(values_JE)))
        np.add.at(totals_LJ, list(self.label_P), values_JE.T[list(self.edge_P)])
        return totals_LJ.T

    def state_places(self) -> list[tuple[int, int]]:
        """(path, token of the path) of the state after each beginning but the empty one."""
        return [
            next((at, len(begun) - 1) for at, path in enumerate(self.paths) if path[: len(begun)] == begun)
            for begun in self.beginnings[1:]
        ]


def label_tree(ids: Sequence[Sequence[int]], texts: Sequence[str] = ()) -> LabelTree:
    """The tree of labels given as token ids. texts: the labels, for errors.

    Raises DataError for an empty label, or one that begins another and would always win.
    """
    labels = tuple(tuple(label) for label in ids)
    beginnings: dict[tuple[int, ...], int] = {(): 0}
    edges: dict[tuple[int, int], int] = {}
    pairs: list[tuple[int, int]] = []
    for at, label in enumerate(labels):
        for length, token in enumerate(label):
            place = beginnings.setdefault(label[:length], len(beginnings))
            pairs.append((edges.setdefault((place, token), len(edges)), at))
    counts = Counter(labels)
    for at, label in enumerate(labels):
        # The empty label is the beginning of all.
        if label in beginnings or counts[label] > 1:
            other = next(n for n, longer in enumerate(labels) if n != at and longer[: len(label)] == label)
            raise DataError(
                "in this model's tokens a label begins another, and would always win",
                where="--labels",
                got=" and ".join(repr(texts[n].strip() if texts else labels[n]) for n in (at, other)),
                do="rename one of them",
            )
    inner = [begun for begun in beginnings if begun]
    paths = tuple(
        begun for begun in inner if not any(other[: len(begun)] == begun for other in inner if len(other) > len(begun))
    )
    return LabelTree(
        labels,
        tuple(beginnings),
        tuple(place for place, _ in edges),
        tuple(token for _, token in edges),
        tuple(edge for edge, _ in pairs),
        tuple(at for _, at in pairs),
        paths,
    )


def edge_logps(
    base: BaseModel,
    conditions: Sequence[Condition],
    texts: Sequence[TextBehind],
    tree: LabelTree,
    *,
    pass_tokens: int,
    progress: Progress = lambda done, total: None,
) -> Floats:
    """log p(token_E | condition, text, beginning_E) in nats [J, E]; `tree.sums` makes labels of them.

    After a condition of length 0, an empty text is not allowed: nothing could predict the label.
    """
    logp_JE = np.zeros((len(texts), len(tree.token_E)))
    head, done = head_of(base.network), 0
    with torch.inference_mode(), memory_errors("scoring labels", "lower --pass-tokens"):
        for group in context_groups(conditions):
            prefixes = encode_contexts(base, [conditions[c] for c in group])
            leading = conditions[group[0]].leading
            mine = [at for at, text in enumerate(texts) if text.condition in group]
            led = [(group.index(texts[at].condition), (*leading, *texts[at].ids)) for at in mine]
            if isinstance(prefixes, InputPrefixes):
                passes = _decoder_states(base, prefixes, led, tree, pass_tokens)
            else:
                passes = _states(base, prefixes, led, tree, pass_tokens)
            for places, states_JSD in passes:
                logp_JE[[mine[place] for place in places]] = _logps(head, states_JSD, tree)
                done += len(places)
                progress(done, len(texts))
    return logp_JE


# (prefix, token ids) of each text.
_Texts = Sequence[tuple[int, tuple[int, ...]]]


def _decoder_states(
    base: BaseModel, prefixes: InputPrefixes, texts: _Texts, tree: LabelTree, pass_tokens: int
) -> Iterator[tuple[list[int], Tensor]]:
    """`_states` for an encoder-decoder: the encoder reads a text once, and the decoder each of the labels' beginnings."""
    sides = base.encoder_decoder
    assert sides is not None
    paths, start = tree.paths or ((),), len(sides.start_ids)
    width = start + max(map(len, paths))
    written_LT = torch.zeros(len(paths), width, dtype=torch.long, device=base.device)
    for label, path in enumerate(paths):
        written_LT[label, : start + len(path)] = torch.tensor([*sides.start_ids, *path])
    states = [start - 1, *(path * width + start + token for path, token in tree.state_places())]
    read = {at: prefixes.lengths[k] + len(ids) + len(sides.end_ids) for at, (k, ids) in enumerate(texts)}
    order = sorted(read, key=lambda at: (-read[at], at))
    while order:
        count = max(1, pass_tokens // (read[order[0]] + len(paths) * width))
        places, order = order[:count], order[count:]
        inputs = [torch.tensor([*texts[at][1], *sides.end_ids], dtype=torch.long) for at in places]
        encoded = encode(base.network, prefixes, [texts[at][0] for at in places], inputs)
        each = encoded.select([row for row in range(len(places)) for _ in paths])
        hidden = decode(base.network, each, written_LT.repeat(len(places), 1))
        yield places, hidden.unflatten(0, (len(places), -1)).flatten(1, 2)[:, states]


def _states(
    base: BaseModel, prefixes: Prefixes, texts: _Texts, tree: LabelTree, pass_tokens: int
) -> Iterator[tuple[list[int], Tensor]]:
    """Indices of texts, and the states [j, S, D] after them, one forward pass at a time."""
    run: Callable[..., tuple[list[int], Tensor]] = _branched if tree.paths else _last_states
    longest = max((len(ids) for _, ids in texts), default=0)
    if tree.paths or not packable(base.network):
        rows = [[at] for at in sorted(range(len(texts)), key=lambda at: (-len(texts[at][1]), texts[at][0]))]
    else:
        # A row has one prefix, so the texts of each prefix are packed separately.
        rows = []
        for k in range(len(prefixes.lengths)):
            mine = [at for at, (prefix, _) in enumerate(texts) if prefix == k]
            rows += [[mine[place] for place in row] for row in pack([len(texts[at][1]) for at in mine], longest)]
    width = prefixes.width + longest + sum(map(len, tree.paths))
    rows_a_pass = max(1, pass_tokens // max(1, width))
    for at in range(0, len(rows), rows_a_pass):
        yield run(base, prefixes, texts, rows[at : at + rows_a_pass], tree)


def _last_states(
    base: BaseModel, prefixes: Prefixes, texts: _Texts, groups: Sequence[Sequence[int]], tree: LabelTree
) -> tuple[list[int], Tensor]:
    """The states [j, 1, D] at the texts' last tokens, several texts a row."""
    prompts = [texts[group[0]][0] for group in groups]
    rows = rows_from_examples([[texts[at][1] for at in group] for group in groups], prompts).to(base.device)
    hidden_BTD = forward_rows(base.network, prefixes, rows)
    width, places, ends = rows.ids_BT.shape[1], [], []
    for b, group in enumerate(groups):
        end = 0
        for at in group:
            end += len(texts[at][1])
            places.append(at)
            # After an empty text, the prefix's last state predicts the label.
            ends.append(b * width + end - 1 if texts[at][1] else len(groups) * width + prompts[b])
    states = torch.cat([hidden_BTD.flatten(0, 1), prefixes.last_KD])
    return places, states[torch.tensor(ends, device=base.device)][:, None]


def _branched(
    base: BaseModel, prefixes: Prefixes, texts: _Texts, groups: Sequence[Sequence[int]], tree: LabelTree
) -> tuple[list[int], Tensor]:
    """The states [j, S, D] at the texts' last tokens and after each beginning of the labels."""
    places = [group[0] for group in groups]
    rows = rows_from_examples([[texts[at][1]] for at in places], [texts[at][0] for at in places]).to(base.device)
    read = extend_prefixes(base.network, prefixes, rows)
    count, each = len(places), len(tree.paths)
    if packable(base.network):
        branches = rows_from_examples([tree.paths] * count, range(count)).to(base.device)
        starts = np.cumsum([0, *map(len, tree.paths)])
        flat = [int(starts[path]) + token for path, token in tree.state_places()]
        hidden_jSD = forward_rows(base.network, read, branches)[:, flat]
    else:
        each_row = [row for row in range(count) for _ in range(each)]
        branches = rows_from_examples([[path] for path in tree.paths] * count, each_row).to(base.device)
        hidden = forward_rows(base.network, read, branches).unflatten(0, (count, each))
        hidden_jSD = torch.stack([hidden[:, path, token] for path, token in tree.state_places()], dim=1)
    return places, torch.cat([read.last_KD[:, None], hidden_jSD], dim=1)


def _logps(head: Head, states_JSD: Tensor, tree: LabelTree) -> Floats:
    """[J, E] from the states after each beginning."""
    device = states_JSD.device
    beginning_E, token_E = (torch.tensor(of, device=device) for of in (tree.beginning_E, tree.token_E))
    at_once = max(1, _LOGITS_AT_ONCE // (head.width * states_JSD.shape[1]))
    found = []
    for part_JSD in states_JSD.split(at_once):
        logits_JSV = head.logits(part_JSD.flatten(0, 1)).unflatten(0, part_JSD.shape[:2])
        logits_JSV = logits_JSV.to(torch.promote_types(logits_JSV.dtype, torch.float32))
        total_JS = logits_JSV.logsumexp(-1)
        found.append((logits_JSV[:, beginning_E, token_E] - total_JS[:, beginning_E]).cpu().double())
    return torch.cat(found).numpy()
