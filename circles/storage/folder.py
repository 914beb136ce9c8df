"""ImageStore: uploaded bytes, durably, in a folder of a local volume."""

import errno
import os
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from circles.errors import NotFoundError, StorageFullError, StorageUnavailableError

_KEY = re.compile(r"([0-9a-f]{2})/\1[0-9a-f]*\.[0-9a-f]{32}(\.part)?")
PART_SUFFIX = ".part"
"""Behind the key of a file that is being written."""


class ImageStore:
    """Uploaded files under keys that are never used twice.

    A key is ``ab/<sha256>.<uuid>``, ``ab`` being the hash's first two digits: one per attempt at an upload, so that
    no attempt can touch the bytes of another. A fixed set of 256 folders keeps each one small, and makes a durable
    write cost one fsync of the file and one of its folder.
    """

    def __init__(self, folder: Path) -> None:
        """Opens the folder, making it and its sub-folders if they are absent.

        Raises:
            StorageUnavailableError: It cannot be made or written.
        """
        self._folder = folder
        with _errors_translated():
            for number in range(256):
                (folder / f"{number:02x}").mkdir(parents=True, exist_ok=True)
            _fsync_folder(folder)
            _fsync_folder(folder.parent)

    @staticmethod
    def new_key(sha256: str) -> str:
        """A key for one attempt at storing bytes of this hash."""
        return f"{sha256[:2]}/{sha256}.{uuid.uuid4().hex}"

    def save(self, key: str, image_bytes: bytes) -> None:
        """Writes the bytes, which are durable on return: file and folder are fsynced.

        Raises:
            StorageFullError: No space is left; nothing stays behind.
            StorageUnavailableError: The folder cannot be written; likewise.
        """
        path = self._folder / key
        part = path.with_name(path.name + PART_SUFFIX)
        with _errors_translated():
            try:
                with part.open("xb") as file:
                    file.write(image_bytes)
                    file.flush()
                    os.fsync(file.fileno())
                part.rename(path)
                _fsync_folder(path.parent)
            except BaseException:
                with suppress(OSError):  # the first error is the one to tell; a sweep removes what stays
                    part.unlink(missing_ok=True)
                    path.unlink(missing_ok=True)
                raise

    def load(self, key: str) -> bytes:
        """The stored bytes.

        Raises:
            NotFoundError: There are none under this key.
            StorageUnavailableError: They cannot be read, or the whole store is gone.
        """
        with _errors_translated():
            path = self._folder / key
            try:
                return path.read_bytes()
            except FileNotFoundError as error:
                # The sub-folders are made when the store is opened: without them it is the volume that is gone.
                if not path.parent.is_dir():
                    raise StorageUnavailableError("the image store's folders are gone") from error
                raise NotFoundError("the image's bytes are gone") from error

    def delete(self, key: str) -> None:
        """Removes the bytes; it is fine if they are gone already.

        Raises:
            StorageUnavailableError: They cannot be removed.
        """
        with _errors_translated():
            (self._folder / key).unlink(missing_ok=True)

    def keys_older_than(self, age_s: float) -> Iterator[str]:
        """Keys of files last written at least ``age_s`` seconds ago, half-written ones included.

        Files that this store cannot have written are none of them, wherever they lie.
        """
        latest = time.time() - age_s
        with _errors_translated():
            for number in range(256):
                for path in (self._folder / f"{number:02x}").iterdir():
                    key = f"{number:02x}/{path.name}"
                    with suppress(FileNotFoundError):  # somebody finished or removed it meanwhile
                        if _KEY.fullmatch(key) and path.stat().st_mtime <= latest:
                            yield key

    def check(self) -> None:
        """Writes a small file durably and removes it again.

        Raises:
            StorageFullError, StorageUnavailableError: As ``save``.
        """
        key = self.new_key("00")
        self.save(key, b"probe")
        self.delete(key)


@contextmanager
def _errors_translated() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFullError("the image store has no space left") from error
        raise StorageUnavailableError(f"the image store does not work: {error.strerror or error}") from error


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
