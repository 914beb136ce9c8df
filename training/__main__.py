"""``python -m training``: trains the learned detector's networks and writes its weights."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import cv2
import torch
import typer
from rich.console import Console

from circles.detectors.heatmap import HeatmapDetector
from circles.detectors.network import HeatmapNetwork
from circles.detectors.rim_network import RimNetworks
from circles.detectors.runtimes import Calibration
from circles.detectors.torch_runtime import TorchRuntime
from training.calibration import calibrate
from training.checkpoint import OtherRecipeError
from training.export import write_weights
from training.mixture import Mixture
from training.recipes import QUICK, SHIPPED
from training.rims import RimMixture
from training.tasks import HeatmapTask, RimTask
from training.train import train
from training.validation import Validation

_ROOT = Path(__file__).resolve().parent.parent
_DATASETS = _ROOT.parent / "shared" / "datasets"

console = Console(soft_wrap=True)


def main(
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder of checkpoints, logs and weights; training goes on where they stand. "
            "Default: build/training, with --quick build/training-quick."
        ),
    ] = None,
    data: Annotated[
        Path, typer.Option(help="Folder with coins/train, coins/val, thai_coins and euro_coin_crops, as far as there.")
    ] = _DATASETS,
    quick: Annotated[bool, typer.Option("--quick", help="A toy version, in minutes.")] = False,
    seed: Annotated[int, typer.Option(help="Of samples and first weights.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="Of the networks; all cores by default.")] = None,
    validate_every: Annotated[int, typer.Option(min=1, help="Steps between validations and checkpoints.")] = 250,
) -> None:
    """Train both networks from ImageNet weights, or from where the output folder's checkpoints stand; then calibrate.

    Batches are made in one process more, or with a GPU on all cores but one. What comes out is in OUTPUT/weights, as
    circles/weights holds it.
    """
    torch.set_num_threads(threads or os.cpu_count() or 1)
    cv2.setNumThreads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recipes = QUICK if quick else SHIPPED
    output = output or _ROOT / "build" / ("training-quick" if quick else "training")
    photos, cutouts, held_out = (
        [folder for folder in (data / name for name in names) if folder.is_dir()]
        for names in (("coins/train", "thai_coins"), ("euro_coin_crops",), ("coins/val",))
    )
    for kind, folders in (("photographs", photos), ("cut-outs", cutouts), ("held out", held_out)):
        console.print(f"{kind}: {', '.join(str(folder) for folder in folders) or 'none'}", highlight=False)
    mixture = Mixture(photos, cutouts, recipes.batch_px, seed)
    validation = Validation(held_out, recipes.scene_count)

    try:
        torch.manual_seed(seed)
        heatmap_task = HeatmapTask(mixture, validation.judge_heatmap)
        heatmap = train(
            heatmap_task, replace(recipes.heatmap, seed=seed), output / "heatmap", device, validate_every, console
        )
        torch.manual_seed(seed)
        rim_task = RimTask(RimMixture(mixture, seed), validation.judge_rim)
        rim = train(rim_task, replace(recipes.rim, seed=seed), output / "rim", device, validate_every, console)
    except OtherRecipeError as error:
        raise typer.BadParameter(f"{error}; --output can name another folder") from error
    assert isinstance(heatmap, HeatmapNetwork)
    assert isinstance(rim, RimNetworks)

    calibration = calibrate(HeatmapDetector(TorchRuntime(heatmap, rim, Calibration())), list(validation.sets.values()))
    console.print(f"calibration: {calibration}", highlight=False)
    write_weights(output / "weights", heatmap, rim, calibration)
    numbers = validation.judge(HeatmapDetector(TorchRuntime.load(output / "weights")))
    console.print(json.dumps(numbers), highlight=False)
    console.print(f"weights: {output / 'weights'}", highlight=False)


if __name__ == "__main__":
    typer.run(main)
