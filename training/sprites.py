"""What made-up samples are made of: textures, round things seen from above, shapes that are not round, and print.

What is round, and not what coins look like, is to be learned: so inside and around an outline lies any texture.
"""

import string
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from circles.geometry import BBox
from circles.imaging import RGBImage, decode_image
from evaluation.coco import load_dataset
from training.photos import Photo
from training.samples import CORNERS, Outline

SPRITE_PX = 198  # of which a thing takes 180: whole px, and an even border
SPRITE_SPAN = 2.2
"""Radii that a sprite is wide: a little more than the thing itself."""

_GROUND_TRIES = 12
_CHARACTERS = string.ascii_letters + string.digits + "0oOeCGQ690&%@.,:"  # those that look round more often

Pixels = NDArray[np.float32]
"""(H, W, 3) RGB, 0 to 255."""


class Sprites:
    """Makes textures and round things out of photographs, cut-outs and noise."""

    def __init__(self, photos: Sequence[Photo], cutouts: Sequence[RGBImage]) -> None:
        """
        Args:
            photos: Grounds and textures; may be none.
            cutouts: (N, N, 3) each, a round thing that touches all four sides; what lies in the corners is not used.
                May be none.
        """
        self._photos = photos
        self._cutouts = cutouts

    def sprite(self, rng: np.random.Generator) -> tuple[Pixels, Outline]:
        """A round thing seen from above, and its outline, about the unit circle; the sprite is 2.2 radii wide."""
        size = SPRITE_PX
        angles = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
        if self._cutouts and rng.random() < 0.3:
            cutout = self._cutouts[int(rng.integers(len(self._cutouts)))]
            border = round(size / 2 - size / SPRITE_SPAN)
            resized = cv2.resize(cutout, (size - 2 * border, size - 2 * border), interpolation=cv2.INTER_AREA)
            framed = cv2.copyMakeBorder(resized, border, border, border, border, cv2.BORDER_REPLICATE)
            pixels = framed.astype(np.float32)
            if rng.random() < 0.3:
                pixels = pixels * rng.uniform(0.5, 1.4, 3).astype(np.float32)
            return pixels, np.stack([np.cos(angles), np.sin(angles)], axis=-1)
        sprite = _decorated(self.texture(size, rng), rng)
        reach = np.ones(CORNERS)
        match rng.integers(6):
            case 0:  # bottle caps, biscuits: a wavy rim
                reach += rng.uniform(0.005, 0.035) * np.cos(int(rng.integers(12, 30)) * angles)
            case 1:  # fruit, old coins: not quite round
                for order in (2, 3, 4):
                    reach += rng.normal(0, 0.015) * np.cos(order * angles + rng.uniform(0, 2 * np.pi))
            case _:
                pass
        return sprite, np.stack([reach * np.cos(angles), reach * np.sin(angles)], axis=-1)

    def texture(self, size: int, rng: np.random.Generator) -> Pixels:
        """(size, size, 3) of an even color, noise, stripes, or a part of a photograph's ground."""
        ys, xs = np.mgrid[0:size, 0:size].astype(np.float32) / size
        angle = rng.uniform(0, 2 * np.pi)
        slope = (np.cos(angle) * (xs - 0.5) + np.sin(angle) * (ys - 0.5)).astype(np.float32)
        choice = rng.random()
        if choice < 0.3 and self._photos:
            patch = _without_objects(self._photos[int(rng.integers(len(self._photos)))], size, rng)
            if rng.random() < 0.4:
                patch = patch * rng.uniform(0.4, 1.5, 3).astype(np.float32)
            return patch
        color, other = random_color(rng), random_color(rng)
        texture = color * (1 + np.float32(rng.uniform(0, 0.6)) * slope[..., None])
        if choice < 0.6:
            mix = np.zeros((size, size), np.float32)
            for cells in (4, 12, 40):
                mix += rng.uniform(0, 0.5) * _noise(rng, size, cells)
            texture = texture + (other - color) * mix[..., None] * np.float32(rng.uniform(0.1, 1.0))
        elif choice < 0.75:
            frequency = np.exp(rng.uniform(np.log(3), np.log(60)))
            wave = np.sin(2 * np.pi * (frequency * slope + rng.uniform(0, 3) * _noise(rng, size, 5)))
            if rng.random() < 0.5:
                wave = np.sign(wave)
            texture = texture + (other - color) * np.float32(rng.uniform(0.05, 0.5)) * (wave[..., None] + 1)
        if rng.random() < 0.5:
            texture = texture + rng.normal(0, rng.uniform(1, 20), (size, size, 1)).astype(np.float32)
        return np.asarray(texture, np.float32)


