"""Files made to harm: bombs, mazes, lies about what they are, and what no picture is."""

import functools
import io
import random
import struct
import zipfile
import zlib
from collections.abc import Callable

from tests.hostile.bases import (
    HEIGHT,
    WIDTH,
    bases,
    bmp_of_runs,
    chunk,
    exif,
    frames,
    png,
    save,
    scene,
    segment,
    tiff,
    tiff_tags,
    with_segments,
)

Maker = Callable[[random.Random], bytes]
"""Makes a file; draws all that it needs from the generator."""

MAGICS = {
    "jpeg": b"\xff\xd8\xff\xe0",
    "png": b"\x89PNG\r\n\x1a\n",
    "gif": b"GIF89a",
    "bmp": b"BM",
    "tiff-le": b"II*\0",
    "tiff-be": b"MM\0*",
    "bigtiff": b"II+\0",
    "webp": b"RIFF\x24\x10\0\0WEBP",
}


def _jpeg_of(width: int, height: int) -> bytes:
    """A JPEG whose header has this size."""
    plain = bases()["jpeg-baseline"]
    frame = plain.index(b"\xff\xc0")
    return plain[: frame + 5] + struct.pack(">HH", height, width) + plain[frame + 9 :]


@functools.cache
def _zeros(size: int) -> bytes:
    """So many zeros, deflated a thousand times smaller."""
    packer = zlib.compressobj(9)
    parts = [packer.compress(bytes(2**20)) for _ in range(size // 2**20)]
    return b"".join([*parts, packer.compress(bytes(size % 2**20)), packer.flush()])


def _large_bombs() -> dict[str, Maker]:
    """A few bytes that claim, or unfold into, more than a service should spend on them."""
    huge = (40_000, 65_500)
    return {
        "bomb-png": lambda rng: png(rng.choice(huge), 40_000, _zeros(2**20)),
        "bomb-png-largest": lambda _: png(2**31 - 1, 2**31 - 1, b""),
        "bomb-png-unfolding": lambda _: png(WIDTH, HEIGHT, _zeros(200 * 2**20)),
        "bomb-png-allowed": lambda rng: png(6000 + rng.randrange(500), 6000, _zeros(6500 * 3 * 6000 + 6000)),
        "bomb-png-thin": lambda rng: png(1, 4_000_000 + rng.randrange(1000), _zeros(4 * 4_001_000)),
        "bomb-png-wide": lambda rng: png(4_000_000 + rng.randrange(1000), 1, _zeros(3 * 4_001_000 + 1)),
        "bomb-png-text": lambda _: png(8, 8, _zeros(200), chunk(b"zTXt", b"a\0\0" + _zeros(60 * 2**20)) * 3),
        "bomb-png-profiles": lambda rng: png(
            8, 8, _zeros(200), chunk(b"iCCP", b"a\0\0" + _zeros(2**20 - 16)) * rng.choice((500, 3000))
        ),
        "bomb-jpeg": lambda rng: _jpeg_of(65_500, rng.choice((65_500, 40_000))),
        "bomb-jpeg-allowed": lambda rng: _jpeg_of(7000, rng.randint(6000, 7000)),
        "bomb-gif": lambda _: b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0, 0, 0) + bases()["gif-still"][13:],
        "bomb-gif-allowed": lambda rng: (
            b"GIF89a" + struct.pack("<HHBBB", 6900, rng.randint(6000, 7000), 0x80, 0, 0) + bases()["gif-still"][13:]
        ),
        "bomb-bmp": lambda _: bmp_of_runs(65_500, 65_500, b"\0\1"),
        "bomb-bmp-runs": lambda rng: bmp_of_runs(4000, 4000, b"\1\1\0\0" * rng.randint(3900, 4000) + b"\0\1"),
        "bomb-bmp-jumps": lambda rng: bmp_of_runs(40_000_000, 1, b"\0\2" + rng.randbytes(1) + b"\xff\0\1"),
        "bomb-webp": lambda _: (
            b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\2\0\0\0" + b"\xff\xff\xff" * 2 + bases()["webp-lossless"][12:]
        ),
        "bomb-tiff": lambda _: tiff(tiff_tags(65_000, 65_000, 100), bytes(100)),
        "bomb-tiff-unfolding": lambda _: tiff(
            tiff_tags(WIDTH, HEIGHT, len(_zeros(200 * 2**20)), compression=8), _zeros(200 * 2**20)
        ),
        "bomb-tiff-tile": _tiff_of_one_tile,
    }


def _tiff_of_one_tile(rng: random.Random) -> bytes:
    """A picture of 8 x 8 px in a tile of gigabytes."""
    side = rng.choice((30_000, 40_000, 65_520))
    data = _zeros(1000)
    size = [(256, 3, 1, 8), (257, 3, 1, 8), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1)]
    return tiff([*size, (322, 4, 1, side), (323, 4, 1, side), (324, 4, 1, None), (325, 4, 1, len(data))], data)


