"""How picture files are built, looked at before a library reads them.

Libraries trust a file to be built like others: a few parts before the pixels, a few passes over them. A file of some MB
can have millions instead, and cost minutes or gigabytes before the first pixel is there. Here such parts are counted
without being read; files with more of them than any program writes are refused.
"""

import re
import struct
from collections.abc import Iterator
from typing import Literal

from circles.errors import BrokenImageError

_MAX_JPEG_SEGMENTS = 1024  # an ICC profile of the greatest size has 255, a depth map in XMP some hundred
_MAX_JPEG_TABLES = 32  # segments that are tables, comments or Photoshop's; Pillow reads each of their bytes in Python
# A progressive JPEG has some 10 scans, by any encoder. Each is a pass over all pixels, and may be 10 bytes long: at
# 50 Mpx 64 of them take 4 s.
_MAX_JPEG_SCANS = 64
_MAX_PNG_CHUNKS = 256  # beside pixel data; each may be a profile that unfolds into 1 MiB, a ms
_MAX_PNG_DATA_CHUNKS = 100_000
_MAX_GIF_BLOCKS = 65_536  # before the first frame; of at most 255 bytes
_MAX_TIFF_TAGS = 4096  # a camera writes some 100
_MAX_TIFF_VALUES = 65_536  # of one tag. A strip or tile costs Pillow 7 us and 200 bytes

_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_JPEG_BULK = (0xE1, 0xE2)  # EXIF, XMP and profiles: may be large in honest files
_MARKER = re.compile(rb"\xff{1,64}([^\x00\xff])", re.DOTALL)
# Within a scan 0xFF is data when 0x00 follows, and restart markers belong to it.
_MARKER_IN_SCAN = re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd7]")

_PNG_DATA = (b"IDAT", b"fdAT", b"fcTL")  # the last two: of an animation's frames

_TIFF_COLOR_MAP, _TIFF_TILE_WIDTH, _TIFF_TILE_LENGTH = 320, 322, 323
_LAST_BASELINE_TAG = 532  # the tags up to here are those that tell how pixels are stored
_TIFF_BYTE_TYPES = (1, 2, 6, 7)
_TIFF_INTEGER_SIZES = {3: 2, 4: 4, 16: 8}


def check_structure(image_bytes: bytes, media_type: str, max_pixels: int) -> None:
    """Returns when a library can read the file at a cost that its size and its pixels explain.

    Damage is not looked for: the libraries find it. Of a JPEG the pixels are left to ``check_scans``.

    Raises:
        BrokenImageError: It is not built like any picture.
    """
    if media_type == "image/jpeg":
        _check_jpeg(image_bytes)
    elif media_type == "image/png":
        _check_png(image_bytes)
    elif media_type == "image/gif":
        _check_gif(image_bytes)
    elif media_type == "image/tiff":
        _check_tiff(image_bytes, max_pixels)


def check_scans(image_bytes: bytes) -> None:
    """Returns when a JPEG goes on, segment after segment and scan after scan, to its end-of-image marker.

    Apart from ``check_structure``, since all of the file is searched.

    Raises:
        BrokenImageError: It ends early, or has more scans than any program writes.
    """
    scans = 0
    for marker in _jpeg_markers(image_bytes):
        scans += marker == _START_OF_SCAN
        if scans > _MAX_JPEG_SCANS:
            raise BrokenImageError(f"the JPEG has more than {_MAX_JPEG_SCANS} scans")
        if marker == _END_OF_IMAGE:
            return
    raise BrokenImageError("the JPEG data ends early")


def is_run_length_bmp(image_bytes: bytes) -> bool:
    """Whether the pixels are stored as runs."""
    return struct.unpack_from("<I", image_bytes.ljust(34, b"\0"), 30)[0] in (1, 2) and image_bytes[14] != 12


def _check_jpeg(image_bytes: bytes) -> None:
    tables = 0
    for segments, marker in enumerate(_jpeg_markers(image_bytes), start=1):
        if marker == _START_OF_SCAN:
            return
        tables += marker not in _JPEG_BULK
        if segments > _MAX_JPEG_SEGMENTS or tables > _MAX_JPEG_TABLES:
            raise BrokenImageError(
                f"the JPEG has more than {_MAX_JPEG_SEGMENTS} segments, or {_MAX_JPEG_TABLES} tables and comments"
            )
    raise BrokenImageError("the JPEG has no pixel data where its segments end")


