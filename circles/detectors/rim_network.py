"""The small networks that look at a thing unrolled around its guessed rim: where the rim is, and whether it is one."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from circles.detectors.rim import REACHES

_WIDTH = 16
_DILATIONS = (1, 2, 4, 2, 1)  # along the rays: the view widens to all steps, then narrows on the rim


class _Filter(nn.Module):
    """A convolution over neighbouring rays and steps; the last ray is the first one's neighbour."""

    def __init__(self, inputs: int, dilation: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, _WIDTH, 3, padding=(0, dilation), dilation=(1, dilation), bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(_WIDTH)

    def forward(self, features: Tensor) -> Tensor:
        around = torch.cat([features[:, :, -1:], features, features[:, :, :1]], dim=2)
        output: Tensor = self.norm(self.convolution(around))
        return output


class RimNetwork(nn.Module):
    """For every ray of a strip where along it the rim lies, and for every strip whether a round thing is there."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _Filter(4, 1)
        self.filters = nn.ModuleList(_Filter(_WIDTH, dilation) for dilation in _DILATIONS)
        # What all rays see at a distance is what a round thing's rim would be.
        self.means = nn.ModuleList(nn.Conv1d(_WIDTH, _WIDTH, 5, padding=2) for _ in _DILATIONS)
        self.rim = nn.Conv2d(_WIDTH, 1, 1)
        self.score = nn.Sequential(nn.Linear(2 * _WIDTH, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, strips: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            strips: (N, rays, steps, 4) uint8, as ``circles.detectors.rim.Strips`` says.

        Returns:
            (N, rays, steps) log-odds, up to a constant for each ray, that the rim lies at the step; (N,) log-odds that
            a round thing is there.
        """
        pixels = strips.permute(0, 3, 1, 2).float()
        colors, is_inside = pixels[:, :3], pixels[:, 3:] / 255
        mean = colors.mean(dim=(1, 2, 3), keepdim=True)
        deviation = (colors - mean).square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
        features = torch.cat([is_inside * (colors - mean) / (deviation + 8.0), is_inside], dim=1)
        features = torch.relu(self.stem(features))
        for filter_, mean_filter in zip(self.filters, self.means, strict=True):
            shared = mean_filter(features.mean(dim=2))[:, :, None]
            features = features + torch.relu(filter_(features) + shared)
        profile = features.mean(dim=2)
        summary = torch.cat([profile.mean(dim=-1), profile.amax(dim=-1)], dim=-1)
        return self.rim(features)[:, 0], self.score(summary)[:, 0]


class RimNetworks(nn.Module):
    """One network for each look, since a wide one and a near one have different things to tell apart."""

    def __init__(self) -> None:
        super().__init__()
        self.looks = nn.ModuleList(RimNetwork() for _ in REACHES)

    def for_serving(self) -> "RimNetworks":
        """A copy that is no longer trained, its batch normalisation folded into the convolutions."""
        serving = copy.deepcopy(self).eval().requires_grad_(requires_grad=False)
        for child in serving.modules():
            if isinstance(child, _Filter):
                assert isinstance(child.norm, nn.BatchNorm2d)
                child.convolution, child.norm = fuse_conv_bn_eval(child.convolution, child.norm), nn.Identity()
        return serving

    def forward(self, strips: Tensor, look: int) -> tuple[Tensor, Tensor]:
        """What the network of this look says; as ``RimNetwork``."""
        rim_logits, round_logits = self.looks[look](strips)
        return rim_logits, round_logits
