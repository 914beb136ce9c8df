"""Headers and pixels of every format and mode, whole and broken."""

import io
import struct
import zlib
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image, ImageFile

from circles.errors import BrokenImageError, ImageTooLargeError, UnsupportedImageError
from circles.imaging import ImageHeader, RGBImage, _to_rgb, decode_image, encode_jpeg, read_header
from tests.hostile.bases import bases, bmp_of_runs, chunk, png, segment, tiff, tiff_tags, with_segments
from tests.pictures import encode, two_discs

MAX_PIXELS = 10**6


def gradient() -> RGBImage:
    """40 wide, 30 high; red grows to the right, green downwards, blue is constant: no turn leaves it as it is."""
    image = np.zeros((30, 40, 3), np.uint8)
    image[..., 0] = np.arange(40)[None, :] * 6
    image[..., 1] = np.arange(30)[:, None] * 8
    image[..., 2] = 77
    return image


def save(picture: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF", "GIF", "WEBP", "JPEG"])
def test_formats(file_format: str) -> None:
    exact: dict[str, dict[str, object]] = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}
    image_bytes = encode(gradient(), file_format, **exact.get(file_format, {}))
    assert read_header(image_bytes, MAX_PIXELS) == ImageHeader(f"image/{file_format.lower()}", 40, 30)
    image = decode_image(image_bytes, MAX_PIXELS)
    assert image.shape == (30, 40, 3)
    assert image.dtype == np.uint8
    # GIF has 256 colours, JPEG rounds.
    tolerance = {"GIF": 30, "JPEG": 4}.get(file_format, 0)
    np.testing.assert_allclose(image.astype(int), gradient().astype(int), atol=tolerance)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int, file_format: str) -> None:
    """A file stored turned, and marked so, comes back upright; Pillow's own turning is the judge."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"JPEG": {"quality": 100, "subsampling": 0}}.get(file_format, {})
    image_bytes = save(Image.fromarray(gradient()), file_format, exif=exif, **options)
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    expected = Image.fromarray(gradient())
    if orientation in turns:
        expected = expected.transpose(turns[orientation])
    image = decode_image(image_bytes, MAX_PIXELS)
    header = read_header(image_bytes, MAX_PIXELS)
    assert (header.width, header.height) == image.shape[1::-1] == expected.size
    np.testing.assert_allclose(image.astype(int), np.asarray(expected).astype(int), atol=4)


def test_damaged_exif_costs_nothing() -> None:
    image_bytes = encode(gradient(), "JPEG", exif=b"Exif\0\0not a TIFF header at all")
    assert decode_image(image_bytes, MAX_PIXELS).shape == (30, 40, 3)


def test_grey_becomes_three_channels() -> None:
    for file_format in ("JPEG", "PNG"):
        image = decode_image(save(Image.new("L", (8, 6), 100), file_format), MAX_PIXELS)
        np.testing.assert_array_equal(image, np.full((6, 8, 3), 100))


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None, :].repeat(4, axis=0)
    for file_format in ("PNG", "TIFF"):
        image = decode_image(save(Image.fromarray(ramp), file_format), MAX_PIXELS)
        np.testing.assert_array_equal(image[0, :, 0], np.arange(256))


def test_black_and_white() -> None:
    picture = Image.new("1", (4, 4), 1)
    picture.putpixel((1, 2), 0)
    image = decode_image(save(picture, "PNG"), MAX_PIXELS)
    assert image[2, 1].tolist() == [0, 0, 0]
    assert image.sum() == 15 * 3 * 255


def test_transparent_parts_are_white() -> None:
    picture = Image.new("RGBA", (4, 4), (10, 20, 30, 255))
    picture.putpixel((1, 2), (200, 0, 0, 0))
    picture.putpixel((2, 2), (0, 0, 0, 128))
    image = decode_image(save(picture, "PNG"), MAX_PIXELS)
    assert image[0, 0].tolist() == [10, 20, 30]
    assert image[2, 1].tolist() == [255, 255, 255]
    np.testing.assert_allclose(image[2, 2], 127, atol=1)


def test_grey_that_is_multiplied_by_its_alpha_already() -> None:
    picture = Image.merge("LA", [Image.new("L", (1, 1), 100), Image.new("L", (1, 1), 128)]).convert("La")
    assert _to_rgb(picture)[0, 0].tolist() == pytest.approx([177] * 3, abs=2)


def test_palette_with_transparency() -> None:
    picture = Image.new("P", (4, 4), 0)
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.putpixel((3, 0), 1)
    image = decode_image(save(picture, "GIF", transparency=1), MAX_PIXELS)
    assert image[0, 0].tolist() == [10, 20, 30]
    assert image[0, 3].tolist() == [255, 255, 255]


def test_cmyk() -> None:
    for file_format in ("JPEG", "TIFF"):
        image = decode_image(save(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), file_format), MAX_PIXELS)
        np.testing.assert_allclose(image[4, 4], (255, 0, 0), atol=6)


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    image = decode_image(save(frames[0], "GIF", save_all=True, append_images=frames[1:]), MAX_PIXELS)
    assert image[4, 4].tolist() == [255, 0, 0]


def test_one_pixel() -> None:
    assert decode_image(save(Image.new("RGB", (1, 1), "white"), "PNG"), MAX_PIXELS).tolist() == [[[255, 255, 255]]]


def test_looking_at_headers_decodes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would read a PNG to its end in search of EXIF."""
    files = [encode(gradient(), file_format) for file_format in ("PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP")]

    def refuse(_: ImageFile.ImageFile) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", refuse)
    for image_bytes in files:
        assert read_header(image_bytes, MAX_PIXELS).width == 40


