"""What training needs to go on after a kill, in one file that is replaced whole or not at all."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

_FILE_NAME = "checkpoint.pt"


class OtherRecipeError(Exception):
    """A checkpoint is of another recipe than the one to go on by."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The parts of a training run that have a state."""

    network: nn.Module
    average: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler


def save_checkpoint(folder: Path, state: Checkpoint, recipe: dict[str, Any], step: int) -> None:
    """Writes the state after ``step`` steps."""
    content = {
        "recipe": recipe,
        "step": step,
        "network": state.network.state_dict(),
        "average": state.average.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "schedule": state.schedule.state_dict(),
    }
    temporary = folder / f"{_FILE_NAME}.new"
    with temporary.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / _FILE_NAME)


def load_checkpoint(folder: Path, state: Checkpoint, recipe: dict[str, Any]) -> int:
    """Brings the parts to where the folder's checkpoint stands; how many steps that is, 0 when there is none.

    Raises:
        OtherRecipeError: It is of another recipe.
    """
    path = folder / _FILE_NAME
    if not path.is_file():
        return 0
    content = torch.load(path, map_location="cpu", weights_only=True)
    if content["recipe"] != recipe:
        raise OtherRecipeError(f"{path} was made by another recipe: {content['recipe']}, not {recipe}")
    state.network.load_state_dict(content["network"])
    state.average.load_state_dict(content["average"])
    state.optimizer.load_state_dict(content["optimizer"])
    state.schedule.load_state_dict(content["schedule"])
    return int(content["step"])
