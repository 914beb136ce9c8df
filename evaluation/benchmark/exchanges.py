"""What came of a load: every request, and what all of them say together."""

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

GOOD_STATUSES = frozenset({200, 201})
"""A picture that was kept for later (202) is not an answer."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request and what came of it. Times in seconds since the load began."""

    intended_s: float
    """When it should have begun; in a closed loop, when it did."""
    sent_s: float
    ended_s: float
    status: int
    """Of the answer; 0 without one."""
    failure: str = ""
    """Why there was no answer."""

    @property
    def latency_s(self) -> float:
        """From when it should have begun until it was answered or failed."""
        return self.ended_s - self.intended_s


@dataclass(frozen=True)
class LoadResult:
    """What came of a load."""

    exchanges: tuple[Exchange, ...]
    """All, in the order of their intended beginnings, those of the warm-up too."""
    seconds: float
    warm_up_s: float
    generator_cpu_s: float
    """Processor time of the generator's own processes, the warm-up's included."""
    began_at_s: float
    """``time.monotonic()``, which all processes of a machine share, at its beginning."""
    good_statuses: Collection[int] = GOOD_STATUSES

    @cached_property
    def measured(self) -> tuple[Exchange, ...]:
        """Those that should have begun after the warm-up."""
        return tuple(exchange for exchange in self.exchanges if exchange.intended_s >= self.warm_up_s)

    @property
    def statuses(self) -> Counter[int]:
        """How often each status was answered, the warm-up included; 0 counts what was not answered."""
        return Counter(exchange.status for exchange in self.exchanges)

    @property
    def failures(self) -> Counter[str]:
        """Why there were no answers."""
        return Counter(exchange.failure for exchange in self.exchanges if exchange.failure)

    @property
    def rate(self) -> float:
        """Answers a second, of any status, that arrived between the end of the warm-up and that of the load."""
        return self._arrivals_a_second(exchange for exchange in self.exchanges if exchange.status)

    @property
    def goodput(self) -> float:
        """Good answers a second, likewise."""
        return self._arrivals_a_second(exchange for exchange in self.exchanges if exchange.status in self.good_statuses)

    def quantile_s(self, part: float, *, good_only: bool = True) -> float:
        """Latency that this part (0 to 1) of the measured exchanges stays within; NaN when there are none.

        Args:
            good_only: Leave out what was not answered well: fast refusals would make a service look faster.
        """
        latencies = [
            exchange.latency_s for exchange in self.measured if not good_only or exchange.status in self.good_statuses
        ]
        return float(np.quantile(latencies, part)) if latencies else float("nan")

    def sent_late_s(self, part: float = 0.99) -> float:
        """By how much requests began later than intended: more than some ms, and the generator itself is too slow."""
        late = [exchange.sent_s - exchange.intended_s for exchange in self.measured]
        return float(np.quantile(late, part)) if late else float("nan")

    def _arrivals_a_second(self, exchanges: Iterator[Exchange]) -> float:
        arrived = sum(self.warm_up_s <= exchange.ended_s < self.seconds for exchange in exchanges)
        return arrived / (self.seconds - self.warm_up_s)
