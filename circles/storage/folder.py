"""FolderStore: uploaded bytes, durably, in a folder of a local volume."""

import errno
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from circles.errors import NotFoundError, StorageFullError, StorageUnavailableError
from circles.storage.durable import fsync_folder, make_folder
from circles.storage.images import PART_SUFFIX, SERVICE_KEY, is_key, new_key

_STREAM_CHUNK_BYTES = 2**20

RESERVE_BYTES = 4 * 2**20
"""That pictures leave free on the volume. The database is mostly there too, and deleting a row takes space first (its
write-ahead log grows to some 4 MiB): without any, nobody could delete a picture from a full disk."""


class FolderStore:
    """Uploaded files. A fixed set of 256 folders keeps each one small, and makes a durable write cost one fsync of the
    file and one of its folder."""

    def __init__(self, folder: Path) -> None:
        """Opens the folder, making it and its sub-folders if they are absent.

        Raises:
            StorageUnavailableError: It cannot be made or written.
        """
        self._folder = folder
        with _errors_translated():
            make_folder(folder)
            for number in range(256):
                (folder / f"{number:02x}").mkdir(exist_ok=True)
            fsync_folder(folder)

    def save(self, key: str, image_bytes: bytes, media_type: str) -> None:  # noqa: ARG002 - rows know it
        """As ``ImageStore.save``: file and folder are fsynced."""
        path = self._folder / key
        part = path.with_name(path.name + PART_SUFFIX)
        with _errors_translated():
            self._require_room(len(image_bytes))
            try:
                _write_durably(path, part, image_bytes)
            except BaseException:
                with suppress(OSError):  # the first error is the one to tell; a sweep removes what stays
                    part.unlink(missing_ok=True)
                    path.unlink(missing_ok=True)
                raise

    def _require_room(self, size_bytes: int) -> None:
        volume = os.statvfs(self._folder)
        if volume.f_bavail * volume.f_frsize < size_bytes + RESERVE_BYTES:
            raise StorageFullError("the image store has no space left")

    def load(self, key: str) -> bytes:
        with _errors_translated(), self._opened(key) as file:
            return file.read()

    def stream(self, key: str) -> Iterator[bytes]:
        with _errors_translated():
            file = self._opened(key)
            try:
                first = file.read(_STREAM_CHUNK_BYTES)  # a disk that cannot be read says so before an answer has begun
            except BaseException:
                file.close()
                raise
        return _chunks(file, first)

    def signed_url(self, key: str, seconds: int) -> str | None:  # noqa: ARG002 - a folder has no addresses
        return None

    def _opened(self, key: str) -> IO[bytes]:
        path = self._folder / key
        try:
            return path.open("rb")
        except FileNotFoundError as error:
            # The sub-folders are made when the store is opened: without them it is the volume that is gone.
            if not path.parent.is_dir():
                raise StorageUnavailableError("the image store's folders are gone") from error
            raise NotFoundError("the image's bytes are gone") from error

    def delete(self, key: str) -> None:
        with _errors_translated():
            (self._folder / key).unlink(missing_ok=True)

    def keys_older_than(self, age_s: float) -> Iterator[str]:
        return (key for key, key_age_s in self.ages() if key_age_s >= age_s)

    def ages(self) -> Iterator[tuple[str, float]]:
        now = time.time()
        with _errors_translated():
            for number in range(256):
                for path in (self._folder / f"{number:02x}").iterdir():
                    key = f"{number:02x}/{path.name}"
                    with suppress(FileNotFoundError):  # somebody finished or removed it meanwhile
                        if is_key(key):
                            yield key, now - path.stat().st_mtime

    def claim(self, service_id: str) -> str:
        path = self._folder / SERVICE_KEY
        with _errors_translated():
            if not path.exists():  # the folder has one user, who holds its lock
                _write_durably(path, path.with_name(f"{SERVICE_KEY}.{uuid.uuid4().hex}"), service_id.encode())
            return path.read_text(encoding="utf-8")

    def check(self) -> None:
        key = new_key("00")
        self.save(key, b"probe", "application/octet-stream")
        self.delete(key)


@contextmanager
def _errors_translated() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFullError("the image store has no space left") from error
        raise StorageUnavailableError(f"the image store does not work: {error.strerror or error}") from error


def _write_durably(path: Path, part: Path, content: bytes) -> None:
    """Writes a new file under another name first: under its own it is whole, or not there."""
    with part.open("wb") as file:  # a copy that was killed here may have left one
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)
    fsync_folder(path.parent)


def _chunks(file: IO[bytes], first: bytes) -> Iterator[bytes]:
    chunk = first
    with file:
        while chunk:
            yield chunk
            chunk = file.read(_STREAM_CHUNK_BYTES)
