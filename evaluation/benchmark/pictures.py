"""Pictures to load a service with: some real ones, and as many files of different bytes as wanted."""

from pathlib import Path

from circles.imaging import encode_jpeg, read_header
from evaluation.scenes import draw_scene

_QUALITY = 92  # drawn scenes then have 25 to 60 kB, as photographs of their size do
_MAX_PIXELS = 2**30
_COMMENT = 0xFE


def drawn_pictures(count: int) -> tuple[bytes, ...]:
    """So many scenes of 512 x 384 px as JPEG files; always the same ones."""
    return tuple(encode_jpeg(draw_scene(seed).image, quality=_QUALITY) for seed in range(count))


def pictures_in(folder: Path, count: int, max_bytes: int = 200_000) -> tuple[bytes, ...]:
    """The first JPEG files of a folder, by name, of no more than so many bytes.

    Raises:
        ValueError: There is none.
    """
    found: list[bytes] = []
    for path in sorted(folder.iterdir()):
        if len(found) == count:
            break
        if path.suffix.lower() in (".jpg", ".jpeg") and path.stat().st_size <= max_bytes:
            image_bytes = path.read_bytes()
            if read_header(image_bytes, _MAX_PIXELS).media_type == "image/jpeg":
                found.append(image_bytes)
    if not found:
        raise ValueError(f"{folder} has no JPEG file of at most {max_bytes} bytes")
    return tuple(found)


def unique_jpeg(base: bytes, number: int) -> bytes:
    """The same picture in other bytes: a comment with the number stands behind the file's first marker.

    Every number below 2**128 adds the same 36 bytes, so that no number costs more than another.

    Raises:
        ValueError: The base is no JPEG file.
    """
    if not base.startswith(b"\xff\xd8"):
        raise ValueError("only a JPEG file can be made unique by a comment")
    text = f"{number:032x}".encode()
    return b"".join((base[:2], bytes((0xFF, _COMMENT)), (len(text) + 2).to_bytes(2), text, base[2:]))
