"""Trained networks as the files that a detector loads."""

import hashlib
import json
import warnings
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from circles.detectors.network import HeatmapNetwork, ServingNetwork
from circles.detectors.rim import RAY_COUNT, STEP_COUNT
from circles.detectors.rim_network import RimNetworks
from circles.detectors.runtimes import ONNX_FILES, SIZE_MULTIPLE_PX, Calibration

_OPSET = 18


def write_weights(folder: Path, heatmap: HeatmapNetwork, rim: RimNetworks, calibration: Calibration) -> None:
    """Writes weights, ONNX graphs, calibration, and ``SHA256SUMS`` over them."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{name}.{key}": value.detach().cpu().contiguous()
        for name, network in (("heatmap", heatmap), ("rim", rim))
        for key, value in network.state_dict().items()
    }
    save_file(tensors, folder / "heatmap.safetensors")
    picture = torch.zeros(1, 2 * SIZE_MULTIPLE_PX, 3 * SIZE_MULTIPLE_PX, 3, dtype=torch.uint8)
    _export(folder / "heatmap.onnx", ServingNetwork(heatmap).cpu(), picture, "images", ["cells"], {1: "h", 2: "w"})
    strips = torch.zeros(2, RAY_COUNT, STEP_COUNT, 4, dtype=torch.uint8)
    for name, network in zip(ONNX_FILES[1:], rim.for_serving().cpu().looks, strict=True):
        _export(folder / name, network, strips, "strips", ["rims", "rounds"], {0: "n"})
    (folder / "calibration.json").write_text(json.dumps(asdict(calibration)) + "\n", encoding="ascii")
    write_sums(folder)


def write_sums(folder: Path) -> None:
    """``SHA256SUMS`` over the folder's files, as ``sha256sum -c`` reads it."""
    names = ("heatmap.safetensors", *ONNX_FILES, "calibration.json")
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (folder / "SHA256SUMS").write_text("".join(lines), encoding="ascii")


def _export(
    path: Path, network: nn.Module, example: Tensor, input_name: str, output_names: list[str], sizes: dict[int, str]
) -> None:
    with warnings.catch_warnings():
        # The tracing exporter is superseded and folds no slices, and says both; but it keeps sizes free, and tests
        # compare the graph with the network.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", UserWarning)
        torch.onnx.export(
            network,
            (example,),
            path,
            input_names=[input_name],
            output_names=output_names,
            dynamic_axes={input_name: sizes},
            opset_version=_OPSET,
            dynamo=False,
        )
