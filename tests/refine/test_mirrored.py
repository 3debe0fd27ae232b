"""Photos that are mirrored, among others that are not."""

from __future__ import annotations

import numpy as np
import pycolmap
import pytest
from PIL import Image
from scenes import FOCAL, HEIGHT, WIDTH, arc, photograph

from lean3r.refine import matching
from lean3r.refine.job import PICTURES, Group, Job, View
from lean3r.refine.mirrored import against_the_most, mirrored

VIEWS = 7


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    return [photograph(pose)[0] for pose in arc(VIEWS, 0.3)]


def described(pictures: list[np.ndarray]) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """Descriptors and sizes of the features of pictures."""
    options = pycolmap.FeatureExtractionOptions(use_gpu=False, num_threads=1)
    options.sift.first_octave = 0
    extractor = pycolmap.FeatureExtractor.create(options, pycolmap.Device.cpu)
    found = [extractor.extract_from_uint8_array(np.ascontiguousarray(picture)) for picture in pictures]
    sizes = [np.array([point.compute_scale() for point in points]) for points, _ in found]
    return {v: np.asarray(d.data).astype(np.uint8) for v, (_, d) in enumerate(found)}, dict(enumerate(sizes))


@pytest.mark.parametrize("turned", [set(), {3}, {0, 2, 5}])
def test_photos_that_are_mirrored_are_found(turned, photos):
    assert mirrored(*described([p[:, ::-1] if v in turned else p for v, p in enumerate(photos)])) == turned


def ties(strong: int, across: int) -> np.ndarray:
    """Matches [6, 6] of photos with their neighbours, and of those on either side of a symmetric building."""
    away = np.abs(np.arange(6)[:, None] - np.arange(6))
    return np.where(away == 0, 0, np.where(away == 1, strong, across))


def test_a_symmetric_building_is_not_mirrored():
    assert against_the_most(ties(300, 20), ties(20, 90)) == []  # its two sides look like mirror images
    assert against_the_most(ties(300, 0), np.zeros((6, 6), int)) == []
    one = np.arange(6) == 2
    crossing = one[:, None] ^ one
    plain, turned = ties(300, 60), ties(40, 60)
    assert against_the_most(np.where(crossing, turned, plain), np.where(crossing, plain, turned)) == [2]
    weak = np.where(crossing, plain * 2 // 3, turned)  # fewer than the photos of this set usually have
    assert against_the_most(np.where(crossing, turned, plain), weak) == []
    near = np.where(crossing, 200, plain)  # it matches as it is nearly as well
    assert against_the_most(near, np.where(crossing, plain, turned)) == []


def test_a_mirrored_photo_matches_no_other_that_is_not(tmp_path):
    """A symmetric front: a mirrored photo of it matches windows on its other side."""
    rng = np.random.default_rng(0)
    noise = (255 * rng.random((60, 110))).astype(np.uint8)
    wide = np.array(Image.fromarray(noise).resize((440, 240), Image.Resampling.BICUBIC))
    wide[:, 220:290] = wide[:, 219:149:-1]
    files = [f"0/{view:06d}.bmp" for view in range(VIEWS)]
    (tmp_path / PICTURES / "0").mkdir(parents=True)
    for view, file in enumerate(files):
        picture = wide[:, 10 * view : 10 * view + WIDTH]
        Image.fromarray(picture[:, ::-1] if view == 3 else picture).save(tmp_path / PICTURES / file)
    group = Group(WIDTH, HEIGHT, "SIMPLE_PINHOLE", (FOCAL, WIDTH / 2, HEIGHT / 2))
    nowhere = np.full((VIEWS, 4, 4), np.nan)
    views = tuple(View(0, 1.0, file) for file in files)
    none = np.zeros(VIEWS, bool)
    job = Job(views, (group,), nowhere, np.ones((VIEWS, 4)), nowhere, none, None, 2000, 1)
    database = tmp_path / "database.db"
    assert matching.find(job, tmp_path, database, 0) == {files[3]}
    with pycolmap.Database.open(database) as opened:
        pairs = [pycolmap.pair_id_to_image_pair(pair) for pair in opened.read_all_matches()[0]]
    assert len(pairs) == 15 and not any(4 in pair for pair in pairs)  # image 4 is view 3
