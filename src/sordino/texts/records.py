"""Records of datasets to pieces, by their keys.

Sordino's own shapes are `text`, `prompt` with `completion`, and `messages`. Other common ones become chats: ShareGPT's
`conversations`, TRL's lists of messages under `prompt` and `completion` or `chosen`, Alpaca's instructions, and questions with
answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sordino.errors import DataError
from sordino.texts.messages import is_message_list, turns_of
from sordino.texts.pieces import Message, Piece, chat
from sordino.texts.tally import Tally, some

Record = Mapping[str, Any]

SHAPES = (
    "`text`, or `prompt` and `completion`, or `messages`, or `conversations`, or `instruction` and `output`, "
    "or `prompt` and `response`, or `question` and `answer`"
)
_ANSWERS = ("output", "response", "completion", "answer", "chosen")
_QUESTIONS = ("prompt", "question", "query", "input")


def is_record(value: object) -> bool:
    """Whether a JSON document is a record."""
    return isinstance(value, Mapping) and _shape(value) != ""


def key_of_records(document: object) -> str:
    """The key of an object, such as `data`, whose value alone is a list of records; "" for none, or where several are."""
    lists = document.items() if isinstance(document, Mapping) else ()
    found = [key for key, value in lists if is_message_list(value) and is_record(value[0])]
    return found[0] if len(found) == 1 else ""


def record_piece(record: Record, name: str, where: str, tally: Tally) -> Piece:
    """A record as the most specific shape that fits it; other keys (id, label ...) are reported, not used."""
    shape = _shape(record)
    if shape == "chat":
        used, piece = _chat(record, name, where, tally)
    elif shape in ("completion", "chosen"):
        used, piece = _completion(record, shape, name, where, tally)
    elif shape == "instruction":
        used, piece = _instruction(record, "instruction", name, where, tally)
    elif shape == "text":
        used, piece = {"text"}, Piece(name, "text", _string(record, "text", where))
    elif shape:
        used, piece = _instruction(record, shape, name, where, tally)
    else:
        raise DataError(
            "a record of unknown shape", where=where, expected=f"the keys {SHAPES}", got=f"the keys {some(record)}"
        )
    tally.unused_keys.update(key for key in record.keys() - used if key or record[key])
    return piece


def _shape(record: Record) -> str:
    """ "chat", "completion", "chosen", "instruction", "text", the key of a question, or "" for none."""
    if _chat_key(record):
        return "chat"
    if "prompt" in record and "completion" in record:
        return "completion"
    if is_message_list(record.get("chosen")):
        return "chosen"
    answered = any(key in record for key in _ANSWERS)
    if "instruction" in record and answered:
        return "instruction"
    if "text" in record:
        return "text"
    return next((key for key in _QUESTIONS if key in record), "") if answered else ""


def _chat_key(record: Record) -> str:
    return next((key for key in ("messages", "conversations", "conversation") if key in record), "")


def _chat(record: Record, name: str, where: str, tally: Tally) -> tuple[set[str], Piece]:
    key = _chat_key(record)
    if key != "messages":
        tally.understood[f"records with `{key}` (ShareGPT) read as chats"] += 1
    turns = turns_of(record[key], key, where, tally)
    if not any(turn["role"] == "system" for turn in turns):
        return {key, "system"}, chat(name, [*_system(record, where), *turns])
    return {key}, chat(name, turns)


def _system(record: Record, where: str) -> list[Message]:
    system = _optional(record, "system", where)
    return [{"role": "system", "content": system}] if system else []


def _completion(record: Record, answer: str, name: str, where: str, tally: Tally) -> tuple[set[str], Piece]:
    """A prompt and its completion, or as messages a chat. answer: the key of the completion; of preferences it is `chosen`."""
    used = {"prompt", answer}
    prompt, completion = record.get("prompt"), record[answer]
    if not is_message_list(prompt) and not is_message_list(completion):
        return used, Piece(name, "completion", _string(record, answer, where), _string(record, "prompt", where))
    keys = f"`prompt` and `{answer}`" if "prompt" in record else f"`{answer}`"
    tally.understood[f"records with messages as {keys} (TRL) read as chats, of which `{answer}` is learned"] += 1
    if isinstance(completion, str):
        completion = [{"role": "assistant", "content": completion}]
    learned = turns_of(completion, answer, where, tally)
    if learned[0]["role"] != "assistant":
        # The whole chat, as many preferences have it: the prompt is its beginning.
        return used, chat(name, learned)
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    context = turns_of(prompt, "prompt", where, tally)
    return used, chat(name, [*map(_context, context), *learned])


def _context(turn: Message) -> Message:
    return {**turn, "weight": "0"} if turn["role"] == "assistant" else turn


def _instruction(record: Record, question: str, name: str, where: str, tally: Tally) -> tuple[set[str], Piece]:
    """An instruction or a question, its input (Alpaca's `input`, Dolly's `context`), and an answer."""
    answer = next(key for key in _ANSWERS if key in record)
    about = next((key for key in ("input", "context") if key in record and key != question), "")
    also = f", `{about}`" if about else ""
    tally.understood[f"records with `{question}`{also} and `{answer}` read as chats of a user and the assistant"] += 1
    parts = [_string(record, question, where), _optional(record, about, where) if about else ""]
    turns: list[Message] = [
        *_system(record, where),
        # LLaMA-Factory's earlier turns of an Alpaca record.
        *pair_turns(record.get("history") or [], "history", where),
        {"role": "user", "content": "\n\n".join(part for part in parts if part.strip())},
        {"role": "assistant", "content": _string(record, answer, where)},
    ]
    return {question, about, answer, "system", "history"}, chat(name, turns)


def pair_turns(pairs: object, key: str, where: object) -> list[Message]:
    """Turns of a list of [question, answer]; empty ones are left out. Raises DataError."""
    turns: list[Message] = []
    for pair in pairs if isinstance(pairs, list) else [None]:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise DataError(f"`{key}` is not a list of pairs", where=where, expected="[question, answer] as two texts")
        turns += [
            {"role": role, "content": text} for role, text in zip(("user", "assistant"), pair, strict=True) if text
        ]
    return turns


def _string(record: Record, key: str, where: str) -> str:
    value = record[key]
    if not isinstance(value, str):
        raise DataError(f"`{key}` is not text", where=where, expected="a string", got=type(value).__name__)
    return value


def _optional(record: Record, key: str, where: str) -> str:
    return _string(record, key, where) if record.get(key) is not None else ""
