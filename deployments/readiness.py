"""Readiness: every part really tried, at most once in a while, and never for long."""

import asyncio
import logging
import time
from collections.abc import Callable

from circles.errors import CirclesError

logger = logging.getLogger("ray.serve")

_CACHE_S = 2.0
_CHECK_TIMEOUT_S = 5.0


class Readiness:
    """Runs named checks and remembers their outcome for a moment, so that probes cost next to nothing."""

    def __init__(self, checks: dict[str, Callable[[], str]]) -> None:
        """
        Args:
            checks: Blocking checks by what they look at; each returns its state or raises CirclesError.
        """
        self._checks = checks
        self._lock = asyncio.Lock()
        self._checked_at = float("-inf")
        self._is_ready = False
        self._states: dict[str, str] = {}
        self._running: dict[str, asyncio.Task[str]] = {}

    async def states(self) -> tuple[bool, dict[str, str]]:
        """Whether all is well, and each check's state or what is wrong."""
        async with self._lock:
            if time.monotonic() - self._checked_at >= _CACHE_S:
                outcomes = await asyncio.gather(*(self._try(name) for name in self._checks))
                self._states = {name: state for name, (_, state) in zip(self._checks, outcomes, strict=True)}
                self._is_ready = all(is_well for is_well, _ in outcomes)
                self._checked_at = time.monotonic()
            return self._is_ready, self._states

    async def _try(self, name: str) -> tuple[bool, str]:
        try:
            async with asyncio.timeout(_CHECK_TIMEOUT_S):
                return True, await asyncio.shield(self._running_check(name))
        except TimeoutError:
            return False, f"did not answer within {_CHECK_TIMEOUT_S:g} s"
        except CirclesError as error:
            return False, error.detail
        # A probe's answer is 200 or 503, whatever a check stumbles on.
        except Exception:
            logger.exception("a readiness check stumbled")
            return False, "the check failed; the log tells more"

    def _running_check(self, name: str) -> "asyncio.Task[str]":
        """The one that hangs since earlier, or a new one: a part that is away takes one thread, not one a probe."""
        check = self._running.get(name)
        if check is None or check.done():
            # Not among the threads of uploads, which these may all be waiting in.
            check = asyncio.create_task(asyncio.to_thread(self._checks[name]))
            check.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may be waiting any more
            self._running[name] = check
        return check
