"""The networks as PyTorch runs them: the reference that other ways are measured by."""

from pathlib import Path
from typing import Self

import torch
from safetensors.torch import load

from circles.detectors.network import HeatmapNetwork, ServingNetwork
from circles.detectors.rim import Strips
from circles.detectors.rim_network import RimNetworks
from circles.detectors.runtimes import (
    WEIGHTS_FOLDER,
    Array,
    Calibration,
    read_calibration,
    read_weights,
    weights_version,
)
from circles.errors import WeightsError
from circles.imaging import RGBImage


class TorchRuntime:
    """Both networks on the CPU, batch normalisation folded into the convolutions."""

    def __init__(
        self, heatmap: HeatmapNetwork, rim: RimNetworks, calibration: Calibration, version: str = "in training"
    ) -> None:
        """Takes copies, so that training may go on."""
        self._heatmap = ServingNetwork(heatmap).cpu()
        self._rim = rim.for_serving().cpu()
        self.calibration = calibration
        self.version = version

    @classmethod
    def load(cls, folder: Path = WEIGHTS_FOLDER, threads: int = 1) -> Self:
        """The networks of this folder.

        Args:
            threads: Of PyTorch in this process.

        Raises:
            WeightsError: A file is absent, damaged, or not the one this package was made with.
        """
        torch.set_num_threads(threads)
        path = folder / "heatmap.safetensors"
        tensors = load(read_weights(path))
        heatmap, rim = HeatmapNetwork(), RimNetworks()
        for name, network in (("heatmap", heatmap), ("rim", rim)):
            own = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
            try:
                network.load_state_dict(own)
            except RuntimeError as error:
                raise WeightsError(f"{path} does not fit the {name} network: {error}") from error
        return cls(heatmap, rim, read_calibration(folder), weights_version(folder))

    def cells(self, image: RGBImage) -> Array:
        with torch.inference_mode():
            # A copy where needed: torch wants memory that it may write to.
            pixels = torch.from_numpy(image if image.flags.writeable else image.copy())
            maps: Array = self._heatmap(pixels[None])[0].numpy()
        return maps

    def rims(self, strips: Strips, look: int) -> tuple[Array, Array]:
        with torch.inference_mode():
            rim_logits, round_logits = self._rim(torch.from_numpy(strips), look)
        return rim_logits.numpy(), round_logits.numpy()