def load_cutouts(folders: Sequence[Path]) -> list[RGBImage]:
    """The annotated boxes of COCO folders of round things on plain grounds."""
    cutouts = []
    for image in (image for folder in folders for image in load_dataset(folder).images):
        pixels = decode_image(image.path.read_bytes(), max_pixels=2**40)
        for truth in image.truth:
            box = truth.bbox
            cutouts.append(pixels[round(box.y_min) : round(box.y_max), round(box.x_min) : round(box.x_max)].copy())
    return cutouts


def distractor_outline(rng: np.random.Generator) -> Outline:
    """About the unit circle's size, and never like it."""
    match rng.integers(4):
        case 0:  # triangle to pentagon
            corners = int(rng.integers(3, 6))
            angles = 2 * np.pi * (np.arange(corners) + rng.uniform(-0.2, 0.2, corners)) / corners
            reach = rng.uniform(0.6, 1.1, corners)
            return _dense(np.stack([reach * np.cos(angles), reach * np.sin(angles)], axis=-1))
        case 1:  # box or bar, its corners more or less round (a superellipse, Lamé 1818)
            angles = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
            power = 2 / rng.uniform(6, 30)
            x = np.sign(np.cos(angles)) * np.abs(np.cos(angles)) ** power
            y = np.sign(np.sin(angles)) * np.abs(np.sin(angles)) ** power
            return np.stack([x, rng.uniform(0.1, 1.0) * y], axis=-1)
        case 2:  # half disc or slice
            angles = np.linspace(0, rng.uniform(0.5, 1.05) * np.pi, CORNERS)
            return _dense(np.concatenate([np.stack([np.cos(angles), np.sin(angles)], axis=-1), [(0.0, 0.0)]]))
        case _:  # star
            corners = 2 * int(rng.integers(4, 8))
            angles = 2 * np.pi * np.arange(corners) / corners
            reach = np.where(np.arange(corners) % 2, rng.uniform(0.3, 0.65), 1.0)
            return _dense(np.stack([reach * np.cos(angles), reach * np.sin(angles)], axis=-1))


def write_text(
    canvas: Pixels, place: tuple[float, float], size_px: float, color: NDArray[np.float32], rng: np.random.Generator
) -> list[BBox]:
    """Some characters of print, from ``place`` on; the boxes of its parts."""
    text = "".join(rng.choice(list(_CHARACTERS), int(rng.integers(1, 8))))
    face = cv2.FontFace(str(rng.choice(("sans", "italic"))))
    # A mask of 8 bits, since OpenCV writes on nothing else.
    mask = np.zeros(canvas.shape[:2], np.uint8)
    cv2.putText(
        mask, text, (int(place[0]), int(place[1])), (255,), face, max(5, int(size_px)), int(rng.integers(1, 9)) * 100
    )
    canvas += (mask[..., None] / np.float32(255)) * (color - canvas)
    _, _, boxes, _ = cv2.connectedComponentsWithStats((mask > 127).astype(np.uint8))
    return [BBox(x, y, x + width, y + height) for x, y, width, height, _ in boxes[1:].astype(float).tolist()]


def random_color(rng: np.random.Generator) -> NDArray[np.float32]:
    grey, spread = rng.uniform(5, 250), rng.choice((12, 50, 130))
    return np.clip(grey + rng.uniform(-spread, spread, 3), 0, 255).astype(np.float32)


def _without_objects(photo: Photo, size: int, rng: np.random.Generator) -> Pixels:
    """A part of the photograph's ground that shows no object; where none is found, the color of its upper edge."""
    height, width = photo.image.shape[:2]
    boxes = [(each.outline.min(axis=0), each.outline.max(axis=0)) for each in photo.objects]
    for _ in range(_GROUND_TRIES):
        side = int(rng.integers(min(40, height, width), min(height, width)))
        corner = rng.integers((0, 0), (width - side + 1, height - side + 1))
        if not any(np.all(low < corner + side) and np.all(high > corner) for low, high in boxes):
            patch = photo.image[corner[1] : corner[1] + side, corner[0] : corner[0] + side]
            return cv2.resize(patch, (size, size)).astype(np.float32)
    strip = photo.image[:2].mean(axis=(0, 1))
    return np.broadcast_to(strip, (size, size, 3)).astype(np.float32)


def _decorated(sprite: Pixels, rng: np.random.Generator) -> Pixels:
    """What round things carry: rims, hubs, spokes, holes, print, reliefs; and light upon it."""
    sprite = np.ascontiguousarray(sprite)
    size = sprite.shape[0]
    ys, xs = ((np.mgrid[0:size, 0:size] + 0.5 - size / 2) / (size / SPRITE_SPAN)).astype(np.float32)
    for _ in range(int(rng.integers(0, 4))):
        _decorate(sprite, xs, ys, rng)
    return _lit(sprite, xs, ys, rng)


