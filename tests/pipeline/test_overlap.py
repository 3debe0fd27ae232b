"""What matches say of a scene that nothing else has proven: which views overlap, and whether the camera moved."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from lean3r.pipeline.overlap import find_overlap
from lean3r.types import PointCloud, Reconstruction, Source

SIDE, FOCAL = 240, 260.0


def texture(seed: int, side: int = 720) -> Image.Image:
    rng = np.random.default_rng(seed)
    layers = [
        np.asarray(
            Image.fromarray(rng.integers(0, 256, (n, n, 3), np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
        )
        for n in (12, 40, 120)
    ]
    return Image.fromarray(np.mean(layers, axis=0).astype(np.uint8))


def shot(world: Image.Image, turn: float, nearer: float = 0.0) -> np.ndarray:
    """What a camera sees of a far wall that turned by `turn` rad; of its middle, `nearer` pixels further along."""
    shift = 240 + FOCAL * np.tan(turn)
    picture = world.transform((SIDE, SIDE), Image.Transform.AFFINE, (1, 0, shift, 0, 1, 240), Image.Resampling.BICUBIC)
    middle = world.transform(
        (SIDE, SIDE), Image.Transform.AFFINE, (1, 0, shift + nearer, 0, 1, 240), Image.Resampling.BICUBIC
    )
    result = np.array(picture)
    result[60:180] = np.array(middle)[60:180]
    return result


def scene(images: list[np.ndarray]) -> Reconstruction:
    count = len(images)
    shape = (count, SIDE, SIDE)
    k = np.array([[FOCAL, 0, SIDE / 2], [0, FOCAL, SIDE / 2], [0, 0, 1]])
    none = np.zeros((0, 3), np.float32)
    return Reconstruction(
        sources=tuple(Source(f"{i}.png", SIDE, SIDE) for i in range(count)),
        images=np.stack(images),
        mask=np.ones(shape, bool),
        depth=np.ones(shape, np.float32),
        conf=np.ones(shape, np.float32),
        cam_from_world=np.stack([np.eye(4)] * count),
        intrinsics=np.stack([k] * count),
        points=PointCloud(none, none.astype(np.uint8), none[:, 0], none[:, 0].astype(np.int32), none[:, :2], none),
    )


def all_pixels(images: list[np.ndarray]) -> np.ndarray:
    return np.ones((len(images), SIDE, SIDE), bool)


def test_views_of_one_wall_overlap_and_an_unrelated_one_does_not() -> None:
    wall, other = texture(0), texture(1)
    images = [shot(wall, 0.0), shot(wall, 0.05, 9), shot(other, 0.0), shot(wall, 0.1, 18)]
    overlap = find_overlap(scene(images), all_pixels(images), np.ones(4, bool))
    assert overlap.has_partner.tolist() == [True, True, False, True] and not overlap.rotates_only


def test_a_view_without_features_overlaps_with_none() -> None:
    world = texture(0)
    soft = np.full((SIDE, SIDE, 3), 128, np.uint8)
    found = find_overlap(
        scene([shot(world, 0.0), soft, shot(world, 0.1, 8)]), np.ones((3, SIDE, SIDE), bool), np.ones(3, bool)
    )
    assert found.has_partner.tolist() == [True, False, True]


def test_rotating_in_place_gives_no_parallax() -> None:
    wall = texture(2)
    turned = [shot(wall, angle) for angle in (0.0, 0.06, 0.12)]
    assert find_overlap(scene(turned), all_pixels(turned), np.ones(3, bool)).rotates_only
    moved = [shot(wall, angle, 150 * angle) for angle in (0.0, 0.06, 0.12)]
    assert not find_overlap(scene(moved), all_pixels(moved), np.ones(3, bool)).rotates_only


@pytest.mark.parametrize("views", [0, 1])
def test_fewer_than_two_views_give_no_verdict(views: int) -> None:
    images = [shot(texture(3), 0.0)] * 2
    wanted = np.arange(2) < views
    overlap = find_overlap(scene(images), all_pixels(images), wanted)
    assert not overlap.has_partner.any() and not overlap.rotates_only


def test_excluded_pixels_give_no_matches() -> None:
    wall = texture(4)
    images = [shot(wall, 0.0), shot(wall, 0.05, 9)]
    assert not find_overlap(scene(images), ~all_pixels(images), np.ones(2, bool)).has_partner.any()
