"""Drawn pictures whose circles are known exactly: shaded discs, rings and coins among things that are not round.

Every edge is drawn from its distance function, a pixel's coverage being its distance to the outline within half a px,
so truth and picture agree to 0.015 px from a radius of 16 px on (before noise, blur and JPEG, which
move no edge on average).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import cv2
import numpy as np
import typer
from numpy.typing import NDArray

from circles.geometry import BBox, Circle, Ellipse
from circles.imaging import RGBImage, decode_image, encode_jpeg

Kind = Literal["disc", "ring", "coin"]

_FloatImage = NDArray[np.floating[Any]]
_MAX_COVERED = 0.6  # part of an object that others may hide before it no longer counts
_MIN_INSIDE = 0.4  # part of an object that the picture must show
_PLACEMENT_TRIES = 60


@dataclass(frozen=True, slots=True)
class SceneOptions:
    """What a scene may hold. Pairs are ranges to draw from, both ends included."""

    width: int = 512
    height: int = 384
    objects: tuple[int, int] = (1, 8)
    radius: tuple[float, float] = (0.04, 0.2)  # part of the longer side
    kinds: tuple[Kind, ...] = get_args(Kind)
    may_overlap: bool = True
    may_be_cut: bool = True
    tilt: tuple[float, float] = (0.0, 0.7)  # radians between the line of sight and the normal of the ground
    clutter: tuple[int, int] = (0, 8)  # things that are not round
    noise: tuple[float, float] = (0.0, 8.0)  # standard deviation, grey levels
    blur_px: tuple[float, float] = (0.0, 1.2)  # standard deviation
    jpeg_quality: tuple[int, int] = (70, 98)


PLAIN = SceneOptions(
    may_overlap=False, may_be_cut=False, tilt=(0.0, 0.0), clutter=(0, 0), noise=(0.0, 2.0), blur_px=(0.0, 0.5)
)
"""Scenes without any difficulty."""


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One drawn round thing. Seen at an angle it is an ellipse: the circle has its center and area, the box its extent.

    The box is clipped to the picture; what another object hides is part of it.
    """

    circle: Circle
    bbox: BBox
    outline: Ellipse


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture and all that is round in it."""

    image: RGBImage
    objects: tuple[SceneObject, ...]


class _Ellipse(Ellipse):
    """Outline of an object while it is drawn."""

    __slots__ = ()

    def local(self, xs: _FloatImage, ys: _FloatImage) -> tuple[_FloatImage, _FloatImage]:
        """Coordinates in which the outline is the unit circle."""
        cosine, sine = np.float32(np.cos(self.angle)), np.float32(np.sin(self.angle))
        dx, dy = xs - np.float32(self.center_x), ys - np.float32(self.center_y)
        return (dx * cosine + dy * sine) / np.float32(self.axis_a), (dy * cosine - dx * sine) / np.float32(self.axis_b)

    def distance(self, u: _FloatImage, v: _FloatImage, scale: float = 1.0) -> _FloatImage:
        """Signed distance in px to the outline grown by ``scale``: exact to first order, so exact at the outline.

        Taubin, "Estimation of Planar Curves...", PAMI 1991: the implicit function over the length of its gradient.
        """
        radius = np.hypot(u, v)
        gradient = np.hypot(u / np.float32(self.axis_a), v / np.float32(self.axis_b)) / np.maximum(radius, 1e-6)
        signed: _FloatImage = (radius - np.float32(scale)) / np.maximum(gradient, 1e-6)
        return signed


@dataclass
class _Canvas:
    """The picture while it is drawn: linear float RGB, and a painter for soft-edged shapes."""

    width: int
    height: int
    pixels: _FloatImage = field(init=False)

    def __post_init__(self) -> None:
        self.pixels = np.zeros((self.height, self.width, 3), np.float32)

    def window(self, bbox: BBox, margin_px: float = 2.0) -> tuple[slice, slice]:
        """Rows and columns that a shape in this box may touch."""
        rows = slice(max(0, int(bbox.y_min - margin_px)), min(self.height, int(np.ceil(bbox.y_max + margin_px)) + 1))
        columns = slice(max(0, int(bbox.x_min - margin_px)), min(self.width, int(np.ceil(bbox.x_max + margin_px)) + 1))
        return rows, columns

    def grid(self, window: tuple[slice, slice]) -> tuple[_FloatImage, _FloatImage]:
        """x and y of the pixels' centers."""
        rows, columns = window
        ys, xs = np.mgrid[rows, columns].astype(np.float32) + np.float32(0.5)
        return xs, ys

    def paint(self, window: tuple[slice, slice], coverage: _FloatImage, color: _FloatImage) -> None:
        """Lays a color, (3,) or (rows, columns, 3), over the window as far as it is covered."""
        area = self.pixels[window]
        area += coverage[..., None] * (color - area)


