"""The form of the database's tables: which one they have, and how they get that of this version.

Migrations are run by whoever calls ``migrate`` (a word, an init step of a cluster), never by replicas that start. But
SQLite's one service, which holds the data folder's lock, runs them itself.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import alembic.command
import alembic.config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text

from circles.errors import DatabaseSchemaError, DatabaseUnavailableError
from circles.storage.engine import errors_translated, open_migration_engine

_MIGRATIONS = Path(__file__).parent / "migrations"
# Any number will do that nobody else takes: two who migrate at once meet at it.
_LOCK_NUMBER = 7_261_015
_LOCK_NAME = "circles_migration"
_LOCK_TIMEOUT_S = 120
_LOCK_RETRY_PERIOD_S = 0.2


def migrate(url: str, revision: str = "head") -> tuple[str | None, str | None]:
    """Brings the tables to a revision; one caller at a time, others wait for it.

    Args:
        url: Of the database.
        revision: ``head`` is that of this version; an older one takes tables and columns back, and what is in them.

    Returns:
        The revision before and after; None without tables.

    Raises:
        DatabaseSchemaError: There is no such revision, or the tables are of a newer version than this one.
        DatabaseUnavailableError: The database does not answer.
    """
    engine = open_migration_engine(url)
    try:
        with (
            errors_translated(),
            _migration_lock(engine),
            engine.connect() as connection,
            connection.execution_options(sqlite_begin="BEGIN IMMEDIATE").begin(),
        ):
            before = _revision(connection)
            _require_known(before)
            _change(connection, before, revision)
            return before, _revision(connection)
    finally:
        engine.dispose()


def check_schema(engine: Engine) -> None:
    """
    Raises:
        DatabaseSchemaError: The tables do not have the form that this version works with; the message says what to do.
        DatabaseUnavailableError: The database does not answer.
    """
    with errors_translated(), engine.connect() as connection:
        found = _revision(connection)
    _require_known(found)
    if found != head():
        state = "has no tables yet" if found is None else f"is at revision {found}, this version wants {head()}"
        raise DatabaseSchemaError(f"the database {state}: run `just migrate` (python -m circles.storage migrate)")


def check_soundness(engine: Engine) -> None:
    """Looks through SQLite's file: a page that is damaged would be found when it is read, or written over, much later.

    Raises:
        DatabaseUnavailableError: It is damaged, or no database; nothing is changed.
    """
    with errors_translated(), engine.connect() as connection:
        finding = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
    if finding != "ok":
        raise DatabaseUnavailableError(
            f"the database file is damaged, and left as it is: {' '.join(str(finding).split())[:300]}. Put it aside, "
            "and bring back a backup by `just storage restore` (python -m circles.storage restore)"
        )


def head() -> str:
    """The revision of this version."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    assert revision is not None
    return revision


def _config() -> alembic.config.Config:
    config = alembic.config.Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    return config


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _require_known(revision: str | None) -> None:
    if revision is not None and revision not in _revisions():
        raise DatabaseSchemaError(
            f"the database is at revision {revision}, which this version does not know: it was migrated by a newer one"
        )


def _change(connection: Connection, before: str | None, revision: str) -> None:
    config = _config()
    config.attributes["connection"] = connection
    order = [None, *_revisions()]
    wanted = {"head": order[-1], "base": None}.get(revision, revision)
    if wanted == before:
        return
    if wanted not in order:
        raise DatabaseSchemaError(f"there is no revision '{revision}'; there are {', '.join(_revisions())}")
    if order.index(wanted) > order.index(before):
        alembic.command.upgrade(config, wanted or "base")
    else:
        alembic.command.downgrade(config, wanted or "base")


def _revisions() -> list[str]:
    """All that this version knows, oldest first."""
    return [script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()][::-1]


@contextmanager
def _migration_lock(engine: Engine) -> Iterator[None]:
    """Held by one caller of the server at a time, until all is committed; SQLite's transaction is lock enough."""
    if engine.dialect.name == "sqlite":
        yield
        return
    is_postgresql = engine.dialect.name == "postgresql"
    take, give_back = (
        ("SELECT pg_try_advisory_lock(:key)", "SELECT pg_advisory_unlock(:key)")
        if is_postgresql
        else ("SELECT GET_LOCK(:key, 0)", "SELECT RELEASE_LOCK(:key)")
    )
    key = {"key": _LOCK_NUMBER if is_postgresql else _LOCK_NAME}
    # A connection of its own, which waits for nothing but this.
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        deadline = time.monotonic() + _LOCK_TIMEOUT_S
        while connection.scalar(text(take), key) != 1:
            if time.monotonic() > deadline:
                raise DatabaseSchemaError(f"somebody else has been migrating the database for {_LOCK_TIMEOUT_S} s")
            time.sleep(_LOCK_RETRY_PERIOD_S)
        try:
            yield
        finally:
            connection.execute(text(give_back), key)
