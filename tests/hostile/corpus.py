"""Hostile files without end, each made anew from a seed and its number: a finding is repeated by its name.

s1-000123-truncate-jpeg-cmyk     seed 1, file 123, how it was made (from what)
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from tests.hostile.bases import bases
from tests.hostile.made import MADE
from tests.hostile.mutations import MUTATIONS

_MADE_PERIOD = 3  # every third file is made from nothing, the others are mutations


@dataclass(frozen=True, slots=True)
class HostileFile:
    """A file to be thrown at the service."""

    name: str
    kind: str
    """How it was made, for tables."""
    content: bytes


def corpus(seed: int, count: int) -> Iterator[HostileFile]:
    """The first files of this seed."""
    return (hostile_file(seed, number) for number in range(count))


def hostile_file(seed: int, number: int) -> HostileFile:
    """One file, always the same bytes for the same seed and number. Kinds take turns, so that some hundred have all."""
    rng = random.Random(f"{seed}:{number}")
    turn, place = divmod(number, _MADE_PERIOD)
    if place == 0:
        kind = list(MADE)[(turn + seed) % len(MADE)]
        return HostileFile(f"s{seed}-{number:06}-{kind}", kind, MADE[kind](rng))
    mutated = turn * (_MADE_PERIOD - 1) + place - 1
    kind = list(MUTATIONS)[mutated % len(MUTATIONS)]
    base = rng.choice(sorted(bases()))
    return HostileFile(f"s{seed}-{number:06}-{kind}-{base}", kind, MUTATIONS[kind](rng, bases()[base]))


def hostile_file_of(name: str) -> HostileFile:
    """The file of this name, made again."""
    seed, number = name.split("-")[:2]
    return hostile_file(int(seed.removeprefix("s")), int(number))
