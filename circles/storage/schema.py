"""The form of the database's tables: which one they have, and how they get that of this version.

Migrations are run by whoever calls ``migrate`` (a word, an init step of a cluster), never by replicas that start. But
SQLite's one service, which holds the data folder's lock, runs them itself.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import alembic.command
import alembic.config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text

from circles.errors import DatabaseSchemaError
from circles.storage.engine import errors_translated

_MIGRATIONS = Path(__file__).parent / "migrations"
# Any number will do that nobody else takes: two who migrate at once meet at it.
_LOCK_NUMBER = 7_261_015
_LOCK_NAME = "circles_migration"
_LOCK_TIMEOUT_S = 60


def migrate(engine: Engine, revision: str = "head") -> tuple[str | None, str | None]:
    """Brings the tables to a revision; one caller at a time, others wait for it.

    Args:
        revision: ``head`` is that of this version; an older one takes tables and columns back, and what is in them.

    Returns:
        The revision before and after; None without tables.

    Raises:
        DatabaseSchemaError: The tables are of a newer version than this one.
        DatabaseUnavailableError: The database does not answer.
    """
    with errors_translated(), _connected(engine) as connection, _migration_lock(connection):
        before = _revision(connection)
        _require_known(before)
        config = _config()
        config.attributes["connection"] = connection
        if revision == "head" or _is_ahead(revision, before):
            alembic.command.upgrade(config, revision)
        else:
            alembic.command.downgrade(config, revision)
        return before, _revision(connection)


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
    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    if revision is not None and revision not in known:
        raise DatabaseSchemaError(
            f"the database is at revision {revision}, which this version does not know: it was migrated by a newer one"
        )


def _is_ahead(revision: str, before: str | None) -> bool:
    """Whether a revision comes after the present one."""
    order = [script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()][::-1]
    return revision in order and (before is None or order.index(revision) > order.index(before))


@contextmanager
def _connected(engine: Engine) -> Iterator[Connection]:
    """A connection inside a transaction; SQLite's is one that writes from its beginning."""
    with (
        engine.connect() as connection,
        connection.execution_options(sqlite_begin="BEGIN IMMEDIATE").begin(),
    ):
        yield connection


@contextmanager
def _migration_lock(connection: Connection) -> Iterator[None]:
    """Held by one connection of the server at a time; SQLite's transaction is lock enough."""
    dialect = connection.dialect.name
    if dialect == "postgresql":
        # Waits for the other one's whole transaction, for longer than a statement may take elsewhere.
        connection.execute(text(f"SET LOCAL statement_timeout = {_LOCK_TIMEOUT_S * 1000}"))
        connection.execute(text(f"SET LOCAL lock_timeout = {_LOCK_TIMEOUT_S * 1000}"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _LOCK_NUMBER})
        yield
    elif dialect in ("mysql", "mariadb"):
        _require_lock(connection)
        try:
            yield
        finally:
            connection.execute(text("SELECT RELEASE_LOCK(:name)"), {"name": _LOCK_NAME})
    else:
        yield


def _require_lock(connection: Connection) -> None:
    # The driver reads no longer than its timeout, so waiting is done in short turns.
    for _ in range(_LOCK_TIMEOUT_S):
        if connection.scalar(text("SELECT GET_LOCK(:name, 1)"), {"name": _LOCK_NAME}) == 1:
            return
    raise DatabaseSchemaError(f"somebody else has been migrating the database for {_LOCK_TIMEOUT_S} s")
