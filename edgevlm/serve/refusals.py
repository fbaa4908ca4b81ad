"""What a server answers where it does not answer: errors in OpenAI's form, always."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from edgevlm.errors import Closed, ContextFull, EdgeVLMError, ImageError, RuntimeFailed, Unsupported

BAD_REQUEST, SERVER = "invalid_request_error", "server_error"

_KINDS: tuple[tuple[type[EdgeVLMError], int, str], ...] = (
    (ImageError, 400, "invalid_image"),
    (ContextFull, 400, "context_length_exceeded"),
    (Unsupported, 400, "unsupported"),
    (Closed, 503, "unavailable"),
    (RuntimeFailed, 500, "engine_failed"),
)


class Refusal(Exception):
    """A status with an error. message: one sentence. param: the field of the request that is wrong, as a path."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.headers = status, message, code, param, headers

    @property
    def body(self) -> dict[str, Any]:
        """{"error": ...}"""
        kind = (
            SERVER
            if self.status >= 500
            else {401: "authentication_error", 429: "rate_limit_error"}.get(self.status, BAD_REQUEST)
        )
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def wrong(param: str, message: str, code: str | None = None) -> Refusal:
    """A request that is wrong at `param`."""
    return Refusal(400, message, param=param, code=code)


def refusal_of(error: Exception, param: str | None = None) -> Refusal:
    """What an error of the library is called here; of anything else, nothing is told but that it happened."""
    if isinstance(error, Refusal):
        return error
    for kind, status, code in _KINDS:
        if isinstance(error, kind):
            return Refusal(status, str(error), code=code, param=param)
    if isinstance(error, EdgeVLMError):
        return Refusal(400, str(error), code="invalid_value", param=param)
    return Refusal(500, "The server failed at this request: its log says how.", code="internal_error")


def of_status(status: int, headers: Mapping[str, str] | None = None) -> Refusal:
    """For a path that does not exist, a method that it does not take."""
    words = {
        404: "This path does not exist: ask POST /v1/chat/completions, GET /v1/models, /health, /metrics or /props.",
        405: "This path does not take this method: POST /v1/chat/completions, GET everything else.",
    }
    codes = {404: "not_found", 405: "method_not_allowed"}
    return Refusal(status, words.get(status, HTTPStatus(status).phrase + "."), code=codes.get(status), headers=headers)
