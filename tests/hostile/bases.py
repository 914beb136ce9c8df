"""Small whole files of every accepted format, and of every way to write it that a decoder treats differently."""

import functools
import io
import struct
import zlib

import numpy as np
from PIL import ExifTags, Image, ImageCms

from circles.geometry import Circle
from circles.imaging import RGBImage
from tests.pictures import draw_scene

_SCENE = draw_scene((Circle(28.0, 30.0, 18.0), Circle(70.0, 40.0, 16.0)), width=96, height=72)
WIDTH, HEIGHT = 96, 72


@functools.cache
def bases() -> dict[str, bytes]:
    """The files by name, which starts with the format's; all are accepted."""
    return {**_jpegs(), **_pngs(), **_webps(), **_bmps(), **_tiffs(), **_gifs()}


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG, its checksum right."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, pixels: bytes, extra: bytes = b"", form: tuple[int, int, int] = (8, 2, 0)) -> bytes:
    """A PNG of these deflated rows.

    Args:
        extra: Chunks before the pixels.
        form: Bits of a channel, colour type, interlace method.
    """
    bits, color_type, interlace = form
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, interlace)
    end = chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + end


def segment(marker: int, content: bytes) -> bytes:
    """A segment of a JPEG."""
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(content) + 2) + content


def with_segments(jpeg: bytes, segments: bytes) -> bytes:
    """The JPEG with these segments behind its start."""
    return jpeg[:2] + segments + jpeg[2:]


Tag = tuple[int, int, int, int | None]
"""Tag, type, number of values, and the value or offset; None for that of the data behind the directory."""


def tiff(tags: list[Tag], data: bytes, order: str = "<", following: int = 0) -> bytes:
    """A TIFF of one directory and what follows it.

    Args:
        following: Offset of the next directory.
    """
    data_at = 8 + 2 + 12 * len(tags) + 4
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(tags))
    return head + b"".join(_entry(tag, data_at, order) for tag in tags) + struct.pack(order + "I", following) + data


def _entry(tag: Tag, data_at: int, order: str) -> bytes:
    name, kind, count, value = tag
    if kind == 3 and count == 1:  # stands at the entry's start, in either order
        return struct.pack(order + "HHIHH", name, kind, count, data_at if value is None else value, 0)
    return struct.pack(order + "HHII", name, kind, count, data_at if value is None else value)


def tiff_tags(width: int, height: int, data_size: int, compression: int = 1) -> list[Tag]:
    """Of an 8-bit grey picture in one strip."""
    size: list[Tag] = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, 1, 8), (259, 3, 1, compression)]
    return [*size, (262, 3, 1, 1), (273, 4, 1, None), (277, 3, 1, 1), (278, 3, 1, height), (279, 4, 1, data_size)]


def bmp_of_runs(width: int, height: int, runs: bytes) -> bytes:
    """A BMP of 8 bits a pixel, stored as runs."""
    palette = b"".join(bytes([grey, grey, grey, 0]) for grey in range(256))
    pixels_at = 14 + 40 + len(palette)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(runs), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", pixels_at + len(runs), 0, 0, pixels_at) + info + palette + runs


def exif(**tags: object) -> bytes:
    """EXIF of these tags of the first directory, by name; a TIFF without pixels."""
    made = Image.Exif()
    for name, value in tags.items():
        made[ExifTags.Base[name]] = value
    return made.tobytes()


def save(picture: Image.Image, file_format: str, **options: object) -> bytes:
    """The picture as Pillow writes it."""
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **options)
    return buffer.getvalue()


def scene() -> Image.Image:
    """What all these files show."""
    return Image.fromarray(_SCENE.image)


