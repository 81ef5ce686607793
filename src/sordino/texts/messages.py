"""Messages of chat datasets to turns: OpenAI's and TRL's (`role`, `content`), ShareGPT's (`from`, `value`).

Keys that decide what is learned are used: masks (`weight` of OpenAI, `train` and `training` of Axolotl, `loss` of ms-swift,
`masked` of torchtune), `name`, tool calls and their results. Any other key is reported.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from sordino.errors import DataError
from sordino.texts.pieces import Message
from sordino.texts.tally import Tally, shortened

_ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot", "ai"), "assistant"),
    **dict.fromkeys(("tool", "function", "ipython", "observation", "tool_response", "function_response"), "tool"),
    **dict.fromkeys(("tool_call", "function_call"), "call"),
}
_LEARNED_IF = {"weight": True, "train": True, "training": True, "loss": True, "masked": False, "mask": False}
_USED = {"role", "from", "content", "value", "name", "tool_calls", "function_call", "tool_call_id", *_LEARNED_IF}


def is_message_list(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)


def turns_of(messages: object, key: str, where: str, tally: Tally) -> list[Message]:
    """The turns of the list of messages under `key` of a record. Raises DataError."""
    if not isinstance(messages, list):
        do = "chats do not fit in a table: use JSONL" if isinstance(messages, str) else ""
        got = type(messages).__name__
        raise DataError(f"`{key}` is not a list", where=where, expected="a list of objects", got=got, do=do)
    turns: list[dict[str, str]] = []
    was_tool = False
    for message in messages:
        if not isinstance(message, Mapping):
            raise _unknown(type(message).__name__, "not an object", where)
        turn, is_tool = _turn(message, where, tally)
        if is_tool and was_tool:  # results of calls made at once: templates want turns that alternate
            turns[-1]["content"] += "\n" + turn["content"]
        else:
            turns.append(turn)
        was_tool = is_tool
    return _with_names(turns, tally)


def _turn(message: Mapping[str, Any], where: str, tally: Tally) -> tuple[dict[str, str], bool]:
    """(turn, is the result of a tool)."""
    name = message.get("role", message.get("from"))
    role = _ROLES.get(name.strip().lower()) if isinstance(name, str) else None
    content = _content(message.get("content", message.get("value")), tally)
    calls = _calls(message, where)
    if role is None or (content is None and not calls):
        raise _unknown(name, type(message.get("content", message.get("value"))).__name__, where)
    content = content or ""
    if role == "call":
        role, calls, content = "assistant", [content], ""
    if role == "tool":
        written = f"<tool_response>\n{content}\n</tool_response>"
        turn = {"role": "user", "content": written}
    else:
        written = "\n".join([*[content] * bool(content), *(f"<tool_call>\n{call}\n</tool_call>" for call in calls)])
        turn = {"role": role, "content": written}
    tally.counts["tools"] += written != content
    tally.counts["developer"] += isinstance(name, str) and name.strip().lower() == "developer"
    tally.unused_message_keys.update(key for key in message.keys() - _USED if message[key] not in (None, "", [], {}))
    learned = _mask(message, where)
    if role == "assistant" and learned is False:
        turn["weight"] = "0"
        tally.counts["masked"] += 1
    elif role != "assistant" and learned and "weight" not in message:
        tally.counts["others"] += 1
    if role != "tool" and isinstance(message.get("name"), str) and message["name"].strip():
        turn["name"] = message["name"].strip()
    return turn, role == "tool"


def _content(content: object, tally: Tally) -> str | None:
    """The text, also of OpenAI's list of parts; None for anything else."""
    if isinstance(content, list):
        if not all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in content):
            return None
        for part in content:
            tally.unused_message_keys.update(f"content.{key}" for key in part.keys() - {"type", "text"})
        return "".join(part["text"] for part in content)
    return content if isinstance(content, str) else None


def _calls(message: Mapping[str, Any], where: str) -> list[str]:
    """Tool calls, written as Hermes, Qwen and others do: {"name": ..., "arguments": ...}."""
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        raise DataError("`tool_calls` is not a list", where=where, got=type(calls).__name__)
    functions = [call.get("function", call) if isinstance(call, Mapping) else None for call in calls]
    functions += [message["function_call"]] if message.get("function_call") else []
    written = []
    for function in functions:
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise DataError(
                "a tool call of unknown shape", where=where, expected="`function` with `name` and `arguments`"
            )
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            with suppress(ValueError):  # what a model wrote wrong is learned unchanged
                arguments = json.loads(arguments)
        written.append(json.dumps({"name": function["name"], "arguments": arguments}, ensure_ascii=False))
    return written


def _mask(message: Mapping[str, Any], where: str) -> bool | None:
    """Whether a key of the message has it learned or not; None without such a key."""
    if message.get("train_detail"):
        raise DataError(
            "parts of one message cannot be masked",
            where=where,
            got="`train_detail`",
            do="split it into messages with `train`",
        )
    masks = set()
    for key, learned_if in _LEARNED_IF.items():
        value = message.get(key)
        if value is None:
            continue
        if value not in (0, 1) or not isinstance(value, (bool, int, float)):
            raise DataError(
                f"`{key}` of a message is neither 0 nor 1, true nor false",
                where=where,
                got=shortened(value) if isinstance(value, (str, int, float)) else type(value).__name__,
                do="a turn is learned or not: round it, or repeat turns that count more",
            )
        masks.add(bool(value) is learned_if)
    if len(masks) > 1:
        raise DataError(
            "the keys of a message disagree on whether it is learned",
            where=where,
            got=", ".join(_LEARNED_IF.keys() & message.keys()),
        )
    return masks.pop() if masks else None


def _with_names(turns: Sequence[dict[str, str]], tally: Tally) -> list[Message]:
    """The turns, each after its speaker's name where a role has several, as in chat logs."""
    cast: dict[str, set[str]] = {}
    for turn in turns:
        if "name" in turn:
            cast.setdefault(turn["role"], set()).add(turn["name"])
    tally.counts["named"] += any(len(names) > 1 for names in cast.values())
    named: list[Message] = []
    for turn in turns:
        name = turn.pop("name", "")
        if name and len(cast[turn["role"]]) > 1:
            turn["content"] = f"{name}: {turn['content']}"
        named.append(turn)
    return named


def _unknown(role: object, content: str, where: str) -> DataError:
    shown = repr(role[:40]) if isinstance(role, str) else type(role).__name__
    return DataError(
        "a message of unknown shape",
        where=where,
        expected="`role` (system, user, assistant, tool) and `content` as text",
        got=f"role {shown}, content {content}",
    )
