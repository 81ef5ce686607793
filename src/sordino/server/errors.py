"""Errors as each API spells them, in one table.

OpenAI    {"error": {"message", "type", "param", "code"}}
KoboldAI  {"detail": {FIELD: [MESSAGE]}} for a field (422), {"detail": {"msg", "type"}} otherwise. Some of its clients wait for
          ever on any code that KoboldAI itself does not use, so its routes know 404, 422, 501, 503 and 507.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sordino.errors import (
    BadInput,
    ConfigError,
    DoesNotFit,
    EngineBusy,
    MissingExtra,
    NameTaken,
    NotInLibrary,
    OutOfMemory,
    SordinoError,
    StorageError,
)

LONGEST_MESSAGE = 1000
_KOBOLD_TYPES = {501: "not_implemented", 503: "service_unavailable", 507: "out_of_memory"}
_OPENAI_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    503: "service_unavailable",
}


class Refused(Exception):
    """A request that is refused. field: the field of the request at fault, "" where there is none."""

    def __init__(self, status: int, message: str, *, field: str = "", code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.field, self.code = status, message, field, code


def refused(error: SordinoError, *, field: str = "") -> Refused:
    """A SordinoError as the refusal of a request. Routes that know no field raise the error itself: the application does this."""
    status, code = 500, None
    if isinstance(error, NotInLibrary):
        status, field, code = 404, field or "soft_prompt", "model_not_found"
    elif isinstance(error, DoesNotFit):
        status, field = 400, field or "soft_prompt"
    elif isinstance(error, EngineBusy):
        # No field is at fault: the request is as it should be.
        status, field = 503, ""
    elif isinstance(error, OutOfMemory | StorageError):
        status, field = 507, ""
    elif isinstance(error, MissingExtra):
        status = 501
    elif isinstance(error, NameTaken):
        status, code = 400, "name_taken"
    elif isinstance(error, BadInput):
        status = 400
        if isinstance(error, ConfigError):
            field = field or field_of(error)
            code = "context_length_exceeded" if "context" in error.what else None
    return Refused(status, _public_message(error, field), field=field, code=code)


@contextmanager
def refusing(field: str = "", *, names: Mapping[str, str] | None = None) -> Iterator[None]:
    """A SordinoError in this block is the refusal of this field of the request, or with `names` of the one that the error names.

    names: the request's fields for settings that it calls otherwise.
    """
    try:
        yield
    except SordinoError as error:
        own = field if names is None else names.get(field_of(error), field_of(error))
        raise refused(error, field=own) from error


def field_of(error: SordinoError) -> str:
    """The option that an error names, as a field of a request: `--top-p` is `top_p`."""
    return error.where.removeprefix("--").replace("-", "_")


def upload_not_stored(error: OSError) -> StorageError:
    """There is no room for an uploaded file while it is read."""
    return StorageError(
        "the upload cannot be stored while it is read",
        got=error.strerror or error,
        do="make room in the server's folder for temporary files",
    )


def _public_message(error: SordinoError, field: str) -> str:
    """The message, with a file's name in place of its path, as clients need not know where the library is; and with the request's
    field in place of the command's flag.
    """
    if error.where.startswith("--") and field:
        where = field
    elif Path(error.where).is_absolute():
        where = Path(error.where).name
    else:
        return error.message
    return SordinoError(error.what, where=where, expected=error.expected, got=error.got, do=error.do).message


def shown(message: str) -> str:
    """A message as it is sent. It repeats parts of the request: they may be long, and a lone surrogate has no encoding."""
    if len(message) > LONGEST_MESSAGE:
        message = f"{message[: LONGEST_MESSAGE // 2]} ... {message[-LONGEST_MESSAGE // 4 :]}"
    return message.encode("utf-8", "backslashreplace").decode()


def body_of(path: str, status: int, message: str, *, field: str = "", code: str | None = None) -> dict[str, Any]:
    """The body of an error, in the shape of the API that `path` belongs to."""
    message, field = shown(message), shown(field)
    if path.startswith("/api/"):
        if field:
            return {"detail": {field: [message]}}
        return {"detail": {"msg": message, "type": _KOBOLD_TYPES.get(status, "error")}}
    kind = _OPENAI_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": field or None, "code": code}}


def status_of(path: str, status: int) -> int:
    """The status that clients of this API know: on KoboldAI's routes a wrong field is 422, whatever is wrong with it."""
    if path.startswith("/api/") and status in (400, 404):
        return 422
    return status
