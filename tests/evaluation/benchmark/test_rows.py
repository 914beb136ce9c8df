"""Questions to a database of many rows."""

from datetime import datetime
from pathlib import Path

import pytest

from circles.storage.database import Database
from circles.storage.image_records import ImagePage, Status
from evaluation.benchmark.rows import measure_rows


def test_each_size_is_filled_up_to_and_asked(tmp_path: Path) -> None:
    heard: list[int] = []
    url = f"sqlite:///{tmp_path}/rows.sqlite3"
    times = measure_rows(url, [10, 6000], 5, heard.append)
    assert [each.images for each in times] == [10, 6000]
    assert heard == [10, 5010, 6000]
    assert all(each.find_ms > 0 and each.add_ms > 0 and each.delete_ms > 0 for each in times)
    database = Database(url)
    try:
        # What the questions added, they removed.
        assert database.count() == 6000
        page = database.page(50, None, None, 0.8)
        assert [count for _, count in page.items] == [1] * 50
        assert page.next_cursor is not None
    finally:
        database.close()


def test_old_pages_are_those_of_images_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ages: list[float] = []
    page = Database.page

    def watched(
        database: Database, limit: int, cursor: str | None, status: Status | None, min_score: float
    ) -> ImagePage:
        found = page(database, limit, cursor, status, min_score)
        if cursor is None:
            newest.append(found.items[0][0].created_at)
        else:
            ages.append((newest[0] - found.items[0][0].created_at).total_seconds())
        return found

    monkeypatch.setattr(Database, "page", watched)
    newest: list[datetime] = []
    measure_rows(f"sqlite:///{tmp_path}/rows.sqlite3", [4000], 20, lambda _: None)
    # Each image is a second older than the one before.
    assert len(ages) == 20
    assert min(ages) < 1000
    assert max(ages) > 3000
