"""Stereo without a network: depth is found from cameras alone, and what is not measured is unknown."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from stereo.rendered import error, of_views, scene, truth

from lean3r.errors import InputError
from lean3r.geometry.fusion import with_cloud
from lean3r.geometry.gaze import PARALLAX, distances
from lean3r.geometry.pose import make_pose
from lean3r.geometry.rotation import so3_exp
from lean3r.stereo import alone
from lean3r.stereo.alone import between, densify_alone, smaller
from lean3r.stereo.posed import Depths, Posed
from lean3r.types import Reconstruction


def only_cameras(index: int, views: int = 5) -> Reconstruction:
    """A rendered scene whose depth is what its cameras suggest."""
    batch = truth(index, views)
    maps = torch.ones_like(batch.depth[0]) * distances(batch.cam_from_world[0])[:, None, None].float()
    return scene(batch, maps)


def test_cameras_alone_are_enough() -> None:
    found = densify_alone(only_cameras(2))
    report, known = found.info["stereo"], found.depth > 0
    assert report["status"] == "measured" and report["share"] > 0.3
    assert error(found.depth, truth(2)) < 0.03
    assert not found.conf[~known].any() and len(with_cloud(found).points.xyz) > 1000


def test_what_no_other_view_sees_has_no_depth() -> None:
    before = only_cameras(2)
    turned = before.cam_from_world.copy()
    turned[0] = np.diag([-1.0, 1.0, -1.0, 1.0]) @ turned[0]
    found = densify_alone(replace(before, cam_from_world=turned))
    assert not found.depth[0].any() and found.depth[1:].any()
    without = [name for name, depth in zip(found.names, found.depth, strict=True) if not depth.any()]
    assert [(w["code"], w["views"]) for w in found.info["warnings"]] == [("nothing-measured", without)]
    nothing = densify_alone(of_views(replace(before, cam_from_world=turned), [0, 1]))
    assert (
        nothing.info["stereo"]["status"] == "kept"
        and not nothing.depth.any()
        and not len(with_cloud(nothing).points.xyz)
    )
    assert [w["code"] for w in nothing.info["warnings"]] == ["nothing-measured"]


def test_wrong_cameras_give_little_depth_and_say_so() -> None:
    before = only_cameras(4)
    shuffled = densify_alone(replace(before, images=before.images[[4, 0, 1, 2, 3]]))
    assert 0 < (shuffled.depth > 0).mean() < 0.1
    assert [warning["code"] for warning in shuffled.info["warnings"]] == ["nothing-measured", "little-measured"]


def test_cameras_that_are_slightly_wrong_are_told() -> None:
    """Views confirm each other over most of the pictures, but not as well as with right cameras."""
    before = only_cameras(3)
    axes = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    poses = before.cam_from_world.copy()
    poses[:, :3] = so3_exp(math.radians(2) * F.normalize(axes)).numpy() @ poses[:, :3]
    found = densify_alone(replace(before, cam_from_world=poses))
    assert found.info["stereo"]["share"] > 0.5
    assert [warning["code"] for warning in found.info["warnings"]] == ["views-disagree"]
    assert "warnings" not in densify_alone(before).info


def test_an_interrupted_first_look_ends_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is measured yet: another Ctrl-C must not be needed to end the rest."""

    def interrupted(scene: Posed, prior: torch.Tensor, *_: object, **__: object) -> Depths:
        return Depths(prior, prior, np.arange(len(prior)) == 0, interrupted=True)

    monkeypatch.setattr(alone, "measure_classically", interrupted)
    with pytest.raises(KeyboardInterrupt):
        densify_alone(only_cameras(2))


def test_gaps_are_filled_and_borders_do_not_grow() -> None:
    sure = torch.zeros(100, 100, dtype=torch.bool)
    sure[20:80, 20:80] = True
    sure[40:48, 40:48] = False
    filled = between(sure)
    assert filled[20:80, 20:80].all() and filled.sum() == 60 * 60
    assert not between(torch.zeros(50, 60, dtype=torch.bool)).any()


def test_small_copies_have_the_same_rays() -> None:
    before = only_cameras(3)
    small = smaller(before, 4)
    assert small.depth.shape == (5, 30, 38)
    np.testing.assert_allclose(small.original_intrinsics, before.original_intrinsics)


def test_cameras_say_how_far_away_they_look() -> None:
    turns = so3_exp(torch.tensor([[0.0, angle, 0.0] for angle in (-0.6, 0.0, 0.6)]).double())
    ring = make_pose(turns, torch.tensor([0.0, 0.0, 5.0]).double())
    assert distances(ring).tolist() == pytest.approx([5.0] * 3)
    shift = torch.tensor([[x, 0.0, 0.0] for x in (0.0, 3.0, 6.0)]).double()
    side_by_side = make_pose(torch.eye(3).double(), shift)
    assert distances(side_by_side).tolist() == pytest.approx([3 / PARALLAX] * 3)
    far = make_pose(torch.eye(3).double()[None], torch.tensor([[900.0, 300.0, 10.0]]).double())
    assert distances(torch.cat([ring, far]))[:3].tolist() == pytest.approx([5.0] * 3)
    outwards = make_pose(ring[:, :3, :3], torch.tensor([0.0, 0.0, -5.0]).double())
    assert (distances(outwards) > 0).all()
    with pytest.raises(InputError, match="in one place"):
        distances(side_by_side[[0, 0]])
