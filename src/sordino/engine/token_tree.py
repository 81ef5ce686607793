"""Values by sequences of token ids, found by the longest common beginning: a radix tree.

Every operation costs the length of the ids it is given, whatever else the tree holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Generic, TypeVar

T = TypeVar("T")

# How many values that share equally many ids are offered: the others are as good, and there may be thousands.
_OFFERED = 8


class _Node(Generic[T]):
    """label: the ids from the parent to here. children: by the first id of their label."""

    __slots__ = ("children", "label", "value")

    def __init__(self, label: tuple[int, ...], value: T | None = None) -> None:
        self.label, self.value = label, value
        self.children: dict[int, _Node[T]] = {}


class TokenTree(Generic[T]):
    """One value for each sequence of ids (one id or more)."""

    def __init__(self) -> None:
        self._root: _Node[T] = _Node(())

    def __bool__(self) -> bool:
        return bool(self._root.children)

    def put(self, ids: tuple[int, ...], value: T) -> None:
        """Set the value of a sequence."""
        path, position = self._path(ids)
        node, depth = path[-1]
        if depth - len(node.label) < position < depth:
            # The label ends differently: split it where the two part.
            parent, start = path[-2]
            split: _Node[T] = _Node(node.label[: position - start])
            parent.children[split.label[0]] = split
            node.label = node.label[position - start :]
            split.children[node.label[0]] = node
            node = split
        if position < len(ids):
            node.children[ids[position]] = _Node(ids[position:], value)
        else:
            node.value = value

    def remove(self, ids: tuple[int, ...]) -> None:
        """Raises KeyError."""
        path, position = self._path(ids)
        node, depth = path[-1]
        if position < len(ids) or depth != position or node.value is None:
            raise KeyError(ids)
        node.value = None
        if not node.children:
            parent = path[-2][0]
            del parent.children[node.label[0]]
            node = parent
        if node.value is None and len(node.children) == 1 and node is not self._root:
            # No fork any more: merge the node and its only child.
            (child,) = node.children.values()
            node.label, node.value, node.children = node.label + child.label, child.value, child.children

    def beginnings(self, ids: Sequence[int]) -> list[T]:
        """The values of sequences that `ids` begins with."""
        path, position = self._path(ids)
        return [node.value for node, depth in path if depth <= position and node.value is not None]

    def alike(self, ids: Sequence[int]) -> Iterator[tuple[T, int]]:
        """(value, ids shared) of sequences that begin as `ids` does, the most shared first; a few of equally many."""
        path, position = self._path(ids)
        seen: _Node[T] | None = None
        for node, depth in reversed(path):
            shared = min(depth, position)
            if shared:
                for value in islice(_values(node, seen), _OFFERED):
                    yield value, shared
            seen = node

    def _path(self, ids: Sequence[int]) -> tuple[list[tuple[_Node[T], int]], int]:
        """The nodes that `ids` leads through, each with the ids from the root to it, and how many of `ids` they have. The last
        node's label may be shared in part.
        """
        path: list[tuple[_Node[T], int]] = [(self._root, 0)]
        position = 0
        while position < len(ids) and (child := path[-1][0].children.get(ids[position])) is not None:
            path.append((child, position + len(child.label)))
            shared = _shared(child.label, ids, position)
            position += shared
            if shared < len(child.label):
                break
        return path, position


def _values(node: _Node[T], without: _Node[T] | None) -> Iterator[T]:
    """The values at and below a node, but for one of its children. Lazy: a node may have thousands of children."""
    if node.value is not None:
        yield node.value
    waiting = [iter(node.children.values())]
    while waiting:
        child = next(waiting[-1], None)
        if child is None:
            waiting.pop()
        elif child is not without:
            if child.value is not None:
                yield child.value
            waiting.append(iter(child.children.values()))


def _shared(label: tuple[int, ...], ids: Sequence[int], start: int) -> int:
    """How many ids of `label` are those of `ids` from `start` on."""
    other = tuple(ids[start : start + len(label)])
    if other == label:
        return len(label)
    return next((at for at, (one, two) in enumerate(zip(label, other, strict=False)) if one != two), len(other))
