"""The network behind the heat-map detector: a small convolutional trunk, a feature pyramid, one head at stride 4.

The trunk is EfficientNet-Lite0 (Tan and Le, ICML 2019; its "Lite" form has ReLU6 and no squeeze-and-excitation) up to
stride 16, so that its published ImageNet weights fit. A pyramid (Lin et al., CVPR 2017) joins fine and wide views, and
the head says for every cell of 4 x 4 px whether an object's center lies there (Zhou et al., "Objects as Points",
2019), how far the four sides of its box are (Tian et al., "FCOS", ICCV 2019), and its circle (Yang et al.,
"CircleNet", MICCAI 2020).
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

_UNIT_PX = 16.0  # lengths are predicted as logarithms of multiples of it: the size of a typical small object
_LOG_LIMIT = 6.0  # exp(6) units are beyond any input: keeps untrained outputs finite
_PRIOR = 0.01  # part of all cells that hold a center at the start of training (Lin et al., "Focal Loss", 2017)

# EfficientNet-Lite0's stages to stride 16: expansion, channels, kernel, stride of the first block, blocks.
_STAGES = ((1, 16, 3, 1, 1), (6, 24, 3, 2, 2), (6, 40, 5, 2, 2), (6, 80, 3, 2, 3), (6, 112, 5, 1, 3))
_STEM_CHANNELS = 32
_TAPPED_STAGES = (1, 2, 4)  # strides 4, 8, 16
_WIDE_CHANNELS = 128


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the network says of every cell of a batch; lengths in px of the input."""

    center_logits: Tensor
    """(B, H/4, W/4): log-odds that an object's center lies in the cell."""

    sides: Tensor
    """(B, 4, H/4, W/4): distances from the cell's middle to the box's left, top, right and bottom side, positive."""

    circles: Tensor
    """(B, 3, H/4, W/4): from the cell's middle to the circle's center in x and y, and its radius."""


class _Convolution(nn.Sequential):
    """Convolution, batch normalisation and, unless it is linear, ReLU6."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, *, is_linear: bool = False
    ) -> None:
        layers: list[nn.Module] = []
        padding = kernel // 2
        if stride == 2:
            # TensorFlow's SAME padding, which the trunk's weights were trained with: the odd px goes to the end.
            before = (kernel - 2) // 2
            layers.append(nn.ZeroPad2d((before, kernel - 2 - before, before, kernel - 2 - before)))
            padding = 0
        layers.append(nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False))
        layers.append(nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.01))
        if not is_linear:
            layers.append(nn.ReLU6(inplace=True))
        super().__init__(*layers)


class _InvertedResidual(nn.Module):
    """Sandler et al., "MobileNetV2", CVPR 2018: widen, filter each channel, narrow."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers = [_Convolution(inputs, hidden, 1)] if expansion > 1 else []
        layers.append(_Convolution(hidden, hidden, kernel, stride, groups=hidden))
        layers.append(_Convolution(hidden, outputs, 1, is_linear=True))
        self.layers = nn.Sequential(*layers)
        self._is_residual = stride == 1 and inputs == outputs

    def forward(self, features: Tensor) -> Tensor:
        output: Tensor = self.layers(features)
        return features + output if self._is_residual else output


