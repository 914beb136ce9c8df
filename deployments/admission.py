"""Admission: how many uploads one ingress replica works on at once."""

from circles.errors import TooManyUploadsError


class Slot:
    """The right to work on one upload, until it is released."""

    def __init__(self, admission: "Admission") -> None:
        self._admission: Admission | None = admission

    def release(self) -> None:
        """Gives the right back; harmless when it was given back before."""
        if self._admission is not None:
            self._admission._in_flight -= 1  # noqa: SLF001 - the two are one
            self._admission = None


class Admission:
    """Counts slots. For one event loop; not to be shared between threads."""

    def __init__(self, max_in_flight: int) -> None:
        self._max_in_flight = max_in_flight
        self._in_flight = 0

    def enter(self) -> Slot:
        """A slot, at once.

        Raises:
            TooManyUploadsError: All are taken.
        """
        if self._in_flight >= self._max_in_flight:
            raise TooManyUploadsError(f"{self._max_in_flight} uploads are being worked on already")
        self._in_flight += 1
        return Slot(self)
