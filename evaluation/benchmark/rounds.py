"""The rounds: every contestant and the limit in each, one after the other, in an order that chance decides."""

import random
from collections.abc import Callable, Sequence

from evaluation.benchmark.contestants import CORES, Contestant
from evaluation.benchmark.environments import NotInstallableError, fresh_folder
from evaluation.benchmark.limit import measure_limit
from evaluation.benchmark.measurement import Measurement, Plan, WrongAnswersError, measure
from evaluation.benchmark.summary import LimitRound, Rounds
from serve_app.processes import LocalServiceError

LIMIT = "limit"

_BATCH_SIZES = (1, 8)  # the service's defaults on a CPU and on a GPU


def run_rounds(
    contestants: Sequence[Contestant],
    plan: Plan,
    count: int,
    seed: int,
    told: Callable[[str], None],
    *,
    has_limit: bool = True,
) -> Rounds:
    """Measures all in every round; who cannot be started or answers wrongly is left out from then on, with the reason.
    Ctrl-C ends it early and keeps what was done.

    Args:
        count: Of rounds.
        seed: Of their orders.
        told: Hears what is going on.
    """
    skipped: dict[str, str] = {}
    taking_part: dict[str, Contestant] = {}
    for contestant in contestants:
        told(f"preparing {contestant.name}")
        try:
            contestant.prepare()
        except NotInstallableError as error:
            skipped[contestant.name] = str(error)
        else:
            taking_part[contestant.name] = contestant
    # Chosen beforehand: the better of two trials in every round would be luck as well.
    batch_size = _best_batch_size(plan) if has_limit else 1
    limits: list[LimitRound] = []
    measurements: list[Measurement] = []
    order = random.Random(seed)  # noqa: S311 - nothing secret
    try:
        for number in range(count):
            names = [*taking_part, *([LIMIT] if has_limit else [])]
            order.shuffle(names)
            for name in names:
                told(f"round {number + 1} of {count}: {name}")
                if name == LIMIT:
                    limits.append(_limit(plan, number, batch_size))
                    continue
                try:
                    measurements.append(_measured(taking_part[name], plan, number, told))
                except (LocalServiceError, WrongAnswersError) as error:
                    told(f"{name} is left out: {error}")
                    skipped[name] = str(error)
                    del taking_part[name]
    except KeyboardInterrupt:
        told("interrupted; what was measured stays")
    return Rounds(tuple(limits), tuple(measurements), skipped)


def _measured(contestant: Contestant, plan: Plan, number: int, told: Callable[[str], None]) -> Measurement:
    """Raises as ``measure``, when it does so a second time: Ray's start has timeouts that a busy machine exceeds."""

    def say(text: str) -> None:
        told(f"    {contestant.name}: {text}")

    try:
        with fresh_folder() as folder:
            return measure(contestant, plan, number, folder, say)
    except LocalServiceError as error:
        say(f"once more, since it did not start: {error}")
    with fresh_folder() as folder:
        return measure(contestant, plan, number, folder, say)


def _best_batch_size(plan: Plan) -> int:
    trials = {size: measure_limit(plan.pictures, plan.seconds / 2, CORES, size) for size in _BATCH_SIZES}
    return max(trials, key=lambda size: trials[size].pictures_per_s)


def _limit(plan: Plan, number: int, batch_size: int) -> LimitRound:
    saturated = measure_limit(plan.pictures, plan.seconds, CORES, batch_size)
    alone = measure_limit(plan.pictures, plan.seconds / 2, processes=1, batch_size=1)
    return LimitRound(number, saturated, alone.call_ms, batch_size)
