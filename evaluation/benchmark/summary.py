"""What all rounds say together: medians, and how the ways to serve compare."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from statistics import median

from evaluation.benchmark.limit import Limit
from evaluation.benchmark.measurement import Measurement


@dataclass(frozen=True, slots=True)
class LimitRound:
    """The limit in one round."""

    round: int
    saturated: Limit
    """On all cores."""
    bare_ms: float
    """One picture in one process alone (median)."""
    batch_size: int
    """That did best."""


@dataclass(frozen=True, slots=True)
class Rounds:
    """All that was measured."""

    limits: tuple[LimitRound, ...]
    measurements: tuple[Measurement, ...]
    skipped: dict[str, str]
    """Contestants that could not take part, and why."""

    def names(self) -> list[str]:
        """Contestants that were measured, in the order of their first."""
        return list(dict.fromkeys(measurement.contestant for measurement in self.measurements))

    def of(self, name: str) -> dict[int, Measurement]:
        """A contestant's measurements by round."""
        return {each.round: each for each in self.measurements if each.contestant == name}


_NOT_NUMBERS = ("contestant", "round", "at_part")
_BY_PROGRAM = ("cpu_ms_by_program", "idle_cores_by_program")


def medians(rounds: Rounds) -> dict[str, dict[str, object]]:
    """Every number of every contestant, as the median over its rounds."""
    return {name: _medians(list(rounds.of(name).values())) for name in rounds.names()}


def _medians(measurements: list[Measurement]) -> dict[str, object]:
    numbers: dict[str, object] = {
        each.name: median(getattr(measurement, each.name) for measurement in measurements)
        for each in fields(Measurement)
        if each.name not in (*_NOT_NUMBERS, *_BY_PROGRAM)
    }
    for name in _BY_PROGRAM:
        found = [getattr(measurement, name) for measurement in measurements]
        programs = dict.fromkeys(program for each in found for program in each)
        numbers[name] = {program: median(each.get(program, 0.0) for each in found) for program in programs}
    numbers["at_part"] = {
        part: {key: median(each.at_part[part][key] for each in measurements) for key in values}
        for part, values in measurements[0].at_part.items()
    }
    return numbers


def limit_medians(limits: Iterable[LimitRound]) -> dict[str, float]:
    """The limit's numbers, as medians over its rounds."""
    limits = list(limits)
    return {
        "pictures_per_s": median(each.saturated.pictures_per_s for each in limits),
        "cpu_ms": median(each.saturated.cpu_ms for each in limits),
        "resident_bytes": median(each.saturated.resident_bytes for each in limits),
        "bare_ms": median(each.bare_ms for each in limits),
    }


def ratios(rounds: Rounds) -> dict[str, float]:
    """How often the first does what the second does: pictures/s at saturation, and latencies where the key says so.

    Each is the median of the rounds' own ratios, so that a machine that is slower for a while is so for both.
    """
    names = rounds.names()
    compared: dict[str, float] = {}
    for name in names:
        if _common(rounds, name):
            compared[f"{name}_to_limit"] = _to_limit(rounds, name, lambda m, limit: m.pictures_per_s / limit.pictures)
            compared[f"{name}_to_limit_left"] = _to_limit(
                rounds, name, lambda m, limit: m.pictures_per_s / _left(limit, m)
            )
            compared[f"{name}_p50_one_client_to_bare"] = _to_limit(
                rounds, name, lambda m, limit: m.p50_one_client_ms / limit.bare_ms
            )
        theirs, ours = rounds.of(name), rounds.of("ours")
        common = ours.keys() & theirs.keys()
        if name != "ours" and common:
            compared[f"ours_to_{name}"] = median(
                ours[number].pictures_per_s / theirs[number].pictures_per_s for number in common
            )
    return compared


def overheads_ms(rounds: Rounds) -> dict[str, float]:
    """Processor time a picture beyond the limit's, in ms, of every contestant; the load generator's is not in it."""
    return {
        name: _to_limit(rounds, name, lambda measurement, limit: measurement.cpu_ms - limit.cpu_ms)
        for name in rounds.names()
        if _common(rounds, name)
    }


def _common(rounds: Rounds, name: str) -> set[int]:
    """Rounds in which both the contestant and the limit were measured: not all, when somebody stopped it."""
    return rounds.of(name).keys() & {each.round for each in rounds.limits}


@dataclass(frozen=True, slots=True)
class _RoundLimit:
    pictures: float
    cpu_ms: float
    bare_ms: float


def _to_limit(rounds: Rounds, name: str, compare: Callable[[Measurement, _RoundLimit], float]) -> float:
    limits = {
        each.round: _RoundLimit(each.saturated.pictures_per_s, each.saturated.cpu_ms, each.bare_ms)
        for each in rounds.limits
    }
    theirs = rounds.of(name)
    return median(compare(theirs[number], limits[number]) for number in _common(rounds, name))


def _left(limit: _RoundLimit, measurement: Measurement) -> float:
    """The limit's pictures/s less those that the load generator's processor time would have been enough for."""
    return limit.pictures - measurement.pictures_per_s * measurement.generator_cpu_ms / limit.cpu_ms


def least_ratios(found: dict[str, float], bounds: dict[str, float]) -> list[str]:
    """What is worse than its bound, a line each; a ratio that was not measured is not judged."""
    return [
        f"{name} is {found[name]:.2f}, and at least {bound:g} is wanted"
        for name, bound in bounds.items()
        if name in found and found[name] < bound
    ]