def test_too_many_pixels_are_refused_by_the_header() -> None:
    image_bytes = encode(gradient())
    assert read_header(image_bytes, 1200)
    for function in (read_header, decode_image):
        with pytest.raises(ImageTooLargeError, match=r"40 x 30 = 1200 .* 1199"):
            function(image_bytes, 1199)


@pytest.mark.parametrize("image_bytes", [b"", b"text", b"RIFF\0\0\0\0WAVE", b"GIF88a", b"%PDF-1.4"])
def test_what_is_no_picture(image_bytes: bytes) -> None:
    with pytest.raises(UnsupportedImageError, match="accepted format"):
        read_header(image_bytes, MAX_PIXELS)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "BMP", "TIFF", "GIF", "WEBP"])
def test_every_truncation_is_noticed(file_format: str) -> None:
    """Cut anywhere, a picture is refused or, when only a trailer went, whole; never anything but these errors."""
    image_bytes = encode(two_discs().image, file_format)
    whole = decode_image(image_bytes, MAX_PIXELS)
    for part in np.linspace(0, len(image_bytes) - 1, 60).astype(int):
        try:
            image = decode_image(image_bytes[:part], MAX_PIXELS)
        except (BrokenImageError, UnsupportedImageError):
            continue
        assert part > len(image_bytes) * 0.9
        np.testing.assert_array_equal(image, whole)


def test_truncated_jpeg_with_a_thumbnail_is_noticed() -> None:
    """The thumbnail's own end marker must not stand in for the picture's."""
    thumbnail = encode(gradient(), "JPEG")
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    image_bytes = encode(two_discs().image, "JPEG")
    with_thumbnail = image_bytes[:2] + segment + image_bytes[2:]
    assert decode_image(with_thumbnail, MAX_PIXELS).shape == (240, 320, 3)
    with pytest.raises(BrokenImageError, match="ends early"):
        decode_image(with_thumbnail[:-500], MAX_PIXELS)


def test_flipped_bits_never_raise_anything_else() -> None:
    rng = np.random.default_rng(1)
    for file_format in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"):
        original = encode(gradient(), file_format)
        for _ in range(60):
            damaged = bytearray(original)
            for position in rng.integers(0, len(damaged), 4):
                damaged[position] ^= 1 << rng.integers(8)
            try:
                image = decode_image(bytes(damaged), MAX_PIXELS)
            except (BrokenImageError, UnsupportedImageError, ImageTooLargeError):
                continue
            assert image.dtype == np.uint8
            assert image.ndim == 3


def test_jpeg_that_claims_more_pixels_than_its_bytes_can_hold_is_refused() -> None:
    image_bytes = encode(np.full((600, 800, 3), 128, np.uint8), "JPEG", quality=1, optimize=True, progressive=True)
    assert decode_image(image_bytes, MAX_PIXELS).shape == (600, 800, 3), "as few bytes as an encoder can do with"
    frame = image_bytes.index(b"\xff\xc2")
    liar = image_bytes[: frame + 5] + struct.pack(">HH", 6000, 8000) + image_bytes[frame + 9 :]
    with pytest.raises(BrokenImageError, match="too few for 8000 x 6000 pixels"):
        read_header(liar, 10**8)


def test_want_of_memory_is_no_fault_of_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*_: object) -> None:
        error = cv2.error("Failed to allocate 36000000 bytes")
        error.code = cv2.Error.StsNoMem
        raise error

    monkeypatch.setattr(cv2, "imdecode", lacking)
    with pytest.raises(MemoryError):
        decode_image(encode(two_discs().image, "JPEG"), 10**6)


def test_encoded_jpeg_can_be_decoded() -> None:
    image = two_discs().image
    assert np.abs(decode_image(encode_jpeg(image), MAX_PIXELS).astype(int) - image).mean() < 4


def jpeg_of_scans(name: str, count: int) -> bytes:
    """The last scan of a JPEG again and again."""
    whole = bases()[name]
    before = whole.count(b"\xff\xda")
    return whole[:-2] + whole[whole.rindex(b"\xff\xda") : -2] * (count - before) + whole[-2:]


def jpeg_of_segments(count: int) -> bytes:
    return with_segments(bases()["jpeg-baseline"], segment(0xE2, b"a profile's part") * count)


