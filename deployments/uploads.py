"""Uploaded files out of request bodies, within their limits."""

import asyncio
import errno
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from circles.errors import StorageFullError
from deployments.admission import Slot
from deployments.problems import RequestError

_FIELD_OVERHEAD_BYTES = 64 * 1024  # boundaries, part headers and small fields around one file
_MAX_FIELDS = 16
_MAX_FILENAME_LENGTH = 255
_BOUNDARY = re.compile(rb'[^"\\]+')  # RFC 2046 has neither in it
MAX_BATCH_FILES = 64


@dataclass(frozen=True, slots=True)
class Upload:
    """One file as the client sent it; the name is the client's word and never used as a path."""

    image_bytes: bytes
    filename: str | None


async def read_upload(request: Request, slot: Slot, max_bytes: int, timeout_s: float) -> Upload:
    """The file of a request: the multipart field ``file``, or an ``image/*`` body as it is.

    Raises:
        RequestError: 400 without a file or with an empty one, 408 when the client takes longer to send it, 413 above
            the limit, 415 for other content types.
        TooManyUploadsError: There is no room for it beside those of others.
        StorageFullError: There is no space for the body's temporary file.
    """
    media_type = media_type_of(request)
    if media_type == "multipart/form-data":
        async with _files(request, slot, "file", 1, max_bytes + _FIELD_OVERHEAD_BYTES, timeout_s) as files:
            return await read_file(files[0], max_bytes)
    if media_type.startswith("image/"):
        return Upload(_checked(await read_body(request, slot, max_bytes, timeout_s), max_bytes), filename=None)
    if not media_type:
        raise RequestError(
            400, "No file", "send a multipart form with a field 'file', or the picture as an image/* body"
        )
    raise RequestError(415, "Not an accepted content type", f"{media_type} is neither multipart/form-data nor image/*")


async def read_body(request: Request, slot: Slot, max_bytes: int, timeout_s: float) -> bytes:
    """The request's body as it is.

    Args:
        slot: Holds the bytes from when they come.

    Raises:
        RequestError: 408 when the client takes longer to send it, 413 above the limit.
        TooManyUploadsError: There is no room for it beside those of others.
    """
    async with _in_time(timeout_s):
        return b"".join([chunk async for chunk in _limited(request, slot, max_bytes)])


def media_type_of(request: Request) -> str:
    """The content type without its parameters, in lower case; empty when there is none."""
    return request.headers.get("Content-Type", "").partition(";")[0].strip().lower()


@asynccontextmanager
async def open_batch(request: Request, slot: Slot, max_bytes: int, timeout_s: float) -> AsyncIterator[list[UploadFile]]:
    """The files of a batch in the client's order, large ones on disk; each is for ``read_file``.

    Raises:
        RequestError, TooManyUploadsError, StorageFullError: As ``read_upload``; the limit is that of all files
            together.
    """
    if media_type_of(request) != "multipart/form-data":
        raise RequestError(415, "Not an accepted content type", "a batch is a multipart form with fields 'files'")
    max_body_bytes = MAX_BATCH_FILES * (max_bytes + _FIELD_OVERHEAD_BYTES)
    async with _files(request, slot, "files", MAX_BATCH_FILES, max_body_bytes, timeout_s) as files:
        yield files


async def read_file(file: UploadFile, max_bytes: int) -> Upload:
    """One file of a form; raises as ``read_upload``."""
    filename = file.filename.replace("\0", "")[:_MAX_FILENAME_LENGTH] if file.filename else None
    return Upload(_checked(await file.read(max_bytes + 1), max_bytes), filename)


def _checked(image_bytes: bytes, max_bytes: int) -> bytes:
    if len(image_bytes) > max_bytes:
        raise _too_large("a file", max_bytes)
    if not image_bytes:
        raise RequestError(400, "Empty file", "the file has no bytes")
    return image_bytes


def _too_large(what: str, max_bytes: int) -> RequestError:
    return RequestError(413, "File too large", f"{what} of more than {max_bytes} bytes is not accepted")


@asynccontextmanager
async def _files(
    request: Request, slot: Slot, field: str, max_files: int, max_body_bytes: int, timeout_s: float
) -> AsyncIterator[list[UploadFile]]:
    body = _limited(request, slot, max_body_bytes)
    parser = _FormParser(_boundary_alone(request), body, max_files=max_files, max_fields=_MAX_FIELDS)
    try:
        try:
            async with _in_time(timeout_s):
                form = await parser.parse()
        except MultiPartException as error:
            raise RequestError(400, "Bad multipart body", error.message) from error
        except OSError as error:  # large files are spooled to disk
            if error.errno == errno.ENOSPC:
                raise StorageFullError("there is no space for the upload's temporary file") from error
            raise
        files = [value for value in form.getlist(field) if isinstance(value, UploadFile)]
        if not files:
            raise RequestError(400, "No file", f"the multipart body has no file in a field named '{field}'")
        yield files
    finally:
        parser.close_files()


def _boundary_alone(request: Request) -> Headers:
    """The content type without the client's ``charset``.

    Starlette takes that for the name of any codec that Python has: some need quadratic time, some make text that is
    none. Without one it reads UTF-8, or else Latin-1.
    """
    _, parameters = parse_options_header(request.headers["Content-Type"])
    boundary = parameters.get(b"boundary", b"")
    if not _BOUNDARY.fullmatch(boundary):
        raise RequestError(400, "Bad multipart body", "the content type names no boundary")
    return Headers({"Content-Type": f'multipart/form-data; boundary="{boundary.decode("latin-1")}"'})


class _FormParser(MultiPartParser):
    """Starlette's, whose form knows nothing of a file that has begun and not ended."""

    def close_files(self) -> None:
        """Closes all files, whatever became of the form."""
        for file in self._files_to_close_on_error:
            file.close()


@asynccontextmanager
async def _in_time(timeout_s: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError as error:
        raise RequestError(408, "Request timeout", f"the body was not sent within {timeout_s:g} s") from error


async def _limited(request: Request, slot: Slot, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """The body's chunks. A body that announces too much is refused unread, one that does not as soon as it is."""
    announced = request.headers.get("Content-Length", "0")
    if not announced.isdecimal() or int(announced) > max_bytes:
        raise _too_large("a body", max_bytes)
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > max_bytes:
            raise _too_large("a body", max_bytes)
        slot.hold(len(chunk))
        yield chunk
