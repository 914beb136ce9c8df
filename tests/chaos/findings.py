"""Findings: what came of all faults of one run, as tables for people and as JSON for documents."""

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from tests.chaos.kills import Kill
from tests.chaos.uploads import Told


@dataclass
class Findings:
    """Of one run; empty before its first fault."""

    kills: list[Kill] = field(default_factory=list)
    power_cuts_s: list[float] = field(default_factory=list)
    """Of each: from the new start's beginning to the first acknowledgement."""
    told: dict[str, Told] = field(default_factory=dict)
    """What clients were told, by the kind of fault they lived through."""
    breaches: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, object]:
        """All numbers; seconds end in ``_s``, parts of one have no unit."""
        return {
            "kills": {"count": len(self.kills), "by_kind": dict(Counter(kill.kind for kill in self.kills))},
            "recovery_s": {kind: _spread(recoveries) for kind, recoveries in self._recoveries().items()},
            "power_cuts": {"count": len(self.power_cuts_s), "serving_again_s": _spread(self.power_cuts_s)},
            "clients": {
                fault: {
                    "sent": len(told.sent),
                    "acknowledged": len(told.acknowledged),
                    "failed_though_patient": len(told.failures),
                    "tries_in_vain": dict(told.tries),
                    "availability_without_retries": told.availability,
                    "answers_without_retries": dict(told.impatient),
                }
                for fault, told in self.told.items()
            },
            "breaches": self.breaches,
        }

    def _recoveries(self) -> dict[str, list[float]]:
        """Seconds by kind, and all together at the end."""
        recoveries: dict[str, list[float]] = {}
        for kill in sorted(self.kills, key=lambda kill: kill.kind):
            recoveries.setdefault(kill.kind, []).append(kill.recovery_s)
        return recoveries | {"all": [kill.recovery_s for kill in self.kills]} if self.kills else {}

    def print(self, console: Console) -> None:
        """Tables, then the breaches."""
        kills = Table("killed", "kills", "back after s: median", "p99", "max", title=f"{len(self.kills)} kills")
        for kind, recoveries in self._recoveries().items():
            kills.add_row(kind, str(len(recoveries)), *_numbers(_spread(recoveries)))
        if self.power_cuts_s:
            spread = _spread(self.power_cuts_s)
            kills.add_row("everything (power cut)", str(len(self.power_cuts_s)), *_numbers(spread), end_section=True)
        console.print(kills)
        clients = Table(
            "clients during", "sent", "acknowledged", "failed though patient", "availability without retries"
        )
        for fault, told in self.told.items():
            counts = (len(told.sent), len(told.acknowledged), len(told.failures))
            clients.add_row(fault, *map(str, counts), f"{100 * told.availability:.2f} % of {told.impatient.total()}")
        console.print(clients)
        in_vain = Table("during", "tried in vain", "patient", "impatient")
        for fault, told in self.told.items():
            for reason in sorted({*told.tries, *told.impatient} - {"200", "201", "202"}):
                in_vain.add_row(fault, reason, str(told.tries[reason]), str(told.impatient[reason]))
        console.print(in_vain)
        for breach in self.breaches:
            console.print(f"BREACH {breach}", markup=False, highlight=False)
        console.print(f"{len(self.breaches)} breaches")


def _spread(values: Sequence[float]) -> dict[str, float]:
    """Median, 99th percentile (the largest of fewer than 100) and maximum."""
    if not values:
        return {}
    ordered = sorted(values)
    p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    return {"median": round(statistics.median(ordered), 2), "p99": round(p99, 2), "max": round(ordered[-1], 2)}


def _numbers(spread: dict[str, float]) -> Iterable[str]:
    return (f"{value:.1f}" for value in spread.values())
