"""The fields of OpenAI's chat requests that are for the model's chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, StrictInt, StrictStr

from sordino.models.chat_template import chat_ids
from sordino.models.description import DescribedModel
from sordino.server.bodies import StrictBody
from sordino.server.errors import Refused
from sordino.server.openai_fields import Items, Options

# Variables that a template gets from the request itself, and arguments of the function that renders it.
_RESERVED = frozenset(
    (
        "messages",
        "conversation",
        "tools",
        "documents",
        "chat_template",
        "add_generation_prompt",
        "continue_final_message",
    )
) | frozenset(("tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict", "tokenizer_kwargs"))


class TextPart(StrictBody):
    type: Literal["text"]
    text: StrictStr


class ChatMessage(StrictBody):
    """name is read and not used: chat templates have no place for it, and SillyTavern sends it with example dialogues."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: StrictStr | Items[TextPart] | None = None
    name: StrictStr | None = None
    tool_calls: Items[dict[str, Any]] | None = None
    tool_call_id: StrictStr | None = None

    def for_template(self) -> dict[str, Any]:
        """The message as chat templates expect it. Raises Refused."""
        if self.content is None and not self.tool_calls:
            raise Refused(400, "a message needs a content", field="messages")
        if self.tool_calls and self.role != "assistant":
            raise Refused(400, "tool_calls are the assistant's", field="messages")
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or ())
        message: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": content}
        if self.tool_calls:
            message["tool_calls"] = [_readable(call) for call in self.tool_calls]
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        return message


class ChatRequest(Options):
    """tools: with tool_choice "none" alone, where the model is not to call any. chat_template_kwargs, reasoning_effort: variables
    of the model's chat template.
    """

    messages: Annotated[Items[ChatMessage], Field(min_length=1)]
    max_tokens: StrictInt | None = None
    max_completion_tokens: StrictInt | None = None
    logprobs: StrictBool | None = None
    top_logprobs: StrictInt | None = None
    tools: Items[dict[str, Any]] | None = None
    tool_choice: Any = None
    chat_template_kwargs: Annotated[dict[str, Any], Field(max_length=64)] | None = None
    reasoning_effort: StrictStr | None = None


def conversation_ids(base: DescribedModel, options: ChatRequest) -> tuple[int, ...]:
    """The conversation in the model's chat template, up to where the assistant begins. Raises Refused, ModelError."""
    variables = _variables(base, options)
    if options.tool_choice not in (None, "none", "auto"):
        raise _unsupported("tool_choice", 'tools are not called here: give "none"')
    if options.tools and options.tool_choice != "none":
        raise _unsupported("tools", 'tools are not called here: give tool_choice "none"')
    messages = [message.for_template() for message in options.messages]
    of_tools = [name for name in ("tool", "tool_calls") if _uses(messages, name) and not base.template_reads(name)]
    # A template that writes any role and content has a place for a tool's answer, too.
    rendered = base.chat_opening(messages, variables) if of_tools else ""
    for message in messages if of_tools else ():
        if message["content"].strip() not in rendered or ("tool_calls" in of_tools and "tool_calls" in message):
            raise Refused(400, f"the model's chat template has no place for {of_tools[-1]}", field="messages")
    return chat_ids(base, messages, variables)


def _variables(base: DescribedModel, options: ChatRequest) -> Mapping[str, Any]:
    given = dict(options.chat_template_kwargs or {})
    for name in given:
        if not name.isidentifier() or name in _RESERVED or not base.template_reads(name):
            message = f"the model's chat template has no variable {name[:60]!r} that a request may give"
            raise Refused(400, message, field="chat_template_kwargs")
    effort = options.reasoning_effort
    if effort is None:
        return given
    if base.template_reads("reasoning_effort"):
        return given | {"reasoning_effort": effort}
    if effort != "none":
        raise _unsupported("reasoning_effort", "the model's chat template knows no reasoning_effort")
    return given


def _uses(messages: list[dict[str, Any]], name: str) -> bool:
    return any(name in message if name == "tool_calls" else message["role"] == name for message in messages)


def _unsupported(field: str, message: str) -> Refused:
    return Refused(400, message, field=field, code="unsupported_parameter")


def _readable(call: dict[str, Any]) -> dict[str, Any]:
    """A call with its arguments as an object, which templates expect; OpenAI's clients send them as JSON in a text."""
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(arguments := function.get("arguments"), str):
        return call
    try:
        return {**call, "function": {**function, "arguments": json.loads(arguments)}}
    except ValueError:
        return call
