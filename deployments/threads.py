"""Threads for what blocks: files, databases, decoding."""

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")

_THREADS = 40
_executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="work")


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What the function returns, in a thread, in the context of the caller. Cancelled, however often, it waits for the
    function first.

    Instead of anyio's, which looks for the loop's first task among all tasks each time, and under Ray Serve, whose loop
    runs forever without one, never finds it.
    """
    context = contextvars.copy_context()
    work = asyncio.get_running_loop().run_in_executor(_executor, lambda: context.run(function, *args, **kwargs))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        while not work.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([work])
        raise
