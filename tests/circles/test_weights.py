"""Weights files: only the ones that the package was made with are used."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from circles.detectors.runtimes import WEIGHTS_FOLDER, OnnxRuntime
from circles.detectors.torch_runtime import TorchRuntime
from circles.errors import WeightsError

Load = Callable[[Path], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copy = tmp_path / "weights"
    shutil.copytree(WEIGHTS_FOLDER, copy)
    return copy


@pytest.mark.parametrize(
    ("load", "name"),
    [
        (OnnxRuntime, "heatmap.onnx"),
        (OnnxRuntime, "rim-near.onnx"),
        (OnnxRuntime, "calibration.json"),
        (TorchRuntime.load, "heatmap.safetensors"),
    ],
    ids=["network", "rim network", "calibration", "PyTorch"],
)
def test_damaged_file_is_refused_by_checksum_and_path(folder: Path, load: Load, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(WeightsError, match=rf"{folder / name} has the SHA-256 checksum [0-9a-f]{{64}}, but .* says"):
        load(folder)


@pytest.mark.parametrize("name", ["heatmap.onnx", "SHA256SUMS"])
def test_absent_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(WeightsError, match=rf"{folder / name} cannot be read: No such file"):
        OnnxRuntime(folder)


def test_file_that_nobody_vouches_for_is_refused(folder: Path) -> None:
    (folder / "SHA256SUMS").write_text("")
    with pytest.raises(WeightsError, match="says None"):
        OnnxRuntime(folder)