def _jpeg_markers(image_bytes: bytes) -> Iterator[int]:
    """The markers of all segments after the first, up to the end-of-image marker or to where they cannot be followed.

    Segments are stepped over by their length, since an EXIF thumbnail has markers of its own.
    """
    position = 2
    while True:
        found = _MARKER.match(image_bytes, position)
        if found is None:
            return
        marker = found[1][0]
        yield marker
        position = found.end()
        if marker == _END_OF_IMAGE or position + 2 > len(image_bytes):
            return
        position += int.from_bytes(image_bytes[position : position + 2], "big")
        if marker == _START_OF_SCAN:
            end = _MARKER_IN_SCAN.search(image_bytes, position)
            if end is None:
                return
            position = end.start()


def _check_png(image_bytes: bytes) -> None:
    others = data_chunks = 0
    position = 8
    while position + 8 <= len(image_bytes):
        length, kind = struct.unpack_from(">I4s", image_bytes, position)
        if kind == b"IEND":
            return
        if kind in _PNG_DATA:
            data_chunks += 1
        else:
            others += 1
        if others > _MAX_PNG_CHUNKS or data_chunks > _MAX_PNG_DATA_CHUNKS:
            raise BrokenImageError(
                f"the PNG has more than {_MAX_PNG_DATA_CHUNKS} chunks of pixel data or {_MAX_PNG_CHUNKS} others"
            )
        position += 12 + length


def _check_gif(image_bytes: bytes) -> None:
    if len(image_bytes) < 13:
        return
    flags = image_bytes[10]
    position = 13 + ((6 << (flags & 7)) if flags & 0x80 else 0)
    blocks = 0
    while image_bytes[position : position + 1] not in (b",", b";", b""):  # the first frame, the end
        # Pillow steps over single bytes in search of the next extension, and over an extension's blocks.
        is_extension = image_bytes[position] == ord("!")
        position += 2 if is_extension else 1
        while is_extension and position < len(image_bytes) and image_bytes[position] > 0:
            position += 1 + image_bytes[position]
            blocks = _counted(blocks)
        position += is_extension
        blocks = _counted(blocks)


def _counted(blocks: int) -> int:
    if blocks == _MAX_GIF_BLOCKS:
        raise BrokenImageError(f"the GIF has more than {_MAX_GIF_BLOCKS} blocks before its first frame")
    return blocks + 1


def _check_tiff(image_bytes: bytes, max_pixels: int) -> None:
    sides = {_TIFF_TILE_WIDTH: 1, _TIFF_TILE_LENGTH: 1}
    for tag, kind, count, value in _tiff_entries(image_bytes):
        is_list = tag <= _LAST_BASELINE_TAG and tag != _TIFF_COLOR_MAP and kind not in _TIFF_BYTE_TYPES
        if is_list and count > _MAX_TIFF_VALUES:
            raise BrokenImageError(f"the TIFF's tag {tag} has {count} values; at most {_MAX_TIFF_VALUES} are read")
        if tag in sides:
            sides[tag] = value
    area = sides[_TIFF_TILE_WIDTH] * sides[_TIFF_TILE_LENGTH]
    if area > max_pixels:  # memory for a whole tile is taken, however small the picture is
        raise BrokenImageError(f"the TIFF has tiles of {area} pixels; at most {max_pixels} are allowed")


def _tiff_entries(image_bytes: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Tag, type, number of values, and the first value where it is a whole number that stands in the entry itself (else
    1), of each entry of the first directory."""
    order: Literal["little", "big"] = "little" if image_bytes[:2] == b"II" else "big"
    is_big = 43 in image_bytes[2:4]
    entry = struct.Struct(("<" if order == "little" else ">") + ("HHQ8s" if is_big else "HHI4s"))
    count_size, offset_at, offset_size = (8, 8, 8) if is_big else (2, 4, 4)
    offset = int.from_bytes(image_bytes[offset_at : offset_at + offset_size], order)
    entries = int.from_bytes(image_bytes[offset : offset + count_size], order)
    first = offset + count_size
    if min(entries, (len(image_bytes) - first) // entry.size) > _MAX_TIFF_TAGS:
        raise BrokenImageError(f"the TIFF has {entries} tags; at most {_MAX_TIFF_TAGS} are read")
    for position in range(
        first, min(len(image_bytes) - entry.size, first + (entries - 1) * entry.size) + 1, entry.size
    ):
        tag, kind, count, value = entry.unpack_from(image_bytes, position)
        size = _TIFF_INTEGER_SIZES.get(kind, 0)
        is_here = count == 1 and 0 < size <= len(value)
        yield tag, kind, count, int.from_bytes(value[:size], order) if is_here else 1
