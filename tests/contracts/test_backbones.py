"""Every backbone keeps the promises of models/base.py, on random models of the smallest size that they declare."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from contracts.tiny import tiny
from lean3r.geometry.pose import relative_pose
from lean3r.models import CARDS, MODELS
from lean3r.models.base import Backbone
from lean3r.models.nano import Nano
from lean3r.types import Prediction, Views

each_model = pytest.mark.parametrize("name", list(MODELS))


def pictures(model: Backbone, views: int, rows: int, cols: int, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(100 * views + rows)
    return torch.rand(batch, views, 3, rows * model.patch, cols * model.patch, generator=generator)


def predict(model: Backbone, images: Tensor, mask: Tensor | None = None) -> Prediction:
    with torch.inference_mode():
        return model(Views(images, mask))


def by_view(found: Prediction) -> dict[str, Tensor]:
    """What a prediction says of each view, free of the choice of the world's frame."""
    assert found.depth is not None and found.conf is not None
    return {"intrinsics": found.intrinsics, "depth": found.depth, "conf": found.conf}


def assert_equal(actual: Tensor, expected: Tensor, said: str) -> None:
    atol = 1e-4 * max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=atol, msg=lambda text: f"{said}: {text}")


@each_model
@pytest.mark.parametrize(("views", "rows", "cols"), [(1, 4, 3), (2, 3, 5), (5, 5, 3)])
def test_prediction_has_its_shapes_and_meaning(name: str, views: int, rows: int, cols: int) -> None:
    model = tiny(name)
    images = pictures(model, views, rows, cols)
    found = predict(model, images)
    maps = (1, views, *images.shape[-2:])
    assert found.depth is not None and found.conf is not None
    assert found.depth.shape == found.conf.shape == maps
    assert found.cam_from_world.shape == (1, views, 4, 4) and found.intrinsics.shape == (1, views, 3, 3)
    for value in (found.depth, found.conf, found.cam_from_world, found.intrinsics):
        assert value.dtype == torch.float32 and bool(value.isfinite().all())
    assert bool((found.depth > 0).all()) and bool((found.conf >= 1).all())
    rotation = found.cam_from_world[..., :3, :3]
    assert_equal(rotation @ rotation.mT, torch.eye(3).expand_as(rotation), "rotations are orthonormal")
    assert_equal(torch.linalg.det(rotation), torch.ones(1, views), "rotations are proper")
    bottom = torch.tensor([0.0, 0.0, 0.0, 1.0])
    assert bool((found.cam_from_world[..., 3, :] == bottom).all())
    assert bool((found.intrinsics[..., [0, 1], [0, 1]] > 0).all())
    assert bool((found.intrinsics[..., 2, :] == bottom[1:]).all())


@each_model
def test_cameras_alone(name: str) -> None:
    model = tiny(name)
    images = pictures(model, 2, 3, 4)
    with torch.inference_mode():
        tokens = model.encode(Views(images))
        whole, cameras = model.decode(tokens), model.decode(tokens, dense=False)
    assert cameras.depth is None and cameras.conf is None
    assert_equal(cameras.intrinsics, whole.intrinsics, "intrinsics")
    assert_equal(cameras.cam_from_world[..., :3, :3], whole.cam_from_world[..., :3, :3], "rotations")
    if cameras.is_metric == whole.is_metric:
        assert_equal(cameras.cam_from_world, whole.cam_from_world, "poses")
    assert tokens.layout.tokens == tokens.layout.special + tokens.layout.rows * tokens.layout.cols
    for layer in tokens.layers.values():
        assert layer.shape[:2] == (1, 2)


@each_model
def test_permuting_views_permutes_outputs(name: str) -> None:
    model = tiny(name)
    images = pictures(model, 4, 3, 4)
    order = [2, 0, 3, 1] if model.REFERENCE is None else [0, 3, 1, 2]
    plain, turned = predict(model, images), predict(model, images[:, order])
    if model.ORDERED:
        assert not torch.equal(turned.depth, plain.depth[:, order])  # type: ignore[index,arg-type]
        return
    for key, value in by_view(plain).items():
        assert_equal(by_view(turned)[key], value[:, order], key)
    pairs = relative_pose(plain.cam_from_world)[:, order][:, :, order]
    assert_equal(relative_pose(turned.cam_from_world), pairs, "relative poses")


@each_model
def test_scenes_of_a_batch_do_not_mix(name: str) -> None:
    model = tiny(name)
    images = pictures(model, 2, 3, 4, batch=2)
    both = predict(model, images)
    for scene in range(2):
        alone = predict(model, images[scene, None])
        assert_equal(both.cam_from_world[scene, None], alone.cam_from_world, "poses")
        for key, value in by_view(alone).items():
            assert_equal(by_view(both)[key][scene, None], value, key)


