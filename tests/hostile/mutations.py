"""Ways to damage a picture file, and to make its header lie so well that a decoder believes it."""

import itertools
import random
import struct
import zlib
from collections.abc import Callable

from tests.hostile.bases import bases, chunk

Mutation = Callable[[random.Random, bytes], bytes]
"""Damages a file; draws all that it needs from the generator."""

_SIZES = (0, 1, 2, 7, 255, 256, 4000, 16_383, 32_767, 65_535, 70_000, 1_000_000, 2**31 - 1, 2**31, 2**32 - 1)
_BITS_FOR_FORM = {"B": 8, "H": 16, "I": 32}


def flip_bits(rng: random.Random, content: bytes) -> bytes:
    """One to 16 bits anywhere."""
    damaged = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def flip_header_bits(rng: random.Random, content: bytes) -> bytes:
    """One to 4 bits of the first 64 bytes, behind the signature."""
    damaged = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        damaged[rng.randrange(4, 64)] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def truncate(rng: random.Random, content: bytes) -> bytes:
    """Cut anywhere."""
    return content[: rng.randrange(1, len(content))]


def truncate_end(rng: random.Random, content: bytes) -> bytes:
    """Without the last bytes, as a transfer that broke off."""
    return content[: -rng.randint(1, min(64, len(content) - 1))]


def zero_range(rng: random.Random, content: bytes) -> bytes:
    """A range that a disk lost."""
    start, end = _range(rng, content)
    return content[:start] + b"\0" * (end - start) + content[end:]


def fill_range(rng: random.Random, content: bytes) -> bytes:
    """A range of other bytes: noise, or ones."""
    start, end = _range(rng, content)
    filling = rng.randbytes(end - start) if rng.random() < 0.5 else b"\xff" * (end - start)
    return content[:start] + filling + content[end:]


def remove_range(rng: random.Random, content: bytes) -> bytes:
    """A range that is not there."""
    start, end = _range(rng, content)
    return content[:start] + content[end:]


def insert_noise(rng: random.Random, content: bytes) -> bytes:
    """Bytes that nobody expects."""
    at = rng.randrange(len(content))
    return content[:at] + rng.randbytes(rng.randint(1, 400)) + content[at:]


def duplicate_range(rng: random.Random, content: bytes) -> bytes:
    """A part once more, up to 20 times."""
    start, end = _range(rng, content)
    return content[:end] + content[start:end] * rng.choice((1, 2, 20)) + content[end:]


def splice(rng: random.Random, content: bytes) -> bytes:
    """The start of this file, the end of another one, of any format."""
    other = bases()[rng.choice(sorted(bases()))]
    return content[: rng.randrange(8, len(content))] + other[rng.randrange(len(other)) :]


def append(rng: random.Random, content: bytes) -> bytes:
    """Something behind the picture's end."""
    other = bases()[rng.choice(sorted(bases()))]
    return content + rng.choice((rng.randbytes(1000), other, b"\0" * 5000, b"<script>alert(1)</script>"))


def lie_anywhere(rng: random.Random, content: bytes) -> bytes:
    """A number of the header becomes one that nobody expects."""
    form = rng.choice("BHI")
    value = rng.choice(_SIZES) % 2 ** _BITS_FOR_FORM[form]
    at = rng.randrange(4, min(120, len(content) - 4))
    number = struct.pack(rng.choice("<>") + form, value)
    return content[:at] + number + content[at + len(number) :]


def lie_about_size(rng: random.Random, content: bytes) -> bytes:
    """The header tells another width or height, and its checksum is right."""
    value = rng.choice(_SIZES) if rng.random() < 0.6 else rng.randint(1, 300)
    is_width = rng.random() < 0.5
    if content.startswith(b"\x89PNG"):
        header = _patched(content[16:29], 0 if is_width else 4, ">I", value)
        return content[:8] + chunk(b"IHDR", header) + content[33:]
    if content.startswith(b"\xff\xd8"):
        frame = next(at for at in range(len(content)) if content[at : at + 2] in (b"\xff\xc0", b"\xff\xc2"))
        return _patched(content, frame + (7 if is_width else 5), ">H", value)
    if content.startswith(b"GIF"):
        screen = _patched(content, 6 if is_width else 8, "<H", value)
        frame = screen.index(b",", 13)
        return screen if rng.random() < 0.5 else _patched(screen, frame + (5 if is_width else 7), "<H", value)
    if content.startswith(b"BM"):
        return _patched(content, 18 if is_width else 22, "<i", value)
    if content.startswith(b"RIFF"):
        return _lying_webp(content, is_width, value)
    return _lying_tiff(rng, content, tags=(256,) if is_width else (257,), value=value)


def lie_about_form(rng: random.Random, content: bytes) -> bytes:
    """The header tells other bits, channels, compression, and its checksum is right."""
    value = rng.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 16, 17, 24, 32, 48, 255))
    if content.startswith(b"\x89PNG"):
        header = _patched(content[16:29], rng.randrange(8, 13), ">B", value)
        return content[:8] + chunk(b"IHDR", header) + content[33:]
    if content.startswith(b"\xff\xd8"):
        frame = next(at for at in range(len(content)) if content[at : at + 2] in (b"\xff\xc0", b"\xff\xc2"))
        return _patched(content, frame + rng.choice((4, 9, 10, 11, 12)), ">B", value)
    if content.startswith(b"GIF"):
        return _patched(content, 10, "<B", value * 9 % 256)
    if content.startswith(b"BM"):
        return _patched(content, rng.choice((10, 14, 28, 30, 46)), "<H", value)
    if content.startswith(b"RIFF"):
        return _patched(content, rng.choice((4, 16, 20)), "<I", value)
    return _lying_tiff(rng, content, tags=(258, 259, 262, 277, 278, 284, 317, 322, 323, 338, 339), value=value)


