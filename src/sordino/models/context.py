"""Room in a model's context: one rule and one error for everything that has to fit."""

from __future__ import annotations

from collections.abc import Mapping

from sordino.errors import ConfigError


def check_context(parts: Mapping[str, int], limit: int, *, what: str, where: str, do: str) -> None:
    """Raise ConfigError unless the parts fit a context of `limit` positions together.

    parts: positions by name, in order: {"soft": 20, "text": 100}. what: the parts in words, for the error: "the text".
    """
    if sum(parts.values()) > limit:
        raise ConfigError(
            f"{what} does not fit the model's context",
            where=where,
            expected=f"at most {limit} positions",
            got=" + ".join(f"{count} {name}" for name, count in parts.items()),
            do=do,
        )
