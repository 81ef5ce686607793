"""Token ids to text as they come: never part of a character, never the beginning of a possible stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

# What tokenizers decode an incomplete character to. A row that ends there drops it.
HALF = "\ufffd"
Decode = Callable[[Sequence[int]], str]
_WINDOW = 8


class Detokenizer:
    """One row's new text.

    New tokens are decoded together with the last few before them: many tokenizers drop a space at the very front, and those that
    fall back to bytes decode a run of bytes as one. So a token costs the decoding of a few, however long the text is. The window
    grows with every token up to `_WINDOW`: while its start stays, one decoding a token is enough.
    """

    def __init__(self, decode: Decode, context_ids: Sequence[int], stop: Sequence[str] = ()) -> None:
        self._decode = decode
        # The window: the first `_whole` tokens are whole characters and decode to `_known`; the others are not yet whole.
        self._ids = window(decode, context_ids)
        self._whole, self._known = len(self._ids), decode(self._ids)
        self._stop = stop
        # Whole text that is held back because it may become a stop string.
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that may be shown now. After a stop string `stopped` is true, and nothing follows."""
        self._ids.append(token)
        decoded = self._decode(self._ids)
        text = decoded[len(self._known) :]
        if text.endswith(HALF):
            return ""
        if len(self._ids) > _WINDOW:
            del self._ids[: self._whole]
            decoded = self._decode(self._ids)
        self._whole, self._known = len(self._ids), decoded
        return self._shown(text)

    def finish(self) -> str:
        """The text that was held back; the bytes of an incomplete character are dropped."""
        decoded = self._decode(self._ids)
        rest, self._known = decoded[len(self._known) :], decoded
        text = self._shown(rest.rstrip(HALF))
        if self.stopped:
            return text
        text, self._held = text + self._held, ""
        return text

    def _shown(self, text: str) -> str:
        text = self._held + text
        ends = [at for at in (text.find(word) for word in self._stop) if at >= 0]
        if ends:
            self.stopped, self._held = True, ""
            return text[: min(ends)]
        safe = len(text) - held_back(text, self._stop)
        self._held = text[safe:]
        return text[:safe]


def window(decode: Decode, context_ids: Sequence[int]) -> list[int]:
    """The last few tokens of the context, from a whole character on."""
    last: list[int] = []
    for count in (4, 8, 16):
        last = list(context_ids[-count:])
        if not decode(last).startswith(HALF):
            break
    return last


def held_back(text: str, stop: Sequence[str]) -> int:
    """How many characters at the end of `text` must wait: an incomplete one, and the beginning of a stop string before it."""
    whole = text.rstrip(HALF)
    held = 0
    for word in stop:
        for size in range(min(len(word) - 1, len(whole)), held, -1):
            if whole.endswith(word[:size]):
                held = size
                break
    return len(text) - len(whole) + held
