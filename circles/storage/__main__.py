"""``python -m circles.storage``: what the service's data needs beside the service."""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.progress import track

from circles.errors import CirclesError
from circles.settings import LONGEST_RETENTION_DAYS, Settings, local_folders, why_refused
from circles.storage import checking, moving
from circles.storage.database import Database
from circles.storage.engine import DRIVERS, is_sqlite
from circles.storage.images import ImageStore, open_image_store
from circles.storage.lock import DataFolderLock
from circles.storage.records import RecordBook, require_belonging
from circles.storage.schema import migrate

cli = typer.Typer(add_completion=False, help=__doc__)
console = Console(soft_wrap=True)
progress = Console(stderr=True)


@cli.callback()
def _main() -> None:
    """Settings are read from the same environment variables that the service reads."""


@cli.command("migrate")
def migrate_database(
    revision: Annotated[str, typer.Option(help="An older one takes back what came after it, and its data.")] = "head",
) -> None:
    """Bring the database's tables to this version's form; also those of an empty database."""
    with _told(), _alone(_folder_of_rows(_settings())):
        before, after = migrate(_settings().database_url, revision)
    change = "is at revision" if before == after else f"was at revision {before or 'none'} and is now at"
    console.print(f"the database {change} {after or 'none'}", highlight=False)


@cli.command("check")
def check_all(
    fix: Annotated[
        bool, typer.Option("--fix", help="Remove rows without their bytes, and bytes without a row.")
    ] = False,
    deep: Annotated[bool, typer.Option("--deep", help="Read all bytes, and compare them with their hashes.")] = False,
) -> None:
    """Compare rows and bytes, both ways; fails when they do not agree."""
    with _told(), _alone(local_folders(_settings()) if fix else []), _opened(_settings()) as kept:
        steps = checking.check(kept.database, kept.store, _settings().orphan_grace_s, reads_bytes=deep)
        *_, findings = track(steps, "checking", total=kept.database.count() + 1, console=progress)
        for record in findings.lost:
            console.print(f"image {record.image_id}: its bytes are gone", highlight=False)
        for record in findings.damaged:
            console.print(f"image {record.image_id}: its bytes are damaged", highlight=False)
        for key in findings.orphans:
            console.print(f"{key}: no row names these bytes", highlight=False)
        if fix and not findings.is_well:
            checking.fix(kept.book, kept.store, findings)
            console.print("removed them")
        elif not findings.is_well:
            raise typer.Exit(1)
        console.print(f"{findings.rows} images")


@cli.command("copy")
def copy_all(
    source: Annotated[str, typer.Option("--from", help="Address of a database or a store.")],
    target: Annotated[str, typer.Option("--to", help="Address of another one of the same kind.")],
) -> None:
    """Copy rows from database to database, or bytes from store to store (those that rows of DATABASE_URL name).

    To move a service, name where it goes by DATABASE_URL and STORAGE_URL, and copy its rows first.

    Started again after an interruption, it goes on. Everything is read back and compared. What the target has besides
    stays.
    """
    with _told():
        if _is_database(source) != _is_database(target):
            _fail("one of them is a database and the other one a store")
        if _is_database(source):
            done = _copy_rows(source, target)
        else:
            with _database(_settings().database_url) as database:
                done = _copy_bytes(database, open_image_store(source), open_image_store(target))
    console.print(f"{done} images copied and compared")


@cli.command("backup")
def back_up(
    folder: Annotated[Path, typer.Option("--to", help="Made if it is absent; else brought up to date.")],
) -> None:
    """Copy rows and bytes into a folder: a SQLite database and the files, whatever they are kept in.

    The folder then has what the service has now: what was deleted there since an earlier backup goes from it. An
    interrupted backup can be restored as far as it came, and started again it goes on.
    """
    # The locks: of another backup into the folder, or of a service that works in it.
    with _told(), _opened(_settings()) as kept, _alone([folder, folder / "images"]):
        migrate(_database_of_backup(folder))
        with _database(_database_of_backup(folder)) as copy:
            steps = moving.back_up(kept.database, kept.store, copy, _store_of_backup(folder))
            done = _count(steps, "copying", kept.database.count())
    console.print(f"{done} images in {folder}")


