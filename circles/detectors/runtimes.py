"""Two ways to run the trained networks: ONNX Runtime, which ships as default, and PyTorch, the reference.

Both read files of one folder, checked against its ``SHA256SUMS`` before anything of them is used.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from circles.detectors.rim import Strips
from circles.errors import WeightsError
from circles.imaging import RGBImage

STRIDE_PX = 4
"""Side of a cell of the heat map."""

SIZE_MULTIPLE_PX = 32
"""Height and width of the heat-map network's input must be multiples of it."""

LEAST_SIDE_PX = 64
"""No side of its input may be shorter."""

WEIGHTS_FOLDER = Path(__file__).resolve().parent.parent / "weights"

ONNX_FILES = ("heatmap.onnx", "rim-wide.onnx", "rim-near.onnx")
"""The heat-map network, and the rim network of each look."""

_SUMS = "SHA256SUMS"

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Calibration:
    """Scores out of what is known of a detection: logistic regression (Platt 1999) on held-out pictures."""

    bias: float = 0.0
    heat: float = 1.0
    rim: float = 0.0
    cut: float = 0.0

    def score(self, heat_logit: float, rim_logit: float, part_cut: float) -> float:
        """The probability that a detection is right; ``part_cut`` of it, 0 to 1, lies beyond the picture's border."""
        log_odds = self.bias + self.heat * heat_logit + self.rim * rim_logit + self.cut * part_cut
        return float(1 / (1 + np.exp(-log_odds)))


class Runtime(Protocol):
    """Runs the networks; one instance, one thread at a time."""

    @property
    def calibration(self) -> Calibration:
        """What their scores mean."""

    @property
    def version(self) -> str:
        """Of the weights, kept with every result."""

    def cells(self, image: RGBImage) -> Array:
        """What the heat-map network says of a picture whose sides are multiples of ``SIZE_MULTIPLE_PX`` and at least
        ``LEAST_SIDE_PX``.

        Returns:
            (8, H/4, W/4), of every cell: log-odds that a center lies in it; distances from the cell's middle to the
            left, top, right and bottom of the box; offset of the circle's center from the cell's middle in x and y,
            and its radius; px.
        """

    def rims(self, strips: Strips, look: int) -> tuple[Array, Array]:
        """What the rim network of a look, index into ``circles.detectors.rim.REACHES``, says of strips.

        Returns:
            (N, rays, steps) log-odds, up to a constant for each ray, that the rim lies at the step; (N,) log-odds that
            a round thing is there.
        """


class OnnxRuntime:
    """The networks as ONNX graphs, run by ONNX Runtime on the CPU."""

    def __init__(self, folder: Path = WEIGHTS_FOLDER, threads: int = 1) -> None:
        """
        Raises:
            ImportError: ONNX Runtime is not installed.
            WeightsError: A file is absent, damaged, or not the one this package was made with.
        """
        import onnxruntime  # noqa: PLC0415  (optional: without it PyTorch runs the networks)

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Threads that wait by spinning would take the cores of the replicas beside this one, and an arena would keep
        # the memory of the largest batch there ever was.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.enable_cpu_mem_arena = False
        self._heatmap, *self._rims = (
            onnxruntime.InferenceSession(read_weights(folder / name), options, providers=["CPUExecutionProvider"])
            for name in ONNX_FILES
        )
        self.calibration = read_calibration(folder)
        self.version = weights_version(folder)

    def cells(self, image: RGBImage) -> Array:
        (maps,) = self._heatmap.run(None, {"images": image[None]})
        result: Array = maps[0]
        return result

    def rims(self, strips: Strips, look: int) -> tuple[Array, Array]:
        rim_logits, round_logits = self._rims[look].run(None, {"strips": strips})
        return rim_logits, round_logits


def read_calibration(folder: Path) -> Calibration:
    """What the scores of the folder's weights mean.

    Raises:
        WeightsError: The file is absent or damaged.
    """
    return Calibration(**json.loads(read_weights(folder / "calibration.json")))


def weights_version(folder: Path) -> str:
    """The first digits of the checksum over all checksums of the folder.

    Raises:
        WeightsError: There are none.
    """
    return hashlib.sha256(_read(folder / _SUMS)).hexdigest()[:12]


def read_weights(path: Path) -> bytes:
    """The file's content, if it is the one that ``SHA256SUMS`` beside it names.

    Raises:
        WeightsError: It is not, or one of the two files is absent.
    """
    sums = path.parent / _SUMS
    lines = _read(sums).decode("ascii", errors="replace").splitlines()
    content = _read(path)
    expected = {name: checksum for checksum, _, name in (line.partition("  ") for line in lines)}.get(path.name)
    actual = hashlib.sha256(content).hexdigest()
    if actual != expected:
        raise WeightsError(f"{path} has the SHA-256 checksum {actual}, but {sums} says {expected}")
    return content


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
