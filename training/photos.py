"""Samples from annotated photographs: any part of one, at any scale, turned, mirrored and seen at an angle."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from circles.geometry import BBox, Ellipse
from circles.imaging import RGBImage, decode_image
from evaluation.coco import AnnotatedImage, load_dataset
from training.samples import CORNERS, Outline, Sample, SampleObject, transform

# Known faults of annotations: two boxes around one coin, coins without a box, heaps where half-hidden coins have none.
_FAULTY = {"coins-train": frozenset({47, 69, 123, 144, 155})}
# Sets whose things are often seen at an angle in any direction, so that their boxes say little of their rims.
_TILTED = {"thai_coins"}

_MAX_SIDE_PX = 1000  # larger photographs are kept in memory at this size
_CUT_PX = 1.5  # a box this near to the border is taken for cut by it
_SCALES = (0.75, 2.6)  # longer side of the photograph, in sides of the sample
_MAX_RADIUS = 0.48  # of the sample's side: objects are not blown up beyond it


@dataclass(frozen=True, slots=True)
class Photo:
    """An annotated photograph in memory."""

    image: RGBImage
    objects: tuple[SampleObject, ...]
    is_rigid: bool
    """Of some object only the box is known: nothing may be done to the picture but what keeps boxes boxes."""


def load_photos(folders: Sequence[Path]) -> list[Photo]:
    """All usable photographs of COCO folders."""
    return [
        _load(image, is_tilted=dataset.name in _TILTED)
        for dataset in map(load_dataset, folders)
        for image in dataset.images
        if image.image_id not in _FAULTY.get(dataset.name, frozenset())
    ]


def photo_sample(photo: Photo, side_px: int, rng: np.random.Generator) -> Sample:
    """A part of the photograph as a picture of ``side_px`` x ``side_px``."""
    image, objects = photo.image, photo.objects
    scale = side_px / max(image.shape[:2]) * float(np.exp(rng.uniform(*np.log(_SCALES))))
    largest = max((float(np.ptp(each.outline, axis=0).max()) / 2 for each in objects), default=0.0)
    if largest:
        scale = min(scale, _MAX_RADIUS * side_px / largest)
    if scale < 0.7:  # warping would alias: shrink first, by the mean over areas
        shrunk = _shrunk(image, scale)
        shrink = np.diag([shrunk.shape[1] / image.shape[1], shrunk.shape[0] / image.shape[0], 1.0])
        objects = tuple(_moved(each, shrink) for each in objects)
        image, scale = shrunk, 1.0
    matrix = _view(image.shape[1], image.shape[0], scale, side_px, is_rigid=photo.is_rigid, objects=objects, rng=rng)
    # OpenCV's pixel centers are whole numbers, this project's lie at halves.
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1.0]])
    fill = _fill(rng)
    warped = cv2.warpPerspective(
        image,
        np.linalg.inv(half) @ matrix @ half,
        (side_px, side_px),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=fill,
    )
    return Sample(warped.astype(np.uint8, copy=False), [_moved(each, matrix) for each in objects])


def _load(annotated: AnnotatedImage, *, is_tilted: bool) -> Photo:
    image = decode_image(annotated.path.read_bytes(), max_pixels=2**40)
    scale = min(1.0, _MAX_SIDE_PX / max(image.shape[:2]))
    if scale < 1:
        image = _shrunk(image, scale)
    scales = np.array(image.shape[1::-1]) / (annotated.width, annotated.height)
    objects = []
    for truth in annotated.truth:
        is_cut = truth.bbox.margin(annotated.width, annotated.height) < _CUT_PX
        outline = _rectangle(truth.bbox) if is_cut else _inscribed(truth.bbox)
        has_rim = not is_cut and not is_tilted
        objects.append(SampleObject(outline * scales, has_rim, is_exact=False, is_whole=not is_cut))
    return Photo(image, tuple(objects), is_rigid=not all(each.has_rim for each in objects))


def _shrunk(image: RGBImage, scale: float) -> RGBImage:
    """By the mean over areas, to whole px, so not by quite the same factor in both directions."""
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


def _inscribed(bbox: BBox) -> Outline:
    center_x, center_y = (bbox.x_min + bbox.x_max) / 2, (bbox.y_min + bbox.y_max) / 2
    return Ellipse(center_x, center_y, bbox.width / 2, bbox.height / 2, 0.0).points(CORNERS)


def _rectangle(bbox: BBox) -> Outline:
    return np.array(
        [(bbox.x_min, bbox.y_min), (bbox.x_max, bbox.y_min), (bbox.x_max, bbox.y_max), (bbox.x_min, bbox.y_max)]
    )


def _moved(each: SampleObject, matrix: NDArray[np.float64]) -> SampleObject:
    return replace(each, outline=transform(each.outline, matrix))


def _view(
    width: int,
    height: int,
    scale: float,
    side_px: int,
    *,
    is_rigid: bool,
    objects: Sequence[SampleObject],
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """The homography from the photograph to the sample."""
    angle = int(rng.integers(4)) * np.pi / 2
    squeeze = float(rng.uniform(0.75, 1.0)) if rng.random() < 0.3 else 1.0
    perspective = np.zeros(2)
    if not is_rigid:
        angle += rng.uniform(-np.pi / 4, np.pi / 4) if rng.random() < 0.5 else 0.0
        perspective += rng.uniform(-0.15, 0.15, 2) / max(width, height) if rng.random() < 0.3 else 0.0
    if objects and rng.random() < 0.8:  # look at an object, wherever in the sample it comes to lie
        focus = objects[int(rng.integers(len(objects)))].outline.mean(axis=0)
    else:
        focus = rng.uniform((0, 0), (width, height))
    place = rng.uniform(0.15, 0.85, 2) * side_px
    cosine, sine = np.cos(angle), np.sin(angle)
    mirror = rng.choice((-1.0, 1.0))
    to_focus = np.array([[1, 0, -focus[0]], [0, 1, -focus[1]], [0, 0, 1.0]])
    tilt = np.array([[1, 0, 0], [0, 1, 0], [perspective[0], perspective[1], 1]])
    turn = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1.0]])
    size = np.diag([mirror * scale, scale * squeeze, 1.0])
    to_place = np.array([[1, 0, place[0]], [0, 1, place[1]], [0, 0, 1.0]])
    matrix: NDArray[np.float64] = to_place @ turn @ size @ tilt @ to_focus
    return matrix


def _fill(rng: np.random.Generator) -> tuple[float, float, float]:
    """What lies beyond the photograph: mostly the grey that serving pads with."""
    if rng.random() < 0.6:
        return (127.0, 127.0, 127.0)
    grey = float(rng.uniform(0, 255))
    return (grey, grey, grey)
