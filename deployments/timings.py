"""Where the time of a request goes, told in its answer as ``Server-Timing`` (W3C), when a setting wants it.

Each stage is on the way that the client waits for, so that together they are the whole; what is done beside that way is
named with ``-beside`` at its end.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import Context, ContextVar

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_stages: ContextVar[dict[str, float] | None] = ContextVar("stages", default=None)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Counts the time spent within, in the request that this is done for; costs nothing where nobody wants to know."""
    stages = _stages.get()
    if stages is None:
        yield
        return
    began = time.perf_counter()
    try:
        yield
    finally:
        stages[name] = stages.get(name, 0.0) + time.perf_counter() - began


def add_stages(seconds: Mapping[str, float], rest: str, whole_s: float) -> None:
    """Counts what somebody else measured, and under ``rest`` what is left of the whole that was measured here."""
    stages = _stages.get()
    if stages is not None:
        stages.update(seconds)
        stages[rest] = max(0.0, whole_s - sum(seconds.values()))


def carry_into(context: Context) -> Context:
    """The context, in which the stages of the present request count too."""
    context.run(_stages.set, _stages.get())
    return context


class ServerTimingMiddleware:
    """Tells every request's stages, and the whole as ``total``, in ms."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        stages: dict[str, float] = {}
        _stages.set(stages)
        began = time.perf_counter()

        async def send_with_timings(message: Message) -> None:
            if message["type"] == "http.response.start":
                stages["total"] = time.perf_counter() - began
                entries = (f"{name};dur={1000 * seconds:.3f}" for name, seconds in stages.items())
                MutableHeaders(scope=message)["Server-Timing"] = ", ".join(entries)
            await send(message)

        await self._app(scope, receive, send_with_timings)
