"""What a server tells Python's garbage collector."""

from __future__ import annotations

import gc


def leave_out_of_collections() -> None:
    """Keep what is in memory now out of later garbage collections, after one of everything.

    Libraries, tokenizer and model are a million objects. Python would look through all of them whenever a request had made many
    objects, and nothing else in the process runs for those 0.2 s and more. The same goes for a body with 400,000 items, which
    is many times looked through while it grows unless collections are rarer than Python's 700 new objects.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)
