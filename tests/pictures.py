"""Pictures drawn for tests, their circles known."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from circles.geometry import Circle
from circles.imaging import RGBImage


@dataclass(frozen=True)
class Scene:
    """A drawn picture and the circles in it."""

    image: RGBImage
    circles: tuple[Circle, ...]


def draw_scene(circles: tuple[Circle, ...], width: int = 320, height: int = 240, seed: int = 0) -> Scene:
    """Bright discs on a dark ground, with the seed's own noise."""
    rng = np.random.default_rng(seed)
    canvas = np.full((height, width, 3), (40, 60, 80), np.uint8)
    for circle in circles:
        paint_disc(canvas, circle, (210, 190, 150))
    noise = rng.normal(0, 3, canvas.shape)
    return Scene(np.clip(canvas + noise, 0, 255).astype(np.uint8), circles)


def paint_disc(canvas: RGBImage, circle: Circle, color: tuple[int, int, int]) -> None:
    """A disc of exact size: OpenCV's anti-aliased one would be two thirds of a px too large."""
    top, left = (max(0, int(center - circle.radius - 1)) for center in (circle.center_y, circle.center_x))
    bottom, right = (int(center + circle.radius + 2) for center in (circle.center_y, circle.center_x))
    area = canvas[top:bottom, left:right]
    ys, xs = np.mgrid[top : top + area.shape[0], left : left + area.shape[1]] + 0.5
    coverage = np.clip(circle.radius + 0.5 - np.hypot(xs - circle.center_x, ys - circle.center_y), 0, 1)[..., None]
    area[:] = np.round(area + coverage * (np.array(color) - area))


def two_discs(seed: int = 0) -> Scene:
    """Two discs apart from each other; every seed gives other bytes."""
    return draw_scene((Circle(90.3, 110.7, 42.0), Circle(220.5, 130.2, 55.5)), seed=seed)


def encode(image: RGBImage, file_format: str = "PNG", **options: object) -> bytes:
    """The image as a file of this format."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, file_format, **options)
    return buffer.getvalue()


def disc_jpeg(seed: int) -> bytes:
    """A small JPEG with two discs; every seed gives other bytes."""
    return encode(two_discs(seed).image, "JPEG", quality=90)
