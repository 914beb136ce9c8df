"""Admission: how many pictures one process works on at once."""

from types import TracebackType
from typing import Self

from circles.errors import TooManyUploadsError


class Slot:
    """The right to work on one picture, until it is released or its context is left."""

    def __init__(self, admission: "Admission", weight: int) -> None:
        self._admission: Admission | None = admission
        self._weight = weight

    def release(self) -> None:
        """Gives the right back; harmless when it was given back before."""
        if self._admission is not None:
            self._admission._in_flight -= self._weight  # noqa: SLF001 - the two are one
            self._admission = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


class Admission:
    """Counts slots. For one event loop; not to be shared between threads."""

    def __init__(self, max_in_flight: int) -> None:
        self._max_in_flight = max_in_flight
        self._in_flight = 0

    def enter(self, weight: int = 1) -> Slot:
        """A slot, at once; the caller releases it.

        Args:
            weight: How many pictures of the largest size the work may hold in memory; more than there is room for in
                all is taken as all.

        Raises:
            TooManyUploadsError: All are taken.
        """
        weight = min(weight, self._max_in_flight)
        if self._in_flight + weight > self._max_in_flight:
            raise TooManyUploadsError(f"{self._max_in_flight} pictures are being worked on already")
        self._in_flight += weight
        return Slot(self, weight)
