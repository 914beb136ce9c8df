"""The whole of training in its toy version: it improves, goes on after a kill, and writes what a detector loads."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import Dataset

from circles.detectors.heatmap import HeatmapDetector
from circles.detectors.runtimes import OnnxRuntime
from circles.detectors.torch_runtime import TorchRuntime
from evaluation.scenes import draw_scene
from training.checkpoint import OtherRecipeError
from training.losses import Losses
from training.train import Recipe, train

ROOT = Path(__file__).resolve().parent.parent.parent


class Line(Dataset[Tensor]):
    """Points of the line y = 3 x + 1, others at every step."""

    def __getitem__(self, step: int) -> Tensor:
        x = torch.randn(8, 1, generator=torch.Generator().manual_seed(step))
        return torch.cat([x, 3 * x + 1], dim=1)


class LineTask:
    """The least that can be trained."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.network = nn.Linear(1, 1)
        self.batches = Line()

    def parameter_groups(self, learning_rate: float) -> list[dict[str, object]]:
        return [{"params": list(self.network.parameters()), "lr": learning_rate}]

    def set_training_mode(self, progress: float) -> None:
        assert 0 <= progress < 1
        self.network.train()

    def losses(self, batch: Tensor) -> Losses:
        return {"loss": (self.network(batch[:, :1]) - batch[:, 1:]).square().mean()}

    def judge(self, network: nn.Module) -> dict[str, float]:
        return {"slope": next(network.parameters()).item()}


RECIPE = Recipe(steps=150, learning_rate=0.1, warmup_steps=5, average_decay=0.9, weight_decay=0.0)


def trained(folder: Path, recipe: Recipe = RECIPE, stop_at: int | None = None) -> nn.Module:
    class Stopping(LineTask):
        def judge(self, network: nn.Module) -> dict[str, float]:
            self.count = getattr(self, "count", 0) + 1
            if stop_at is not None and self.count > stop_at:
                raise KeyboardInterrupt
            return super().judge(network)

    return train(Stopping(), recipe, folder, torch.device("cpu"), 10, Console(quiet=True))


def test_loop_learns_and_logs(tmp_path: Path) -> None:
    network = trained(tmp_path)
    assert isinstance(network, nn.Linear)
    assert (network.weight.item(), network.bias.item()) == pytest.approx((3, 1), abs=0.05)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(10, 151, 10))
    assert lines[-1]["loss"] < 0.01 * lines[0]["loss"]


def test_interrupted_run_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    straight = trained(tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "twice", stop_at=3)
    resumed = trained(tmp_path / "twice")
    for ours, theirs in zip(resumed.parameters(), straight.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    trained(tmp_path)
    other = Recipe(steps=160, learning_rate=0.1, warmup_steps=5, average_decay=0.9, weight_decay=0.0)
    with pytest.raises(OtherRecipeError, match="was made by another recipe"):
        trained(tmp_path, other)


@pytest.mark.timeout(900)
def test_toy_version_improves_survives_a_kill_and_writes_weights(tmp_path: Path) -> None:
    """Some two minutes on two cores: `just train --quick` on drawn pictures alone."""
    arguments: list[str | Path] = [sys.executable, "-m", "training", "--quick", "--data", tmp_path / "none"]
    arguments += ["--output", tmp_path, "--validate-every", "25"]
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        assert any('"step": 50' in line for line in iter(killed.stdout.readline, ""))
        killed.send_signal(signal.SIGKILL)
    process = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert "heatmap: going on at step 50" in process.stdout
    refused = subprocess.run([*arguments, "--seed", "1"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (refused.returncode, "--output can name another folder" in refused.stderr) == (2, True), refused.stderr
    lines = [json.loads(line) for line in (tmp_path / "heatmap" / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < 0.7 * lines[0]["loss"]
    assert lines[-1]["scenes_f1_50"] > lines[0]["scenes_f1_50"] + 0.2
    images = [draw_scene(seed).image for seed in range(5)]
    onnx, reference = (
        [[round(each.score, 3) for each in found] for found in HeatmapDetector(runtime).detect(images)]
        for runtime in (OnnxRuntime(tmp_path / "weights"), TorchRuntime.load(tmp_path / "weights"))
    )
    assert any(reference)
    assert [len(scores) for scores in onnx] == [len(scores) for scores in reference]
    for each, other in zip(onnx, reference, strict=True):
        assert each == pytest.approx(other, abs=0.01)
