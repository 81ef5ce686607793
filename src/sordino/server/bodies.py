"""Bodies of requests, and their parts, whose fields are all known; and bodies of long answers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from fastapi.responses import Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

# More than any of them has.
_MOST_FIELDS = 256


class StrictBody(BaseModel):
    """Refuses unknown fields by name. Where there are very many, none is looked at: pydantic would make an error of each, and no
    other request would be answered for seconds.
    """

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, given: Any) -> Any:
        if isinstance(given, dict) and len(given) > _MOST_FIELDS:
            raise ValueError(f"at most {_MOST_FIELDS} fields were expected")
        return given


def few_entries(most: int, what: str) -> BeforeValidator:
    """For an object of any keys: where there are more, none of its values is looked at, as each wrong one makes an error."""

    def checked(value: Any) -> Any:
        if isinstance(value, dict) and len(value) > most:
            raise PydanticCustomError("too_long", f"at most {most} {what} were expected")
        return value

    return BeforeValidator(checked)


# Of answers that are sent while they are made. Without the second, nginx and others collect them first.
STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def long_answer(name: str, items: Iterable[Any], **more: Any) -> Response:
    """A JSON object with a list that may be long, `name`, as its last value. For routes that run in threads.

    Written an item at a time: what writes thousands at once lets nothing else in the process run.
    """
    return Response(json_with(more, name, items), media_type="application/json")


def json_with(more: dict[str, Any], name: str, items: Iterable[Any]) -> str:
    """As `long_answer`, the text."""
    head = "".join(f"{json.dumps(key)}: {json.dumps(value)}, " for key, value in more.items())
    return f"{{{head}{json.dumps(name)}: [{', '.join(map(json.dumps, items))}]}}"
