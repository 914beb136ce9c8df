"""Tiles: the parts of a picture that a network looks at one by one, at some scale of the picture.

Tiles overlap, so that what lies across the border of one is seen whole in its neighbour.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from circles.detectors.runtimes import LEAST_SIDE_PX, SIZE_MULTIPLE_PX
from circles.geometry import FloatArray
from circles.imaging import RGBImage

_TILE_PX = 512
_OVERLAP_PX = 128  # objects wider than that are the coarser scales' business
_PADDING = 127  # grey, as in training
_MARGIN_PX = 2.0  # from an inner border to what is seen whole


@dataclass(frozen=True, slots=True)
class Area:
    """A part of the picture at one level: its corner and size there, and the size of the whole."""

    left: int
    top: int
    width: int
    height: int
    level_width: int
    level_height: int


@dataclass(frozen=True, slots=True)
class Tile:
    """An area as the network sees it."""

    image: RGBImage
    area: Area


def areas_of(width: int, height: int, scale: float) -> list[Area]:
    """The picture at this scale in parts of at most ``_TILE_PX``."""
    level_width, level_height = max(1, round(width * scale)), max(1, round(height * scale))
    return [
        Area(left, top, tile_width, tile_height, level_width, level_height)
        for top, tile_height in _spans(level_height)
        for left, tile_width in _spans(level_width)
    ]


def is_seen_whole(area: Area, boxes: FloatArray) -> NDArray[np.bool_]:
    """(N,): whether a box lies in the area, and no inner border runs through it: else another one or level sees it."""
    x_min, y_min, x_max, y_max = boxes.T
    is_whole: NDArray[np.bool_] = (x_min < area.width) & (y_min < area.height) & (x_max > 0) & (y_max > 0)
    if area.left > 0:
        is_whole &= x_min >= _MARGIN_PX
    if area.top > 0:
        is_whole &= y_min >= _MARGIN_PX
    if area.left + area.width < area.level_width:
        is_whole &= x_max <= area.width - _MARGIN_PX
    if area.top + area.height < area.level_height:
        is_whole &= y_max <= area.height - _MARGIN_PX
    return is_whole


def tiles(image: RGBImage, areas: Sequence[Area], scale: float) -> Iterator[Tile]:
    """These areas of the picture at this scale, padded to what the network takes."""
    if scale != 1.0 and areas:
        interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        size = (areas[0].level_width, areas[0].level_height)
        image = cv2.resize(image, size, interpolation=interpolation).astype(np.uint8, copy=False)
    for area in areas:
        part = image[area.top : area.top + area.height, area.left : area.left + area.width]
        padding = ((0, _missing(area.height)), (0, _missing(area.width)), (0, 0))
        yield Tile(np.pad(part, padding, constant_values=_PADDING), area)


def _missing(length: int) -> int:
    """Px from a side to the next that the network takes."""
    return max(-length % SIZE_MULTIPLE_PX, LEAST_SIDE_PX - length)


def _spans(length: int) -> list[tuple[int, int]]:
    """Starts and lengths of the fewest overlapping tiles along one side."""
    if length <= _TILE_PX:
        return [(0, length)]
    count = -(-(length - _OVERLAP_PX) // (_TILE_PX - _OVERLAP_PX))
    starts = np.linspace(0, length - _TILE_PX, count).round().astype(int)
    return [(int(start), _TILE_PX) for start in starts]
