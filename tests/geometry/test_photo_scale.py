"""The scale of depth is found from pictures and the places of their cameras."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from lean3r.geometry.lens import Optics
from lean3r.geometry.photo_scale import Shown, photo_scale

sys.path.insert(0, str(Path(__file__).parents[1] / "refine"))
import scenes

POSES = scenes.arc(4)
OPTICS = Optics((), np.stack([scenes.INTRINSICS] * 4))


def shots() -> Shown:
    """The photographed corner and its true depth."""
    pictures, depth = (np.stack(part) for part in zip(*(scenes.photograph(pose) for pose in POSES), strict=True))
    return Shown(np.repeat(pictures[..., None], 3, axis=-1), np.ones(pictures.shape, bool), depth.astype(np.float32))


@pytest.mark.parametrize("wrong", [0.5, 1.6])
def test_depth_of_another_scale_is_brought_to_that_of_the_cameras(wrong: float) -> None:
    pictures = shots()
    found = photo_scale(pictures._replace(depth=pictures.depth * np.float32(wrong)), POSES, OPTICS, 1.0, 1.0)
    assert found is not None and abs(np.log(found * wrong)) < 0.07


def test_pictures_without_overlap_give_no_scale() -> None:
    apart = POSES.copy()
    apart[:, :3, 3] += 1000 * np.arange(4)[:, None]
    assert photo_scale(shots(), apart, OPTICS, 1.0, 1.0) is None
