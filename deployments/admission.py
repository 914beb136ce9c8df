"""Admission: how many pictures, and how many bytes of them, one process works on at once."""

import contextlib
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from circles.errors import TooManyUploadsError


@dataclass
class _Room:
    """What there is, and what is taken of it."""

    max_in_flight: int
    max_bytes: int
    in_flight: int = 0
    held_bytes: int = 0

    def require_place(self) -> None:
        if self.in_flight >= self.max_in_flight:
            raise TooManyUploadsError(f"{self.max_in_flight} pictures are being worked on already")


class Admission:
    """Counts pictures and bytes. For one event loop; not to be shared between threads."""

    def __init__(self, max_in_flight: int, max_bytes: int) -> None:
        """
        Args:
            max_bytes: One request may hold more than that when nobody else is here.
        """
        self._room = _Room(max_in_flight, max_bytes)

    @property
    def in_flight(self) -> int:
        """Pictures that are being worked on."""
        return self._room.in_flight

    def enter(self) -> "Slot":
        """For a request whose bytes are still to come; the caller releases what it gets.

        A client that takes its time holds no more than the bytes that it has sent, so others have their turn.

        Raises:
            TooManyUploadsError: So many are worked on that this one would be refused as things are.
        """
        self._room.require_place()
        return Slot(self._room)

    def work(self) -> "Slot":
        """For work whose bytes are there, or count elsewhere; raises as ``enter``."""
        slot = Slot(self._room)
        slot.work()
        return slot

    def work_at_most(self, wanted: int) -> "list[Slot]":
        """As many slots of those wanted as are free, as of ``work``."""
        slots: list[Slot] = []
        with contextlib.suppress(TooManyUploadsError):
            while len(slots) < wanted:
                slots.append(self.work())
        return slots


class Slot:
    """What one request takes, until it is released or its context is left."""

    def __init__(self, room: _Room) -> None:
        self._room = room
        self._held_bytes = 0
        self._is_at_work = False

    def hold(self, size_bytes: int) -> None:
        """So many bytes more are kept in memory or in temporary files.

        Raises:
            TooManyUploadsError: There is no room for them beside those of others.
        """
        self._held_bytes += size_bytes
        self._room.held_bytes += size_bytes
        is_alone = self._room.held_bytes == self._held_bytes
        if self._room.held_bytes > self._room.max_bytes and not is_alone:
            raise TooManyUploadsError(f"{self._room.max_bytes} bytes of pictures are being worked on already")

    def work(self) -> None:
        """From now on it counts as a picture that is being worked on; raises as ``Admission.enter``."""
        self._room.require_place()
        self._room.in_flight += 1
        self._is_at_work = True

    def release(self) -> None:
        """Gives everything back; harmless when it was given back before."""
        self._room.held_bytes -= self._held_bytes
        self._room.in_flight -= self._is_at_work
        self._held_bytes, self._is_at_work = 0, False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()
