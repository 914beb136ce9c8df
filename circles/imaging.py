"""Encoded bytes to a checked header, encoded bytes to an RGB array: the only place that reads pictures.

Pillow looks at headers (it decodes nothing then) and decodes the rarer formats with all their pixel modes; OpenCV
decodes plain JPEG, the bulk of all uploads, in half of Pillow's time, and run-length BMP, which Pillow decodes in
Python, byte by byte.
"""

import io
import warnings
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from circles.containers import check_scans, check_structure, is_run_length_bmp
from circles.errors import BrokenImageError, ImageTooLargeError, UnsupportedImageError

RGBImage = NDArray[np.uint8]
"""Decoded image: (H, W, 3), RGB, 0 to 255."""

# Pillow's own bomb guard warns at a fixed size; ours is a setting and is checked on every header, before any decoding.
Image.MAX_IMAGE_PIXELS = None
# Pillow warns of damage that it reads over, once for each tag: one file can fill a log with 65,535 lines.
warnings.filterwarnings("ignore", module=r"PIL\.")

# A JPEG with a second picture inside (as phones write them) is MPO to Pillow; its first picture is a plain JPEG.
_PILLOW_FORMATS = {
    "image/jpeg": ("JPEG", "MPO"),
    "image/png": ("PNG",),
    "image/webp": ("WEBP",),
    "image/bmp": ("BMP",),
    "image/tiff": ("TIFF",),
    "image/gif": ("GIF",),
}
ACCEPTED_MEDIA_TYPES = tuple(_PILLOW_FORMATS)

_SIGNATURES = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"BM", "image/bmp"),
    (b"II*\x00", "image/tiff"),
    (b"MM\x00*", "image/tiff"),
    (b"II+\x00", "image/tiff"),
    (b"MM\x00+", "image/tiff"),
)

# EXIF orientation -> (mirror left-right first?, quarter turns counter-clockwise after), TIFF 6.0 / EXIF 2.3 tag 0x0112.
_ORIENTATIONS = {
    2: (True, 0),
    3: (False, 2),
    4: (True, 2),
    5: (True, 1),
    6: (False, 3),
    7: (True, 3),
    8: (False, 1),
}


