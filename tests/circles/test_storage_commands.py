"""``python -m circles.storage``: what it leaves alone, and what it refuses."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from circles.settings import Settings, local_folders
from circles.storage.database import Database
from circles.storage.lock import DataFolderLock


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """With rows and bytes in folders of their own."""
    variables = {"DATABASE_URL": f"sqlite:///{folder}/rows/db.sqlite3", "STORAGE_URL": f"file:{folder}/bytes"}
    return subprocess.run(
        [sys.executable, "-m", "circles.storage", *arguments],
        env={**os.environ, **variables, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Without images."""
    Database(f"sqlite:///{tmp_path}/rows/db.sqlite3", migrates=True).close()
    return tmp_path


@pytest.mark.parametrize("arguments", [["check", "--fix"], ["restore", "--from", "."]], ids=["check", "restore"])
def test_files_of_a_running_service_are_left_alone(data: Path, arguments: list[str]) -> None:
    """Which has their folder's lock, wherever its rows are."""
    lock = DataFolderLock(data / "bytes", holder="a service")
    refused = run(data, *arguments)
    lock.release()
    assert refused.returncode == 1
    assert "bytes is in use by" in refused.stderr


def test_folder_of_files_has_one_user_beside_a_database_server_too() -> None:
    settings = Settings(database_url="postgresql+psycopg://db/circles", storage_url="file:/data/images")
    assert local_folders(settings) == [Path("/data/images")]


def test_tables_are_migrated_beside_the_files_of_a_running_service(data: Path) -> None:
    lock = DataFolderLock(data / "bytes", holder="a service")
    assert run(data, "migrate").returncode == 0
    lock.release()


@pytest.mark.parametrize("days", ["inf", "nan", "740000", "-1"])
def test_days_that_no_calendar_has_are_refused_in_a_sentence(data: Path, days: str) -> None:
    refused = run(data, "purge", "--older-than", days)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == f"error: --older-than is {float(days):g}, but takes days from 0 to 36500\n"