def lie_in_directory(rng: random.Random, content: bytes) -> bytes:
    """A length or offset lies: of a TIFF's tag, a PNG's chunk, a JPEG's segment, a WebP's part."""
    value = rng.choice(_SIZES)
    if content.startswith(b"\xff\xd8"):
        starts = [at for at in range(2, len(content) - 4) if content[at] == 0xFF and content[at + 1] >= 0xC0]
        return _patched(content, rng.choice(starts) + 2, ">H", value)
    if content[:2] in (b"II", b"MM"):
        return _lying_tiff(rng, content, tags=(), value=value)
    if content.startswith(b"\x89PNG"):
        return _patched(content, rng.choice(_chunk_starts(content)), ">I", value)
    return _patched(content, rng.choice((4, 12, 16, 2, 10)), "<I", value)


def shuffle_chunks(rng: random.Random, content: bytes) -> bytes:
    """Chunks of a PNG swapped, doubled or lost, each whole in itself; parts of other formats."""
    if not content.startswith(b"\x89PNG"):
        parts = [content[at : at + len(content) // 7] for at in range(0, len(content), max(1, len(content) // 7))]
        first, *others = parts
    else:
        starts = [*_chunk_starts(content), len(content)]
        first = content[:33]
        others = [content[start:end] for start, end in itertools.pairwise(starts[1:])]
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(others)) if others else 0
        others[at : at + 1] = rng.choice(([], others[at : at + 1] * 2, others[at : at + 1] * 30))
    rng.shuffle(others)
    return first + b"".join(others)


def damage_inside(rng: random.Random, content: bytes) -> bytes:
    """Pixels damaged before they were deflated, so that checksums are right; other formats: damage in the middle."""
    if not content.startswith(b"\x89PNG"):
        at = rng.randrange(len(content) // 3, len(content))
        return content[:at] + rng.randbytes(8) + content[at + 8 :]
    starts = [at for at in _chunk_starts(content) if content[at + 4 : at + 8] == b"IDAT"]
    end = starts[-1] + 12 + int.from_bytes(content[starts[-1] : starts[-1] + 4], "big")
    deflated = b"".join(content[at + 8 : at + 8 + int.from_bytes(content[at : at + 4], "big")] for at in starts)
    rows = bytearray(zlib.decompress(deflated))
    for _ in range(rng.randint(1, 20)):
        rows[rng.randrange(len(rows))] = rng.randrange(256)
    changed = rng.choice((rows, rows[: len(rows) // 2], rows * 3))
    return content[: starts[0]] + chunk(b"IDAT", zlib.compress(changed)) + content[end:]


MUTATIONS: dict[str, Mutation] = {
    function.__name__.replace("_", "-"): function
    for function in (
        *(flip_bits, flip_header_bits, truncate, truncate_end, zero_range, fill_range, remove_range, insert_noise),
        *(duplicate_range, splice, append, lie_anywhere, lie_about_size, lie_about_form, lie_in_directory),
        *(shuffle_chunks, damage_inside),
    )
}


def _range(rng: random.Random, content: bytes) -> tuple[int, int]:
    start = rng.randrange(len(content))
    return start, min(len(content), start + rng.choice((1, 4, 16, 64, 256, 1024)))


def _patched(content: bytes, at: int, form: str, value: int) -> bytes:
    """With this number written into it, cut to its bits."""
    size = struct.calcsize(form)
    number = (value & ((1 << 8 * size) - 1)).to_bytes(size, "big" if form[0] == ">" else "little")
    return content[:at] + number + content[at + size :]


def _chunk_starts(content: bytes) -> list[int]:
    """Of a PNG."""
    starts = []
    position = 8
    while position + 8 <= len(content):
        starts.append(position)
        position += 12 + int.from_bytes(content[position : position + 4], "big")
    return starts


def _lying_webp(content: bytes, is_width: bool, value: int) -> bytes:
    kind = content[12:16]
    if kind == b"VP8 ":
        return _patched(content, 26 if is_width else 28, "<H", value % 2**14)
    if kind == b"VP8L":
        bits = int.from_bytes(content[21:25], "little")
        shift = 0 if is_width else 14
        return _patched(content, 21, "<I", bits & ~(0x3FFF << shift) | (value % 2**14) << shift)
    at = 24 if is_width else 27
    return content[:at] + (value % 2**24).to_bytes(3, "little") + content[at + 3 :]


def _lying_tiff(rng: random.Random, content: bytes, tags: tuple[int, ...], value: int) -> bytes:
    """One of these tags of the first directory gets this value; without tags, any type, number or offset does."""
    order = "<" if content[:2] == b"II" else ">"
    is_big = 43 in content[2:4]
    count_form, entry_size, fields = ("Q", 20, ("H", "Q", "Q")) if is_big else ("H", 12, ("H", "I", "I"))
    (start,) = struct.unpack_from(order + ("Q" if is_big else "I"), content, 8 if is_big else 4)
    (count,) = struct.unpack_from(order + count_form, content, start)
    first = start + struct.calcsize(count_form)
    entries = [first + index * entry_size for index in range(count)]
    chosen = [at for at in entries if struct.unpack_from(order + "H", content, at)[0] in tags] or entries
    at = rng.choice(chosen)
    value_at = at + (12 if is_big else 8)
    if tags:
        kind = struct.unpack_from(order + "H", content, at + 2)[0]
        return _patched(content, value_at, order + ("H" if kind == 3 else "I"), value)
    form = rng.choice(fields)
    return _patched(
        content, {"H": at + 2, "I": rng.choice((at + 4, value_at))}.get(form, value_at), order + form, value
    )
