"""Engines: how SQLAlchemy speaks to SQLite, PostgreSQL and MySQL here, and what their errors mean."""

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pysqlite3
import stamina
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from circles.errors import DatabaseUnavailableError, StorageFullError
from circles.storage.durable import make_folder

logger = logging.getLogger(__name__)

DRIVERS = ("sqlite", "postgresql+psycopg", "mysql+pymysql", "mariadb+pymysql")
"""What a database URL may begin with."""

_MIGRATION_WAIT_S = 60.0
_RECYCLE_S = 1800  # connections are not kept for longer: firewalls and servers drop idle ones silently

_DUPLICATES = {"23505", "1062"}  # a unique value is there already

# Two transactions met, one of them was rolled back, and may try again: PostgreSQL's SQLSTATEs, MySQL's numbers.
_CONFLICTS = {"40001", "40P01", "1213", "1020"}
_FULL = ("disk is full", "No space left on device", "is full", "could not extend file")
_READ_ONLY = ("read-only transaction", "read-only option", "readonly database", "read_only")


def is_sqlite(url: str) -> bool:
    """Whether the database is a file of this machine, which one service at a time may write."""
    return make_url(url).get_backend_name() == "sqlite"


def open_engine(url: str, pool_size: int, timeout_s: float) -> Engine:
    """An engine with a pool of connections; connects on demand.

    Args:
        pool_size: Most connections at once.
        timeout_s: To wait for a free connection, for the server, and for other transactions.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return _sqlite_engine(parsed, pool_size, timeout_s)
    is_postgresql = parsed.get_backend_name() == "postgresql"
    return create_engine(
        parsed,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=timeout_s,
        pool_recycle=_RECYCLE_S,
        pool_pre_ping=True,  # a server that restarted costs nobody an answer
        isolation_level="READ COMMITTED",  # what another transaction committed is seen, as after a failed insert
        connect_args=_postgresql_arguments(timeout_s) if is_postgresql else _mysql_arguments(timeout_s),
    )


def open_migration_engine(url: str) -> Engine:
    """An engine whose statements may take as long as a change of a large table takes; they wait for others a minute."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return _sqlite_engine(parsed, 1, _MIGRATION_WAIT_S)
    if parsed.get_backend_name() == "postgresql":
        arguments = _postgresql_arguments(_MIGRATION_WAIT_S)
        arguments["options"] = f"-c lock_timeout={int(_MIGRATION_WAIT_S * 1000)}"
        del arguments["tcp_user_timeout"]
    else:
        arguments = _mysql_arguments(_MIGRATION_WAIT_S)
        del arguments["read_timeout"]
        arguments["init_command"] = f"{arguments['init_command']}, lock_wait_timeout={int(_MIGRATION_WAIT_S)}"
    return create_engine(parsed, pool_size=2, max_overflow=0, connect_args=arguments)


def is_conflict(error: Exception) -> bool:
    """Whether the transaction was rolled back because of another one, and may succeed when tried again."""
    return isinstance(error, DBAPIError) and not _codes(error).isdisjoint(_CONFLICTS)


def is_duplicate(error: IntegrityError) -> bool:
    """Whether the row could not be inserted because there is one like it."""
    return not _codes(error).isdisjoint(_DUPLICATES) or "UNIQUE constraint failed" in str(error.orig)


def is_read_only(error: DBAPIError) -> bool:
    """Whether the server lets nobody write, as a standby does."""
    return any(sign in str(error.orig) for sign in _READ_ONLY)


@contextmanager
def errors_translated() -> Iterator[None]:
    """Lets the database's errors out as this project's.

    Raises:
        StorageFullError: It has no space left.
        DatabaseUnavailableError: It does not answer, or lets nobody write.
    """
    try:
        yield
    except DBAPIError as error:
        text = str(error.orig)
        if any(sign in text for sign in _FULL):
            raise StorageFullError("the database has no space left") from error
        if is_read_only(error):
            raise DatabaseUnavailableError("the database is read-only") from error
        # The whole text for the log alone: it names addresses that are nobody's business.
        logger.warning("the database does not work: %s", text.partition("\n")[0][:500])
        reason = text if isinstance(error.orig, pysqlite3.Error) else type(error).__name__
        raise DatabaseUnavailableError(f"the database does not work: {reason}") from error
    except SQLAlchemyError as error:
        raise DatabaseUnavailableError(f"the database does not answer: {type(error).__name__}") from error


def _sqlite_engine(url: URL, pool_size: int, timeout_s: float) -> Engine:
    assert url.database is not None, "Settings let no other URL through"
    make_folder(Path(url.database).parent)
    # pysqlite3 carries its own SQLite: those from 3.7.0 to 3.51.2, the standard library's among them, can corrupt a
    # WAL database when two connections write or checkpoint at once (sqlite.org/wal.html#walresetbug).
    engine = create_engine(
        url,
        module=pysqlite3,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=timeout_s,
        pool_use_lifo=True,  # the one that wrote last has the pages in memory, which all others would read anew
        connect_args={"timeout": timeout_s},
    )

    @event.listens_for(engine, "connect")
    def _configure(dbapi_connection: sqlite3.Connection, _record: object) -> None:
        dbapi_connection.isolation_level = None  # transactions are begun below, not by the driver's guess
        # Where another connection is writing a file that is not WAL yet (or turning it), SQLite fails without waiting.
        for attempt in stamina.retry_context(
            on=_is_busy, attempts=None, timeout=timeout_s, wait_initial=0.01, wait_max=0.2, wait_jitter=0.05
        ):
            with attempt:
                dbapi_connection.execute("PRAGMA journal_mode=WAL")
        dbapi_connection.execute("PRAGMA synchronous=FULL")
        dbapi_connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get("sqlite_begin", "BEGIN"))

    return engine


def _is_busy(error: Exception) -> bool:
    return isinstance(error, pysqlite3.OperationalError) and error.sqlite_errorcode == pysqlite3.SQLITE_BUSY


def _postgresql_arguments(timeout_s: float) -> dict[str, object]:
    milliseconds = int(timeout_s * 1000)
    return {
        "connect_timeout": max(2, int(timeout_s)),  # s; libpq takes no less than two
        "options": f"-c statement_timeout={milliseconds} -c lock_timeout={milliseconds}",
        # A server that vanished without a word is noticed in some twenty seconds, not two hours.
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 2,
        "tcp_user_timeout": 2 * milliseconds,  # also while it owes an answer, when keepalives do not fire
    }


def _mysql_arguments(timeout_s: float) -> dict[str, object]:
    seconds = max(1, int(timeout_s))
    return {
        "charset": "utf8mb4",
        "connect_timeout": seconds,
        "read_timeout": seconds,
        "write_timeout": seconds,
        "init_command": f"SET SESSION innodb_lock_wait_timeout={seconds}, sql_mode='TRADITIONAL'",
    }


def _codes(error: DBAPIError) -> set[str]:
    """PostgreSQL's SQLSTATE, MySQL's number."""
    arguments = error.orig.args if error.orig is not None else ()
    return {str(getattr(error.orig, "sqlstate", "")), str(arguments[0]) if arguments else ""}
