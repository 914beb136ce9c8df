"""What the networks are shown: the truth of made-up samples holds in their pixels."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from circles.detectors.network import decode
from circles.detectors.rim import REACHES
from circles.geometry import Ellipse
from evaluation.coco import write_scenes
from evaluation.scenes import PLAIN, draw_scene
from training.augment import photograph
from training.collages import Collages, _paint_sprite
from training.losses import heatmap_losses
from training.mixture import Mixture, scene_sample
from training.photos import _shrunk, load_photos, photo_sample
from training.rims import RimMixture, _guesses
from training.samples import Sample, SampleObject, clip_polygon, mosaic, polygon_area, targets_of, with_hidden_parts
from training.sprites import SPRITE_PX, SPRITE_SPAN, Sprites, load_cutouts
from training.targets import batch_maps, target_maps


def disc(center_x: float, center_y: float, radius: float) -> SampleObject:
    return SampleObject(Ellipse(center_x, center_y, radius, radius, 0.0).points(96))


def grey(side_px: int = 128) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.full((side_px, side_px, 3), 127, np.uint8)


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    write_scenes(tmp_path / "scenes", [draw_scene(seed, PLAIN) for seed in range(4)])
    return tmp_path / "scenes"


def test_target_of_a_cut_disc_is_what_the_picture_shows() -> None:
    (target,) = targets_of(Sample(grey(), [disc(10, 64, 30)]))
    np.testing.assert_allclose(target.bbox.as_tuple(), (0, 34, 40, 94), atol=0.1)
    assert target.circle is not None
    assert (target.circle.center_x, target.circle.radius) == pytest.approx((10, 30), abs=0.05)
    assert not target.is_ignored


def test_what_is_hardly_seen_is_neither_asked_for_nor_forbidden() -> None:
    outside = disc(-20, 64, 30)
    under, upon = disc(60, 64, 20), disc(65, 64, 22)
    objects = with_hidden_parts([outside, under, upon], 128, 128)
    ignored = [target.is_ignored for target in targets_of(Sample(grey(), objects))]
    assert ignored == [True, True, False]
    maps = target_maps(targets_of(Sample(grey(), objects)), 128)
    assert maps["is_counted"][16, 0] == 0
    assert (maps["heat"] == 1).sum() == 1


def test_clipping_keeps_the_area_inside() -> None:
    outline = disc(0, 64, 30).outline
    assert polygon_area(clip_polygon(outline, 128, 128)) == pytest.approx(polygon_area(outline) / 2, rel=1e-3)
    assert len(clip_polygon(disc(-50, 64, 30).outline, 128, 128)) == 0


def test_mosaic_moves_objects_with_their_pictures() -> None:
    quarters = [Sample(grey(64), [disc(30, 32, 10)]) for _ in range(3)] + [Sample(grey(64), [disc(0, 32, 10)])]
    targets = targets_of(mosaic(quarters, 64))
    centers = [(round((t.bbox.x_min + t.bbox.x_max) / 2), round((t.bbox.y_min + t.bbox.y_max) / 2)) for t in targets]
    assert centers[:3] == [(30, 32), (94, 32), (30, 96)]
    assert [target.is_ignored for target in targets] == [False, False, False, True]


@pytest.mark.parametrize("seed", range(4))
def test_collage_outlines_run_along_edges(seed: int, scenes: Path) -> None:
    """The mean color changes more across the outlines than across ones shifted by a fifth of the radius."""
    collages = Collages(Sprites(load_photos([scenes]), load_cutouts([scenes])))
    samples = [collages.sample(256, np.random.default_rng((seed, number))) for number in range(12)]
    changes = [
        [_change_across(sample, each.outline, part) for part in (1.0, 0.75)]
        for sample in samples
        for each in sample.objects
        if each.hidden == 0 and np.all((each.outline > 8) & (each.outline < 248)) and np.ptp(each.outline) > 30
    ]
    at_rim, inside = np.mean(changes, axis=0)
    assert at_rim > 1.5 * inside


def _change_across(sample: Sample, outline: np.ndarray[tuple[int, int], np.dtype[np.float64]], part: float) -> float:
    center = outline.mean(axis=0)
    inner, outer = (center + (part + shift) * (outline - center) for shift in (-0.08, 0.08))
    colors = [sample.image[tuple(np.clip(rim, 0, 255).astype(int).T[::-1])].astype(float) for rim in (inner, outer)]
    return float(np.abs(colors[0] - colors[1]).mean())


@pytest.mark.parametrize("radius", [20.0, 120.0])  # shrunk before it is laid down, and enlarged
def test_a_sprite_lies_where_its_outline_does(radius: float) -> None:
    """A ramp comes out as the ramp that the outline's affine map makes of it, to a hundredth of a px."""
    side, center = SPRITE_PX, np.array([150.3, 149.6])
    unit = Ellipse(0.0, 0.0, 1.0, 1.0, 0.0).points(96)
    ramp = np.tile((np.arange(side, dtype=np.float32) + 0.5)[None, :, None], (side, 1, 3))
    canvas = np.zeros((300, 300, 3), np.float32)

    _paint_sprite(canvas, ramp, unit, unit * radius + center)

    reach = int(0.9 * radius)
    columns = np.arange(150 - reach, 150 + reach)
    expected = ((columns + 0.5 - center[0]) / radius / SPRITE_SPAN + 0.5) * side
    off_px = (canvas[150, columns, 0] - expected) / side * SPRITE_SPAN * radius
    assert np.abs(off_px).mean() < 0.02
    assert abs(off_px.mean()) < 0.01