@cli.command("restore")
def restore(folder: Annotated[Path, typer.Option("--from", help="A folder that `backup` wrote.", exists=True)]) -> None:
    """Copy rows and bytes of a backup back, into an empty database; each row after its bytes.

    Started again after an interruption, it goes on.
    """
    settings = _settings()
    with _told(), _alone(local_folders(settings)):
        migrate(settings.database_url)
        with _database(_database_of_backup(folder)) as copy, _database(settings.database_url) as database:
            store = open_image_store(settings.storage_url, settings.storage_timeout_s)
            total = copy.count()
            done = _count(moving.restore(copy, _store_of_backup(folder), database, store), "copying", total)
    console.print(f"{done} images restored")
    if done < total:
        console.print(f"{total - done} have no bytes in {folder}, and are left out")


@cli.command("purge")
def purge(older_than: Annotated[float, typer.Option(help="Days since the upload.")]) -> None:
    """Remove old images, rows and bytes."""
    if not 0 <= older_than <= LONGEST_RETENTION_DAYS:  # which "nan" is not either
        _fail(f"--older-than is {older_than:g}, but takes days from 0 to {LONGEST_RETENTION_DAYS}")
    with _told(), _opened(_settings()) as kept:
        done = sum(1 for _ in track(kept.book.purge(older_than * 86400), "removing", console=progress))
    console.print(f"{done} images removed")


@dataclass(frozen=True)
class _Kept:
    """What the settings name, opened."""

    database: Database
    store: ImageStore
    book: RecordBook


@contextlib.contextmanager
def _opened(settings: Settings) -> Iterator[_Kept]:
    """What the settings name, if it belongs together."""
    store = open_image_store(settings.storage_url, settings.storage_timeout_s)
    with _database(settings.database_url) as database:
        yield _Kept(database, store, RecordBook(store, database, settings.max_pending))


@contextlib.contextmanager
def _database(url: str) -> Iterator[Database]:
    database = Database(url)
    try:
        yield database
    finally:
        database.close()


@contextlib.contextmanager
def _alone(folders: Iterable[Path]) -> Iterator[None]:
    """With these folders' locks, which a running service holds."""
    with contextlib.ExitStack() as stack:
        for folder in folders:
            stack.callback(DataFolderLock(folder, holder="a command").release)
        yield


def _folder_of_rows(settings: Settings) -> list[Path]:
    """None for a database server, whose tables may change beside a service."""
    return [settings.database_path.parent] if is_sqlite(settings.database_url) else []


def _database_of_backup(folder: Path) -> str:
    return f"sqlite:///{folder.resolve()}/db.sqlite3"


def _store_of_backup(folder: Path) -> ImageStore:
    return open_image_store(f"file:{folder}/images")


def _copy_rows(source_url: str, target_url: str) -> int:
    migrate(target_url)
    with _database(source_url) as source, _database(target_url) as target:
        return _count(moving.copy_rows(source, target), "copying rows", source.count())


def _copy_bytes(database: Database, source: ImageStore, target: ImageStore) -> int:
    if database.count() == 0 and next(iter(source.ages()), None) is not None:
        _fail("DATABASE_URL names a database without images, so nothing says which bytes to copy: copy its rows first")
    require_belonging(target, database)
    return _count(moving.copy_bytes(database.walk(), source, target), "copying bytes", database.count())


def _count(steps: Iterable[object], what: str, total: int) -> int:
    return sum(1 for _ in track(steps, what, total=total, console=progress))


def _is_database(url: str) -> bool:
    return url.partition("://")[0] in DRIVERS


def _settings() -> Settings:
    try:
        return Settings()
    except ValidationError as error:
        _fail(why_refused(error))


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Lets errors end the command with a sentence instead of a traceback."""
    try:
        yield
    except CirclesError as error:
        _fail(error.detail)


def _fail(reason: str) -> NoReturn:
    Console(stderr=True, soft_wrap=True).print(f"[red]error:[/] {escape(reason)}")
    raise typer.Exit(1)


if __name__ == "__main__":
    cli()
