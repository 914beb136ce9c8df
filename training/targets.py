"""What the network should say, cell by cell."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from circles.detectors.runtimes import STRIDE_PX
from training.samples import Target

_SPREAD = 0.09  # standard deviation of a center's mound, part of the box's side (TTFNet's 0.54 / 6)
_MIN_SPREAD_CELLS = 0.55


@dataclass(frozen=True, slots=True)
class TargetMaps:
    """Maps of (H/4, W/4) cells, with the samples of the batch along the first axis; lengths in px.

    A cell answers for the box of the object whose mound is highest there.
    """

    heat: Tensor
    """In [0, 1]: 1 where a center lies, falling off around it."""

    is_counted: Tensor
    """0 where nobody knows what should be said."""

    weights: Tensor
    """How much a cell's box counts: its share of the object's mound, 0 where the cell's middle lies outside the box."""

    circle_weights: Tensor
    """Likewise for circles; 0 where none is known."""

    sides: Tensor
    """(B, 4, H/4, W/4): left, top, right, bottom."""

    circles: Tensor
    """(B, 3, H/4, W/4): center x and y from the cell's middle, radius."""

    def to(self, device: torch.device) -> "TargetMaps":
        """The same on this device."""
        return TargetMaps(**{each.name: getattr(self, each.name).to(device) for each in fields(self)})


def target_maps(targets: Sequence[Target], side_px: int) -> dict[str, NDArray[np.float32]]:
    """The maps of one sample of ``side_px`` x ``side_px``, by field name."""
    cells = side_px // STRIDE_PX
    middles = (np.arange(cells, dtype=np.float32) + 0.5) * STRIDE_PX
    heat = np.zeros((cells, cells), np.float32)
    owned = np.zeros((cells, cells), np.float32)
    is_counted = np.ones((cells, cells), np.float32)
    weights, circle_weights = np.zeros_like(heat), np.zeros_like(heat)
    sides, circles = np.ones((4, cells, cells), np.float32), np.ones((3, cells, cells), np.float32)
    # Smaller objects last: where mounds meet, the smaller one has fewer other cells.
    for target in sorted(targets, key=lambda target: -target.bbox.area):
        box = target.bbox
        center_x, center_y = (box.x_min + box.x_max) / 2, (box.y_min + box.y_max) / 2
        spread_x, spread_y = (max(_SPREAD * side, _MIN_SPREAD_CELLS * STRIDE_PX) for side in (box.width, box.height))
        column, row = (int(np.clip(value // STRIDE_PX, 0, cells - 1)) for value in (center_x, center_y))
        # The mound's top lies on the cell that holds the center, so that exactly one cell is told 1.
        mound = np.exp(
            -0.5 * ((middles - middles[column]) / spread_x) ** 2
            - 0.5 * ((middles[:, None] - middles[row]) / spread_y) ** 2
        )
        if target.is_ignored:
            is_counted[mound > 0.1] = 0
            continue
        is_owned = (mound > 0.1) & (mound >= owned)
        owned[is_owned] = mound[is_owned]
        heat = np.maximum(heat, np.where(mound > 0.01, mound, 0))
        rows, columns = np.nonzero(is_owned)
        share = mound[is_owned] / mound[is_owned].sum()
        xs, ys = middles[columns], middles[rows]
        weights[is_owned] = share
        sides[:, rows, columns] = xs - box.x_min, ys - box.y_min, box.x_max - xs, box.y_max - ys
        circle_weights[is_owned] = 0 if target.circle is None else share
        if target.circle is not None:
            circle = target.circle
            circles[:, rows, columns] = circle.center_x - xs, circle.center_y - ys, np.full(len(xs), circle.radius)
    return {
        "heat": heat,
        "is_counted": np.where(heat == 1, 1, is_counted).astype(np.float32),
        # A cell of a mound may lie outside a small box; there is no such thing as a negative side.
        "weights": np.where(sides.min(axis=0) > 0, weights, 0),
        "circle_weights": circle_weights,
        "sides": np.maximum(sides, 0.1),
        "circles": circles,
    }


def batch_maps(maps: Sequence[dict[str, NDArray[np.float32]]]) -> TargetMaps:
    """The maps of a batch."""
    return TargetMaps(**{name: torch.from_numpy(np.stack([each[name] for each in maps])) for name in maps[0]})
