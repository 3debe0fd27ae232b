"""Laws of Pi3 and Pi3X on small random models: symmetry, conditions, chunks, padding, number types."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lean3r.errors import UsageError
from lean3r.geometry.camera import intrinsics_from_slopes, ray_directions
from lean3r.geometry.pose import make_pose
from lean3r.geometry.rotation import so3_exp
from lean3r.models.base import Backbone
from lean3r.models.pi3 import Pi3, Pi3Config
from lean3r.models.pi3x import Pi3X, Pi3XConfig
from lean3r.types import Known, Views

SMALL = {"width": 32, "heads": 2, "encoder_depth": 1, "grid": 4, "camera_width": 16}


@pytest.fixture(scope="module")
def pi3() -> Pi3:
    torch.manual_seed(0)
    return randomise(Pi3(Pi3Config(**SMALL, depth=4)))


@pytest.fixture(scope="module")
def pi3x() -> Pi3X:
    torch.manual_seed(1)
    config = Pi3XConfig(**SMALL, depth=12, conv_widths=(32, 16), conv_last=8, metric_width=32, metric_heads=2)
    return randomise(Pi3X(config))


def randomise(model):
    """Large layer scales, so that every branch shows."""
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            torch.nn.init.uniform_(parameter, 0.2, 0.6)
    return model.eval()


def pictures(views: int = 3, batch: int = 1, height: int = 56, width: int = 70) -> Tensor:
    return torch.rand(batch, views, 3, height, width, generator=torch.Generator().manual_seed(5))


def everything(images: Tensor) -> Known:
    """Plausible conditions for all views."""
    batch, views, _, height, width = images.shape
    random = torch.Generator().manual_seed(6)
    turn, shift = torch.randn(2, batch, views, 3, generator=random).unbind(0)
    intrinsics = torch.tensor([[60.0, 0, width / 2], [0, 55.0, height / 2], [0, 0, 1]])
    depth = torch.rand(batch, views, height, width, generator=random) + 0.5
    depth[..., :7] = 0
    return Known(
        intrinsics=intrinsics.expand(batch, views, 3, 3),
        cam_from_world=make_pose(so3_exp(0.3 * turn), shift),
        depth=depth,
    )


def outputs(model: Pi3, images: Tensor, known: Known | None = None) -> dict[str, Tensor]:
    with torch.inference_mode():
        return model.outputs(model.encode(Views(images, known=known)))


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], rtol=1e-4, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def differ(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return any(float((a[name] - b[name]).abs().max()) > 1e-3 for name in a)


@pytest.mark.parametrize("which", ["pi3", "pi3x"])
def test_order_of_views_does_not_matter(which: str, request: pytest.FixtureRequest) -> None:
    model, images, order = request.getfixturevalue(which), pictures(), [2, 0, 1]
    plain, turned = outputs(model, images), outputs(model, images[:, order])
    assert_same({k: v[:, order] if v.dim() > 1 else v for k, v in plain.items()}, turned)


@pytest.mark.parametrize("which", ["pi3", "pi3x"])
def test_prediction_is_the_outputs_in_our_conventions(which: str, request: pytest.FixtureRequest) -> None:
    model, images = request.getfixturevalue(which), pictures()
    with torch.inference_mode():
        tokens = model.encode(Views(images))
        found, prediction, cameras = model.outputs(tokens), model.decode(tokens), model.decode(tokens, dense=False)
    torch.testing.assert_close(prediction.depth, found["local_points"][..., 2])
    relative = torch.linalg.inv(found["camera_poses"]) @ found["camera_poses"][:, :1]
    torch.testing.assert_close(prediction.cam_from_world, relative, rtol=1e-4, atol=1e-4)
    assert prediction.conf.min() >= 1 and cameras.depth is None and cameras.conf is None
    assert prediction.is_metric == (which == "pi3x")
    torch.testing.assert_close(cameras.intrinsics, prediction.intrinsics)


def test_chunks_change_nothing(pi3x: Pi3X, monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures()
    whole = outputs(pi3x, images, everything(images))
    monkeypatch.setattr(Backbone, "chunk_bytes", 1)
    assert_same(whole, outputs(pi3x, images, everything(images)))


def test_scenes_of_a_batch_are_independent(pi3x: Pi3X) -> None:
    images = pictures(batch=2)
    known = replace(
        everything(images),
        has_pose=torch.tensor([[True, False, True], [False, True, False]]),
        has_depth=torch.tensor([[False, False, False], [True, False, True]]),
    )
    both = outputs(pi3x, images, known)
    for scene in range(2):
        parts = {k: None if v is None else v[scene : scene + 1] for k, v in vars(known).items()}
        assert_same(
            {k: v[scene : scene + 1] for k, v in both.items()}, outputs(pi3x, images[scene, None], Known(**parts))
        )


@pytest.mark.parametrize("part", ["pose", "depth", "intrinsics"])
def test_tables_of_what_is_known(pi3x: Pi3X, part: str) -> None:
    images = pictures()
    field = {"pose": "cam_from_world", "depth": "depth", "intrinsics": "intrinsics"}[part]
    known = Known(**{field: getattr(everything(images), field)})

    def given(*has: bool) -> dict[str, Tensor]:
        return outputs(pi3x, images, replace(known, **{f"has_{part}": torch.tensor([has])}))

    plain, full, some = outputs(pi3x, images), outputs(pi3x, images, known), given(True, False, True)
    assert_same(full, given(True, True, True))
    assert_same(plain, given(False, False, False))
    assert differ(plain, full) and differ(plain, some) and differ(full, some)
    if part == "pose":
        assert_same(plain, given(False, True, False))


def test_conditions_have_no_unit_and_no_origin(pi3x: Pi3X) -> None:
    images = pictures()
    known = everything(images)
    assert known.cam_from_world is not None and known.depth is not None and known.intrinsics is not None
    moved = known.cam_from_world @ make_pose(so3_exp(torch.tensor([0.1, 0.5, -0.2])), torch.tensor([1.0, 2.0, 3.0]))
    larger = make_pose(moved[..., :3, :3], 7 * moved[..., :3, 3])
    assert_same(
        outputs(pi3x, images, known),
        outputs(pi3x, images, replace(known, cam_from_world=larger, depth=7 * known.depth)),
    )
    rays = 3 * ray_directions(known.intrinsics, *images.shape[-2:])
    assert_same(outputs(pi3x, images, known), outputs(pi3x, images, replace(known, intrinsics=None, rays=rays)))


def test_wrong_shapes_of_conditions_are_refused(pi3x: Pi3X) -> None:
    images = pictures()
    with pytest.raises(UsageError, match=r"got known depth of shape \[1, 3, 4, 4\], expected \[1, 3, 56, 70\]"):
        outputs(pi3x, images, Known(depth=torch.ones(1, 3, 4, 4)))


def test_the_trunk_never_reads_padding_patches(pi3: Pi3) -> None:
    images, mask = pictures(), torch.ones(1, 3, 56, 70, dtype=torch.bool)
    mask[:, 1, :, 42:] = False
    with torch.inference_mode():
        whole = pi3.decode(pi3.encode(Views(images, torch.ones_like(mask))))
        plain = pi3.decode(pi3.encode(Views(images)))
        padded = pi3.decode(pi3.encode(Views(images, mask)))
    torch.testing.assert_close(whole.depth, plain.depth)
    assert padded.depth is not None and bool(torch.isfinite(padded.depth).all())


def test_half_precision_stays_close(pi3x: Pi3X) -> None:
    images = pictures()
    exact = outputs(pi3x, images, everything(images))
    with torch.autocast("cpu", torch.bfloat16):
        close = outputs(pi3x, images, everything(images))
    for name in ("camera_poses", "local_points", "conf"):
        error = (close[name] - exact[name]).square().mean().sqrt() / exact[name].square().mean().sqrt()
        assert close[name].dtype == torch.float32 and float(error) < 0.1, name


def test_intrinsics_are_recovered_from_rays() -> None:
    intrinsics = torch.tensor([[[80.0, 0, 31], [0, 90.0, 30], [0, 0, 1]]])
    slopes = ray_directions(intrinsics, 49, 63)[..., :2]
    torch.testing.assert_close(intrinsics_from_slopes(slopes), intrinsics, rtol=1e-4, atol=1e-3)
    weight = torch.zeros(1, 49, 63)
    weight[:, 5:30, 10:40] = 1
    spoiled = torch.where(weight[..., None] > 0, slopes, torch.full_like(slopes, 9.0))
    torch.testing.assert_close(intrinsics_from_slopes(spoiled, weight), intrinsics, rtol=1e-4, atol=1e-3)
