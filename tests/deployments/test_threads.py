"""Blocking work in threads."""

import asyncio
import threading
from contextvars import ContextVar

import pytest

from deployments.threads import in_thread

asked_by: ContextVar[str] = ContextVar("asked_by")


def test_work_is_done_elsewhere_in_the_context_of_its_caller() -> None:
    async def ask() -> tuple[int, str]:
        asked_by.set("caller")
        return await in_thread(lambda: (threading.get_ident(), asked_by.get()))

    thread, caller = asyncio.run(ask())
    assert thread != threading.get_ident()
    assert caller == "caller"


def test_errors_are_the_works_own() -> None:
    with pytest.raises(ZeroDivisionError):
        asyncio.run(in_thread(divmod, 1, 0))


@pytest.mark.parametrize("times", [1, 2])
def test_who_is_cancelled_waits_for_work_that_has_begun(times: int) -> None:
    """So a database is not closed under it."""
    began, may_end = threading.Event(), threading.Event()
    ended: list[bool] = []

    def work() -> None:
        began.set()
        ended.append(may_end.wait(timeout=30))

    async def cancel() -> None:
        task = asyncio.create_task(in_thread(work))
        await asyncio.to_thread(began.wait, 30)
        for _ in range(times):
            task.cancel()
            assert not (await asyncio.wait([task], timeout=0.1))[0]
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert ended == [True]
