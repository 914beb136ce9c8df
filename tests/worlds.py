"""Where rows and bytes may be: every combination that the service is promised to work on, by real servers."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import sqlalchemy
from sqlalchemy.engine import make_url

from circles.storage.database import Database
from circles.storage.images import open_image_store
from circles.storage.records import RecordBook
from circles.storage.schema import migrate
from tests import servers
from tests.servers import Server

NAMES = ("sqlite and folder", "postgresql and s3", "mariadb and azure")


@dataclass
class Place:
    """An empty database with this version's tables, and an empty store."""

    database_url: str
    storage_url: str
    _opened: list[RecordBook | Database] = field(default_factory=list, repr=False)

    def open_book(self, max_pending: int = 10) -> RecordBook:
        """What is there, by connections of its own; ``close`` closes them."""
        book = RecordBook(open_image_store(self.storage_url), Database(self.database_url), max_pending)
        self._opened.append(book)
        return book

    def open_database(self) -> Database:
        """The rows alone; likewise."""
        database = Database(self.database_url)
        self._opened.append(database)
        return database

    def close(self) -> None:
        """Closes all that was opened here."""
        while self._opened:
            self._opened.pop().close()

    def stored_keys(self) -> set[str]:
        """All that is in the store."""
        return set(open_image_store(self.storage_url).keys_older_than(-3600))


@dataclass
class World:
    """Servers that may be used for many places, one after the other."""

    name: str
    database: Server | None = None
    bucket: Server | None = None
    variables: dict[str, str] = field(default_factory=dict)

    def new_place(self, folder: Path, *, has_tables: bool = True) -> Place:
        """A place that nobody used before.

        Args:
            folder: Of this place alone, for what is local.
        """
        database_url = f"sqlite:///{folder}/data/db.sqlite3"
        if self.database is not None:
            database_url = _new_database(self.database.url)
        storage_url = f"file:{folder}/data/images"
        if self.bucket is not None:
            storage_url = f"{self.bucket.url}/{uuid.uuid4().hex}"
        if has_tables:
            migrate(database_url)
        return Place(database_url, storage_url)


@contextlib.contextmanager
def opened_world(name: str) -> Iterator[World]:
    """One of ``NAMES``: its servers run until left, and this process has the variables that go with them."""
    with contextlib.ExitStack() as stack:
        database, bucket = None, None
        if name == "postgresql and s3":
            database, bucket = stack.enter_context(servers.postgresql()), stack.enter_context(servers.seaweedfs())
        elif name == "mariadb and azure":
            database, bucket = stack.enter_context(servers.mariadb()), stack.enter_context(servers.azurite())
        variables = dict(bucket.variables) if bucket else {}
        stack.enter_context(mock.patch.dict(os.environ, variables))
        yield World(name, database, bucket, variables)


def _new_database(server_url: str) -> str:
    name = f"circles_{uuid.uuid4().hex[:12]}"
    engine = sqlalchemy.create_engine(server_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return make_url(server_url).set(database=name).render_as_string(hide_password=False)
