"""Counts of what reading left out, repaired, converted or did not use, and notes about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

_COUNTED = (
    ("repaired", "damaged characters (such as Ã© for é) were repaired, pieces: {}"),
    ("gutenberg", "Project Gutenberg's header and licence were removed, texts: {}"),
    ("parts", "large texts read in parts of about a million characters, files: {}"),
    ("html", "HTML read as the text that a browser shows, files: {}"),
    ("marked", "texts split at their end-of-text markers (such as <|endoftext|>), which are not learned: {}"),
    ("ended", "completions and turns cut at an end marker (the model's own is learned instead): {}"),
    ("moved", "a space moved from a prompt's end to its completion (leave it off when you generate): {}"),
    ("carriage", "tables and JSON with the line ends of old Macs (CR): {}"),
    ("separator", "tables whose first line names the separator (sep=): {}"),
    ("fields", "table rows with empty fields after the last column, which were dropped: {}"),
    ("lines", "JSONL that is named .json, read a record a line, files: {}"),
    ("developer", "developer messages read as the system's: {}"),
    ("tools", "tool calls and results written as text in <tool_call> and <tool_response>, messages: {}"),
    ("named", "chats with several names in one role, which are written before their turns: {}"),
    ("masked", "assistant turns marked as not to be learned, which serve as context: {}"),
    ("others", "turns of other roles marked to be learned, which are not learned: {}"),
    ("hidden", "hidden chat messages (is_system) left out: {}"),
    ("memory", "KoboldAI stories whose memory and author's note are not learned: {}"),
    ("empty", "empty pieces left out: {}"),
    ("unlabelled", "pieces left out, as they hold nothing to learn: {}"),
)


@dataclass
class Tally:
    """counts: by the keys of the notes. understood: shapes of other programs, with how they were read. markers: that were left in
    the texts. names: of the speakers in chat logs.
    """

    counts: Counter[str] = field(default_factory=Counter)
    understood: Counter[str] = field(default_factory=Counter)
    unused_keys: set[str] = field(default_factory=set)
    unused_message_keys: set[str] = field(default_factory=set)
    markers: set[str] = field(default_factory=set)
    names: set[str] = field(default_factory=set)
    chat_logs: int = 0

    def lines(self) -> list[str]:
        """The notes, one for each kind."""
        notes = [f"{how}: {count}" for how, count in self.understood.items()]
        notes += [line.format(self.counts[key]) for key, line in _COUNTED if self.counts[key]]
        if self.unused_keys:
            notes.append(f"keys of the records that are not used: {some(self.unused_keys)}")
        if self.unused_message_keys:
            notes.append(f"keys of the messages that are not used: {some(self.unused_message_keys)}")
        if self.markers:
            notes.append(f"markers of other programs and models, which are learned as letters: {some(self.markers)}")
        return notes


def some(names: Iterable[object]) -> str:
    """Names from a file for one line of a terminal: the first eight, sorted, shortened and printable."""
    shown = sorted(shortened(name) for name in names)
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "") if shown else "none"


def shortened(name: object) -> str:
    text = str(name)[:40]
    return (text if text.isprintable() else ascii(text)) or "(no name)"
