"""Every error answer is problem details (RFC 9457): one table from an error's code to its status."""

from __future__ import annotations

import traceback
from http import HTTPStatus
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException
from sqlalchemy.exc import StatementError

from tallystick_server.database import UNREACHABLE, is_unavailable
from tallystick_server.logs import LOG
from tallystick_server.placing import StaleRequest
from tallystick_shared.errors import CallerError, InvalidInput, LineError, TallystickError, Untrusted
from tallystick_shared.wire import FieldError, Problem

PROBLEM_MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:tallystick:problem:"
_STATUS_BY_CODE = {
    "UNAUTHENTICATED": 401,
    "UNKNOWN_DEVICE": 401,
    "UNKNOWN_KEY": 401,
    "BAD_SIGNATURE": 401,
    "BAD_TOKEN": 401,
    "FORBIDDEN": 403,
    "NOT_FOUND": 404,
    "EXISTS": 409,
    "TOKEN_USED": 409,
    "IDENTIFIER_REUSED": 409,
    "STALE_REQUEST": 409,
    "WRONG_STATE": 409,
    "TOO_LARGE": 413,
}
_CODE_BY_STATUS = {400: "BAD_REQUEST", 404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED", 413: "TOO_LARGE"}
_DETAIL_BY_STATUS = {
    404: "there is nothing at this address",
    405: "this address does not take this method",
    413: "the body is larger than this address takes",
}


def answer_tallystick_error(request: Request[Any, Any, Any], error: TallystickError) -> Response[bytes]:
    errors = [FieldError(error.path, error.expected, error.was)] if isinstance(error, InvalidInput) else []
    challenge = error.challenge if isinstance(error, StaleRequest) else ""
    return _answer(request, status_of(error), error.code, error.message, errors, challenge=challenge)


def answer_http_exception(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    """What the framework refuses by itself: unknown addresses, methods, bodies too large, bad query parameters."""
    status = error.status_code
    if status >= 500:
        return answer_unexpected(request, error)
    errors = [
        FieldError(str(extra.get("key", "")), str(extra.get("message", "")))
        for extra in (error.extra if isinstance(error.extra, list) else [])
    ]
    detail = _DETAIL_BY_STATUS.get(status) or "the request cannot be read"
    return _answer(request, status, _CODE_BY_STATUS.get(status, "BAD_REQUEST"), detail, errors, error.headers)


def answer_unexpected(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """What should not happen: the log has the whole of it, the caller gets the request's id."""
    if is_unavailable(error):
        cause = error.orig if isinstance(error, StatementError) else error
        LOG.error("database unavailable", request_id=request_id_of(request), error=str(cause))
        busy = LineError(UNREACHABLE, code="DATABASE_BUSY")
        return answer_tallystick_error(request, busy)
    if _is_a_value(error):
        return answer_tallystick_error(request, InvalidInput("", "one of the values is not one that can be stored"))
    LOG.error("unexpected error", request_id=request_id_of(request), traceback=_traceback(error))
    detail = "something went wrong here that is not your fault; the request's id finds it in the log"
    return _answer(request, 500, "INTERNAL", detail, [])


def _is_a_value(error: Exception) -> bool:
    """Whether the database cannot hold a value of the request (SQLSTATE class 22), or its JSON is nested too deeply."""
    cause = error.orig if isinstance(error, StatementError) else error
    too_much = isinstance(cause, OverflowError | RecursionError | UnicodeEncodeError)
    return too_much or str(getattr(cause, "sqlstate", None) or "").startswith("22")


def _traceback(error: Exception) -> str:
    """For the log: where it happened, and never the values of variables, which may be secrets."""
    return "".join(traceback.format_exception(error))


def status_of(error: TallystickError) -> int:
    if error.code in _STATUS_BY_CODE:
        return _STATUS_BY_CODE[error.code]
    if isinstance(error, LineError):
        return 503
    return 422 if isinstance(error, CallerError | Untrusted) else 500


def request_id_of(request: Request[Any, Any, Any]) -> str:
    return str(request.scope.get("state", {}).get("request_id", ""))


def _answer(
    request: Request[Any, Any, Any],
    status: int,
    code: str,
    detail: str,
    errors: list[FieldError],
    headers: dict[str, str] | None = None,
    challenge: str = "",
) -> Response[bytes]:
    problem = Problem(
        type=TYPE_PREFIX + code.lower().replace("_", "-"),
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        code=code,
        request_id=request_id_of(request),
        errors=errors,
        challenge=challenge,
    )
    extra = dict(headers or {})
    if status == 401:
        extra["WWW-Authenticate"] = "Bearer, Tallystick"
    if status == 503:
        extra["Retry-After"] = "2"
    return Response(msgspec.json.encode(problem), status_code=status, headers=extra, media_type=PROBLEM_MEDIA_TYPE)
