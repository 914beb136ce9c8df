"""The damages that docs/damaged-pictures.md speaks of, done to one file of each format."""

import struct
import zlib
from collections.abc import Callable

from tests.hostile.bases import bases, chunk, save, scene, segment, with_segments

Damage = Callable[[str], bytes | None]
"""The damaged file of a format, or None where it cannot have the damage."""

FORMATS = {
    "JPEG": "jpeg-baseline",
    "PNG": "png-rgb",
    "WebP": "webp-lossy",
    "BMP": "bmp-24bit",
    "TIFF": "tiff-raw",
    "GIF": "gif-still",
}
_OF_TWO_PARTS = {
    "JPEG": "jpeg-two",
    "PNG": "png-animated",
    "WebP": "webp-animated",
    "TIFF": "tiff-pages",
    "GIF": "gif-animated",
}


def cut(name: str) -> bytes:
    """Half a file."""
    whole = _whole(name)
    return whole[: len(whole) // 2]


def without_last_byte(name: str) -> bytes:
    """All but a byte."""
    return _whole(name)[:-1]


def with_more(name: str) -> bytes:
    """Something behind the end."""
    return _whole(name) + b"<p>more</p>"


def with_rows_missing(name: str) -> bytes | None:
    """A whole file whose header promises twice the rows that there are."""
    whole = _whole(name)
    if name == "JPEG":
        at = whole.index(b"\xff\xc0") + 5
        return whole[:at] + struct.pack(">H", 144) + whole[at + 2 :]
    if name == "PNG":
        header = whole[16:20] + struct.pack(">I", 144) + whole[24:29]
        return whole[:8] + chunk(b"IHDR", header) + whole[33:]
    if name == "WebP":
        return whole[:28] + struct.pack("<H", 144) + whole[30:]
    if name == "BMP":
        return whole[:22] + struct.pack("<i", 144) + whole[26:]
    if name == "TIFF":
        return whole.replace(struct.pack("<HHIHH", 257, 3, 1, 72, 0), struct.pack("<HHIHH", 257, 3, 1, 144, 0))
    frame = whole.index(b",", 13)
    return whole[:8] + struct.pack("<H", 144) + whole[10 : frame + 7] + struct.pack("<H", 144) + whole[frame + 9 :]


def with_pixels_overwritten(name: str) -> bytes:
    """Noise over 16 bytes of the pixel data."""
    whole = _whole(name)
    at = len(whole) * 6 // 10
    return whole[:at] + bytes(range(100, 116)) + whole[at + 16 :]


def with_metadata_overwritten(name: str) -> bytes | None:
    """EXIF that is none."""
    if name == "PNG":
        whole = _whole(name)
        return whole[:33] + chunk(b"eXIf", b"nonsense") + whole[33:]
    if name in ("JPEG", "WebP"):
        return save(scene(), name, exif=b"Exif\0\0nonsense")
    return None


def with_profile_overwritten(name: str) -> bytes | None:
    """A colour profile that is none."""
    whole = _whole(name)
    if name == "JPEG":
        return with_segments(whole, segment(0xE2, b"ICC_PROFILE\0\1\1nonsense"))
    if name == "PNG":
        return whole[:33] + chunk(b"iCCP", b"a\0\0" + zlib.compress(b"nonsense")) + whole[33:]
    return save(scene(), name, icc_profile=b"nonsense") if name in ("WebP", "TIFF") else None


def with_wrong_checksum(name: str) -> bytes | None:
    """A header's checksum that is another's."""
    whole = _whole(name)
    return whole[:29] + b"none" + whole[33:] if name == "PNG" else None


def with_second_part_cut(name: str) -> bytes | None:
    """The first frame or page whole, the second one not."""
    if name not in _OF_TWO_PARTS:
        return None
    whole = bases()[_OF_TWO_PARTS[name]]
    return whole[: len(whole) * 7 // 8] if name == "JPEG" else whole[: len(whole) * 5 // 8]


DAMAGES: dict[str, Damage] = {
    "cut off in the middle": cut,
    "the last byte missing": without_last_byte,
    "bytes after the end": with_more,
    "fewer rows than the header says": with_rows_missing,
    "some bytes of pixel data overwritten": with_pixels_overwritten,
    "EXIF overwritten": with_metadata_overwritten,
    "colour profile overwritten": with_profile_overwritten,
    "a checksum wrong": with_wrong_checksum,
    "a later frame or page cut off": with_second_part_cut,
}


def _whole(name: str) -> bytes:
    return bases()[FORMATS[name]]
