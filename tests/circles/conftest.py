"""Fixtures of what is kept."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from circles.storage.records import RecordBook
from tests.worlds import Place, World


@pytest.fixture
def place(world: World, tmp_path: Path) -> Iterator[Place]:
    """An empty database and store, of each combination."""
    place = world.new_place(tmp_path)
    yield place
    place.close()


@pytest.fixture
def book(place: Place) -> RecordBook:
    """What is kept there."""
    return place.open_book()


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Place]:
    """SQLite and a folder."""
    place = World("local").new_place(tmp_path / "local")
    yield place
    place.close()
