"""What is trained: each network with its batches, its losses and the way to judge it."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.data import Dataset

from circles.detectors.network import HeatmapNetwork, decode
from circles.detectors.rim import REACHES
from circles.detectors.rim_network import RimNetworks
from training.backbone import load_backbone
from training.losses import Losses, heatmap_losses, rim_losses
from training.mixture import Batch, Mixture
from training.rims import RimBatch, RimMixture


class Task(Protocol):
    """One network's training."""

    @property
    def network(self) -> nn.Module:
        """What learns."""

    @property
    def batches(self) -> Dataset[Any]:
        """Item ``n`` is the batch of step ``n``."""

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """What is learned, and how fast, as PyTorch's optimizers take it."""

    def set_training_mode(self, progress: float) -> None:
        """Makes the network learn; ``progress`` is the part of the steps that are done."""

    def losses(self, batch: Any) -> Losses:
        """How wrong the network is on a batch, which is on its device."""

    def judge(self, network: nn.Module) -> dict[str, float]:
        """How good a state of the network is."""


class HeatmapTask:
    """Training of the network that says where objects are."""

    # Edges are edges: the trunk's stem and first stages stay as ImageNet made them, and most of a step's time would go
    # there.
    _FROZEN_STAGES = 2
    _STATISTICS_UNTIL = 0.35  # part of the steps after which batch normalisation stays as it is
    _TRUNK_RATE = 0.2  # part of the learning rate, for what has learned from ImageNet already

    def __init__(self, mixture: Mixture, judge: Callable[[HeatmapNetwork], dict[str, float]]) -> None:
        self.batches: Dataset[Batch] = mixture
        self.network = HeatmapNetwork()
        load_backbone(self.network)
        for module in [self.network.stem, *self.network.stages[: self._FROZEN_STAGES]]:
            module.requires_grad_(requires_grad=False)
        self._judge = judge

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        trunk = [each for each in self.network.stages.parameters() if each.requires_grad]
        old = {id(each) for each in [*self.network.stem.parameters(), *self.network.stages.parameters()]}
        new = [each for each in self.network.parameters() if id(each) not in old]
        return [{"params": new, "lr": learning_rate}, {"params": trunk, "lr": learning_rate * self._TRUNK_RATE}]

    def set_training_mode(self, progress: float) -> None:
        # Statistics of single batches differ with the pictures' side, which serving does not know: sizes would come
        # out a tenth too large there. So the rest is learned with the statistics as they are.
        self.network.train(progress < self._STATISTICS_UNTIL)
        # The trunk's batch normalisation keeps ImageNet's statistics: batches here are too small for better ones.
        self.network.stem.eval()
        self.network.stages.eval()

    def losses(self, batch: Batch) -> Losses:
        images = batch.images.float().contiguous(memory_format=torch.channels_last)
        return heatmap_losses(decode(self.network(images)), batch.maps)

    def judge(self, network: nn.Module) -> dict[str, float]:
        assert isinstance(network, HeatmapNetwork)
        return self._judge(network)


class RimTask:
    """Training of the networks that say where exactly an object's rim is."""

    def __init__(self, mixture: RimMixture, judge: Callable[[RimNetworks], dict[str, float]]) -> None:
        self.batches: Dataset[RimBatch] = mixture
        self.network = RimNetworks()
        self._judge = judge

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        return [{"params": list(self.network.parameters()), "lr": learning_rate}]

    def set_training_mode(self, _progress: float) -> None:
        self.network.train()

    def losses(self, batch: RimBatch) -> Losses:
        totals: Losses = {}
        for look in range(len(REACHES)):
            part = batch.at(look)
            rim_logits, round_logits = self.network(part.strips, look)
            for name, loss in rim_losses(rim_logits, round_logits, part).items():
                totals[name] = totals.get(name, 0) + loss
        return totals

    def judge(self, network: nn.Module) -> dict[str, float]:
        assert isinstance(network, RimNetworks)
        return self._judge(network)