def jpeg_of_tables(count: int) -> bytes:
    return with_segments(bases()["jpeg-baseline"], segment(0xDB, b"\0" + b"\1" * 64) * count)


def jpeg_of_fill_bytes(count: int) -> bytes:
    return with_segments(bases()["jpeg-baseline"], b"\xff" * count)


def png_of_chunks(count: int) -> bytes:
    return png(8, 8, zlib.compress(bytes(8 * 25)), chunk(b"prVt", b"") * count)


def gif_of_blocks(count: int) -> bytes:
    whole = bases()["gif-still"]
    palette_end = 13 + (6 << (whole[10] & 7))
    return whole[:palette_end] + b"!\xfe" + b"\1c" * count + b"\0" + whole[palette_end:]


def tiff_of_strips(count: int) -> bytes:
    tags = tiff_tags(8, count, 64)
    tags[5], tags[7], tags[8] = (273, 4, count, None), (278, 3, 1, 1), (279, 4, count, None)
    tags[1] = (257, 4, 1, count)
    return tiff(tags, struct.pack("<I", 8) * 2 * count)  # so many bytes as both tables claim


def tiff_of_tags(count: int) -> bytes:
    private = [(40_000 + index, 3, 1, 7) for index in range(count - 9)]
    return tiff([*tiff_tags(8, 8, 64), *private], bytes(64))


@pytest.mark.parametrize(
    ("make", "honest", "hostile", "reason"),
    [
        pytest.param(jpeg_of_segments, 400, 3000, "1024 segments", id="JPEG segments"),
        pytest.param(jpeg_of_tables, 20, 100, "32 tables", id="JPEG tables"),
        pytest.param(jpeg_of_fill_bytes, 10, 200_000, "no pixel data", id="JPEG fill bytes"),
        pytest.param(png_of_chunks, 200, 5000, "256 others", id="PNG chunks"),
        pytest.param(gif_of_blocks, 5000, 200_000, "65536 blocks", id="GIF blocks"),
        pytest.param(tiff_of_strips, 5000, 100_000, "tag 273 has 100000 values", id="TIFF strips"),
        pytest.param(tiff_of_tags, 500, 20_000, "20000 tags", id="TIFF tags"),
    ],
)
def test_files_of_more_parts_than_any_program_writes_are_refused(
    make: Callable[[int], bytes], honest: int, hostile: int, reason: str
) -> None:
    """By their headers, since Pillow takes seconds and gigabytes for such headers already."""
    assert decode_image(make(honest), MAX_PIXELS).shape[2] == 3
    with pytest.raises(BrokenImageError, match=reason):
        read_header(make(hostile), MAX_PIXELS)


@pytest.mark.parametrize("name", ["jpeg-progressive", "jpeg-cmykscans"])
def test_jpeg_of_more_scans_than_any_program_writes_is_refused(name: str) -> None:
    """Each is a pass over all pixels: 500 of them, 229 kB of a picture of 49 Mpx, take half a minute."""
    assert decode_image(jpeg_of_scans(name, 40), MAX_PIXELS).shape[2] == 3
    with pytest.raises(BrokenImageError, match="more than 64 scans"):
        decode_image(jpeg_of_scans(name, 200), MAX_PIXELS)


def test_tile_larger_than_any_picture_is_refused() -> None:
    """libtiff would take memory for the whole tile: 1.5 GB for these 145 bytes."""
    tags = [*tiff_tags(8, 8, 64)[:5], (277, 3, 1, 1), (322, 4, 1, 40_000), (323, 4, 1, 40_000)]
    pixels = zlib.compress(b"")
    tags[3] = (259, 3, 1, 8)
    image_bytes = tiff([*tags, (324, 4, 1, None), (325, 4, 1, len(pixels))], pixels)
    with pytest.raises(BrokenImageError, match="tiles of 1600000000 pixels"):
        read_header(image_bytes, MAX_PIXELS)


@pytest.mark.parametrize("order", ["<", ">"])
def test_directory_that_leads_nowhere_is_a_broken_header(order: str) -> None:
    for head in (b"II*\0" if order == "<" else b"MM\0*", b"II+\0" if order == "<" else b"MM\0+"):
        with pytest.raises(BrokenImageError):
            read_header(head + b"\xff" * 40, MAX_PIXELS)


def test_bmp_of_runs() -> None:
    """Rows from the bottom."""
    image = decode_image(bmp_of_runs(4, 2, b"\4\x64\0\0\2\xc8\2\x0a\0\0\0\1"), MAX_PIXELS)
    assert image[:, :, 0].tolist() == [[200, 200, 10, 10], [100, 100, 100, 100]]


def test_bmp_of_runs_that_is_cut_off_is_noticed() -> None:
    whole = bases()["bmp-runs"]
    with pytest.raises(BrokenImageError, match="cannot be decoded"):
        decode_image(whole[: len(whole) // 2], MAX_PIXELS)