@each_model
def test_values_on_padding_make_no_difference(name: str) -> None:
    model = tiny(name)
    images = pictures(model, 3, 4, 5)
    mask = torch.ones(1, 3, *images.shape[-2:], dtype=torch.bool)
    mask[:, 1, :, : model.patch] = False
    mask[:, 1, :, -model.patch :] = False
    mask[:, 2, : model.patch] = False
    assert_equal(
        predict(model, images, torch.ones_like(mask)).intrinsics, predict(model, images).intrinsics, "no padding"
    )
    other = images.where(mask[:, :, None], 1 - images)
    found, changed = predict(model, images, mask), predict(model, other, mask)
    assert torch.equal(found.cam_from_world, changed.cam_from_world)
    assert torch.equal(found.intrinsics, changed.intrinsics)
    for key in ("depth", "conf"):
        assert torch.equal(by_view(found)[key][mask], by_view(changed)[key][mask]), key


@each_model
def test_what_a_picture_shows_depends_on_it_alone(name: str) -> None:
    """Streams find places again by it."""
    model = tiny(name)
    if not model.SEES:
        pytest.skip("the model looks at no picture")
    images = pictures(model, 3, 5, 4)
    with torch.inference_mode():
        found = model.appearance(Views(images))
        assert_equal(model.appearance(Views(images.flip(1))).flip(0), found, "in another order")
        assert_equal(model.appearance(Views(images[:, 1:2])), found[1:2], "alone")
        mask = torch.ones(1, 3, *images.shape[-2:], dtype=torch.bool)
        mask[:, :, : model.patch] = False
        other = images.masked_fill(~mask[:, :, None], 0.9)
        assert_equal(model.appearance(Views(images, mask)), model.appearance(Views(other, mask)), "padding")
    assert found.shape[0] == 3 and bool(found.isfinite().all())
    assert float((found[0] - found[1]).abs().max()) > 0


@each_model
def test_gradients_are_finite_and_reach_the_pixels(name: str) -> None:
    model = tiny(name)
    images = pictures(model, 2, 3, 4).requires_grad_()
    found = model(Views(images))
    assert found.depth is not None and found.conf is not None
    loss = found.depth.log().mean() + found.conf.log().mean() + found.cam_from_world.square().mean()
    (loss + found.intrinsics.log1p().mean()).backward()
    gradients = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    assert images.grad is not None and bool(images.grad.isfinite().all()) and bool((images.grad != 0).any(2).all())
    assert len(gradients) > 0.3 * len(list(model.parameters()))
    broken = [key for key, value in gradients.items() if not bool(value.isfinite().all())]
    assert not broken, f"gradients that are not finite: {broken[:5]}"


@each_model
def test_a_row_describes_its_model(name: str) -> None:
    kind = MODELS.get(name)
    assert kind.name == name and kind.licence and name in kind.SIZES
    assert kind.resolution % tiny(name).patch == 0


def test_nano_is_small_and_has_patches_to_spare() -> None:
    model = Nano()
    assert model.parameter_count <= 6_000_000
    assert (model.resolution // model.patch) ** 2 >= 200
    assert sum(p.nbytes for p in model.state_dict().values()) <= 12_000_000


def test_nano_sees_padded_pictures_as_it_sees_them_whole() -> None:
    """Whole patches of padding at the bottom and at the right: cameras and depth hardly change."""
    model = tiny("nano")
    rows, cols, reach = 6, 7, 4  # in patches; the guided head's convolutions reach four patches far
    images = pictures(model, 2, rows, cols)
    mask = torch.ones(1, 2, (rows + 2) * model.patch, (cols + 3) * model.patch, dtype=torch.bool)
    mask[..., rows * model.patch :, :] = False
    mask[..., cols * model.patch :] = False
    padded = images.new_full((1, 2, 3, *mask.shape[-2:]), 0.5)
    padded[..., : rows * model.patch, : cols * model.patch] = images
    whole, found = predict(model, images), predict(model, padded, mask)
    assert_equal(found.cam_from_world, whole.cam_from_world, "poses")
    assert_equal(found.intrinsics, whole.intrinsics, "intrinsics")
    inner = (..., slice(0, (rows - reach) * model.patch), slice(0, (cols - reach) * model.patch))
    assert found.depth is not None and whole.depth is not None
    assert_equal(found.depth[inner], whole.depth[inner], "depth away from the padding")


def test_the_model_forgets_the_values_of_padding_but_keeps_the_rest() -> None:
    from lean3r.models.base import grey_padding

    images, mask = torch.rand(1, 1, 3, 4, 4), torch.ones(1, 1, 4, 4, dtype=torch.bool)
    mask[..., 2:] = False
    views = Views(images, mask)
    grey = grey_padding(views)
    assert torch.equal(grey.images[..., :2], images[..., :2]) and bool((grey.images[..., 2:] == 0.5).all())
    assert grey_padding(replace(views, mask=None)).images is images


@each_model
def test_the_card_matches_the_model(name: str) -> None:
    with torch.device("meta"):
        model = MODELS.get(name)()
    card = CARDS[name]
    told = (card.parameters, card.resolution, card.patch, card.licence)
    assert told == (model.parameter_count, model.resolution, model.patch, model.licence)