def test_outlines_of_photographs_shrunk_in_memory_still_fit(tmp_path: Path) -> None:
    scene = draw_scene(1, replace(PLAIN, width=1501, height=1003))
    write_scenes(tmp_path, [scene])
    (photo,) = load_photos([tmp_path])
    enlargement = np.array(scene.image.shape[1::-1]) / photo.image.shape[1::-1]

    assert photo.image.shape[:2] == (668, 1000)
    for drawn, each in zip(scene.objects, photo.objects, strict=True):
        corners = each.outline * enlargement
        assert corners.max(axis=0) == pytest.approx(drawn.outline.points(96).max(axis=0), abs=0.1)


@pytest.mark.parametrize("scale", [0.5, 0.4983])
def test_photographs_are_shrunk_by_what_their_outlines_are_moved_by(scale: float) -> None:
    image = np.zeros((64, 1003, 3), np.uint8)
    image[:, 963:] = 255
    small = _shrunk(image, scale)
    edge = small.shape[1] - small[0, :, 0].sum() / 255
    assert edge == pytest.approx(963 * small.shape[1] / 1003, abs=0.05)


def test_photograph_sample_moves_boxes_with_the_pixels(scenes: Path) -> None:
    """Objects of plain scenes are found by color where their outlines come to lie."""
    photo = load_photos([scenes])[0]
    for seed in range(10):
        sample = photo_sample(photo, 256, np.random.default_rng(seed))
        for each in sample.objects:
            center = each.outline.mean(axis=0)
            if np.all((center > 2) & (center < 253)):
                here = sample.image[int(center[1]), int(center[0])].astype(float)
                original = photo.objects[sample.objects.index(each)].outline.mean(axis=0)
                there = photo.image[int(original[1]), int(original[0])].astype(float)
                assert np.abs(here - there).max() < 40


def test_same_step_same_batch_and_other_step_other_batch(scenes: Path) -> None:
    mixture = Mixture([scenes], [scenes], 128**2 * 4, seed=3)
    first, again, other = mixture[5], mixture[5], mixture[6]
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.maps.heat, again.maps.heat)
    assert first.images.shape != other.images.shape or not torch.equal(first.images, other.images)


def test_mixture_needs_no_photographs() -> None:
    batch = Mixture([], [], 256**2, seed=0)[0]
    assert batch.images.dtype == torch.uint8
    assert batch.maps.heat.max() <= 1


