"""ImageStore: uploaded bytes, durably, under keys that are never used twice; in a folder or in a bucket."""

import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

PART_SUFFIX = ".part"
"""Behind the key of a file that is being written."""

SERVICE_KEY = "service"
"""Under which a store keeps the id of its service."""

_KEY = re.compile(r"([0-9a-f]{2})/\1[0-9a-f]*\.[0-9a-f]{32}(\.part)?")


class ImageStore(Protocol):
    """Uploaded bytes by key. Calls block, and may come from many threads at once.

    Every method raises StorageUnavailableError when the store cannot be read or written.
    """

    def save(self, key: str, image_bytes: bytes, media_type: str) -> None:
        """Writes the bytes, which are durable on return. When it raises, what stays behind is a sweep's, or, of a large
        file's parts in a bucket, that of the bucket's rule for unfinished uploads.

        Raises:
            StorageFullError: No space is left.
        """

    def load(self, key: str) -> bytes:
        """The stored bytes.

        Raises:
            NotFoundError: There are none under this key.
        """

    def stream(self, key: str) -> Iterator[bytes]:
        """The stored bytes in pieces; raises as ``load``, before the first of them."""

    def signed_url(self, key: str, seconds: int) -> str | None:
        """An address at which anybody may read the bytes for this time; None where there can be none."""

    def delete(self, key: str) -> None:
        """Removes the bytes; it is fine if they are gone already."""

    def keys_older_than(self, age_s: float) -> Iterator[str]:
        """Keys of what was last written at least ``age_s`` seconds ago; which keys there are is told by ``ages``."""

    def ages(self) -> Iterator[tuple[str, float]]:
        """All keys, half-written files' included, each with the seconds since it was last written: below 0 for what
        was written while they are listed.

        What this store cannot have written is none of them, wherever it lies.
        """

    def claim(self, service_id: str) -> str:
        """The id of the service that this store is of: the one given, durably, unless there is one already."""

    def check(self) -> None:
        """Writes something small durably and removes it again; raises as ``save``."""


def new_key(sha256: str) -> str:
    """A key for one attempt at storing bytes of this hash.

    It is ``ab/<sha256>.<uuid>``, ``ab`` being the hash's first two digits: one per attempt at an upload, so that no
    attempt can touch the bytes of another. The two digits spread a store's keys over 256 folders, or parts of a bucket.
    """
    return f"{sha256[:2]}/{sha256}.{uuid.uuid4().hex}"


def is_key(text: str) -> bool:
    """Whether this is a key of ``new_key``, or of such a file that is being written."""
    return _KEY.fullmatch(text) is not None


def sha256_of(key: str) -> str:
    """The hash of the bytes that belong under this key."""
    return key.partition("/")[2].partition(".")[0]


def is_local(url: str) -> bool:
    """Whether the store is a folder of this machine, which one service at a time may use."""
    return url.startswith("file:")


def local_folder(url: str) -> Path:
    """The folder of a local store."""
    return Path(url.removeprefix("file:"))


def open_image_store(url: str, timeout_s: float = 10.0) -> ImageStore:
    """The store at this address.

    Args:
        url: ``file:`` and a folder, made if it is absent; or ``s3://``, ``gs://``, ``az://``, a bucket and a prefix.
        timeout_s: That a bucket has to answer.

    Raises:
        StorageUnavailableError: The folder cannot be made or written.
    """
    if is_local(url):
        from circles.storage.folder import FolderStore  # noqa: PLC0415 - nobody loads what is not used

        return FolderStore(local_folder(url))
    from circles.storage.bucket import BucketStore  # noqa: PLC0415

    return BucketStore(url, timeout_s)
