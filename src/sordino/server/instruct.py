"""The text of KoboldAI's requests: memory in front of the prompt, and KoboldAI Lite's tags for the turns of a chat.

A tag, such as {{[INPUT]}}, stands for what the model's chat template writes there. Lite writes tags of ends only where the user
asks for them, so the beginning of a turn also ends the one before it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sordino.errors import ModelError
from sordino.models.description import DescribedModel
from sordino.server.kobold_fields import GenerateRequest

_TAG = re.compile(r"\{\{\[(INPUT|OUTPUT|SYSTEM)(_END)?\]\}\}")
# Their places are looked for in rendered chats.
_SYSTEM, _INPUT, _OUTPUT, _NEXT = "qsystemq", "qinputq", "qoutputq", "qnextq"


@dataclass(frozen=True)
class Turns:
    """What stands before and after the text of a turn, by role. markup: whether markers in it are special tokens."""

    begin: dict[str, str]
    end: dict[str, str]
    markup: bool


# For models without a chat template, as in KoboldCpp.
_ALPACA = Turns(
    {"SYSTEM": "", "INPUT": "\n### Instruction:\n", "OUTPUT": "\n### Response:\n"},
    {"SYSTEM": "", "INPUT": "", "OUTPUT": ""},
    markup=False,
)


def text_ids(base: DescribedModel, fields: GenerateRequest, room: int) -> list[int]:
    """The token ids of memory and prompt in `room` positions: a longer prompt loses its beginning, a memory what is beyond half.

    Raises BadInput.
    """
    tags = fields.replace_instruct_placeholders and _TAG.search(fields.memory + fields.prompt)
    if tags:
        turns = turns_of(base)
        memory, role = _tagged(base, turns, fields.memory, "")
        prompt, _ = _tagged(base, turns, fields.prompt, role)
    else:
        # Tokenized together: they are one text.
        alone, both = base.encode(fields.memory) if fields.memory else [], base.encode(fields.memory + fields.prompt)
        shared = next((at for at, (a, b) in enumerate(zip(alone, both, strict=False)) if a != b), len(alone))
        memory, prompt = both[:shared], both[shared:]
    kept = min(len(memory), max(room // 2, room - len(prompt)))
    return memory[len(memory) - kept :] + prompt[max(0, len(prompt) - room + kept) :]


def stop_texts(base: DescribedModel, fields: GenerateRequest) -> tuple[str, ...]:
    """The request's stop sequences, with tags replaced, and the end of the line where it asks for a single line."""
    stops = [stop for stop in fields.stop_sequence or () if stop]
    if fields.replace_instruct_placeholders and any(_TAG.search(stop) for stop in stops):
        turns = turns_of(base)

        def written(match: re.Match[str]) -> str:
            return (turns.end if match[2] else turns.begin)[match[1]].strip()

        stops = [stop for stop in (_TAG.sub(written, stop) for stop in stops) if stop]
    return (*dict.fromkeys(stops), *(("\n",) if fields.singleline else ()))


def turns_of(base: DescribedModel) -> Turns:
    """The strings of a model's chat template, found by rendering chats with it; Alpaca's where it has none."""
    user, answer = {"role": "user", "content": _INPUT}, {"role": "assistant", "content": _OUTPUT}
    try:
        one, opened = base.chat_text([user]), base.chat_opening([user])
        chat = base.chat_text([user, answer, {"role": "user", "content": _NEXT}])
        answered = base.chat_text([user, answer])
    except ModelError:
        return _ALPACA
    bos = base.tokenizer.decode(list(base.bos_ids)) if base.bos_ids else ""
    input_end, output_end = _after(one, _INPUT), _after(answered, _OUTPUT)
    begin = {"INPUT": _between(chat, _OUTPUT, _NEXT).removeprefix(output_end).removeprefix(bos)}
    begin["OUTPUT"] = opened[len(one) :] if opened.startswith(one) else _between(chat, _INPUT, _OUTPUT)
    end = {"INPUT": input_end, "OUTPUT": output_end}
    begin["SYSTEM"], end["SYSTEM"] = begin["INPUT"], end["INPUT"]
    try:
        with_system = base.chat_text([{"role": "system", "content": _SYSTEM}, user])
    except ModelError:
        with_system = ""
    # Other templates put it into the user's turn, or refuse it.
    if _SYSTEM in with_system and (between := _between(with_system, _SYSTEM, _INPUT)).endswith(begin["INPUT"]):
        begin["SYSTEM"] = with_system[: with_system.index(_SYSTEM)].removeprefix(bos)
        end["SYSTEM"] = between.removesuffix(begin["INPUT"])
    return Turns(begin, end, markup=True)


def _tagged(base: DescribedModel, turns: Turns, text: str, role: str) -> tuple[list[int], str]:
    """The ids of a text with tags, and whose turn is open at its end. role: whose turn is open at its beginning, "" for nobody's.

    Markers are special tokens where a tag brings them, and text where the client writes them.
    """
    ids: list[int] = []
    done = 0
    for match in (*_TAG.finditer(text), None):
        plain = text[done : match.start() if match else len(text)]
        ids += base.encode(plain) if plain else []
        if match is None:
            break
        done = match.end()
        closing = turns.end[role] if role else ""
        if match[2]:
            markers, role = turns.end[match[1]], ""
        else:
            markers, role = closing + turns.begin[match[1]], match[1]
        if markers:
            ids += base.encode_markup(markers) if turns.markup else base.encode(markers)
    return ids, role


def _after(text: str, word: str) -> str:
    return text[text.rindex(word) + len(word) :] if word in text else ""


def _between(text: str, first: str, second: str) -> str:
    if first not in text or second not in text:
        return ""
    return text[text.index(first) + len(first) : text.rindex(second)]