def _mazes() -> dict[str, Maker]:
    """Millions of parts, and parts that lead back to themselves."""
    return {
        "maze-jpeg-scans": _jpeg_of_scans,
        "maze-jpeg-fill": lambda rng: with_segments(bases()["jpeg-baseline"], b"\xff" * rng.randint(10**5, 3 * 10**6)),
        "maze-jpeg-junk": lambda rng: with_segments(bases()["jpeg-baseline"], b"\xff\0" * rng.randint(10**5, 10**6)),
        "maze-jpeg-segments": lambda rng: with_segments(
            bases()["jpeg-grey"], b"\xff\xeb\0\2" * rng.randint(500, 10**6)
        ),
        "maze-jpeg-tables": lambda rng: with_segments(
            bases()["jpeg-baseline"], segment(0xDB, (b"\0" + b"\1" * 64) * 1000) * rng.choice((10, 50))
        ),
        "maze-png-chunks": lambda rng: png(8, 8, _zeros(200), chunk(b"prVt", b"") * rng.choice((10, 900, 300_000))),
        "maze-png-data": lambda rng: png(8, 8, _zeros(200), chunk(b"IDAT", b"") * rng.choice((10, 9000, 300_000))),
        "maze-gif-comment": lambda rng: _gif_with(b"!\xfe" + b"\1c" * rng.randint(10**4, 10**6) + b"\0"),
        "maze-gif-extensions": lambda rng: _gif_with(b"!\xfe\0" * rng.randint(10**4, 10**6)),
        "maze-gif-junk": lambda rng: _gif_with(b"\x01" * rng.randint(10**4, 2 * 10**6)),
        "maze-tiff-strips": lambda rng: _tiff_of_strips(rng.choice((1000, 60_000, 600_000))),
        "maze-tiff-values": lambda rng: tiff(
            [*tiff_tags(8, 8, 64), (339, 3, 500_000, None)], b"\x08\x07" * (500_000 + rng.randrange(100))
        ),
        "maze-tiff-directory": lambda rng: tiff(
            [
                *tiff_tags(8, 8, 64),
                *[(40_000 + index % 20_000, 7, 1000, None) for index in range(rng.choice((9, 60_000)))],
            ],
            bytes(1000),
        ),
        "maze-tiff-loop": lambda rng: tiff(
            tiff_tags(8, 8, 64), bytes(range(64)), following=rng.choice((8, 0, 2**32 - 1))
        ),
        "maze-tiff-nested": lambda rng: tiff(
            [*tiff_tags(8, 8, 64), (330, 13, 1, 8), (34_665, 4, 1, 8), (34_853, 4, 1, 8)],
            rng.randbytes(64),
            following=8,
        ),
    }


def _jpeg_of_scans(rng: random.Random) -> bytes:
    """The last scan of a progressive JPEG over and over."""
    progressive = bases()["jpeg-progressive"]
    last = progressive[progressive.rindex(b"\xff\xda") : -2]
    return progressive[:-2] + last * rng.choice((20, 50, 1000, 20_000)) + b"\xff\xd9"


def _gif_with(extensions: bytes) -> bytes:
    """A GIF with this before its first frame."""
    still = bases()["gif-still"]
    palette_end = 13 + (6 << (still[10] & 7))
    return still[:palette_end] + extensions + still[palette_end:]


def _tiff_of_strips(count: int) -> bytes:
    tags = [(256, 3, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1)]
    return tiff([*tags, (273, 4, count, None), (278, 3, 1, 1), (279, 4, count, None)], struct.pack("<I", 8) * count)


