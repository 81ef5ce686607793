"""Why the Hugging Face Hub refused a request, in words; and its progress bars."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, NamedTuple

from sordino.errors import HubError

# Gets the bytes that have arrived, and those that there are.
Progress = Callable[[int, int], None]


class HubRefusal(NamedTuple):
    """what: what the Hub says. got: its status. do: what the user can do."""

    what: str
    got: str
    do: str


# By status; 5 is for all of the Hub's own errors. `{}` is what is asked for: a model, a repository.
_REFUSALS = {
    401: ("the Hugging Face Hub refuses the access token", "run `hf auth login`, or unset HF_TOKEN for a public {}"),
    403: (
        "the Hugging Face Hub does not let this account {} the {}",
        "ask for access on the {}'s page, or run `hf auth login` with a token that may {} it",
    ),
    429: (
        "the Hugging Face Hub takes no more requests for now",
        "wait some minutes; after `hf auth login` it takes more",
    ),
    5: ("the Hugging Face Hub has an error of its own", "try again later"),
}
_UNKNOWN_REFUSAL = ("the Hugging Face Hub refuses the request", "look at the {}'s page")


def refusal(error: Exception, noun: str = "model", verb: str = "read") -> HubRefusal | None:
    """What the Hub refused, and what to do; None where it did not answer. noun, verb: what was asked for, what to do with it."""
    from huggingface_hub.errors import HfHubHTTPError

    answers = [one.response for one in (error, error.__cause__) if isinstance(one, HfHubHTTPError)]
    if not answers:
        return None
    status = answers[0].status_code
    what, do = _REFUSALS.get(status // 100 if status >= 500 else status, _UNKNOWN_REFUSAL)
    # Never the Hub's own words: they may quote what was sent.
    if status == 403:
        return HubRefusal(what.format(verb, noun), f"HTTP {status}", do.format(noun, verb))
    return HubRefusal(what, f"HTTP {status}", do.format(noun))


def reporting(progress: Progress, *, most: int | None = None) -> type[Any]:
    """The Hub's progress bar, which calls `progress` in place of drawing itself.

    most: the bytes that may arrive; more raise HubError, whatever size the answer states of itself.
    """
    from huggingface_hub import utils

    bar: Any = utils.tqdm  # type: ignore[attr-defined]

    class Reporting(bar):  # type: ignore[misc]
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **{**named, "disable": False, "file": io.StringIO(), "mininterval": 0.2})

        def update(self, n: float = 1) -> Any:
            if most is not None and self.n + n > most:
                raise HubError(
                    "more arrives than the Hub stated", expected=f"{most} bytes", do="do not trust this file"
                )
            return super().update(n)

        def display(self, *given: Any, **named: Any) -> None:
            if self.unit == "B" and self.total:
                progress(int(self.n), int(self.total))

    return Reporting