def draw_scene(seed: int, options: SceneOptions = SceneOptions()) -> Scene:
    """The scene of this seed; the same seed and options give the same pixels and truth."""
    rng = np.random.default_rng(seed)
    canvas = _Canvas(options.width, options.height)
    _paint_ground(canvas, rng)
    for _ in range(_integer(rng, options.clutter)):
        _paint_clutter(canvas, rng)
    light = rng.uniform(0, 2 * np.pi)
    ellipses = _place(rng, options)
    for ellipse in ellipses:
        _paint_shadow(canvas, ellipse, light)
        painter = _PAINTERS[options.kinds[rng.integers(len(options.kinds))]]
        painter(canvas, ellipse, light, rng)
    image = _photograph(canvas.pixels, rng, options)
    objects = tuple(
        SceneObject(ellipse.circle(), ellipse.bbox().clip(options.width, options.height), ellipse)
        for ellipse in _visible(ellipses, options)
    )
    return Scene(image, objects)


def _place(rng: np.random.Generator, options: SceneOptions) -> list[_Ellipse]:
    """Outlines in the order they are drawn, all seen from one direction, larger where the ground is nearer."""
    long_side = max(options.width, options.height)
    tilt, direction = rng.uniform(*options.tilt), rng.uniform(0, np.pi)
    base_radius = rng.uniform(*options.radius) * long_side
    spread = rng.uniform(1.0, 1.6)
    placed: list[_Ellipse] = []
    for _ in range(_integer(rng, options.objects)):
        for _ in range(_PLACEMENT_TRIES):
            center_x, center_y = rng.uniform(0, options.width), rng.uniform(0, options.height)
            nearness = 1 + 0.5 * np.sin(tilt) * (center_y / options.height - 0.5)
            radius = base_radius * nearness * spread ** rng.uniform(-1, 1)
            radius = float(np.clip(radius, options.radius[0] * long_side, options.radius[1] * long_side))
            ellipse = _Ellipse(center_x, center_y, radius, radius * float(np.cos(tilt)), direction)
            if _fits(ellipse, placed, options):
                placed.append(ellipse)
                break
    return placed


def _fits(ellipse: _Ellipse, placed: list[_Ellipse], options: SceneOptions) -> bool:
    bbox = ellipse.bbox()
    inside = bbox.clip(options.width, options.height)
    if inside.area < (_MIN_INSIDE if options.may_be_cut else 1.0) * bbox.area - 1e-6:
        return False
    for other in placed:
        distance = np.hypot(ellipse.center_x - other.center_x, ellipse.center_y - other.center_y)
        reach = ellipse.axis_a + other.axis_a
        # Overlapping ones leave each other well to be seen; others at most nearly touch.
        if distance < (0.75 * reach if options.may_overlap else 1.02 * reach):
            return False
    return True


def _visible(ellipses: list[_Ellipse], options: SceneOptions) -> list[_Ellipse]:
    """Those of which enough is to be seen: later ones lie upon earlier ones."""
    canvas = _Canvas(options.width, options.height)
    owner = np.full((options.height, options.width), -1, np.int32)
    sizes = []
    for index, ellipse in enumerate(ellipses):
        window = canvas.window(ellipse.bbox())
        is_inside = ellipse.distance(*ellipse.local(*canvas.grid(window))) < 0
        owner[window][is_inside] = index
        sizes.append(int(is_inside.sum()))
    seen = np.bincount(owner[owner >= 0], minlength=len(ellipses))
    return [e for e, size, count in zip(ellipses, sizes, seen, strict=True) if count >= (1 - _MAX_COVERED) * size > 0]


def _coverage(distance: _FloatImage) -> _FloatImage:
    """Part of each pixel inside an outline at this signed distance, px."""
    covered: _FloatImage = np.clip(0.5 - distance, 0.0, 1.0)
    return covered


