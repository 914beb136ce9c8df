"""BucketStore: uploaded bytes in a bucket of S3, Google Cloud Storage or Azure, or of whatever speaks like them."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import AzureStore, GCSStore, S3Store

from circles.errors import NotFoundError, StorageUnavailableError
from circles.storage.images import SERVICE_KEY, is_key, new_key

if TYPE_CHECKING:  # they are types alone
    from obstore.store import ClientConfig, RetryConfig

logger = logging.getLogger(__name__)

# Endpoints that take the place of the cloud's own. One that is given as http:// is meant so.
_ENDPOINT_VARIABLES = (
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT",
    "GOOGLE_BASE_URL",
    "AZURE_STORAGE_ENDPOINT",
    "AZURE_ENDPOINT",
)
_MAX_RETRIES = 3
_MULTIPART_FROM_BYTES = 8 * 2**20
_PIECE_BYTES = 2**20  # two of them are in memory for every client that reads, however slowly
_LIST_CHUNK = 1000


class BucketStore:
    """Keys below a prefix of one bucket. The clouds' own variables give credentials, region and endpoint."""

    def __init__(self, url: str, timeout_s: float) -> None:
        """Connects on demand.

        Args:
            url: ``s3://``, ``gs://`` or ``az://``, a bucket and a prefix.
            timeout_s: For one request; failed ones are tried again a few times, with growing pauses, in that time.
        """
        parts = urlsplit(url)
        endpoints = (os.environ.get(variable, "") for variable in _ENDPOINT_VARIABLES)
        client: ClientConfig = {
            "timeout": timedelta(seconds=timeout_s),
            "connect_timeout": timedelta(seconds=min(timeout_s, 5.0)),
            "allow_http": any(endpoint.startswith("http://") for endpoint in endpoints),
        }
        retry: RetryConfig = {"max_retries": _MAX_RETRIES, "retry_timeout": timedelta(seconds=timeout_s)}
        prefix = parts.path.strip("/") or None
        self._store: S3Store | GCSStore | AzureStore
        if parts.scheme == "s3":
            self._store = S3Store(parts.netloc, prefix=prefix, client_options=client, retry_config=retry)
        elif parts.scheme == "gs":
            self._store = GCSStore(parts.netloc, prefix=prefix, client_options=client, retry_config=retry)
        else:
            self._store = AzureStore(parts.netloc, prefix=prefix, client_options=client, retry_config=retry)

    def save(self, key: str, image_bytes: bytes, media_type: str) -> None:
        is_large = len(image_bytes) >= _MULTIPART_FROM_BYTES
        with _errors_translated():
            try:
                obstore.put(
                    self._store,
                    key,
                    image_bytes,
                    attributes={"Content-Type": media_type},
                    # A conditional write: what is there under a key stays. Not to be had for several parts, but the
                    # key is this attempt's own anyway.
                    mode="overwrite" if is_large else "create",
                    use_multipart=is_large,
                )
            except AlreadyExistsError:
                return  # a first try arrived, though its answer did not: nobody else has this key

    def load(self, key: str) -> bytes:
        with _errors_translated():
            try:
                return bytes(obstore.get(self._store, key).bytes())
            except FileNotFoundError as error:
                raise self._gone() from error

    def stream(self, key: str) -> Iterator[bytes]:
        with _errors_translated():
            try:
                size = obstore.head(self._store, key)["size"]
            except FileNotFoundError as error:
                raise self._gone() from error
        return self._pieces(key, size)

    def _pieces(self, key: str, size: int) -> Iterator[bytes]:
        """Each a request of its own: how fast a client reads them is no matter of the bucket's timeout."""
        for start in range(0, size, _PIECE_BYTES):
            with _errors_translated():
                piece = bytes(obstore.get_range(self._store, key, start=start, end=min(start + _PIECE_BYTES, size)))
            yield piece

    def signed_url(self, key: str, seconds: int) -> str | None:
        with _errors_translated():
            return obstore.sign(self._store, "GET", key, timedelta(seconds=seconds))

    def delete(self, key: str) -> None:
        with _errors_translated():
            try:
                obstore.delete(self._store, key)
            except FileNotFoundError:
                return

    def keys_older_than(self, age_s: float) -> Iterator[str]:
        return (key for key, key_age_s in self.ages() if key_age_s >= age_s)

    def ages(self) -> Iterator[tuple[str, float]]:
        now = datetime.now(UTC)
        with _errors_translated():
            for chunk in obstore.list(self._store, chunk_size=_LIST_CHUNK):
                for entry in chunk:
                    if is_key(entry["path"]):
                        yield entry["path"], (now - entry["last_modified"]).total_seconds()

    def claim(self, service_id: str) -> str:
        with _errors_translated():
            try:
                obstore.put(self._store, SERVICE_KEY, service_id.encode(), mode="create")
            except AlreadyExistsError:
                return bytes(obstore.get(self._store, SERVICE_KEY).bytes()).decode()
            return service_id

    def check(self) -> None:
        key = new_key("00")
        self.save(key, b"probe", "application/octet-stream")
        self.delete(key)

    def _gone(self) -> Exception:
        """What it means that there is nothing under a key."""
        try:
            next(iter(obstore.list(self._store, chunk_size=1)), None)
        except FileNotFoundError:
            return StorageUnavailableError("the bucket is gone")
        return NotFoundError("the image's bytes are gone")


@contextmanager
def _errors_translated() -> Iterator[None]:
    try:
        yield
    except (BaseError, OSError, ValueError) as error:
        # For the log alone: it names addresses that are nobody's business.
        logger.warning("the bucket does not work: %s", str(error).partition("\n")[0][:500])
        raise StorageUnavailableError(f"the bucket does not work: {type(error).__name__}") from error
