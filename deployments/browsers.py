"""What browsers are told with every answer: to run nothing that it holds, and whose pages may read it."""

import base64
import hashlib
import re
from collections.abc import Collection, Mapping

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.problems import problem_document, problem_response, request_id_of

NOTHING = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
"""The policy of answers that are no pages: whatever a browser takes them for, it loads and runs nothing of them."""

PAGE = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The policy of the page for people: its own files, and pictures that it has fetched."""


def documentation_policy(app: FastAPI) -> str:
    """The policy of the application's interactive documentation: its own files, and the one script that it holds."""
    page = get_swagger_ui_html(
        openapi_url=str(app.openapi_url),
        title=app.title,
        oauth2_redirect_url=app.swagger_ui_oauth2_redirect_url,
        swagger_ui_parameters=app.swagger_ui_parameters,
    )
    (script,) = re.findall(r"<script>(.*?)</script>", bytes(page.body).decode(), re.DOTALL)
    script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # Swagger UI writes styles into its elements, has icons in its style sheet, and shows answers as blobs.
    return (
        f"default-src 'none'; script-src 'self' 'sha256-{script_hash}'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


class BrowserHeadersMiddleware:
    """Tells browsers to take each answer for what its content type says, and to run nothing of it."""

    def __init__(self, app: ASGIApp, policies: Mapping[str, str], is_shared: bool) -> None:
        """
        Args:
            policies: Those of paths that are pages; all else has ``NOTHING``.
            is_shared: Whether pages of other origins may show what is answered.
        """
        self._app = app
        self._policies = policies
        self._resource_policy = "cross-origin" if is_shared else "same-origin"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Content-Security-Policy"] = self._policies.get(scope["path"], NOTHING)
                headers["Cross-Origin-Resource-Policy"] = self._resource_policy
                headers["Referrer-Policy"] = "no-referrer"
            await send(message)

        await self._app(scope, receive, send_with_headers)


class ForeignPageMiddleware:
    """Refuses what a page of another origin has a browser send to change something, unless that may ask.

    Such a page may send a form without asking first, and without CORS cannot read the answer; the harm would be done.
    """

    def __init__(self, app: ASGIApp, allowed_origins: Collection[str]) -> None:
        """
        Args:
            allowed_origins: As CORS_ORIGINS.
        """
        self._app = app
        self._allowed_origins = frozenset(allowed_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._is_foreign(scope["method"], Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        detail = "a page of another origin may not change anything here: see CORS_ORIGINS"
        document = problem_document(403, "Not allowed from there", detail, scope["path"], request_id_of(scope))
        await problem_response(scope, document, {})(scope, receive, send)

    def _is_foreign(self, method: str, headers: Headers) -> bool:
        if method in ("GET", "HEAD", "OPTIONS"):
            return False
        # Only browsers send these headers, and no page can change them; the first one not where the connection is
        # neither encrypted nor of this machine.
        site, origin = headers.get("Sec-Fetch-Site"), headers.get("Origin", "")
        if site is None:
            is_cross = origin != "" and origin.lower().partition("://")[2] != headers.get("Host", "").lower()
        else:
            is_cross = site in ("cross-site", "same-site")
        return is_cross and self._allowed_origins.isdisjoint({"*", origin})


class CorsMiddleware(CORSMiddleware):
    """Starlette's, whose refusals are problem documents."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" else {}
        is_preflight = {"origin", "access-control-request-method"} <= set(headers.keys())
        if not is_preflight or scope["method"] != "OPTIONS":
            await super().__call__(scope, receive, send)
            return
        response = self.preflight_response(Headers(scope=scope))
        if response.status_code != 200:
            detail = f"{bytes(response.body).decode()}: see CORS_ORIGINS"
            document = problem_document(400, "Not allowed from there", detail, scope["path"], request_id_of(scope))
            response = problem_response(scope, document, {"Vary": "Origin"})
        await response(scope, receive, send)
