"""The loop: readable from top to bottom, and able to go on after a kill."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from training.tasks import Task

_Tensors = tuple[Tensor, ...] | list[Tensor]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a network is trained, whatever it is."""

    steps: int
    learning_rate: float
    warmup_steps: int
    average_decay: float
    """Of the weights' moving average, which is what is kept in the end."""
    weight_decay: float
    seed: int = 0
    final_rate: float = 0.002
    """Part of the learning rate that is left at the end, by half a cosine."""
    max_gradient_norm: float = 10.0


def train(
    task: Task, recipe: Recipe, folder: Path, device: torch.device, validate_every: int, console: Console
) -> nn.Module:
    """Trains a network, or goes on where the folder's checkpoint stands.

    Args:
        folder: Holds ``checkpoint.pt``, renewed at each validation, and ``log.jsonl``, a line a validation.
        validate_every: Steps from one validation to the next.

    Returns:
        The network with the averaged weights.

    Raises:
        OtherRecipeError: The folder's checkpoint is of another recipe.
    """
    network = task.network.to(device)
    average = AveragedModel(network, multi_avg_fn=_growing_average(recipe.average_decay), use_buffers=True)
    optimizer = torch.optim.AdamW(task.parameter_groups(recipe.learning_rate), weight_decay=recipe.weight_decay)
    schedule = _schedule(optimizer, recipe)
    state = Checkpoint(network, average, optimizer, schedule)
    folder.mkdir(parents=True, exist_ok=True)
    step = load_checkpoint(folder, state, asdict(recipe))
    if step:
        console.print(f"{folder.name}: going on at step {step} of {recipe.steps}")

    start, sums, count = time.monotonic(), dict[str, float](), 0
    # Batches are made in other processes while the network computes, which without a GPU takes the cores itself.
    workers = max(1, (os.cpu_count() or 1) - 1) if device.type == "cuda" else 1
    steps = range(step, recipe.steps)
    for batch in DataLoader(task.batches, None, sampler=steps, num_workers=workers, prefetch_factor=4):
        task.set_training_mode(step / recipe.steps)
        losses = task.losses(batch.to(device))
        optimizer.zero_grad()
        torch.autograd.backward(losses["loss"])
        nn.utils.clip_grad_norm_(network.parameters(), recipe.max_gradient_norm)
        optimizer.step()
        schedule.step()
        average.update_parameters(network)

        step, count = step + 1, count + 1
        sums = {name: sums.get(name, 0.0) + float(value.detach()) for name, value in losses.items()}
        if step % validate_every == 0 or step == recipe.steps:
            line = {"step": step, **{name: round(total / count, 4) for name, total in sums.items()}}
            line |= {"seconds": round(time.monotonic() - start, 1), **task.judge(average.module)}
            save_checkpoint(folder, state, asdict(recipe), step)
            with (folder / "log.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")
            console.print(f"{folder.name}: {json.dumps(line)}", highlight=False)
            sums, count = {}, 0
    averaged: nn.Module = average.module
    return averaged.eval()


def _schedule(optimizer: torch.optim.Optimizer, recipe: Recipe) -> SequentialLR:
    """Up in a line, down in half a cosine."""
    rise = LinearLR(optimizer, 0.01, total_iters=recipe.warmup_steps)
    fall = CosineAnnealingLR(
        optimizer, max(1, recipe.steps - recipe.warmup_steps), eta_min=recipe.final_rate * recipe.learning_rate
    )
    return SequentialLR(optimizer, [rise, fall], milestones=[recipe.warmup_steps])


def _growing_average(decay: float) -> Callable[[_Tensors, _Tensors, Tensor | int], None]:
    """A moving average that forgets its start: over the last ninth of few steps, in the end as ``decay`` says."""

    @torch.no_grad()
    def update(averages: _Tensors, values: _Tensors, count: Tensor | int) -> None:
        share = max(1 - decay, 9 / (10 + float(count)))
        for average, value in zip(averages, values, strict=True):
            if average.is_floating_point():
                average.lerp_(value, share)
            else:
                average.copy_(value)

    return update