def _decorate(sprite: Pixels, xs: NDArray[np.float32], ys: NDArray[np.float32], rng: np.random.Generator) -> None:
    """One decoration, where ``xs`` and ``ys`` are coordinates in which the outline is the unit circle."""
    size, unit = sprite.shape[0], sprite.shape[0] / SPRITE_SPAN
    radius, theta = np.hypot(xs, ys), np.arctan2(ys, xs)
    color = random_color(rng)
    match rng.integers(7):
        case 0 | 1:  # a ring, or all within a radius
            inner = rng.uniform(0, 0.95)
            outer = inner + rng.uniform(0.02, 0.3) if rng.random() < 0.6 else inner
            is_inside = (radius > inner) & (radius < outer) if outer > inner else radius < inner
            sprite[is_inside] = color + rng.uniform(0, 1) * (sprite[is_inside] - color)
        case 2:  # spokes, segments
            wave = np.cos(int(rng.integers(2, 12)) * theta + rng.uniform(0, 6))
            is_inside = (wave > rng.uniform(-0.2, 0.8)) & (radius < rng.uniform(0.5, 1.0)) & (radius > 0.15)
            sprite[is_inside] = color
        case 3:  # holes of a button, seeds
            count, distance, hole = int(rng.integers(1, 7)), rng.uniform(0.1, 0.6), rng.uniform(0.03, 0.15)
            for number in range(count):
                angle = 2 * np.pi * number / count
                dx, dy = xs - distance * np.cos(angle), ys - distance * np.sin(angle)
                sprite[np.hypot(dx, dy) < hole] = color
        case 4:  # print
            place = (size / 2 - rng.uniform(0.1, 0.8) * unit, size / 2 + rng.uniform(-0.2, 0.5) * unit)
            write_text(sprite, place, rng.uniform(0.15, 1.0) * unit, color, rng)
        case 5:  # relief
            relief = _noise(rng, size, int(rng.integers(6, 24)))
            angle = rng.uniform(0, 2 * np.pi)
            slope = np.gradient(relief, axis=1) * np.cos(angle) + np.gradient(relief, axis=0) * np.sin(angle)
            sprite *= 1 + np.clip(rng.uniform(3, 12) * slope, -0.6, 0.8).astype(np.float32)[..., None]
        case _:  # two halves
            sprite[xs > rng.uniform(-0.3, 0.3)] = color


def _lit(sprite: Pixels, xs: NDArray[np.float32], ys: NDArray[np.float32], rng: np.random.Generator) -> Pixels:
    """Shading like a ball's, a highlight, a raised or worn edge."""
    radius = np.hypot(xs, ys)
    light = rng.uniform(0, 2 * np.pi)
    if rng.random() < 0.5:
        bulge = rng.uniform(0, 0.9)
        height = np.sqrt(np.clip(1 - radius**2, 0, 1))
        shade = 1 - bulge + bulge * (0.6 * height + 0.6 * (xs * np.cos(light) + ys * np.sin(light)) + 0.3)
        sprite *= np.clip(shade, 0.05, 1.6)[..., None]
    if rng.random() < 0.25:
        dx, dy = xs - 0.45 * np.cos(light), ys - 0.45 * np.sin(light)
        spot = np.exp(-(dx**2 + dy**2) / rng.uniform(0.005, 0.08)) * rng.uniform(60, 255)
        sprite += spot[..., None].astype(np.float32)
    if rng.random() < 0.35:
        edge = np.exp(-(((radius - rng.uniform(0.88, 1.0)) / rng.uniform(0.01, 0.06)) ** 2))
        sprite += (edge * rng.uniform(-90, 90))[..., None].astype(np.float32)
    return sprite


def _dense(corners: Outline) -> Outline:
    """The polygon of these corners with many more on its sides."""
    parts = np.linspace(0, 1, 1 + CORNERS // len(corners), endpoint=False)[:, None]
    points = corners[:, None] + parts * (np.roll(corners, -1, axis=0) - corners)[:, None]
    outline: Outline = points.reshape(-1, 2)
    return outline


def _noise(rng: np.random.Generator, size: int, cells: int) -> NDArray[np.float32]:
    """(size, size) in [0, 1], changing over about a ``cells``-th of the side."""
    coarse = rng.random((cells + 1, cells + 1), dtype=np.float32)
    return np.asarray(np.clip(cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC), 0, 1), np.float32)
