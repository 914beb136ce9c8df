"""The recipes: what made the weights that are shipped, and a toy version for trying things out."""

from dataclasses import dataclass

from training.train import Recipe


@dataclass(frozen=True, slots=True)
class Recipes:
    """How both networks are trained, and on how much they are validated."""

    heatmap: Recipe
    rim: Recipe
    batch_px: int
    """Of the heat-map network, all pictures together."""
    scene_count: int
    """Drawn scenes to validate on."""


SHIPPED = Recipes(
    heatmap=Recipe(steps=3500, learning_rate=2e-3, warmup_steps=200, average_decay=0.998, weight_decay=0.02),
    rim=Recipe(steps=4500, learning_rate=4e-3, warmup_steps=60, average_decay=0.995, weight_decay=1e-3),
    batch_px=8 * 320**2,
    scene_count=60,
)

QUICK = Recipes(
    heatmap=Recipe(steps=150, learning_rate=2e-3, warmup_steps=20, average_decay=0.95, weight_decay=0.02),
    rim=Recipe(steps=30, learning_rate=4e-3, warmup_steps=5, average_decay=0.9, weight_decay=1e-3),
    batch_px=4 * 256**2,
    scene_count=12,
)