# A bit for each block of 8 x 8 px would be 512. Where there are fewer, blocks are missing and would become grey.
_MAX_JPEG_PIXELS_A_BYTE = 1024
_MAX_JPEG_SIDE_PX = 65_500  # libjpeg


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What the first bytes say: the real media type, and the size in px after the EXIF orientation is applied."""

    media_type: str
    width: int
    height: int


def read_header(image_bytes: bytes, max_pixels: int) -> ImageHeader:
    """The checked header of an encoded picture; no pixel is decoded.

    Raises:
        UnsupportedImageError: Not one of ``ACCEPTED_MEDIA_TYPES``.
        BrokenImageError: One of them by its first bytes, but without a usable header, or not built like a picture.
        ImageTooLargeError: More than ``max_pixels`` pixels.
    """
    media_type, picture = _open(image_bytes, max_pixels)
    width, height = picture.size
    if _is_turned(_orientation(picture)):
        width, height = height, width
    return ImageHeader(media_type, width, height)


def decode_image(image_bytes: bytes, max_pixels: int) -> RGBImage:
    """The picture upright, as (H, W, 3) uint8 RGB; the first frame of an animation.

    Transparent parts are laid on white, 16-bit channels reduced to 8 bits, CMYK and palettes converted.

    Raises:
        UnsupportedImageError, BrokenImageError, ImageTooLargeError: As ``read_header``; broken also when the pixel
            data is damaged or ends early.
    """
    media_type, picture = _open(image_bytes, max_pixels)
    orientation = _orientation(picture)
    if media_type == "image/jpeg":
        check_scans(image_bytes)  # OpenCV would fill what is missing with grey, silently
        is_for_opencv = picture.mode in ("RGB", "L")
    else:
        is_for_opencv = media_type == "image/bmp" and is_run_length_bmp(image_bytes)
    image = _decode_with_opencv(image_bytes, picture.size) if is_for_opencv else _decode_with_pillow(picture)
    return _turn_upright(image, orientation)


def shrink(image: RGBImage, max_side_px: int) -> RGBImage:
    """The image, smaller where its longer side is longer than that."""
    scale = max_side_px / max(image.shape[:2])
    if scale >= 1:
        return image
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


def encode_jpeg(image: RGBImage, quality: int = 90) -> bytes:
    """The image as JPEG bytes; smaller where a side is longer than libjpeg writes."""
    image = shrink(image, _MAX_JPEG_SIDE_PX)
    is_encoded, encoded = cv2.imencode(
        ".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality]
    )
    if not is_encoded:
        raise ValueError(f"an image of shape {image.shape} cannot be written as JPEG")
    return encoded.tobytes()


def _open(image_bytes: bytes, max_pixels: int) -> tuple[str, Image.Image]:
    media_type = _sniff_media_type(image_bytes)
    if media_type is None:
        raise UnsupportedImageError(
            f"these bytes are not a picture in an accepted format ({', '.join(ACCEPTED_MEDIA_TYPES)})"
        )
    check_structure(image_bytes, media_type, max_pixels)
    try:
        picture = Image.open(io.BytesIO(image_bytes), formats=_PILLOW_FORMATS[media_type])
    # On damaged bytes Pillow's plugins raise whatever their parsing stumbles on (struct.error, ValueError,
    # SyntaxError, OverflowError, ...), not a closed set.
    except Exception as error:
        raise BrokenImageError(f"the picture's {media_type} header cannot be read") from error
    width, height = picture.size
    if width * height > max_pixels:
        raise ImageTooLargeError(
            f"the picture has {width} x {height} = {width * height} pixels; at most {max_pixels} are allowed"
        )
    if width * height == 0:
        raise BrokenImageError("the picture has no pixels")
    if media_type == "image/jpeg" and width * height > _MAX_JPEG_PIXELS_A_BYTE * len(image_bytes):
        raise BrokenImageError(f"the JPEG has {len(image_bytes)} bytes, too few for {width} x {height} pixels")
    return media_type, picture


def _sniff_media_type(image_bytes: bytes) -> str | None:
    for signature, media_type in _SIGNATURES:
        if image_bytes.startswith(signature):
            return media_type
    if image_bytes[:4] == b"RIFF" and image_bytes[8:12] == b"WEBP":
        return "image/webp"
    return None


def _orientation(picture: Image.Image) -> int:
    """The EXIF orientation still to be applied, 1 to 8; 1 (upright) when there is none that can be read."""
    if picture.format == "TIFF":  # Pillow turns TIFF files by itself, and tells their upright size
        return 1
    try:
        # Of the class itself: PNG's own method decodes all pixels to look for EXIF behind them.
        orientation = Image.Image.getexif(picture).get(ExifTags.Base.Orientation, 1)
    # Damaged EXIF must not cost the user the picture: viewers ignore it too. What it raises is not a closed set.
    except Exception:  # noqa: BLE001
        return 1
    return orientation if orientation in _ORIENTATIONS else 1


def _is_turned(orientation: int) -> bool:
    return orientation >= 5


def _turn_upright(image: RGBImage, orientation: int) -> RGBImage:
    if orientation not in _ORIENTATIONS:
        return image
    is_mirrored, quarter_turns = _ORIENTATIONS[orientation]
    if is_mirrored:
        image = image[:, ::-1]
    return np.ascontiguousarray(np.rot90(image, quarter_turns))


def _decode_with_opencv(image_bytes: bytes, size: tuple[int, int]) -> RGBImage:
    try:
        # The orientation is applied by us, for all formats alike.
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        image = cv2.imdecode(np.frombuffer(image_bytes, np.uint8), flags)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError from error  # no fault of the picture's
        raise BrokenImageError("the picture's pixel data cannot be decoded") from error
    if image is None:
        raise BrokenImageError("the picture's pixel data cannot be decoded")
    if image.shape[1::-1] != size:
        raise BrokenImageError("the picture's header and its pixel data disagree about the size")
    return image.astype(np.uint8, copy=False)


def _decode_with_pillow(picture: Image.Image) -> RGBImage:
    try:
        picture.load()
        return _to_rgb(picture)
    except MemoryError:
        raise
    # See _open: decoders raise anything on damaged data.
    except Exception as error:
        raise BrokenImageError("the picture's pixel data is damaged or ends early") from error


def _to_rgb(picture: Image.Image) -> RGBImage:
    if picture.mode.startswith("I"):
        # 16-bit grey. Pillow's own conversion would clip at 255 instead of scaling.
        grey = (np.clip(np.asarray(picture), 0, 0xFFFF) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if picture.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if picture.mode == "La":
        picture = picture.convert("LA")  # the only mode that Pillow turns it into
    if picture.has_transparency_data:
        opaque = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(opaque, picture.convert("RGBA"))
    return np.asarray(picture.convert("RGB"))
