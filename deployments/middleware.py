"""What every request passes before it reaches a route: its id, its path in one form, its key, and a net below."""

import os
import re
import uuid
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.access import Access
from deployments.problems import internal_problem, problem_document, problem_response, request_id_of

_REQUEST_ID_HEADER = "X-Request-ID"
_DISCONNECT_HEADER = "X-Request-Disconnect-Disabled"  # Serve's own
# By which a client would tell Serve how to treat its request; Serve reads "-" and "_" as one.
_SERVES_HEADERS = frozenset(
    {b"x_session_id", b"x_request_timeout_seconds", b"x_request_disconnect_disabled", b"serve_multiplexed_model_id"}
)
_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


def proxy_middlewares() -> list[Middleware]:
    """What Ray Serve puts around all of its own handling; ``serve.env`` names this function."""
    middlewares = [Middleware(SaneRequestIdMiddleware)]
    if _is_called_by_the_server():
        middlewares.append(Middleware(UnbufferedBodyMiddleware))
    middlewares.append(Middleware(NoServeHeadersMiddleware))  # the last meets a request first
    return middlewares


def _is_called_by_the_server() -> bool:
    """Whether Ray Serve runs the application in its HTTP server's event loop, whose ``receive`` is for no other."""
    is_fast_path = os.environ.get("RAY_SERVE_THROUGHPUT_OPTIMIZED") == "1"
    return os.environ.get("RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD", "0" if is_fast_path else "1") == "0"


class SaneRequestIdMiddleware:
    """Puts a new id in the place of one that should not be repeated in logs and responses.

    Ray Serve repeats whatever the client sent, before and after the application has its say; so this stands around it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            sent = Headers(scope=scope).getlist(_REQUEST_ID_HEADER)
            if len(sent) > 1 or not all(map(_is_sane, sent)):
                headers = MutableHeaders(scope=scope)
                del headers[_REQUEST_ID_HEADER]  # all of them: Serve would take the last
                headers[_REQUEST_ID_HEADER] = str(uuid.uuid4())
        await self._app(scope, receive, send)


class NoServeHeadersMiddleware:
    """Takes away what a client would tell Ray Serve itself: how long its request may take, and who should answer it.

    Serve reads that before the application does. A value that is no text makes it fail, and a short time ends the
    request midway, both in words of its own.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["headers"] = [
                (name, value) for name, value in scope["headers"] if name.replace(b"-", b"_") not in _SERVES_HEADERS
            ]
        await self._app(scope, receive, send)


class UnbufferedBodyMiddleware:
    """Leaves a request's body at the client until the application asks for it.

    To notice clients that go away, an ingress replica behind HAProxy reads ahead of the application, without bound: a
    large body for a route that reads none, or that waits before it does, would fill the memory. Told not to look out
    for them, it reads nothing itself. A body that ends too soon the application notices as it reads; for the rest there
    is ``unless_client_leaves``.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            MutableHeaders(scope=scope)[_DISCONNECT_HEADER] = "?1"
        await self._app(scope, receive, send)


class RequestIdMiddleware:
    """Gives every request an id, the client's own if it sent a sane one, and tells it in the response.

    Ray Serve writes the header into every response already. So this one adds it only where Serve is not, or where
    Serve runs without ``proxy_middlewares`` and so repeats an id that should not be.
    """

    def __init__(self, app: ASGIApp, is_behind_serve: bool) -> None:
        self._app = app
        self._is_behind_serve = is_behind_serve

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = Headers(scope=scope).get(_REQUEST_ID_HEADER, "")
        is_sane = _is_sane(sent)
        request_id = sent if is_sane else str(uuid.uuid4())
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start" and not (is_sane and self._is_behind_serve):
                MutableHeaders(scope=message)[_REQUEST_ID_HEADER] = request_id
            await send(message)

        await self._app(scope, receive, send_with_id)


class HeadMiddleware:
    """Answers HEAD as GET, without the body. ``is_head`` tells routes that would go to some length for it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_without_body(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        scope.setdefault("state", {})["is_head"] = True
        await self._app({**scope, "method": "GET"}, receive, send_without_body)


class CanonicalPathMiddleware:
    """Makes a trailing slash matter never: the path gets the form in which a route was declared."""

    def __init__(self, app: ASGIApp, paths_with_slash: Collection[str]) -> None:
        self._app = app
        self._paths_with_slash = frozenset(paths_with_slash)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"].rstrip("/") + "/"
            scope["path"] = path if path in self._paths_with_slash else path.rstrip("/") or "/"
        await self._app(scope, receive, send)


class AccessMiddleware:
    """Lets those in who may enter: with a key, where one is wanted, and not too often."""

    def __init__(
        self, app: ASGIApp, access: Access, open_paths: Collection[str], unlimited_paths: Collection[str]
    ) -> None:
        """
        Args:
            open_paths: They want no key.
            unlimited_paths: They want none, and may be asked for as often as one likes.
        """
        self._app = app
        self._access = access
        self._open_paths = frozenset(open_paths)
        self._unlimited_paths = frozenset(unlimited_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = None
        if scope["type"] == "http" and scope["path"] not in self._unlimited_paths:
            headers = Headers(scope=scope)
            refusal = await self._access.refusal(
                headers.get("X-API-Key", ""),
                headers.get("Authorization", ""),
                ",".join(headers.getlist("X-Forwarded-For")),
                wants_key=scope["path"] not in self._open_paths,
            )
        if refusal is None:
            await self._app(scope, receive, send)
            return
        if refusal.retry_after_s:
            status, title, more = 429, "Too many requests", {"Retry-After": str(refusal.retry_after_s)}
        else:
            status, title, more = 401, "Unauthorized", {"WWW-Authenticate": "Bearer"}
        document = problem_document(status, title, refusal.detail, scope["path"], request_id_of(scope))
        await problem_response(scope, document, more)(scope, receive, send)


class InternalErrorMiddleware:
    """The net below: an error that nobody foresaw is logged with its traceback, and answered without it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_started = False

        async def send_and_note(message: Message) -> None:
            nonlocal is_started
            is_started = True
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        except ClientDisconnect:
            return  # nobody is left to answer
        except Exception as error:
            if scope["type"] != "http" or is_started:
                raise  # too late for an answer: the connection is cut, which tells the client as much
            document = internal_problem(scope["path"], request_id_of(scope))
            await problem_response(scope, document, {}, error)(scope, receive, send)


def is_head(scope: Scope) -> bool:
    """Whether a request that reads GET by now was HEAD."""
    return bool(scope["state"].get("is_head"))


def _is_sane(request_id: str) -> bool:
    return _SANE_REQUEST_ID.fullmatch(request_id) is not None
