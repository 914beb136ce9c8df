"""Batches of samples from all sources: photographs, collages upon them and alone, drawn scenes, mosaics of these.

Batch ``n`` of a seed is the same whoever makes it and whenever, so that training can go on after a kill.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from evaluation.scenes import SceneOptions, draw_scene
from training.augment import photograph
from training.collages import Collages
from training.photos import Photo, load_photos, photo_sample
from training.samples import CORNERS, Sample, SampleObject, mosaic, targets_of
from training.sprites import Sprites, load_cutouts
from training.targets import TargetMaps, batch_maps, target_maps

_SIDES_PX = (256, 320, 448)
_SIDE_CHANCES = (0.4, 0.4, 0.2)
_MOSAIC_CHANCE = 0.08
_FIRST_SCENE_SEED = 2**32  # evaluation draws from 0 on


@dataclass(frozen=True, slots=True)
class Batch:
    """(B, 3, S, S) uint8 RGB, and what should be said of it."""

    images: Tensor
    maps: TargetMaps

    def to(self, device: torch.device) -> "Batch":
        """The same on this device."""
        return Batch(self.images.to(device), self.maps.to(device))


class Mixture(Dataset[Batch]):
    """Item ``n`` is the batch of step ``n``; batches differ in side, but hardly in px."""

    def __init__(self, photo_folders: Sequence[Path], cutout_folders: Sequence[Path], batch_px: int, seed: int) -> None:
        """
        Args:
            photo_folders: COCO folders of annotated photographs; may be none.
            cutout_folders: COCO folders whose boxes each hold one round thing on a plain ground; may be none.
            batch_px: Pixels of a batch.
        """
        self._photos = load_photos(photo_folders)
        self._collages = Collages(Sprites(self._photos, load_cutouts(cutout_folders)))
        self._batch_px = batch_px
        self._seed = seed

    def __getitem__(self, step: int) -> Batch:
        rng = np.random.default_rng((self._seed, step))
        side_px = int(rng.choice(_SIDES_PX, p=_SIDE_CHANCES))
        count = max(1, self._batch_px // side_px**2)
        samples = [self.sample(side_px, rng) for _ in range(count)]
        images = np.stack([photograph(sample.image, rng) for sample in samples])
        maps = batch_maps([target_maps(targets_of(sample), side_px) for sample in samples])
        return Batch(torch.from_numpy(images).permute(0, 3, 1, 2), maps)

    def sample(self, side_px: int, rng: np.random.Generator) -> Sample:
        if rng.random() < _MOSAIC_CHANCE:
            half = side_px // 2
            return mosaic([self._plain_sample(half, rng) for _ in range(4)], half)
        return self._plain_sample(side_px, rng)

    def _plain_sample(self, side_px: int, rng: np.random.Generator) -> Sample:
        choice = rng.random()
        if choice < 0.18:
            return scene_sample(side_px, rng)
        if choice < 0.42 or not self._photos:
            return self._collages.sample(side_px, rng)
        photo: Photo = self._photos[int(rng.integers(len(self._photos)))]
        sample = photo_sample(photo, side_px, rng)
        return sample if choice < 0.85 else self._collages.sample(side_px, rng, ground=sample)


def scene_sample(side_px: int, rng: np.random.Generator) -> Sample:
    """A drawn scene, as evaluation draws them but more varied in size and number."""
    smallest = float(np.exp(rng.uniform(np.log(0.015), np.log(0.15))))
    options = SceneOptions(
        width=side_px,
        height=side_px,
        objects=(0, int(rng.choice((3, 8, 20)))),
        radius=(smallest, min(0.45, smallest * float(rng.uniform(1.5, 6)))),
        noise=(0.0, 0.0),
        blur_px=(0.0, 1.0),
        jpeg_quality=(90, 98),
    )
    scene = draw_scene(_FIRST_SCENE_SEED + int(rng.integers(2**48)), options)
    return Sample(scene.image, [SampleObject(drawn.outline.points(CORNERS)) for drawn in scene.objects])
