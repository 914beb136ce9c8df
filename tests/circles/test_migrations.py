"""The migrations make the tables that the code expects, and can take them back."""

from pathlib import Path

import alembic.command
import alembic.config
import pysqlite3
import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from circles.storage import database as database_module
from circles.storage.database import Database
from circles.storage.tables import Base


@pytest.fixture
def engine(tmp_path: Path) -> sqlalchemy.Engine:
    Database(f"sqlite:///{tmp_path}/db.sqlite3").close()
    return sqlalchemy.create_engine(f"sqlite:///{tmp_path}/db.sqlite3", module=pysqlite3)


def test_migrated_database_has_just_the_tables_of_the_code(engine: sqlalchemy.Engine) -> None:
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    engine.dispose()


def test_migrations_can_be_taken_back(engine: sqlalchemy.Engine) -> None:
    config = alembic.config.Config()
    config.set_main_option("script_location", str(database_module._MIGRATIONS))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        alembic.command.downgrade(config, "base")
        assert set(sqlalchemy.inspect(connection).get_table_names()) <= {"alembic_version"}
        alembic.command.upgrade(config, "head")
        assert {"images", "objects"} <= set(sqlalchemy.inspect(connection).get_table_names())
    engine.dispose()


def test_opening_again_changes_nothing(tmp_path: Path, engine: sqlalchemy.Engine) -> None:
    engine.dispose()
    before = (tmp_path / "db.sqlite3").stat().st_mtime_ns
    Database(f"sqlite:///{tmp_path}/db.sqlite3").close()
    assert (tmp_path / "db.sqlite3").stat().st_mtime_ns == before
