"""Readiness: parts that hang."""

import asyncio
import threading

import pytest

from deployments import readiness
from deployments.readiness import Readiness


def test_a_check_that_hangs_is_not_begun_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes come every few seconds, and each would leave a thread behind."""
    monkeypatch.setattr(readiness, "_CHECK_TIMEOUT_S", 2.0)
    monkeypatch.setattr(readiness, "_CACHE_S", 0.0)
    may_end = threading.Event()
    begun = []

    def check() -> str:
        begun.append(1)
        may_end.wait(30)
        return "ok"

    async def ask() -> None:
        asked = Readiness({"slow": check, "quick": lambda: "ok"})
        for _ in range(3):
            is_ready, states = await asked.states()
            assert (is_ready, states["quick"]) == (False, "ok")
            assert "did not answer" in states["slow"]
        assert len(begun) == 1
        may_end.set()
        monkeypatch.setattr(readiness, "_CHECK_TIMEOUT_S", 30.0)
        assert await asked.states() == (True, {"slow": "ok", "quick": "ok"})

    asyncio.run(ask())