class _Separable(nn.Sequential):
    """A filter for each channel, then a mix of the channels."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(
            _Convolution(inputs, inputs, kernel, stride, groups=inputs, is_linear=True),
            _Convolution(inputs, outputs, 1),
        )


class HeatmapNetwork(nn.Module):
    """RGB images in, a prediction for every cell out."""

    def __init__(self, width: int = 64) -> None:
        """
        Args:
            width: Channels of the pyramid and the head.
        """
        super().__init__()
        self.stem = _Convolution(3, _STEM_CHANNELS, 3, stride=2)
        channels = _STEM_CHANNELS
        self.stages = nn.ModuleList()
        tapped = []
        for index, (expansion, outputs, kernel, stride, count) in enumerate(_STAGES):
            blocks = []
            for number in range(count):
                blocks.append(_InvertedResidual(channels, outputs, expansion, kernel, stride if number == 0 else 1))
                channels = outputs
            self.stages.append(nn.Sequential(*blocks))
            if index in _TAPPED_STAGES:
                tapped.append(outputs)
        # Strides 32 and 64: a circle as large as the picture is seen whole only from there.
        self.wide = nn.ModuleList(
            [_Separable(channels, _WIDE_CHANNELS, 5, stride=2), _Separable(_WIDE_CHANNELS, _WIDE_CHANNELS, 5, stride=2)]
        )
        self.laterals = nn.ModuleList(_Convolution(inputs, width, 1, is_linear=True) for inputs in tapped)
        self.laterals.extend(_Convolution(_WIDE_CHANNELS, width, 1, is_linear=True) for _ in self.wide)
        self.merges = nn.ModuleList(_Separable(width, width, 5) for _ in self.laterals[1:])
        self.head = nn.Sequential(_Separable(width, width, 5), _Separable(width, width, 5))
        self.output = nn.Conv2d(width, 8, 1)
        nn.init.normal_(self.output.weight, std=0.01)
        assert self.output.bias is not None
        nn.init.zeros_(self.output.bias)
        with torch.no_grad():
            self.output.bias[0] = -float(torch.log(torch.tensor((1 - _PRIOR) / _PRIOR)))

    def forward(self, images: Tensor) -> Tensor:
        """What the cells say, undecoded; ``decode`` gives it meaning.

        Args:
            images: (B, 3, H, W) RGB, 0 to 255, floating point; H and W multiples of 32.

        Returns:
            (B, 8, H/4, W/4).
        """
        features = self.stem((images - 127.0) / 128.0)
        levels = []
        for index, stage in enumerate(self.stages):
            features = stage(features)
            if index in _TAPPED_STAGES:
                levels.append(features)
        for layer in self.wide:
            features = layer(features)
            levels.append(features)
        levels = [lateral(level) for lateral, level in zip(self.laterals, levels, strict=True)]
        merged = levels.pop()
        for merge in reversed(self.merges):
            finer = levels.pop()
            merged = finer + functional.interpolate(merge(merged), size=finer.shape[-2:], mode="nearest")
        output: Tensor = self.output(self.head(merged))
        return output


def decode(output: Tensor) -> Prediction:
    """The network's output in px."""
    output = output.float()
    sides = _UNIT_PX * torch.exp(output[:, 1:5].clamp(-_LOG_LIMIT, _LOG_LIMIT))
    radius = _UNIT_PX * torch.exp(output[:, 7:8].clamp(-_LOG_LIMIT, _LOG_LIMIT))
    return Prediction(output[:, 0], sides, torch.cat([output[:, 5:7] * radius, radius], dim=1))


class ServingNetwork(nn.Module):
    """The network as it serves: batch normalisation folded into the convolutions, lengths in px."""

    def __init__(self, network: HeatmapNetwork) -> None:
        """Takes a copy of a trained network."""
        super().__init__()
        self.network = copy.deepcopy(network).eval().requires_grad_(requires_grad=False)
        _fold(self.network)
        # Half again as fast on a CPU as the order that PyTorch takes by default.
        for parameter in self.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """
        Args:
            images: (B, H, W, 3) RGB, uint8; H and W multiples of 32.

        Returns:
            (B, 8, H/4, W/4), as ``circles.detectors.runtimes.Runtime.cells`` says.
        """
        prediction = decode(self.network(images.permute(0, 3, 1, 2).float()))
        return torch.cat([prediction.center_logits[:, None], prediction.sides, prediction.circles], dim=1)


def _fold(module: nn.Module) -> None:
    """Merges each batch normalisation into the convolution before it, in place."""
    for child in module.modules():
        if isinstance(child, _Convolution):
            layers = list(child)
            place = next(index for index, layer in enumerate(layers) if isinstance(layer, nn.Conv2d))
            convolution, norm = layers[place], layers[place + 1]
            assert isinstance(convolution, nn.Conv2d)
            assert isinstance(norm, nn.BatchNorm2d)
            child[place], child[place + 1] = fuse_conv_bn_eval(convolution, norm), nn.Identity()
