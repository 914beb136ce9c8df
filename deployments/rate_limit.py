"""How often one client may ask. Counted in the memory of this replica: each replica lets as many through."""

import math
import time

from limits import parse
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter


class RateLimiter:
    """Counts requests by whose they are, in a sliding window."""

    def __init__(self, rate: str) -> None:
        """
        Args:
            rate: As RATE_LIMIT, e.g. `100/minute`.
        """
        self.rate = rate
        self._item = parse(rate)
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())

    async def wait_s(self, who: str) -> int:
        """Seconds until this client may ask again; 0 when it may now, which is counted."""
        if await self._limiter.hit(self._item, who):
            return 0
        reset_time, _ = await self._limiter.get_window_stats(self._item, who)
        return max(1, math.ceil(reset_time - time.time()))