def _paint_ground(canvas: _Canvas, rng: np.random.Generator) -> None:
    """A color, light falling off to one side, and a grain like cloth, wood or tiles."""
    xs, ys = canvas.grid((slice(0, canvas.height), slice(0, canvas.width)))
    angle, long_side = rng.uniform(0, 2 * np.pi), max(canvas.width, canvas.height)
    slope = (np.cos(angle) * (xs / long_side - 0.5) + np.sin(angle) * (ys / long_side - 0.5)).astype(np.float32)
    shade = 1 + np.float32(rng.uniform(0, 0.5)) * slope
    match rng.integers(4):
        case 0:  # cloth: two crossed weaves
            period = rng.uniform(3, 9)
            shade += 0.06 * np.sin(2 * np.pi * xs / period) * np.sin(2 * np.pi * ys / period)
        case 1:  # wood: wavy lines along x
            wave = _smooth_noise(rng, canvas.height, canvas.width, cells=6)
            shade += 0.1 * np.sin(2 * np.pi * (ys / rng.uniform(8, 30) + 2 * wave))
        case 2:  # tiles with dark joints
            size = rng.uniform(0.15, 0.4) * long_side
            joint = np.minimum(np.abs((xs + size / 3) % size - size / 2), np.abs((ys + size / 4) % size - size / 2))
            shade -= 0.35 * np.clip(2.5 - (size / 2 - np.abs(size / 2 - joint)), 0, 1)
        case _:
            shade += 0.15 * (_smooth_noise(rng, canvas.height, canvas.width, cells=int(rng.integers(4, 40))) - 0.5)
    canvas.pixels[:] = _color(rng, 30, 220) * shade[..., None]