def frames(count: int) -> list[Image.Image]:
    """The scene, each time a little darker."""
    return [scene().point([value * (40 - index % 20) // 40 for value in range(256)] * 3) for index in range(count)]


def _jpegs() -> dict[str, bytes]:
    rgb = scene()
    first, *others = frames(2)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    plain = save(rgb, "JPEG", quality=85)
    thumbnail = b"Exif\0\0" + tiff([(513, 4, 1, None), (514, 4, 1, len(plain))], plain)
    files = {
        "jpeg-baseline": plain,
        "jpeg-progressive": save(rgb, "JPEG", progressive=True),
        "jpeg-cmyk": save(rgb.convert("CMYK"), "JPEG"),
        "jpeg-cmykscans": save(rgb.convert("CMYK"), "JPEG", progressive=True),
        "jpeg-grey": save(rgb.convert("L"), "JPEG"),
        "jpeg-444": save(rgb, "JPEG", quality=98, subsampling=0),
        "jpeg-restarts": save(rgb, "JPEG", restart_marker_blocks=2),
        "jpeg-icc": save(rgb, "JPEG", icc_profile=profile),
        "jpeg-two": save(first, "MPO", save_all=True, append_images=others),
        "jpeg-thumbnail": with_segments(plain, segment(0xE1, thumbnail)),
    }
    turned = {f"jpeg-exif{turn}": save(rgb, "JPEG", exif=exif(Orientation=turn)) for turn in (1, 2, 3, 5, 6, 8)}
    return files | turned


def _pngs() -> dict[str, bytes]:
    rgb = scene()
    grey = rgb.convert("L")
    alpha = rgb.copy()
    alpha.putalpha(grey)
    sixteen = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    first, *others = frames(4)
    return {
        "png-rgb": save(rgb, "PNG"),
        "png-grey": save(grey, "PNG"),
        "png-1bit": save(rgb.convert("1"), "PNG"),
        "png-16bit": save(sixteen, "PNG"),
        "png-palette": save(rgb.quantize(32), "PNG"),
        "png-transparent": save(rgb.quantize(32), "PNG", transparency=3),
        "png-rgba": save(alpha, "PNG"),
        "png-la": save(alpha.convert("LA"), "PNG"),
        "png-exif": save(rgb, "PNG", exif=exif(Orientation=6)),
        "png-interlaced": png(WIDTH, HEIGHT, zlib.compress(_interlaced(_SCENE.image)), form=(8, 2, 1)),
        "png-animated": save(first, "PNG", save_all=True, append_images=others),
    }


def _interlaced(image: RGBImage) -> bytes:
    """The rows of Adam7's seven passes, unfiltered."""
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    return b"".join(b"\0" + row.tobytes() for x, y, dx, dy in passes for row in image[y::dy, x::dx])


def _webps() -> dict[str, bytes]:
    rgb = scene()
    alpha = rgb.copy()
    alpha.putalpha(rgb.convert("L"))
    first, *others = frames(4)
    return {
        "webp-lossy": save(rgb, "WEBP"),
        "webp-lossless": save(rgb, "WEBP", lossless=True),
        "webp-alpha": save(alpha, "WEBP"),
        "webp-exif": save(rgb, "WEBP", exif=exif(Orientation=8)),
        "webp-animated": save(first, "WEBP", save_all=True, append_images=others),
    }


def _bmps() -> dict[str, bytes]:
    rgb = scene()
    grey = np.asarray(rgb.convert("L"))[::-1]  # stored from the bottom
    runs = b"".join(b"".join(b"\1" + bytes([value]) for value in row.tolist()) + b"\0\0" for row in grey) + b"\0\1"
    return {
        "bmp-24bit": save(rgb, "BMP"),
        "bmp-palette": save(rgb.quantize(256), "BMP"),
        "bmp-1bit": save(rgb.convert("1"), "BMP"),
        "bmp-32bit": save(rgb.convert("RGBA"), "BMP"),
        "bmp-runs": bmp_of_runs(WIDTH, HEIGHT, runs),
    }


def _tiffs() -> dict[str, bytes]:
    rgb = scene()
    first, *others = frames(3)
    grey = np.asarray(rgb.convert("L"))
    tiles = b"".join(
        np.pad(grey[y : y + 32, x : x + 32], ((0, 32 - len(grey[y : y + 32])), (0, 0))).tobytes()
        for y in range(0, HEIGHT, 32)
        for x in range(0, WIDTH, 32)
    )
    return {
        "tiff-raw": save(rgb, "TIFF"),
        "tiff-lzw": save(rgb, "TIFF", compression="tiff_lzw"),
        "tiff-deflate": save(rgb, "TIFF", compression="tiff_adobe_deflate"),
        **{f"tiff-{name}": save(rgb, "TIFF", compression=name) for name in ("lzma", "zstd", "packbits", "jpeg")},
        "tiff-fax": save(rgb.convert("1"), "TIFF", compression="group4"),
        "tiff-cmyk": save(rgb.convert("CMYK"), "TIFF"),
        "tiff-pages": save(first, "TIFF", save_all=True, append_images=others, compression="tiff_lzw"),
        "tiff-turned": save(rgb, "TIFF", exif=exif(Orientation=6)),
        "tiff-bigtiff": save(rgb, "TIFF", big_tiff=True),
        "tiff-bigendian": tiff(tiff_tags(WIDTH, HEIGHT, grey.size), grey.tobytes(), order=">"),
        "tiff-tiled": _tiled(tiles),
    }


def _tiled(tiles: bytes) -> bytes:
    """A TIFF of 3 x 3 tiles with a side of 32 px."""
    count, size = 9, 32 * 32
    head: list[Tag] = [(256, 3, 1, WIDTH), (257, 3, 1, HEIGHT), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    rest: list[Tag] = [(277, 3, 1, 1), (322, 3, 1, 32), (323, 3, 1, 32), (324, 4, count, None)]
    data_at = 8 + 2 + 12 * (len(head) + len(rest) + 1) + 4
    offsets = [data_at + 2 * 4 * count + size * index for index in range(count)]
    tables = struct.pack(f"<{2 * count}I", *offsets, *[size] * count)
    return tiff([*head, *rest, (325, 4, count, data_at + 4 * count)], tables + tiles)


def _gifs() -> dict[str, bytes]:
    rgb = scene()
    first, *others = (frame.quantize(32) for frame in frames(4))
    return {
        "gif-still": save(rgb.quantize(64), "GIF", interlace=0),
        "gif-interlaced": save(rgb.quantize(64), "GIF", interlace=1),
        "gif-transparent": save(rgb.quantize(64), "GIF", transparency=5),
        "gif-animated": save(first, "GIF", save_all=True, append_images=others, comment=b"four frames"),
    }
