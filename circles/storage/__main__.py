"""``python -m circles.storage``: what the service's data needs beside the service."""

import contextlib
from collections.abc import Iterator
from typing import Annotated, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from sqlalchemy import Engine

from circles.errors import CirclesError
from circles.settings import Settings
from circles.storage.engine import is_sqlite, open_engine
from circles.storage.lock import DataFolderLock
from circles.storage.schema import migrate

cli = typer.Typer(add_completion=False, help=__doc__)
console = Console(soft_wrap=True)


@cli.callback()
def _main() -> None:
    """Settings are read from the same environment variables that the service reads."""


@cli.command("migrate")
def migrate_database(
    revision: Annotated[str, typer.Option(help="An older one takes back what came after it, and its data.")] = "head",
) -> None:
    """Bring the database's tables to this version's form; also those of an empty database."""
    try:
        settings = Settings()
    except ValidationError as error:
        _fail(str(error))
    try:
        with _opened_alone(settings) as engine:
            before, after = migrate(engine, revision)
    except CirclesError as error:
        _fail(error.detail)
    change = "is at revision" if before == after else f"was at revision {before or 'none'} and is now at"
    console.print(f"the database {change} {after or 'none'}", highlight=False)


@contextlib.contextmanager
def _opened_alone(settings: Settings) -> Iterator[Engine]:
    """An engine; SQLite's with the lock of its folder, which a running service holds."""
    with contextlib.ExitStack() as stack:
        if is_sqlite(settings.database_url):
            lock = DataFolderLock(settings.database_path.parent, holder="a migration")
            stack.callback(lock.release)
        engine = open_engine(settings.database_url, 1, settings.database_timeout_s)
        stack.callback(engine.dispose)
        yield engine


def _fail(reason: str) -> NoReturn:
    Console(stderr=True, soft_wrap=True).print(f"[red]error:[/] {escape(reason)}")
    raise typer.Exit(1)


if __name__ == "__main__":
    cli()
