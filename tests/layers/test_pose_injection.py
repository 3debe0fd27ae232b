"""Only differences of known poses matter, and views without a pose are not read."""

from __future__ import annotations

import torch
from torch import Tensor

from lean3r.geometry.pose import make_pose
from lean3r.geometry.rotation import so3_exp
from lean3r.layers.pose_injection import PoseFrame, PoseInjection
from lean3r.testing import assert_rms, rms_ratio
from lean3r.types import TokenLayout

VIEWS = 3
LAYOUT = TokenLayout(VIEWS, 0, 2, 3)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def poses(seed: int = 0) -> Tensor:
    return make_pose(so3_exp(draw(1, VIEWS, 3, seed=seed)), draw(1, VIEWS, 3, seed=seed + 1))


def inject(x: Tensor, cam_from_world: Tensor, known: list[bool]) -> Tensor:
    torch.manual_seed(0)
    layer = PoseInjection(32, 2).eval()
    for scale in (layer.ls1, layer.ls2):
        torch.nn.init.ones_(scale.gamma)
    with torch.no_grad():
        return layer(x, LAYOUT, PoseFrame(cam_from_world, torch.tensor([known])))


def test_the_world_frame_does_not_matter() -> None:
    x, camera = draw(1, VIEWS * 6, 32), poses()
    plain = inject(x, camera, [True] * VIEWS)
    moved = camera @ make_pose(so3_exp(draw(3, seed=8)), draw(3, seed=9))
    assert_rms(inject(x, moved, [True] * VIEWS), plain, 1e-4)
    other = camera.clone()
    other[:, 1] = poses(4)[:, 1]
    assert rms_ratio(inject(x, other, [True] * VIEWS), plain) > 0.01, "the relative poses do"


def test_views_without_a_pose_are_not_read() -> None:
    x, camera, known = draw(1, VIEWS * 6, 32), poses(), [True, False, True]
    other, moved = x.clone(), camera.clone()
    other[:, 6:12] = 7.0
    moved[:, 1] = poses(4)[:, 1]
    a, b = (inject(*given, known).unflatten(1, (VIEWS, 6))[:, [0, 2]] for given in ((x, camera), (other, moved)))
    assert torch.equal(a, b)
