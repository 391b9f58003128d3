"""What a client is told when it gets no answer: a status, and an error in OpenAI's form."""

from __future__ import annotations

from typing import Any

from ..errors import ContextError, LlvidError, MediaError, OutOfMemoryError, UsageError
from ..validation import InputError

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_STATUS = (
    (UsageError, 400, None),
    (MediaError, 400, "invalid_media"),
    (ContextError, 400, "context_length_exceeded"),
    (OutOfMemoryError, 503, "out_of_memory"),
)


class RefusedError(LlvidError):
    """A request that is not answered.

    `status` is the HTTP status, `param` the field that it is about, `code` a word for programs, and `headers` go with
    the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        hint: str | None = None,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message, hint)
        self.status, self.param, self.code, self.headers = status, param, code, headers or {}

    @property
    def form(self) -> dict[str, Any]:
        """The error as OpenAI writes it; `hint`, the next step, is ours."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": error | ({"hint": self.hint} if self.hint else {})}


def refused(error: LlvidError) -> RefusedError:
    """Return any error of ours as a refusal."""
    if isinstance(error, RefusedError):
        return error
    status, code = next(((status, code) for kind, status, code in _STATUS if isinstance(error, kind)), (500, None))
    param = error.field.lstrip(".") if isinstance(error, InputError) else None
    return RefusedError(status, str(error), error.hint, param=param or None, code=code)
