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
    """Both networks on one device, batch normalisation folded into the convolutions."""

    def __init__(
        self,
        heatmap: HeatmapNetwork,
        rim: RimNetworks,
        calibration: Calibration,
        version: str = "in training",
        device: str = "cpu",
    ) -> None:
        """Takes copies, so that training may go on."""
        self._device = torch.device(device)
        self._heatmap = ServingNetwork(heatmap).to(self._device)
        self._rim = rim.for_serving().to(self._device)
        self.calibration = calibration
        self.version = version

    @classmethod
    def load(cls, folder: Path = WEIGHTS_FOLDER, threads: int = 1) -> Self:
        """The networks of this folder, on a GPU where this process may use one, else on the CPU.

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
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(heatmap, rim, read_calibration(folder), weights_version(folder), device)

    def cells(self, image: RGBImage) -> Array:
        with torch.inference_mode():
            # A copy where needed: torch wants memory that it may write to.
            pixels = torch.from_numpy(image if image.flags.writeable else image.copy())
            maps: Array = self._heatmap(pixels[None].to(self._device))[0].cpu().numpy()
        return maps

    def rims(self, strips: Strips, look: int) -> tuple[Array, Array]:
        with torch.inference_mode():
            rim_logits, round_logits = self._rim(torch.from_numpy(strips).to(self._device), look)
        return rim_logits.cpu().numpy(), round_logits.cpu().numpy()
