"""A chat rendered with the model's template, and cut into the assistant's turns, which are learned, and the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sordino.errors import ModelError
from sordino.models.loading import quietly

if TYPE_CHECKING:
    from sordino.models.description import DescribedModel

Messages = Sequence[Mapping[str, Any]]


def rendered(tokenizer: Any, messages: Messages, variables: Mapping[str, Any], *, where: str) -> str:
    """variables: of the template. Raises ModelError where there is no template, or it refuses the conversation."""
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(
            "the model has no chat template",
            where=where,
            do="choose an instruction-tuned model, or texts or records of `prompt` and `completion`",
        )
    try:
        with quietly():
            text = tokenizer.apply_chat_template(
                [dict(message) for message in messages], **{**variables, "tokenize": False}
            )
    # A template is a stranger's program: it may divide by zero or recurse forever.
    except Exception as error:
        raise ModelError(
            "the model's chat template refuses the conversation",
            where=where,
            got=str(error)[:300] or type(error).__name__,
        ) from error
    return str(text)


def chat_ids(model: DescribedModel, messages: Messages, options: Mapping[str, Any] | None = None) -> tuple[int, ...]:
    """The conversation in the model's chat template, up to where the assistant begins, without BOS. options: variables of the
    template. Raises as `rendered`.
    """
    return model.without_bos(model.encode_markup(model.chat_opening(messages, options)))


def end_of_turn(model: DescribedModel) -> int | None:
    """The end marker that the template writes after an answer, None where it writes none."""
    turns = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello."}]
    answer = next(text for text, written in model.chat_segments(turns) if written)
    last = model.encode_markup(answer)[-1]
    return last if last in model.stop_ids else None


def segments(
    render: Callable[[Messages, bool], str], messages: Messages, end_markers: Sequence[str]
) -> list[tuple[str, bool]]:
    """The rendered conversation as consecutive (text, is learned) pieces. The assistant's turns are learned, except those of
    weight "0".

    `render(messages, add_generation_prompt)` is the chat template. A turn runs from where the model would begin to write to the
    end of its end marker: a model that never saw the marker as a target does not stop. Raises ModelError for a template that does
    not show the assistant's text.
    """
    whole = render(messages, False)
    pieces: list[tuple[str, bool]] = []
    done = 0
    for i, message in enumerate(messages):
        if message.get("role") != "assistant":
            continue
        start, end = _turn(render, messages, i, whole, done, end_markers)
        pieces += [(whole[done:start], False), (whole[start:end], message.get("weight") != "0")]
        done = end
    pieces.append((whole[done:], False))
    return [(text, flag) for text, flag in pieces if text]


def _turn(
    render: Callable[[Messages, bool], str],
    messages: Messages,
    i: int,
    whole: str,
    done: int,
    end_markers: Sequence[str],
) -> tuple[int, int]:
    """Where the turn `messages[i]` begins and ends in `whole`, which is cut up to `done`."""
    content = messages[i].get("content", "").strip()
    start = _written_from(render, messages[:i], whole, done)
    at = whole.find(content, _behind_earlier(messages[:i], whole, done) if start is None else start)
    if at < 0:
        raise ModelError(
            "the model's chat template does not show the assistant's text", where=f"message {i + 1}", got=content[:40]
        )
    # Some templates render the beginning differently (they drop earlier thoughts, or insist on a user's turn first): then the
    # turn begins with its text.
    start = at if start is None else start
    after = at + len(content)
    return start, after + _end_marker(whole[after:], end_markers)


def _behind_earlier(before: Messages, whole: str, done: int) -> int:
    """Where the messages since the last assistant's turn end in `whole`, after `done`: a user may use the same words."""
    since = max((i + 1 for i, message in enumerate(before) if message.get("role") == "assistant"), default=0)
    for message in before[since:]:
        content = message.get("content", "").strip()
        at = whole.find(content, done)
        done = at + len(content) if at >= 0 else done
    return done


def _end_marker(rest: str, end_markers: Sequence[str]) -> int:
    """How many characters of `rest` belong to the turn: up to the end of the marker, if one comes next."""
    marker = next((marker for marker in end_markers if rest.lstrip().startswith(marker)), None)
    return 0 if marker is None else rest.index(marker) + len(marker)


def _written_from(render: Callable[[Messages, bool], str], before: Messages, whole: str, done: int) -> int | None:
    if not before:
        return None
    try:
        head = render(before, True)
    except ModelError:
        return None
    return len(head) if whole.startswith(head) and len(head) >= done else None
