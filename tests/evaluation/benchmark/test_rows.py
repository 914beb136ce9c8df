"""Questions to a database of many rows."""

from pathlib import Path

from circles.storage.database import Database
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
