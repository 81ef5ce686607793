"""What every `Source` must do. Give `check` a source of at least one good soft prompt."""

from __future__ import annotations

from sordino import formats
from sordino.errors import SordinoError
from sordino.library.source import Item, Source


def check(source: Source) -> None:
    """All of it."""
    items = check_listing(source)
    good = [item for item in items if check_item(source, item)]
    assert good


def check_listing(source: Source) -> list[Item]:
    """The same items each time, in the same order, each with a place and a revision of its own content."""
    assert source.name
    items = list(source.list())
    assert items == list(source.list())
    assert len({item.path for item in items}) == len(items)
    for item in items:
        hash(item.revision)
        assert not item.label.lower().endswith(".zip")
    return items


def check_item(source: Source, item: Item) -> bool:
    """Whether it is a good one: then its header is that of the file that is opened, which is there every time."""
    try:
        header = source.describe(item)
    except (SordinoError, OSError):
        return False
    path = source.open(item)
    assert path == source.open(item) == item.path
    assert formats.peek(path) == header
    prompt = formats.read_any(path)
    assert (prompt.n_tokens, prompt.d_model) == (header.n_tokens, header.d_model)
    return True
