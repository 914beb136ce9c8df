"""The migrations make the tables that the code expects, and can take them back, on every database."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pysqlite3
import pytest
import sqlalchemy
import stamina.instrumentation
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text

from circles.errors import DatabaseSchemaError, DatabaseUnavailableError, DataFolderLockedError
from circles.storage.database import Database
from circles.storage.engine import errors_translated, open_engine
from circles.storage.lock import DataFolderLock
from circles.storage.schema import check_schema, head, migrate
from circles.storage.tables import Base
from tests.records import add, found
from tests.running import wait_until
from tests.worlds import NAMES, World


def engine_of(url: str) -> sqlalchemy.Engine:
    return open_engine(url, 4, 10.0)


@pytest.fixture
def url(world: World, tmp_path: Path) -> str:
    """Of an empty database."""
    return world.new_place(tmp_path, has_tables=False).database_url


def test_migrated_database_has_just_the_tables_of_the_code(url: str) -> None:
    assert migrate(url) == (None, head())
    assert migrate(url) == (head(), head())
    engine = engine_of(url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    engine.dispose()


def test_migrations_can_be_taken_back_one_by_one_without_losing_rows(world: World, tmp_path: Path) -> None:
    place = world.new_place(tmp_path)
    record, _ = add(place.open_book(), b"bytes", found(0.9, 0.8))
    place.close()
    engine = engine_of(place.database_url)
    assert migrate(place.database_url, "0001") == (head(), "0001")
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM objects")) == 2
    assert migrate(place.database_url) == ("0001", head())
    engine.dispose()
    assert place.open_book().get(record.image_id) == record
    place.close()
    engine = engine_of(place.database_url)
    assert migrate(place.database_url, "base") == (head(), None)
    assert set(sqlalchemy.inspect(engine).get_table_names()) <= {"alembic_version"}
    engine.dispose()


def test_many_who_migrate_at_once_wait_for_each_other(url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        changes = list(pool.map(migrate, [url] * 4))
    assert sorted(changes, key=str) == sorted([(None, head()), *[(head(), head())] * 3], key=str)


def test_turn_of_a_new_file_to_wal_waits_for_who_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "db.sqlite3"
    writer = pysqlite3.connect(path)
    writer.executescript("CREATE TABLE numbers (number); BEGIN IMMEDIATE")
    impatient = open_engine(f"sqlite:///{path}", 1, 0.1)
    with pytest.raises(DatabaseUnavailableError, match="locked"), errors_translated(), impatient.connect():
        pass
    engine = engine_of(f"sqlite:///{path}")
    has_tried = Event()
    stamina.instrumentation.set_on_retry_hooks([lambda _details: has_tried.set()])
    try:
        with ThreadPoolExecutor(1) as pool:
            connecting = pool.submit(engine.connect)
            wait_until(lambda: has_tried.is_set() or connecting.done())
            writer.rollback()
            with connecting.result() as connection:
                assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    finally:
        stamina.instrumentation.set_on_retry_hooks(None)
        writer.close()
        engine.dispose()


def test_tables_of_another_version_are_refused(url: str) -> None:
    migrate(url, "0001")
    with pytest.raises(DatabaseSchemaError, match="at revision 0001, this version wants"):
        Database(url)
    migrate(url)
    engine = engine_of(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    for call in (lambda: Database(url), lambda: migrate(url), lambda: check_schema(engine)):
        with pytest.raises(DatabaseSchemaError, match=r"9999, which this version does not know: .* a newer one"):
            call()
    engine.dispose()


def test_opening_again_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "db.sqlite3"
    Database(f"sqlite:///{path}", migrates=True).close()
    before = path.stat().st_mtime_ns
    Database(f"sqlite:///{path}", migrates=True).close()
    assert path.stat().st_mtime_ns == before


def run_migrate(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "circles.storage", "migrate", *arguments]
    environment = {**os.environ, "DATABASE_URL": url, "COLUMNS": "200"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("world", NAMES[:2], indirect=True)
def test_the_word_says_what_it_did(url: str) -> None:
    assert f"was at revision none and is now at {head()}" in run_migrate(url).stdout
    assert f"is at revision {head()}" in run_migrate(url).stdout
    assert "is now at 0001" in run_migrate(url, "--revision", "0001").stdout


def test_the_word_leaves_a_running_services_file_alone(tmp_path: Path) -> None:
    lock = DataFolderLock(tmp_path, holder="a service")
    refused = run_migrate(f"sqlite:///{tmp_path}/db.sqlite3")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "in use by" in refused.stderr
    assert "a service" in refused.stderr
    with pytest.raises(DataFolderLockedError):
        DataFolderLock(tmp_path, holder="another one")
    lock.release()


def test_unknown_revision_is_refused_in_a_sentence(url: str) -> None:
    with pytest.raises(DatabaseSchemaError, match="no revision 'typo'; there are 0001"):
        migrate(url, "typo")


@pytest.mark.parametrize("world", NAMES[1:], indirect=True)
@pytest.mark.parametrize("done", ["0001", "0002", "0003"])
def test_migration_that_was_cut_off_is_started_again(url: str, done: str) -> None:
    """MySQL commits each change of a table by itself: the tables may be further than the revision says."""
    migrate(url, done)
    engine = engine_of(url)
    before = {"0001": None, "0002": "0001", "0003": "0002"}[done]
    with engine.begin() as connection:
        if before is None:
            connection.execute(text("DELETE FROM alembic_version"))
        else:
            connection.execute(text("UPDATE alembic_version SET version_num = :before"), {"before": before})
    assert migrate(url) == (before, head())
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    engine.dispose()
