"""Errors as clients see them: RFC 9457 problem documents, and the one table from our exceptions to status codes."""

import logging
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Scope

from circles import errors
from deployments.quoting import shortened

logger = logging.getLogger("ray.serve")

PROBLEM_MEDIA_TYPE = "application/problem+json"

_MAX_DETAIL_LENGTH = 1000  # of ours; a client's ids and paths may be in it, of any length


@dataclass(frozen=True, slots=True)
class _Answer:
    """How a class of errors is told: status code, title, and after how many seconds to try again."""

    status: int
    title: str
    retry_after_s: int | None = None


_ANSWERS: dict[type[errors.CirclesError], _Answer] = {
    errors.UnsupportedImageError: _Answer(415, "Not an accepted image format"),
    errors.BrokenImageError: _Answer(422, "Broken image"),
    errors.ImageTooLargeError: _Answer(422, "Too many pixels"),
    errors.InferenceInputError: _Answer(400, "Bad inference request"),
    errors.NotFoundError: _Answer(404, "Not found"),
    errors.DetectionFailedError: _Answer(500, "Detection failed"),
    errors.WeightsError: _Answer(500, "Weights unusable"),
    errors.TooManyUploadsError: _Answer(429, "Too many uploads", retry_after_s=1),
    errors.BacklogFullError: _Answer(429, "Backlog full", retry_after_s=10),
    errors.DetectorUnavailableError: _Answer(503, "Detector unavailable", retry_after_s=5),
    errors.DatabaseUnavailableError: _Answer(503, "Database unavailable", retry_after_s=5),
    errors.StorageUnavailableError: _Answer(503, "Storage unavailable", retry_after_s=5),
    errors.UnavailableError: _Answer(503, "Unavailable", retry_after_s=5),
    errors.StorageFullError: _Answer(507, "Storage full"),
}


class RequestError(Exception):
    """The request itself is at fault, in a way that only HTTP knows."""

    def __init__(self, status: int, title: str, detail: str) -> None:
        super().__init__(status, title, detail)
        self.status = status
        self.title = title
        self.detail = detail


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's description of problem answers with these status codes."""
    content = {PROBLEM_MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemBody"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def install_problem_handlers(app: FastAPI) -> None:
    """Lets every error of the application be answered as a problem document."""
    app.add_exception_handler(errors.CirclesError, _on_circles_error)
    app.add_exception_handler(RequestError, _on_request_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)


def problem_of(error: errors.CirclesError, instance: str, request_id: str) -> tuple[dict[str, object], dict[str, str]]:
    """The problem document of one of our errors, and the headers that go with it."""
    answer = next(_ANSWERS[kind] for kind in type(error).__mro__ if kind in _ANSWERS)
    headers = {} if answer.retry_after_s is None else {"Retry-After": str(answer.retry_after_s)}
    return problem_document(answer.status, answer.title, error.detail, instance, request_id), headers


def problem_document(status: int, title: str, detail: str, instance: str, request_id: str) -> dict[str, object]:
    """A problem document; its type follows from its title, so that programs can tell problems apart."""
    return {
        "type": f"urn:circles:problem:{title.lower().replace(' ', '-')}",
        "title": title,
        "status": status,
        "detail": shortened(detail, _MAX_DETAIL_LENGTH),
        "instance": shortened(instance),
        "request_id": request_id,
    }


def internal_problem(instance: str, request_id: str) -> dict[str, object]:
    """The problem document of what nobody foresaw."""
    detail = "the service made a mistake; its log tells more under this request id"
    return problem_document(500, "Internal error", detail, instance, request_id)


def problem_response(
    scope: Scope, document: dict[str, object], headers: dict[str, str], cause: Exception | None = None
) -> JSONResponse:
    """The answer to a request that failed; also writes the failure's one log line, with the cause's traceback."""
    log_failure(scope, document, cause)
    return JSONResponse(document, int(str(document["status"])), headers, PROBLEM_MEDIA_TYPE)


def log_failure(scope: Scope, document: dict[str, object], cause: Exception | None = None) -> None:
    """Writes the one log line of a request that failed, whatever form its answer has."""
    status = int(str(document["status"]))
    level = logging.ERROR if status >= HTTPStatus.INTERNAL_SERVER_ERROR else logging.INFO
    logger.log(
        level,
        "%s %s refused with %d %s: %s (request %s)",
        scope["method"],
        shortened(scope["path"]),
        status,
        document["title"],
        document["detail"],
        document["request_id"],
        exc_info=cause,
    )


def request_id_of(scope: Scope) -> str:
    """The id of this request, as ``RequestIdMiddleware`` found or made it."""
    return str(scope["state"]["request_id"])


def respond(
    request: Request, status: int, title: str, detail: str, headers: dict[str, str] | None = None
) -> JSONResponse:
    """A problem response to this request."""
    document = problem_document(status, title, detail, request.url.path, request_id_of(request.scope))
    return problem_response(request.scope, document, headers or {})


async def _on_circles_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, errors.CirclesError)
    document, headers = problem_of(error, request.url.path, request_id_of(request.scope))
    return problem_response(request.scope, document, headers)


async def _on_request_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestError)
    return respond(request, error.status, error.title, error.detail)


async def _on_validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    details = (f"{'.'.join(str(part) for part in entry['loc'])}: {entry['msg']}" for entry in error.errors())
    return respond(request, 422, "Bad parameter", "; ".join(details))


async def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(_allowed_methods(request)) or "GET, HEAD"  # of files, which are no route
        detail = f"{request.method} is not possible here; allowed: {headers['Allow']}"
        return respond(request, error.status_code, "Method not allowed", detail, headers)
    if error.status_code == HTTPStatus.NOT_FOUND:
        return respond(request, error.status_code, "Not found", f"there is nothing at {shortened(request.url.path)}")
    title = HTTPStatus(error.status_code).phrase
    return respond(request, error.status_code, title, str(error.detail), headers)


def _allowed_methods(request: Request) -> list[str]:
    """All methods of this path: the router itself only names those of the first route that fits."""
    allowed = [
        method
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE")
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in request.app.routes)
    ]
    return ["GET", "HEAD", *allowed[1:]] if "GET" in allowed else allowed
