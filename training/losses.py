"""How wrong the network was."""

import torch
from torch import Tensor
from torch.nn import functional

from circles.detectors.network import Prediction
from training.rims import RimBatch
from training.targets import TargetMaps

_BOX_WEIGHT, _CIRCLE_WEIGHT, _ROUND_WEIGHT = 5.0, 2.0, 0.5
_RIM_SPREAD = 0.7  # of the place that the rim network is asked for, in steps

Losses = dict[str, Tensor]
"""What is minimised, as ``loss``, and its parts before they are weighted."""


def heatmap_losses(prediction: Prediction, targets: TargetMaps) -> Losses:
    """How far a batch's prediction is from its targets, a mean over its objects."""
    count = (targets.heat == 1).sum().clamp(min=1)
    center = _focal(prediction.center_logits, targets.heat, targets.is_counted) / count
    box = (targets.weights * (1 - _generalized_iou(prediction.sides, targets.sides))).sum() / count
    circle = (targets.circle_weights * _circle_error(prediction.circles, targets.circles)).sum() / count
    return {
        "loss": center + _BOX_WEIGHT * box + _CIRCLE_WEIGHT * circle,
        "center": center,
        "box": box,
        "circle": circle,
    }


def rim_losses(rim_logits: Tensor, round_logits: Tensor, batch: RimBatch) -> Losses:
    """Cross entropy over the steps of each ray that counts, and over round or not."""
    steps = torch.arange(rim_logits.shape[-1], device=rim_logits.device)
    likelihood = torch.exp(-0.5 * ((steps - batch.places[..., None]) / _RIM_SPREAD) ** 2)
    likelihood = likelihood / likelihood.sum(dim=-1, keepdim=True).clamp(min=1e-6)
    entropy = -(likelihood * functional.log_softmax(rim_logits, dim=-1)).sum(dim=-1)
    rim = (entropy * batch.is_counted).sum() / batch.is_counted.sum().clamp(min=1)
    is_settled = ~batch.is_round.isnan()
    verdicts = functional.binary_cross_entropy_with_logits(round_logits, batch.is_round.nan_to_num(), reduction="none")
    roundness = (verdicts * is_settled).sum() / is_settled.sum().clamp(min=1)
    return {"loss": rim + _ROUND_WEIGHT * roundness, "rim": rim, "round": roundness}


def _focal(logits: Tensor, heat: Tensor, is_counted: Tensor) -> Tensor:
    """Penalty-reduced focal loss, summed (Law and Deng, "CornerNet", ECCV 2018, eq. 1)."""
    positive = -functional.logsigmoid(logits) * torch.sigmoid(-logits) ** 2
    negative = -functional.logsigmoid(-logits) * torch.sigmoid(logits) ** 2 * (1 - heat) ** 4
    return (is_counted * torch.where(heat == 1, positive, negative)).sum()


def _generalized_iou(sides: Tensor, other: Tensor) -> Tensor:
    """(B, H, W) in [-1, 1], of boxes given by their sides around the same point (Rezatofighi et al., CVPR 2019)."""
    shared = torch.minimum(sides[:, 0], other[:, 0]) + torch.minimum(sides[:, 2], other[:, 2])
    shared = shared * (torch.minimum(sides[:, 1], other[:, 1]) + torch.minimum(sides[:, 3], other[:, 3]))
    hull = torch.maximum(sides[:, 0], other[:, 0]) + torch.maximum(sides[:, 2], other[:, 2])
    hull = hull * (torch.maximum(sides[:, 1], other[:, 1]) + torch.maximum(sides[:, 3], other[:, 3]))
    joint = _area(sides) + _area(other) - shared
    return shared / joint - (hull - joint) / hull


def _area(sides: Tensor) -> Tensor:
    return (sides[:, 0] + sides[:, 2]) * (sides[:, 1] + sides[:, 3])


def _circle_error(circles: Tensor, other: Tensor) -> Tensor:
    """(B, H, W): distance of the centers along both axes, in radii, and of the radii's logarithms."""
    radius = other[:, 2]
    offset = (circles[:, :2] - other[:, :2]).abs().sum(dim=1) / radius
    return (offset + (circles[:, 2].log() - radius.log()).abs()).clamp(max=4.0)
