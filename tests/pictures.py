"""Pictures drawn for tests, their circles known."""

import io
from dataclasses import dataclass

import cv2
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
    """Bright discs on a dark ground, with the seed's own noise, anti-aliased to a sixteenth of a px."""
    rng = np.random.default_rng(seed)
    canvas = np.full((height, width, 3), (40, 60, 80), np.uint8)
    for circle in circles:
        center = (round((circle.center_x - 0.5) * 16), round((circle.center_y - 0.5) * 16))
        cv2.circle(canvas, center, round(circle.radius * 16), (210, 190, 150), cv2.FILLED, cv2.LINE_AA, 4)
    noise = rng.normal(0, 3, canvas.shape)
    return Scene(np.clip(canvas + noise, 0, 255).astype(np.uint8), circles)


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