def _paint_clutter(canvas: _Canvas, rng: np.random.Generator) -> None:
    """A polygon of straight sides, a bar, or a line of strokes: nothing with a round outline."""
    center = np.array([rng.uniform(0, canvas.width), rng.uniform(0, canvas.height)])
    size, angle = rng.uniform(0.03, 0.25) * max(canvas.width, canvas.height), rng.uniform(0, 2 * np.pi)
    match rng.integers(3):
        case 0:  # triangle to pentagon, its corners at uneven distances
            corners = int(rng.integers(3, 6))
            angles = angle + 2 * np.pi * (np.arange(corners) + rng.uniform(-0.2, 0.2, corners)) / corners
            reach = size * rng.uniform(0.6, 1.2, corners)
            outline = center + reach[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
        case 1:  # bar
            along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
            half_width = size * rng.uniform(0.05, 0.4)
            outline = np.array(
                [center + i * size * along + j * half_width * across for i, j in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
            )
        case _:  # writing: short strokes in a row
            for number in range(int(rng.integers(3, 10))):
                start = center + number * np.array([size / 6, 0]) + rng.uniform(-size / 20, size / 20, 2)
                end = start + rng.uniform(-size / 8, size / 8, 2)
                _fill_polygon(canvas, np.array([start, end, end + 2, start + 2]), _color(rng, 0, 255))
            return
    _fill_polygon(canvas, outline, _color(rng, 10, 245))


def _fill_polygon(canvas: _Canvas, outline: NDArray[np.float64], color: _FloatImage) -> None:
    mask = np.zeros((canvas.height, canvas.width), np.uint8)
    cv2.fillPoly(mask, [np.round((outline - 0.5) * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    whole = (slice(0, canvas.height), slice(0, canvas.width))
    canvas.paint(whole, mask.astype(np.float32) / 255, color)


def _paint_shadow(canvas: _Canvas, ellipse: _Ellipse, light: float) -> None:
    """Soft and beside the object, so that its outline stays where it is."""
    shift = 0.06 * ellipse.axis_a
    shadow = _Ellipse(
        ellipse.center_x - shift * float(np.cos(light)),
        ellipse.center_y - shift * float(np.sin(light)),
        ellipse.axis_a,
        ellipse.axis_b,
        ellipse.angle,
    )
    window = canvas.window(shadow.bbox(), margin_px=0.2 * ellipse.axis_a + 2)
    distance = shadow.distance(*shadow.local(*canvas.grid(window)))
    softness = np.float32(max(1.0, 0.08 * ellipse.axis_a))
    canvas.paint(window, 0.45 * np.clip(0.5 - distance / softness, 0, 1), np.zeros(3, np.float32))


def _paint_disc(canvas: _Canvas, ellipse: _Ellipse, light: float, rng: np.random.Generator) -> None:
    """An evenly colored disc, or one shaded like a ball."""
    window = canvas.window(ellipse.bbox())
    u, v = ellipse.local(*canvas.grid(window))
    bulge = rng.uniform(0, 0.6)
    shade = 1 + bulge * (u * np.cos(light) + v * np.sin(light)) - 0.5 * bulge * (u**2 + v**2)
    canvas.paint(window, _coverage(ellipse.distance(u, v)), _color(rng, 20, 250) * shade[..., None])


def _paint_ring(canvas: _Canvas, ellipse: _Ellipse, light: float, rng: np.random.Generator) -> None:
    """A washer or a plate: a rim around a hole, or around a surface of another color."""
    window = canvas.window(ellipse.bbox())
    u, v = ellipse.local(*canvas.grid(window))
    inner = rng.uniform(0.35, 0.85)
    shade = 1 + 0.2 * (u * np.cos(light) + v * np.sin(light))
    outer_coverage = _coverage(ellipse.distance(u, v))
    inner_coverage = _coverage(ellipse.distance(u, v, scale=inner))
    if rng.random() < 0.5:
        canvas.paint(window, outer_coverage - inner_coverage, _color(rng, 20, 250) * shade[..., None])
    else:
        canvas.paint(window, outer_coverage, _color(rng, 20, 250) * shade[..., None])
        canvas.paint(window, inner_coverage, _color(rng, 20, 250) * shade[..., None])


def _paint_coin(canvas: _Canvas, ellipse: _Ellipse, light: float, rng: np.random.Generator) -> None:
    """Metal with a raised rim and a relief, lit from one side; sometimes of two metals."""
    window = canvas.window(ellipse.bbox())
    u, v = ellipse.local(*canvas.grid(window))
    radius = np.hypot(u, v)
    relief = 0.5 * _smooth_noise(rng, u.shape[0], u.shape[1], cells=int(rng.integers(5, 14)))
    strokes = rng.integers(6, 30)
    relief += 0.12 * np.sign(np.sin(strokes * np.arctan2(v, u))) * np.exp(-(((radius - 0.72) / 0.06) ** 2))
    relief += 0.5 * np.exp(-(((radius - 0.94) / 0.035) ** 2))
    relief = np.where(radius < 1, relief, 0).astype(np.float32)
    slope = np.gradient(relief, axis=1) * np.cos(light) + np.gradient(relief, axis=0) * np.sin(light)
    steepness = 2.5 * float(np.sqrt(ellipse.axis_a / 30))
    shade = 1 + np.clip(steepness * slope, -0.5, 0.7) + 0.15 * (u * np.cos(light) + v * np.sin(light))
    metals = np.array([(200, 160, 80), (190, 190, 195), (170, 100, 60), (150, 140, 120)], np.float32)
    tint = np.float32(rng.uniform(0.7, 1.2))
    canvas.paint(window, _coverage(ellipse.distance(u, v)), metals[rng.integers(4)] * tint * shade[..., None])
    if rng.random() < 0.25:
        middle = _coverage(ellipse.distance(u, v, scale=0.7))
        canvas.paint(window, middle, metals[rng.integers(4)] * tint * shade[..., None])


_PAINTERS: dict[Kind, Callable[[_Canvas, _Ellipse, float, np.random.Generator], None]] = {
    "disc": _paint_disc,
    "ring": _paint_ring,
    "coin": _paint_coin,
}


def _photograph(pixels: _FloatImage, rng: np.random.Generator, options: SceneOptions) -> RGBImage:
    """What a camera makes of it: blur, noise, JPEG."""
    blur_px = rng.uniform(*options.blur_px)
    if blur_px > 0.05:  # below that the kernel is a single pixel
        pixels = cv2.GaussianBlur(pixels, (0, 0), blur_px).astype(np.float32, copy=False)
    noisy = pixels + rng.normal(0, rng.uniform(*options.noise), pixels.shape)
    image = np.clip(np.round(noisy), 0, 255).astype(np.uint8)
    return decode_image(encode_jpeg(image, _integer(rng, options.jpeg_quality)), max_pixels=image.size)


def _smooth_noise(rng: np.random.Generator, height: int, width: int, cells: int) -> _FloatImage:
    """Values in [0, 1] that change over about a ``cells``-th of the area's sides."""
    coarse = rng.random((cells + 1, cells + 1), dtype=np.float32)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth, 0, 1).astype(np.float32, copy=False)


def _color(rng: np.random.Generator, lowest: int, highest: int) -> _FloatImage:
    """Half of the time nearly grey, as most things are."""
    grey = rng.uniform(lowest, highest)
    spread = 15 if rng.random() < 0.5 else 90
    return np.clip(grey + rng.uniform(-spread, spread, 3), lowest, highest).astype(np.float32)


def _integer(rng: np.random.Generator, span: tuple[int, int]) -> int:
    return int(rng.integers(span[0], span[1] + 1))


def main(
    output: Annotated[Path, typer.Option("--output", "-o", help="JPEG file to write.")],
    seed: Annotated[int, typer.Option(help="Which scene.")] = 0,
    width: Annotated[int, typer.Option(min=16)] = 512,
    height: Annotated[int, typer.Option(min=16)] = 384,
) -> None:
    """Draw one scene."""
    scene = draw_scene(seed, SceneOptions(width=width, height=height))
    output.write_bytes(encode_jpeg(scene.image, quality=92))
    print(f"{output}: {len(scene.objects)} round things")


if __name__ == "__main__":
    typer.run(main)