@functools.cache
def _gif_of_frames() -> bytes:
    small = [frame.resize((WIDTH // 4, HEIGHT // 4)).quantize(16) for frame in frames(12)[::11]]
    animated = save(small[0], "GIF", save_all=True, append_images=small[1:], duration=50)
    first = animated.index(b"!\xf9")
    second = animated.index(b"!\xf9", first + 8)
    return animated[:first] + animated[first:second] * 10_000 + b";"


@functools.cache
def _webp_of_frames() -> bytes:
    animated = bases()["webp-animated"]
    start = animated.index(b"ANMF")
    size = 8 + int.from_bytes(animated[start + 4 : start + 8], "little")
    parts = animated[12:start] + animated[start : start + size + size % 2] * 10_000
    return b"RIFF" + struct.pack("<I", 4 + len(parts)) + b"WEBP" + parts


@functools.cache
def _png_of_frames() -> bytes:
    still = bases()["png-palette"]
    header_end = 33
    control = chunk(b"acTL", struct.pack(">II", 10_000, 0))
    frame = struct.pack(">IIIIIHHBB", 0, WIDTH, HEIGHT, 0, 0, 1, 10, 0, 0)
    more = b"".join(chunk(b"fcTL", struct.pack(">I", index) + frame[4:]) for index in range(1, 10_000))
    return still[:header_end] + control + chunk(b"fcTL", frame) + still[header_end:-12] + more + still[-12:]


def _animations() -> dict[str, Maker]:
    """10,000 frames, of which only the first matters."""
    return {
        "frames-gif": lambda rng: _gif_of_frames() + rng.randbytes(4),
        "frames-webp": lambda rng: _webp_of_frames() + rng.randbytes(4),
        "frames-png": lambda rng: _png_of_frames() + rng.randbytes(4),
    }


_HTML = b"<!doctype html><html><body><script>alert(document.cookie)</script></body></html>"
_SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"><circle r="9"/></svg>'
_PDF = b"%PDF-1.7\n1 0 obj<</Type/Catalog/OpenAction<</S/JavaScript/JS(app.alert(1))>>>>endobj\n"


def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("../../etc/passwd", "nobody")
    return buffer.getvalue()


def _disguises() -> dict[str, Maker]:
    """Two things in one, and other things under a picture's name."""
    return {
        "polyglot-gif-html": lambda rng: _gif_with(b"!\xfe" + bytes([len(_HTML)]) + _HTML + b"\0") + rng.randbytes(4),
        "polyglot-gif-script": lambda rng: b"GIF89a/*" + rng.randbytes(40) + b"*/=1;alert(1);",
        "polyglot-jpeg-zip": lambda rng: bases()["jpeg-baseline"] + rng.randbytes(4) + _zip(),
        "polyglot-jpeg-html": lambda rng: with_segments(
            bases()["jpeg-baseline"], segment(0xFE, _HTML + rng.randbytes(4))
        ),
        "polyglot-png-php": lambda rng: bases()["png-rgb"] + b"<?php system($_GET['c']); ?>" + rng.randbytes(4),
        "polyglot-pdf-jpeg": lambda rng: _PDF + bases()["jpeg-baseline"] + rng.randbytes(4),
        "polyglot-bmp-script": lambda rng: b"BM/*" + rng.randbytes(60) + b"*/=1;alert(1);",
        "polyglot-webp-html": lambda rng: b"RIFF\xff\xff\0\0WEBP" + _HTML + rng.randbytes(4),
        "other-svg": lambda rng: _SVG + str(rng.random()).encode(),
        "other-html": lambda rng: _HTML + str(rng.random()).encode(),
        "other-pdf": lambda rng: _PDF + rng.randbytes(100),
        "other-exe": lambda rng: b"MZ\x90\0\3\0\0\0" + rng.randbytes(300),
        "other-elf": lambda rng: b"\x7fELF\2\1\1" + rng.randbytes(300),
        "other-zip": lambda rng: _zip() + rng.randbytes(4),
        "other-script": lambda rng: b"#!/bin/sh\nrm -rf /\n" + rng.randbytes(8),
        "other-xml-bomb": lambda rng: b'<!DOCTYPE a [<!ENTITY b "&c;&c;">]><svg>&b;</svg>' + rng.randbytes(8),
        "other-picture": lambda rng: save(scene(), rng.choice(("PPM", "TGA", "ICO", "PCX", "SGI", "JPEG2000"))),
        "nothing-empty": lambda _: b"",
        "nothing-byte": lambda rng: rng.randbytes(1),
        "nothing-noise": lambda rng: rng.randbytes(rng.randint(2, 5000)),
        "nothing-magic": lambda rng: rng.choice(sorted(MAGICS.values())),
        "nothing-zeros": lambda rng: bytes(rng.randint(1, 10_000)),
    }


def _metadata() -> dict[str, Maker]:
    """EXIF and colour profiles that are large, lie, or lead in circles."""

    def in_jpeg(content: bytes) -> bytes:
        return with_segments(bases()["jpeg-baseline"], segment(0xE1, b"Exif\0\0" + content))

    def turned(rng: random.Random) -> bytes:
        value = rng.choice((0, 9, 255, 65_535))
        return in_jpeg(tiff([(274, 3, 1, value)], rng.randbytes(4)))

    def oddly_turned(rng: random.Random) -> bytes:
        entry = rng.choice(
            [(274, 2, 4, None), (274, 5, 1, None), (274, 3, 1000, None), (274, 12, 1, None), (274, 99, 1, 6)]
        )
        return in_jpeg(tiff([entry], b"6\0\0\0" * 500 + rng.randbytes(4)))

    def large(rng: random.Random) -> bytes:
        content = tiff([(274, 3, 1, 6), (37_500, 7, 10**6, None)], rng.randbytes(1000) * 1000)
        parts = [content[at : at + 65_000] for at in range(0, len(content), 65_000)]
        return with_segments(bases()["jpeg-baseline"], b"".join(segment(0xE1, b"Exif\0\0" + part) for part in parts))

    def many_tags(rng: random.Random) -> bytes:
        return chunk(b"eXIf", tiff([(index, 7, 2000, None) for index in range(60_000)], rng.randbytes(2000)))

    def profile(rng: random.Random) -> bytes:
        content = rng.randbytes(rng.choice((0, 20, 60_000)))
        return with_segments(bases()["jpeg-icc"], segment(0xE2, b"ICC_PROFILE\0" + rng.randbytes(2) + content))

    loop: list[tuple[int, int, int, int | None]] = [(34_665, 4, 1, 8), (34_853, 4, 1, 8), (40_965, 4, 1, 8)]
    return {
        "exif-orientation": turned,
        "exif-orientation-type": oddly_turned,
        "exif-large": large,
        "exif-loop": lambda rng: in_jpeg(tiff(loop, rng.randbytes(4), following=8)),
        "exif-noise": lambda rng: in_jpeg(rng.randbytes(rng.randint(0, 60_000))),
        "exif-png-tags": lambda rng: png(8, 8, _zeros(200), many_tags(rng)),
        "exif-png-loop": lambda rng: png(8, 8, _zeros(200), chunk(b"eXIf", tiff(loop, rng.randbytes(4), following=8))),
        "exif-two": lambda rng: in_jpeg(exif(Orientation=6)) + rng.randbytes(4),
        "mpf-values": lambda rng: with_segments(
            bases()["jpeg-baseline"], segment(0xE2, b"MPF\0" + tiff([(45_057, 5, 7000, None)], rng.randbytes(56_000)))
        ),
        "icc-noise": profile,
        "icc-png": lambda rng: png(8, 8, _zeros(200), chunk(b"iCCP", b"a\0\0" + zlib.compress(rng.randbytes(3000)))),
        "xmp-large": lambda rng: with_segments(
            bases()["jpeg-baseline"],
            segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + b'tiff:Orientation="' * 3000 + rng.randbytes(4)),
        ),
    }


def _noise_behind(magic: bytes) -> Maker:
    return lambda rng: magic + rng.randbytes(rng.randint(1, 4000))


def _ones_behind(magic: bytes) -> Maker:
    return lambda rng: magic + b"\xff" * rng.randint(1, 4000)


MADE: dict[str, Maker] = {
    **_large_bombs(),
    **_mazes(),
    **_animations(),
    **_disguises(),
    **_metadata(),
    **{f"magic-{name}-noise": _noise_behind(magic) for name, magic in MAGICS.items()},
    **{f"magic-{name}-ones": _ones_behind(magic) for name, magic in MAGICS.items()},
}