def test_perfect_prediction_costs_nothing_but_the_heat() -> None:
    """Box and circle losses of the targets themselves vanish, and grow with distance from them."""
    sample = scene_sample(256, np.random.default_rng(4))
    maps = batch_maps([target_maps(targets_of(sample), 256)])
    logits = torch.where(maps.heat == 1, 12.0, -12.0)
    unit = torch.tensor(16.0)
    radius = maps.circles[:, 2:]
    output = torch.cat(
        [logits[:, None], torch.log(maps.sides / unit), maps.circles[:, :2] / radius, torch.log(radius / unit)], dim=1
    )
    exact = heatmap_losses(decode(output), maps)
    assert float(exact["box"]) == pytest.approx(0, abs=1e-4)
    assert float(exact["circle"]) == pytest.approx(0, abs=1e-4)
    assert float(exact["center"]) < 0.1
    output[:, 1:] += 0.1
    worse = heatmap_losses(decode(output), maps)
    assert float(worse["box"]) > 0.05
    assert float(worse["circle"]) > 0.05


def test_rim_places_lie_where_the_strip_changes() -> None:
    """At the wide look, most rays change color most within five steps of the place asked for; twelve were chance."""
    mixture = RimMixture(Mixture([], [], 256**2, seed=1), seed=1)
    distances = []
    for step in range(3):
        batch = mixture[step].at(0)
        changes = batch.strips[..., :3].float().diff(dim=2).abs().sum(dim=-1).argmax(dim=-1) + 0.5
        distances.append((changes - batch.places).abs()[batch.is_counted])
    assert float(torch.cat(distances).median()) < 5


def test_photographing_leaves_size_and_type(scenes: Path) -> None:
    image = draw_scene(1).image
    for seed in range(20):
        shot = photograph(image, np.random.default_rng(seed))
        assert shot.shape == image.shape
        assert shot.dtype == np.uint8


def test_photographing_moves_nothing() -> None:
    """No blur, shake or file shifts a thing by more than a quarter of a px."""
    distances = np.hypot(*(np.mgrid[:128, :128] - 63.5))
    image = (30 + np.clip(30.5 - distances, 0, 1)[..., None] * np.array([180, 160, 150])).astype(np.uint8)
    for seed in range(100):
        bright = photograph(image, np.random.default_rng(seed)).astype(float).mean(axis=2)
        places = np.argwhere(bright > (np.percentile(bright, 5) + np.percentile(bright, 99)) / 2)
        np.testing.assert_allclose(places.mean(axis=0), (63.5, 63.5), atol=0.25)


@pytest.mark.parametrize(("is_exact", "looks"), [(True, {0, 1}), (False, {0})], ids=["drawn", "annotated by hand"])
def test_rims_annotated_by_hand_teach_the_wide_look_alone(is_exact: bool, looks: set[int]) -> None:
    sample = Sample(grey(), [replace(disc(64, 64, 30), is_exact=is_exact)])
    guesses = [guess for seed in range(20) for guess in _guesses(sample, np.random.default_rng(seed))]
    assert {guess.look for guess in guesses if guess.rim is not None} == looks
    assert {guess.look for guess in guesses} == set(range(len(REACHES)))


def test_photographs_rims_are_not_exact(scenes: Path) -> None:
    assert not any(each.is_exact for photo in load_photos([scenes]) for each in photo.objects)


def test_things_that_the_border_cuts_are_guessed_worse() -> None:
    """As in serving, where the heat map knows less of them: the wide look's guesses spread further about the truth."""
    spreads = []
    for center_x in (64.0, 10.0):
        sample = Sample(grey(), [disc(center_x, 64, 30)])
        guesses = [guess for seed in range(200) for guess in _guesses(sample, np.random.default_rng(seed))]
        wide = [guess.ellipse for guess in guesses if guess.rim is not None and guess.look == 0]
        spreads.append(np.std([ellipse.center_x for ellipse in wide]))
    assert spreads[1] > 1.1 * spreads[0]
