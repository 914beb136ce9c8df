"""How good the networks are while they train, by evaluation's own metrics, on held-out photographs and drawn scenes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from circles.detection import Detection
from circles.detectors.heatmap import HeatmapDetector, place_rims
from circles.detectors.network import HeatmapNetwork
from circles.detectors.rim_network import RimNetworks
from circles.detectors.runtimes import Calibration
from circles.detectors.torch_runtime import TorchRuntime
from circles.geometry import BBox, Circle, Ellipse
from circles.imaging import RGBImage, decode_image
from evaluation.coco import load_dataset
from evaluation.metrics import Counts, count_matches, mask_jaccard, match_bboxes
from evaluation.scenes import draw_scene

_MIN_SCORES = np.linspace(0.1, 0.9, 17)
_SURE = 10.0  # log-odds of what is known to be there
_GUESS_ERROR = 0.05  # part of the radius, one standard deviation
_FIRST_SCENE_SEED = 1000  # not those of the evaluation module's own fifty


@dataclass(frozen=True, slots=True)
class Picture:
    """What a detector is shown, and what is there; circles only where they are known exactly."""

    image: RGBImage
    bboxes: tuple[BBox, ...]
    circles: tuple[Circle, ...] = ()


class Validation:
    """Sets of pictures to judge by."""

    def __init__(self, folders: Sequence[Path], scene_count: int) -> None:
        """
        Args:
            folders: COCO folders, none of which shares scenes with what is trained on.
        """
        self.sets: dict[str, list[Picture]] = {}
        for dataset in map(load_dataset, folders):
            self.sets[dataset.name] = [
                Picture(
                    decode_image(image.path.read_bytes(), max_pixels=2**40), tuple(each.bbox for each in image.truth)
                )
                for image in dataset.images
            ]
        scenes = [draw_scene(_FIRST_SCENE_SEED + number) for number in range(scene_count)]
        self.sets["scenes"] = [
            Picture(
                scene.image, tuple(each.bbox for each in scene.objects), tuple(each.circle for each in scene.objects)
            )
            for scene in scenes
        ]

    def judge_heatmap(self, network: HeatmapNetwork) -> dict[str, float]:
        """For every set F1 at IoU 0.5 and 0.75 and the mean Jaccard index of what the heat map alone says."""
        return self.judge(HeatmapDetector(TorchRuntime(network, RimNetworks(), Calibration()), places_rims=False))

    def judge_rim(self, network: RimNetworks) -> dict[str, float]:
        """Median errors of centers and radii on drawn scenes, px, after guesses that are wrong by a twentieth."""
        runtime = TorchRuntime(HeatmapNetwork(), network, Calibration())
        rng = np.random.default_rng(0)
        errors = []
        for picture in self.sets["scenes"]:
            guesses = [_guess_of(circle, rng) for circle in picture.circles]
            ellipses, _ = place_rims(runtime, picture.image, guesses, [_SURE] * len(guesses))
            errors += [_error(each.circle(), circle) for each, circle in zip(ellipses, picture.circles, strict=True)]
        center, radius = np.median(errors, axis=0)
        return {"scenes_center_px": round(float(center), 4), "scenes_radius_px": round(float(radius), 4)}

    def judge(self, detector: HeatmapDetector) -> dict[str, float]:
        """For every set F1 at IoU 0.5 and 0.75 and the mean Jaccard index, at the score where F1 at 0.5 is best.

        Where circles are known, also the median errors of their centers and radii, in px.
        """
        numbers: dict[str, float] = {}
        for name, pictures in self.sets.items():
            found = detector.detect([picture.image for picture in pictures])
            cuts = {float(cut): _f1(found, pictures, cut, 0.5) for cut in _MIN_SCORES}
            cut = max(cuts, key=lambda each: cuts[each])
            kept = [[each for each in detections if each.score >= cut] for detections in found]
            jaccards = [
                mask_jaccard([each.bbox for each in k], p.bboxes, p.image.shape[1], p.image.shape[0])
                for k, p in zip(kept, pictures, strict=True)
            ]
            numbers[f"{name}_f1_50"] = cuts[cut]
            numbers[f"{name}_f1_75"] = _f1(found, pictures, cut, 0.75)
            numbers[f"{name}_jaccard"] = float(np.mean(jaccards))
            errors = [error for k, p in zip(kept, pictures, strict=True) for error in _circle_errors(k, p)]
            if errors:
                center, radius = np.median(errors, axis=0)
                numbers |= {f"{name}_center_px": float(center), f"{name}_radius_px": float(radius)}
        return {name: round(value, 4) for name, value in numbers.items()}


def _f1(found: Sequence[Sequence[Detection]], pictures: Sequence[Picture], min_score: float, min_iou: float) -> float:
    counts = Counts()
    for detections, picture in zip(found, pictures, strict=True):
        counts += count_matches([d.bbox for d in detections if d.score >= min_score], picture.bboxes, min_iou)
    return counts.f1


def _circle_errors(detections: Sequence[Detection], picture: Picture) -> list[tuple[float, float]]:
    """Distance of the centers and difference of the radii, px, for every match."""
    if not picture.circles:
        return []
    return [
        _error(detections[match.detection_index].circle, picture.circles[match.truth_index])
        for match in match_bboxes([each.bbox for each in detections], picture.bboxes, 0.5)
    ]


def _error(circle: Circle, truth: Circle) -> tuple[float, float]:
    distance = float(np.hypot(circle.center_x - truth.center_x, circle.center_y - truth.center_y))
    return distance, abs(circle.radius - truth.radius)


def _guess_of(circle: Circle, rng: np.random.Generator) -> Ellipse:
    x, y, a, b = circle.radius * _GUESS_ERROR * rng.normal(size=4)
    return Ellipse(circle.center_x + x, circle.center_y + y, circle.radius + a, circle.radius + b, 0.0)
