"""The lock on a data folder: SQLite on a volume has one service that writes, and a second one must not start."""

import fcntl
import json
import os
import socket
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from circles.errors import DataFolderLockedError
from circles.storage.durable import make_folder

LOCK_NAME = "service.lock"
_RETRY_PERIOD_S = 0.2


class DataFolderLock:
    """Held from construction until ``release`` or the end of the process, however that comes about.

    It is an ``flock``: the kernel drops it with the process, so nothing stale is ever left; the file's text only tells
    who holds it.
    """

    def __init__(self, folder: Path, holder: str, wait_s: float = 0.0) -> None:
        """Takes the lock.

        Args:
            folder: The data folder, made if it is absent.
            holder: What takes it, for others to read.
            wait_s: How long to wait for a holder that is just going, as at the hand-over between two replicas.

        Raises:
            DataFolderLockedError: Somebody else holds it; the message says who.
        """
        make_folder(folder)
        path = folder / LOCK_NAME
        self._file: IO[str] = path.open("a+", encoding="utf-8")
        deadline = time.monotonic() + wait_s
        while not self._try_lock():
            if time.monotonic() >= deadline:
                text = _read(self._file)
                self._file.close()
                raise DataFolderLockedError(
                    f"the data folder {folder.resolve()} is in use by {text or 'another service'}"
                )
            time.sleep(_RETRY_PERIOD_S)
        self._file.truncate(0)
        self._file.write(
            json.dumps(
                {
                    "holder": holder,
                    "host": socket.gethostname(),
                    "pid": os.getpid(),
                    "since": datetime.now(UTC).isoformat(timespec="seconds"),
                }
            )
        )
        self._file.flush()

    def release(self) -> None:
        """Gives the lock back; harmless when it was given back before."""
        self._file.close()

    def _try_lock(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def holder_pid(folder: Path) -> int | None:
    """Process id of whoever has the folder, or had it last, on this host; None where nobody ever had."""
    try:
        holder = json.loads((folder / LOCK_NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # nobody, or one that is just writing
        return None
    return int(holder["pid"]) if holder["host"] == socket.gethostname() else None


def _read(file: IO[str]) -> str:
    file.seek(0)
    return file.read().strip()
