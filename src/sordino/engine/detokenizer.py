"""Token ids to text as they come: never half a character, never the beginning of what may become a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

# What tokenizers decode the bytes of a character to while some of them are missing. A row that ends there drops them.
HALF = "\ufffd"
Decode = Callable[[Sequence[int]], str]
_WINDOW = 8


class Detokeniser:
    """One row's new text.

    Tokens are decoded behind a few last ones that were whole, as many tokenizers drop a space at the very front, and those that
    fall back to bytes decode a run of them as one. So a token costs the decoding of a few, however long the text is. Those few
    become more with every token, up to `_WINDOW`: as long as they begin at the same place, one decoding a token is enough.
    """

    def __init__(self, decode: Decode, context_ids: Sequence[int], stop: Sequence[str] = ()) -> None:
        self._decode = decode
        # The window: tokens to decode behind, the first `_whole` of which are whole and say `_known`; then those that are not.
        self._ids = behind(decode, context_ids)
        self._whole, self._known = len(self._ids), decode(self._ids)
        self._stop = stop
        # Text that is whole and was not given out, as it may become a stop string.
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that may be shown now. Behind a stop string `stopped` is true, and nothing follows."""
        self._ids.append(token)
        said = self._decode(self._ids)
        text = said[len(self._known) :]
        if text.endswith(HALF):
            return ""
        if len(self._ids) > _WINDOW:
            del self._ids[: self._whole]
            said = self._decode(self._ids)
        self._whole, self._known = len(self._ids), said
        return self._shown(text)

    def finish(self) -> str:
        """What was held back; the bytes of a character that never became whole are dropped."""
        said = self._decode(self._ids)
        rest, self._known = said[len(self._known) :], said
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


def behind(decode: Decode, context_ids: Sequence[int]) -> list[int]:
    """A few last tokens of the context, from a whole character on."""
    last: list[int] = []
    for count in (4, 8, 16):
        last = list(context_ids[-count:])
        if not decode(last).startswith(HALF):
            break
    return last


def held_back(text: str, stop: Sequence[str]) -> int:
    """How many characters at the end of `text` must wait: half a character, and the beginning of a stop string before it."""
    whole = text.rstrip(HALF)
    held = 0
    for word in stop:
        for size in range(min(len(word) - 1, len(whole)), held, -1):
            if whole.endswith(word[:size]):
                held = size
                break
    return len(text) - len(whole) + held
