"""How an error looks to the one who meets it: one table of statuses, and one body for each kind of API."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import msgspec

from gpud.core.budget import GIB
from gpud.core.errors import BudgetExceeded, GpudError, QueueFull


class Api(StrEnum):
    """Whose clients a route is for: they read errors in the shape that they know."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    OLLAMA = "ollama"
    LLAMA = "llama"
    MANAGEMENT = "management"


UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What reading JSON may raise."""


def why_unreadable(problem: Exception) -> str:
    """What is wrong with a body, in words. Of one that is nested too deeply the interpreter speaks of itself."""
    return "it is nested too deeply" if isinstance(problem, RecursionError) else str(problem)


class HttpError(GpudError):
    """Something that only HTTP knows: ``status`` and ``type`` as they go out, and headers that belong to them."""

    code = "http"

    def __init__(
        self, status: int, kind: str, message: str, *, hint: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.kind = kind
        self.headers = dict(headers or {})


STATUSES: Mapping[str, tuple[int, str]] = {
    "no-such-model": (404, "model_not_found"),
    "no-such-job": (404, "not_found"),
    "no-such-hold": (404, "not_found"),
    "no-such-claim": (404, "not_found"),
    "no-session": (404, "no_session"),
    "not-loaded": (409, "model_not_loaded"),
    "busy": (409, "model_already_loaded"),
    "budget-exceeded": (507, "insufficient_vram"),
    "queue-full": (503, "queue_full"),
    "waited-too-long": (504, "queue_timeout"),
    "yielded": (503, "gpu_yielded"),
    "gpu-taken": (503, "gpu_busy"),
    "gpu-unavailable": (503, "gpu_unavailable"),
    "backend-failed": (500, "backend_error"),
    "invalid-option": (400, "invalid_request"),
    "invalid-arguments": (400, "invalid_request"),
    "limits-exceeded": (429, "limits_exceeded"),
    "access-denied": (403, "permission_denied"),
    "interaction-required": (403, "permission_denied"),
    "suspending": (503, "suspending"),
    "shutting-down": (503, "shutting_down"),
    "config-invalid": (400, "config_invalid"),
    "canceled": (503, "canceled"),
}
"""By the error's code: the status, and the type that is told. A test sees that none is missing."""

RETRY_AFTER_S = {"yielded": 60, "gpu-taken": 30, "shutting-down": 5, "suspending": 30, "canceled": 1}
"""After how long it is worth asking again, where the error does not say it itself."""

_ANTHROPIC = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}

_LLAMA = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    501: "not_supported_error",
    503: "unavailable_error",
}


def status_of(error: GpudError) -> int:
    if isinstance(error, HttpError):
        return error.status
    return STATUSES.get(error.code, (500, ""))[0]


def type_of(error: GpudError) -> str:
    if isinstance(error, HttpError):
        return error.kind
    return STATUSES.get(error.code, (500, "internal_error"))[1]


def headers_of(error: GpudError) -> dict[str, str]:
    """What goes out beside the body: above all, when to ask again."""
    if isinstance(error, HttpError):
        return error.headers
    if isinstance(error, QueueFull):
        return {"Retry-After": str(max(1, round(error.retry_after_s)))}
    seconds = RETRY_AFTER_S.get(error.code)
    return {} if seconds is None else {"Retry-After": str(seconds)}


def error_value(api: Api, error: GpudError) -> dict[str, Any]:
    """The body, before it is written as JSON."""
    status, kind, text = status_of(error), type_of(error), error.text
    if isinstance(error, BudgetExceeded):
        text = f"{text} (need {error.need_bytes / GIB:.2f} GiB, available {error.available_bytes / GIB:.2f} GiB)"
    if api is Api.OLLAMA:
        return {"error": text}
    if api is Api.ANTHROPIC:
        return {"type": "error", "error": {"type": _ANTHROPIC.get(status, "api_error"), "message": text}}
    if api is Api.LLAMA:
        return {"error": {"code": status, "message": text, "type": _LLAMA.get(status, kind)}}
    inner: dict[str, Any] = {"message": text, "type": kind}
    if api is Api.OPENAI:
        inner |= {"param": "model" if kind == "model_not_found" else None, "code": kind}
    if isinstance(error, BudgetExceeded):
        inner |= {"need_bytes": error.need_bytes, "available_bytes": error.available_bytes}
    return {"error": inner}


def error_body(api: Api, error: GpudError) -> bytes:
    return msgspec.json.encode(error_value(api, error))
