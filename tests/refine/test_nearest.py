"""Features of two pictures that belong together."""

from __future__ import annotations

import numpy as np
import pycolmap
import pytest

from lean3r.refine import nearest
from lean3r.refine.nearest import mutual_nearest


def descriptors(number: int, seed: int, like: np.ndarray | None = None, noise: float = 0.0) -> np.ndarray:
    """SIFT-like descriptors [number, 128] uint8; the first ones are noisy copies of those that are given."""
    rng = np.random.default_rng(seed)
    values = rng.exponential(1.0, (number, 128))
    if like is not None:
        copied = min(number, len(like))
        values[:copied] = (like[:copied] / 512.0) * 11 + noise * rng.random((copied, 128))
    return np.clip(512 * values / np.linalg.norm(values, axis=1, keepdims=True), 0, 255).astype(np.uint8)


def of_library(first: np.ndarray, second: np.ndarray, tmp_path) -> np.ndarray:
    """The matches of COLMAP's exhaustive matcher."""
    database = tmp_path / "database.db"
    with pycolmap.Database.open(database) as opened:
        camera = opened.write_camera(
            pycolmap.Camera(model="SIMPLE_PINHOLE", width=100, height=100, params=[90, 50, 50])
        )
        for number, values in enumerate((first, second), 1):
            image = opened.write_image(pycolmap.Image(name=str(number), camera_id=camera))
            assert image == number
            opened.write_keypoints(image, np.random.default_rng(number).random((len(values), 2)).astype(np.float32))
            kind = pycolmap.FeatureExtractorType.SIFT
            opened.write_descriptors(image, pycolmap.FeatureDescriptors(kind, values))
    options = pycolmap.FeatureMatchingOptions()
    options.skip_geometric_verification, options.sift.cpu_brute_force_matcher, options.num_threads = True, True, 1
    pycolmap.match_exhaustive(database, matching_options=options)
    with pycolmap.Database.open(database) as opened:
        return np.asarray(opened.read_matches(1, 2))


@pytest.mark.parametrize(("sizes", "noise"), [((150, 90), 0.2), ((90, 151), 1.0), ((64, 64), 2.0)])
def test_matches_are_those_of_the_exhaustive_matcher(sizes, noise, tmp_path, monkeypatch):
    first = descriptors(sizes[0], 1)
    second = descriptors(sizes[1], 2, first, noise)[::-1]
    expected = of_library(first, second, tmp_path)
    assert len(expected) >= 20
    for rows in (512, 7):  # all at once, and in parts of odd size
        monkeypatch.setattr(nearest, "ROWS", rows)
        np.testing.assert_array_equal(mutual_nearest(first, second), expected)


def test_a_feature_that_two_are_equally_near_to_has_no_match():
    first = descriptors(30, 1)
    assert len(mutual_nearest(first, first)) == 30
    assert mutual_nearest(first, np.concatenate([first, first[:10]]))[:, 0].tolist() == list(range(10, 30))


@pytest.mark.parametrize("sizes", [(0, 5), (5, 0), (0, 0), (1, 1)])
def test_pictures_of_hardly_any_features(sizes):
    matches = mutual_nearest(descriptors(sizes[0], 1), descriptors(sizes[1], 1))
    assert matches.shape == ((1, 2) if sizes == (1, 1) else (0, 2)) and matches.dtype == np.uint32
